"""The run of a verb: found or made by the driver, and ended rightly on every way out."""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, NoReturn

from pipelines.command_line import warn
from pipelines.journal import now_ms
from pipelines.tracking import store as mlflow_store
from pipelines.tracking.origin import KEEPER, Origin, claim_run
from pipelines.tracking.record import Record, flat_params
from pipelines.tracking.store import (
    DEFAULT_EXPERIMENT,
    NOTE,
    Metric,
    RunRef,
    TrackingUnavailableError,
    open_store,
)
from sedd.errors import Preempted

if TYPE_CHECKING:
    from mlflow import MlflowClient

# Exit codes that mean "stopped from outside": signals, as shells and as Ray count them.
STOPPED = {signal.SIGTERM.value, 128 + signal.SIGINT, 128 + signal.SIGTERM, Preempted.exit_code}


class DriverRun:
    """The run that a driver writes to; a failing tracking server costs one warning, no more."""

    def __init__(self, ref: RunRef | None, *, owned: bool = True) -> None:
        self.ref = ref
        self.owned = owned
        self._warned = ref is None

    def log_config(self, config: Mapping[str, Any], *, text: str | None = None) -> None:
        """Log every value of a resolved config as a parameter `cfg.SECTION.KEY`.

        Args:
            config: Sections of plain values.
            text: The config as YAML, kept as the artifact `config.yaml`.
        """

        def write(client: "MlflowClient", run_id: str) -> None:
            mlflow_store.send_params(client, run_id, flat_params(config))
            if text is not None:
                client.log_text(run_id, text, "config.yaml")

        self._write(write)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Log values under names of their own, e.g. `hp.model.hidden_dim`."""
        texts = {mlflow_store.metric_key(name): str(value) for name, value in params.items()}
        self._write(lambda client, run_id: mlflow_store.send_params(client, run_id, texts))

    def log_dataset(self, name: str, *, digest: str, source: str, context: str) -> None:
        """Attach the cells a verb read; `digest` is of their content, `context` e.g. training."""
        self._write(
            lambda client, run_id: mlflow_store.send_dataset(
                client, run_id, name=name, digest=digest, source=source, context=context
            )
        )

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Log a handful of final numbers; a training loop writes to its journal instead."""
        now = now_ms()
        points = [
            Metric(key=mlflow_store.metric_key(name), value=value, step=step, timestamp_ms=now)
            for name, value in metrics.items()
        ]
        self._write(lambda client, run_id: mlflow_store.send_metrics(client, run_id, points))

    def log_artifacts(self, path: str | os.PathLike[str], folder: str | None = None) -> None:
        """Copy a file, or all files of a folder, to the run's artifacts."""
        many = Path(path).is_dir()
        self._write(
            lambda client, run_id: (client.log_artifacts if many else client.log_artifact)(
                run_id, str(path), folder
            )
        )

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, replacing those of the same names."""
        self._write(lambda client, run_id: mlflow_store.send_tags(client, run_id, tags))

    def describe(self, text: str) -> None:
        """Set the run's note, Markdown that MLflow shows above the run; the newest counts."""
        self.set_tags({NOTE: text})

    def finish(self, status: str) -> None:
        """Set the final status, unless this verb only joined the run of another."""
        if self.owned:
            self._write(lambda client, run_id: client.set_terminated(run_id, status))

    def _write(self, action: Callable[["MlflowClient", str], None]) -> None:
        if self.ref is None:
            return
        try:
            action(mlflow_store.connect(self.ref.tracking_uri), self.ref.run_id)
        except Exception as error:  # noqa: BLE001  (a mirror: no failure of it may end a run)
            if not self._warned:
                warn(f"MLflow did not take a record ({mlflow_store.explain(error)}); going on.")
            self._warned = True


@contextmanager
def driver_run(
    verb: str,
    *,
    experiment_dir: str | os.PathLike[str] | None = None,
    name: str | None = None,
    experiment: str | None = None,
    tracking_uri: str | None = None,
    parent: RunRef | None = None,
) -> Iterator[DriverRun]:
    """The MLflow run of one verb, from its first line to its status.

    It is the run that `mlflow run` made for this process, else the one that `train` made for the
    same experiment directory (which `train` goes on with and other verbs join), else a new one.
    Enter it before Ray starts: workers inherit this process's environment, and MLFLOW_RUN_ID is
    taken out of it here. It ends FINISHED, FAILED, or KILLED (a signal, or a scheduler's stop).

    Args:
        verb: The verb's name, e.g. train.
        experiment_dir: The folder that the run belongs to; remembers the run in `tracking.json`.
        name: The run's name; the folder's name if not given.
        experiment: The MLflow experiment; MLFLOW_EXPERIMENT_NAME or `sedd` if not given.
        tracking_uri: The store; MLFLOW_TRACKING_URI or ./mlflow.db if not given.
        parent: The run under which this one is shown; one that is gone on with moves there.

    Raises:
        UsageError: The tracking URI or the credentials are wrong.
        StorageError: The SQLite file is damaged.
    """
    folder = Path(experiment_dir).expanduser().resolve() if experiment_dir is not None else None
    name = name or (folder.name if folder is not None else verb)
    given_id = os.environ.pop("MLFLOW_RUN_ID", None)
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
    uri = mlflow_store.resolve_uri(tracking_uri or (parent.tracking_uri if parent else None))
    experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_EXPERIMENT
    origin = Origin(verb=verb, name=name, folder=folder, given_id=given_id, parent=parent)
    try:
        claim = claim_run(open_store(uri, experiment), origin)
        run = DriverRun(claim.ref, owned=claim.owned)
    except TrackingUnavailableError as error:
        run = DriverRun(None)
        warn(_offline_message(uri, error, folder))
    record = Record(
        verb=verb,
        name=name,
        experiment=experiment,
        tracking_uri=uri,
        run_id=run.ref.run_id if run.ref else None,
        status="RUNNING",
    )
    remembered = folder if verb == KEEPER else None
    status = "FAILED"
    try:
        if remembered is not None:
            record.save(remembered)
        with _sigterm_unwinds():
            yield run
        status = "FINISHED"
    except BaseException as error:
        status = status_of(error)
        raise
    finally:
        run.finish(status)
        if remembered is not None:
            replace(record, status=status).save(remembered)


def status_of(error: BaseException) -> str:
    """The MLflow status of a run that this exception ends."""
    if isinstance(error, SystemExit):
        if error.code in (None, 0):
            return "FINISHED"
        return "KILLED" if error.code in STOPPED else "FAILED"
    return "KILLED" if isinstance(error, KeyboardInterrupt | Preempted) else "FAILED"


def _offline_message(uri: str, error: BaseException, folder: Path | None) -> str:
    later = (
        f"Every metric is kept in {folder}; when MLflow is back: "
        f"python -m pipelines.tracking sync --experiment_dir {shlex.quote(str(folder))}"
        if folder is not None
        else "Nothing of this run will be tracked."
    )
    return f"MLflow at {mlflow_store.redact(uri)} does not answer ({error}); going on. {later}"


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """A plain `kill` ends the block through its `finally`, so that the run is closed."""
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        del frame
        sys.exit(128 + number)

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
