"""The MLflow store: opened once under a lock, written through an explicit client."""

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.tracking.schema import advice
from sedd.errors import SeddError, StorageError, UsageError

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_EXPERIMENT = "sedd"
MAX_METRICS_PER_CALL = 1000
MAX_PARAMS_PER_CALL = 100
MAX_PARAM_LENGTH = 6000


class TrackingUnavailableError(Exception):
    """The tracking server does not answer; the run goes on with its journal alone."""


@dataclass(frozen=True, kw_only=True)
class Store:
    """An MLflow store that exists, and the experiment in it."""

    tracking_uri: str
    experiment: str
    experiment_id: str


@dataclass(frozen=True, kw_only=True)
class RunRef:
    """Where a run is recorded: plain data that may travel to other processes."""

    tracking_uri: str
    experiment_id: str
    run_id: str


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One number of one step, as MLflow stores it."""

    key: str
    value: float
    step: int
    timestamp_ms: int


def resolve_uri(tracking_uri: str | None = None) -> str:
    """The tracking URI in force: given, else MLFLOW_TRACKING_URI, else mlflow.db in this folder.

    A SQLite path is made absolute, since Ray's workers live in other folders.
    """
    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI") or "sqlite:///mlflow.db"
    if not uri.startswith("sqlite:///"):
        return uri
    return f"sqlite:///{Path(uri.removeprefix('sqlite:///')).expanduser().absolute()}"


def open_store(tracking_uri: str | None = None, experiment: str | None = None) -> Store:
    """Open the MLflow store, making the database and the experiment where there are none.

    Two processes that create one SQLite database at the same time break it for ever, so this
    happens under a file lock. Artifacts of a SQLite store lie beside its file, in `mlartifacts/`.

    Raises:
        TrackingUnavailableError: The server does not answer.
        UsageError: The URI, or the right to use it, is wrong.
        StorageError: The database file is damaged or of another MLflow version.
    """
    uri = resolve_uri(tracking_uri)
    name = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT
    lock, artifacts = nullcontext(), None
    if uri.startswith("sqlite:///"):
        lock, artifacts = _sqlite_lock(Path(uri.removeprefix("sqlite:///")))
    with lock, _quietly(), opening(uri):
        client = connect(uri)
        found = client.get_experiment_by_name(name)
        if found is None:
            experiment_id = client.create_experiment(name, artifact_location=artifacts)
        elif found.lifecycle_stage != "active":
            message = (
                f"The experiment {name!r} is deleted in {redact(uri)}. Bring it back with "
                f"`mlflow experiments restore -x {found.experiment_id}`, or choose another with "
                "MLFLOW_EXPERIMENT_NAME."
            )
            raise UsageError(message)
        else:
            experiment_id = found.experiment_id
    return Store(tracking_uri=uri, experiment=name, experiment_id=experiment_id)


@contextmanager
def opening(uri: str) -> Iterator[None]:
    """Sort what can go wrong with a store into: wrong settings, a bad file, nobody there."""
    try:
        yield
    except SeddError:
        raise
    except Exception as error:
        code = getattr(error, "error_code", "")
        if code in {"UNAUTHENTICATED", "PERMISSION_DENIED"}:
            message = (
                f"MLflow at {redact(uri)} refuses these credentials ({code}). Set "
                "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
            )
            raise UsageError(message) from error
        if "out-of-date database schema" in str(error):
            message = advice(error, redact(uri))
            raise StorageError(message) from error
        if code == "RESOURCE_DOES_NOT_EXIST":
            message = f"{redact(uri)} does not hold this run (any more): {explain(error)}."
            raise UsageError(message) from error
        if isinstance(error, ImportError) or code in {
            "INVALID_PARAMETER_VALUE",
            "ENDPOINT_NOT_FOUND",
        }:
            message = (
                f"MLFLOW_TRACKING_URI={redact(uri)} cannot be used: {explain(error)}. Give "
                "sqlite:///path/to/mlflow.db or the http address of an MLflow server."
            )
            raise UsageError(message) from error
        if uri.startswith("sqlite:"):
            message = f"{uri} cannot be opened: {explain(error)}. Move the file away to start anew."
            raise StorageError(message) from error
        raise TrackingUnavailableError(explain(error)) from error


def connect(tracking_uri: str) -> "MlflowClient":
    """An MLflow client without telemetry and with waits of seconds rather than minutes."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri)


def send_metrics(client: "MlflowClient", run_id: str, metrics: Sequence[Metric]) -> None:
    """Write metrics to a run in calls of the size that MLflow accepts."""
    from mlflow.entities import Metric as StoredMetric

    stored = [StoredMetric(m.key, m.value, m.timestamp_ms, m.step) for m in metrics]
    for start in range(0, len(stored), MAX_METRICS_PER_CALL):
        client.log_batch(run_id, metrics=stored[start : start + MAX_METRICS_PER_CALL])


def metric_history(client: "MlflowClient", run_id: str, key: str) -> list[Metric]:
    """All points that MLflow holds of one metric of a run."""
    return [
        Metric(key=key, value=m.value, step=m.step, timestamp_ms=m.timestamp)
        for m in client.get_metric_history(run_id, key)
    ]


def send_params(client: "MlflowClient", run_id: str, params: Mapping[str, str]) -> None:
    """Write parameters; where a continued run has another value, the new one becomes a tag.

    MLflow never changes a parameter, so a run resumed with more steps keeps the
    `cfg.training.max_steps` of its start and shows the new number as the tag of the same name.
    """
    from mlflow.entities import Param, RunTag

    present = client.get_run(run_id).data.params
    new = [Param(key, value) for key, value in params.items() if key not in present]
    changed = [
        RunTag(key, value)
        for key, value in params.items()
        if key in present and present[key] != value
    ]
    for start in range(0, len(new), MAX_PARAMS_PER_CALL):
        client.log_batch(run_id, params=new[start : start + MAX_PARAMS_PER_CALL])
    if changed:
        client.log_batch(run_id, tags=changed)


def send_tags(client: "MlflowClient", run_id: str, tags: Mapping[str, str]) -> None:
    """Set tags of a run, in one call."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(name, value) for name, value in tags.items()])


def send_dataset(
    client: "MlflowClient", run_id: str, *, name: str, digest: str, source: str, context: str
) -> None:
    """Attach a data set to a run: where it lies, and the digest of what it held."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=name, digest=digest[:36], source_type="local", source=json.dumps({"uri": source})
    )
    tags = [InputTag("mlflow.data.context", context)]
    client.log_inputs(run_id, datasets=[DatasetInput(dataset=dataset, tags=tags)])


def metric_key(name: str) -> str:
    """A name that MLflow accepts: `Pearson/CD14+ Monocytes` becomes `Pearson/CD14_ Monocytes`."""
    return re.sub(r"[^\w\-. /]", "_", name)[:250]


def redact(text: str) -> str:
    """The text with user names and passwords taken out of its addresses."""
    return re.sub(r"(\w+://)[^/\s@]+@", r"\1***@", text)


def explain(error: BaseException) -> str:
    """The first line of an error of MLflow, short and without secrets."""
    return redact(f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"[:300])


def _sqlite_lock(path: Path) -> tuple[Any, str]:
    """The lock under which a SQLite store may be made, and where its artifacts go."""
    from filelock import FileLock

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.joinpath("mlartifacts").mkdir(exist_ok=True)
    except OSError as error:
        message = f"The MLflow store {path} cannot be made: {error.strerror}."
        raise StorageError(message) from error
    lock = FileLock(path.with_name(path.name + ".lock"), timeout=300)
    return lock, path.parent.joinpath("mlartifacts").resolve().as_uri()


@contextmanager
def _quietly() -> Iterator[None]:
    """Without the hundred lines that MLflow's database migrations print."""
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)
