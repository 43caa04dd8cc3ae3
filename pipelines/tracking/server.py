"""`python -m pipelines.tracking serve`: an MLflow server for a lab, with safe defaults.

Users and the keys of the server live in one private folder. Artifacts go through the server, so
that clients need an address, a name and a password, and no right to any folder or bucket.
"""

import getpass
import importlib.util
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.tracking.faults import redact, require_known_schema
from pipelines.tracking.store import resolve_uri
from sedd.errors import UsageError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
MIN_PASSWORD = 12
USERS_FILE = """\
# Who may do what on this MLflow server. A user may read and write the runs of others, so that all
# can work in one experiment; only who made an experiment (or the admin) may delete it.
[mlflow]
default_permission = EDIT
database_uri = {database}
admin_username = {admin}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
"""


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What a lab decides about its server."""

    backend_store_uri: str
    """`sqlite:///FILE` or `postgresql://USER:PASSWORD@HOST/DATABASE`: runs and models."""
    artifacts: str
    """Folder or `s3://BUCKET/PATH`: files of runs and models."""
    auth_dir: Path
    """Private folder of users and keys."""
    host: str = "127.0.0.1"
    port: int = 5000
    allowed_hosts: tuple[str, ...] = ()
    """Names by which clients may call the server, beside those of this machine itself."""
    workers: int = 1
    auth: bool = True


@dataclass(frozen=True, kw_only=True)
class ServerCommand:
    """How the server is started; what is secret stands in the environment, not in `ps`."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]


def prepare_server(settings: ServerSettings, environment: Mapping[str, str]) -> ServerCommand:
    """Check the settings, make the private folder, and say how MLflow is to be started.

    Raises:
        UsageError: The settings would leave the server open, or something that they need is
            missing.
        StorageError: The database is of another MLflow.
    """
    _require_closed(settings)
    uri = database_uri(settings.backend_store_uri)
    artifacts = _artifacts(settings.artifacts)
    require_known_schema(uri)
    arguments = [
        *(sys.executable, "-m", "mlflow", "server"),
        *("--host", settings.host, "--port", str(settings.port)),
        *("--workers", str(settings.workers), "--artifacts-destination", artifacts),
        *("--allowed-hosts", ",".join(_host_patterns(settings.allowed_hosts))),
    ]
    there = {
        **environment,
        "MLFLOW_BACKEND_STORE_URI": uri,
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    if settings.auth:
        arguments += ["--app-name", "basic-auth"]
        there |= _auth_environment(settings.auth_dir, uri, environment)
    return ServerCommand(arguments=tuple(arguments), environment=there)


def serve(settings: ServerSettings) -> None:
    """Become the server; does not return.

    Raises:
        UsageError: The settings would leave the server open, or something is missing.
        StorageError: The database is of another MLflow.
    """
    command = prepare_server(settings, os.environ)
    where = redact(command.environment["MLFLOW_BACKEND_STORE_URI"])
    print(f"MLflow at http://{settings.host}:{settings.port}: {where}, {settings.artifacts}")
    sys.stdout.flush()
    os.execve(command.arguments[0], list(command.arguments), dict(command.environment))


def database_uri(given: str) -> str:
    """The address of the database as SQLAlchemy wants it: an absolute file, or psycopg 3.

    Raises:
        UsageError: It is of no kind that is offered here, or the driver is not installed.
    """
    scheme, _, rest = given.partition("://")
    if scheme in {"postgresql", "postgres", "postgresql+psycopg"}:
        _require_package("psycopg", "A PostgreSQL database", "'.[server]'")
        return f"postgresql+psycopg://{rest}"
    if scheme == "sqlite":
        return resolve_uri(given)
    message = (
        f"--backend_store_uri {redact(given)} is neither sqlite:///FILE nor "
        "postgresql://USER:PASSWORD@HOST/DATABASE."
    )
    raise UsageError(message)


def _require_closed(settings: ServerSettings) -> None:
    """Refuse to be reachable from other machines without users, or by any name."""
    if settings.host in LOOPBACK:
        return
    if not settings.auth:
        message = (
            f"--host {settings.host} can be reached from other machines, so users must log in: "
            "leave out --no_auth, or listen on 127.0.0.1."
        )
        raise UsageError(message)
    if not settings.allowed_hosts:
        message = (
            f"--host {settings.host} can be reached from other machines. Say by which name clients "
            "call it: --allowed_hosts mlflow.lab.example."
        )
        raise UsageError(message)


def _host_patterns(names: Sequence[str]) -> list[str]:
    """The Host headers to answer to: each name with any port, and this machine's own names."""
    known = dict.fromkeys((*names, "127.0.0.1", "localhost"))
    return [
        pattern
        for name in known
        for pattern in ((name,) if ":" in name or "*" in name else (name, f"{name}:*"))
    ]


def _artifacts(given: str) -> str:
    if given.startswith("s3://"):
        _require_package("boto3", "An S3 bucket", "boto3")
        return given
    if "://" in given:
        message = f"--artifacts {redact(given)} is neither a folder nor s3://BUCKET/PATH."
        raise UsageError(message)
    return str(Path(given).expanduser().absolute())


def _auth_environment(folder: Path, uri: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Where users are kept, and the keys of the server; made at the first start."""
    _require_package("flask_wtf", "Logging in", "'.[server]'")
    users, key = folder / "basic_auth.ini", folder / "secret_key"
    password = environment.get("MLFLOW_AUTH_ADMIN_PASSWORD", "")
    admin = environment.get("MLFLOW_AUTH_ADMIN_USERNAME", "admin")
    if not users.exists():
        password = password or _ask_password(admin)
        if len(password) < MIN_PASSWORD:
            message = f"The admin's password needs {MIN_PASSWORD} characters or more."
            raise UsageError(message)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        shared = uri.startswith("postgresql")
        database = uri if shared else f"sqlite:///{folder.absolute() / 'users.db'}"
        text = USERS_FILE.format(database=database.replace("%", "%%"), admin=admin)
        _write_private(users, text)
    if not key.exists():
        _write_private(key, secrets.token_hex(32))
    given = environment.get("MLFLOW_FLASK_SERVER_SECRET_KEY")
    return {
        "MLFLOW_AUTH_CONFIG_PATH": str(users.absolute()),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": given or key.read_text(encoding="utf-8"),
        **({"MLFLOW_AUTH_ADMIN_PASSWORD": password} if password else {}),
    }


def _ask_password(admin: str) -> str:
    if not sys.stdin.isatty():
        message = (
            f"This server has no users yet. Set MLFLOW_AUTH_ADMIN_PASSWORD ({MIN_PASSWORD} "
            f"characters or more) for the first one, {admin!r}."
        )
        raise UsageError(message)
    return getpass.getpass(f"Password for the first user, {admin!r}: ")


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, from its first byte on."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _require_package(module: str, what: str, package: str) -> None:
    if not _is_installed(module):
        message = f"{what} needs another package on the server: pip install {package}"
        raise UsageError(message)


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
