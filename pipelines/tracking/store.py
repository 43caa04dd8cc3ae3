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

from pipelines.tracking.faults import TrackingUnavailableError as TrackingUnavailableError
from pipelines.tracking.faults import diagnose, redact, require_file
from pipelines.tracking.faults import explain as explain
from sedd.errors import SeddError, StorageError, UsageError

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULT_EXPERIMENT = "sedd"
MAX_METRICS_PER_CALL = 1000
MAX_PARAMS_PER_CALL = 100
MAX_PARAM_LENGTH = 6000
MAX_TAG_LENGTH = 5000
NOTE = "mlflow.note.content"  # the tag whose Markdown MLflow shows as the description
EXPERIMENT_NOTE = """\
Models of perturbed single cells (score-entropy discrete diffusion); one run per training.

**What a run holds.** `cfg.*`: its whole configuration. `train/*`, `val/*`: loss and negative ELBO
(nats per gene) by step. `eval/METRIC`: predicted against real held-out cells, and
`eval/METHOD/METRIC` the same of every baseline and of the ceiling. `n_params`, `cells_seen`,
`wall_s`: what it cost. `speed/*`, `system/*`: the machine. Its note says what was held out and how
it did; `evaluation/report.html` among its artifacts says the rest. Inputs: the cells, by digest.

**How to compare.** Choose models by `val/nelbo`, never by `eval/*`: those cells are the test.
Compare `eval/*` only between runs of the same `sedd.split` and the same digest of the cells. Select
runs, *Compare*, then a scatter plot of `val/nelbo` against `n_params`, `cells_seen` or `wall_s`
shows quality against cost. Runs of a sweep lie folded under their parent.
"""
EXPERIMENT_TAGS = {
    NOTE: EXPERIMENT_NOTE,
    "mlflow.experimentKind": "custom_model_development",  # not the pages for chat programs
}


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


def default_experiment() -> str:
    """The name of the MLflow experiment in force: MLFLOW_EXPERIMENT_NAME, else `sedd`."""
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT


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
    name = experiment or default_experiment()
    lock, artifacts = nullcontext(), None
    if uri.startswith("sqlite:///"):
        lock, artifacts = _sqlite_lock(Path(uri.removeprefix("sqlite:///")))
    with lock, quietly(), opening(uri):
        client = connect(uri)
        found = client.get_experiment_by_name(name)
        if found is None:
            experiment_id = client.create_experiment(
                name, artifact_location=artifacts, tags=EXPERIMENT_TAGS
            )
        elif found.lifecycle_stage != "active":
            message = (
                f"The experiment {name!r} is deleted in {redact(uri)}. Bring it back with "
                f"`mlflow experiments restore -x {found.experiment_id}`, or choose another with "
                "MLFLOW_EXPERIMENT_NAME."
            )
            raise UsageError(message)
        else:
            experiment_id = found.experiment_id
            for tag, value in EXPERIMENT_TAGS.items():
                if tag not in found.tags:
                    client.set_experiment_tag(experiment_id, tag, value)
    return Store(tracking_uri=uri, experiment=name, experiment_id=experiment_id)


@contextmanager
def opening(uri: str) -> Iterator[None]:
    """Sort what can go wrong with a store into: wrong settings, a bad file, nobody there."""
    try:
        yield
    except SeddError:
        raise
    except Exception as error:
        raise diagnose(uri, error) from error


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
    """Set tags of a run, in one call; a value too long for MLflow ends with its last whole line."""
    from mlflow.entities import RunTag

    client.log_batch(run_id, tags=[RunTag(name, shorten(text)) for name, text in tags.items()])


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


def shorten(text: str, limit: int = MAX_TAG_LENGTH) -> str:
    """The text if MLflow takes it whole, else its first lines and a sign that some are missing."""
    if len(text) <= limit:
        return text
    kept = text[: limit - 2]
    return f"{kept[: kept.rfind(chr(10))] if chr(10) in kept else kept}\n…"


def _sqlite_lock(path: Path) -> tuple[Any, str]:
    """The lock under which a SQLite store may be made, and where its artifacts go."""
    from filelock import FileLock

    require_file(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.parent.joinpath("mlartifacts").mkdir(exist_ok=True)
    except OSError as error:
        message = f"The MLflow store {path} cannot be made: {error.strerror}."
        raise StorageError(message) from error
    lock = FileLock(path.with_name(path.name + ".lock"), timeout=300)
    return lock, path.parent.joinpath("mlartifacts").resolve().as_uri()


@contextmanager
def quietly() -> Iterator[None]:
    """Without MLflow's own account of migrating a database, copying files and waiting."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    before = logging.root.manager.disable
    logging.disable(logging.INFO)
    try:
        yield
    finally:
        logging.disable(before)
