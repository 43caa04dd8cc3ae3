"""What can go wrong with an MLflow store, told in terms of what to do about it."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from sedd.errors import SeddError, StorageError, UsageError

if TYPE_CHECKING:
    from alembic.script import ScriptDirectory

REFUSED = {"UNAUTHENTICATED", "PERMISSION_DENIED"}
UNUSABLE = {"INVALID_PARAMETER_VALUE", "ENDPOINT_NOT_FOUND"}
DAMAGED = (
    "file is not a database",
    "malformed",
    "file is encrypted",
    "no such table",
    "_alembic_tmp_",
)
REVISIONS = re.compile(r"found version (\w+), but expected (\w+)")


class TrackingUnavailableError(Exception):
    """The tracking server does not answer; the run goes on with its journal alone."""


def diagnose(uri: str, error: Exception) -> SeddError | TrackingUnavailableError:
    """The error to raise for one of MLflow: wrong settings, a bad file, or nobody there."""
    code, shown = getattr(error, "error_code", ""), redact(uri)
    if "Invalid Host header" in str(error):
        message = (
            f"MLflow at {shown} does not answer to this host name. Add it to the --allowed_hosts "
            "of the server, or use a name that is there."
        )
        return UsageError(message)
    if code in REFUSED:
        message = (
            f"MLflow at {shown} refuses these credentials ({code}). Set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
        )
        return UsageError(message)
    if found := REVISIONS.search(str(error)):
        return StorageError(_other_version(uri, found[1], found[2]))
    if code == "RESOURCE_DOES_NOT_EXIST":
        message = f"{shown} does not hold this run (any more): {explain(error)}."
        return UsageError(message)
    if isinstance(error, ImportError) or code in UNUSABLE:
        message = (
            f"MLFLOW_TRACKING_URI={shown} cannot be used: {explain(error)}. Give "
            "sqlite:///path/to/mlflow.db or the http address of an MLflow server."
        )
        return UsageError(message)
    if uri.startswith("sqlite:"):
        return StorageError(f"{uri} cannot be opened: {explain(error)}. {_advice(error)}")
    return TrackingUnavailableError(explain(error))


def is_refusal(error: BaseException) -> bool:
    """Whether MLflow was there and will never take this, however often it is sent."""
    return getattr(error, "error_code", "") in {"INVALID_PARAMETER_VALUE", "BAD_REQUEST"}


def require_file(path: Path) -> None:
    """Say at once that a SQLite path is a folder; MLflow would try to open it for minutes.

    Raises:
        StorageError: It is.
    """
    if path.is_dir():
        message = f"The MLflow store {path} is a folder; name a file, e.g. {path / 'mlflow.db'}."
        raise StorageError(message)


def require_known_schema(uri: str) -> None:
    """Refuse a database that another version of MLflow wrote; an empty one is fine.

    Raises:
        StorageError: It is older or newer, damaged, or nobody answers at its address.
    """
    from sqlalchemy import create_engine, inspect, text
    from sqlalchemy.exc import SQLAlchemyError

    if uri.startswith("sqlite:///"):
        path = Path(uri.removeprefix("sqlite:///"))
        require_file(path)
        if not path.exists():
            return
    engine = create_engine(uri)
    try:
        with engine.connect() as connection:
            if not inspect(connection).has_table("alembic_version"):
                return
            found = connection.scalar(text("SELECT version_num FROM alembic_version"))
    except SQLAlchemyError as error:
        message = f"{redact(uri)} cannot be opened: {explain(error)}. {_advice(error)}"
        raise StorageError(message) from error
    finally:
        engine.dispose()
    expected = _schema_scripts().get_current_head()
    if found is not None and found != expected:
        raise StorageError(_other_version(uri, found, expected))


def redact(text: str) -> str:
    """The text with user names and passwords taken out of its addresses."""
    return re.sub(r"(\w+://)[^/\s@]+@", r"\1***@", text)


def explain(error: BaseException) -> str:
    """The first line of an error of MLflow, short and without secrets."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return redact(text[:300])


def _other_version(uri: str, found: str, expected: str | None) -> str:
    """Whether the database is of an older MLflow (upgrade it) or a newer one (upgrade MLflow)."""
    import mlflow

    shown = redact(uri)
    if found in {known.revision for known in _schema_scripts().walk_revisions()}:
        return (
            f"{shown} was written by an older MLflow (schema {found}; this is MLflow "
            f"{mlflow.__version__} with {expected}). Make a copy, then run `mlflow db upgrade "
            f"{shown}`."
        )
    return (
        f"{shown} was written by a newer MLflow (schema {found}, which MLflow {mlflow.__version__} "
        "does not know). Upgrade MLflow here to the version that wrote it, or use another store "
        "with MLFLOW_TRACKING_URI. `mlflow db upgrade` would not help."
    )


def _schema_scripts() -> "ScriptDirectory":
    """The steps by which this MLflow makes and upgrades a database."""
    from alembic.config import Config
    from alembic.script import ScriptDirectory
    from mlflow.store import db_migrations

    settings = Config()
    settings.set_main_option("script_location", str(Path(db_migrations.__path__[0])))
    return ScriptDirectory.from_config(settings)


def _advice(error: BaseException) -> str:
    """What to do about a SQLite file that cannot be opened; only a damaged one is to be moved."""
    text = str(error)
    if any(sign in text for sign in DAMAGED):
        return "The file is damaged: bring back a copy, or move it away to start anew."
    if "no such column" in text:
        return "It is a database of something else than MLflow; name another file."
    if "locked" in text:
        return "Another process holds it: wait for that, or run a server (see the README)."
    if "connection" in text and "psycopg" in text:
        return "Is the database running, and are its address, name and password right?"
    return "See that the disk has room and that you may write to the file and its folder."
