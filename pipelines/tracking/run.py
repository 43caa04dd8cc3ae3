"""The run of a verb: found or made by the driver, and ended rightly on every way out."""

import os
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipelines.command_line import warn
from pipelines.journal import now_ms
from pipelines.signals import sigterm_unwinds
from pipelines.tracking.endings import status_of
from pipelines.tracking.facts import flat_params
from pipelines.tracking.faults import TrackingUnavailableError, explain, redact
from pipelines.tracking.log import Artifact, Dataset, Log, deliver
from pipelines.tracking.origin import Origin, claim_run
from pipelines.tracking.record import KEEPERS, RECORD_NAME, Ledger, Record, ledger_of, relative
from pipelines.tracking.store import (
    MAX_PARAM_LENGTH,
    NOTE,
    Metric,
    RunRef,
    connect,
    default_experiment,
    metric_key,
    open_store,
    resolve_uri,
)
from pipelines.tracking.syncing import make_known

# A server that lets us wait in vain is not asked again for a while: a sweep opens many runs.
PATIENCE_S = 10.0
SILENCE_S = 600.0
_SILENT_UNTIL: dict[str, float] = {}


class DriverRun:
    """The run that a driver writes to; a failing tracking server costs one warning, no more.

    What is logged stands in the folder's ledger first. When MLflow does not take something, the
    rest waits there too, rather than holding the driver up with one call after the other; the end
    of the run tries once more, and `sync` at any time later.
    """

    def __init__(
        self, ref: RunRef | None, *, owned: bool = True, ledger: Ledger | None = None
    ) -> None:
        self.ref = ref
        self.owned = owned
        self._ledger = ledger
        self._waiting = False

    def log_config(self, config: Mapping[str, Any], *, text: str | None = None) -> None:
        """Log every value of a resolved config as a parameter `cfg.SECTION.KEY`.

        Args:
            config: Sections of plain values.
            text: The config as YAML, kept as the artifact `config.yaml`.
        """
        texts = {"config.yaml": text} if text is not None else {}
        self._log(Log(params=flat_params(config), texts=texts))

    def log_params(self, params: Mapping[str, str]) -> None:
        """Log parameters under the names given, e.g. `hp.model.dropout`."""
        short = {metric_key(name): text[:MAX_PARAM_LENGTH] for name, text in params.items()}
        self._log(Log(params=short))

    def log_dataset(self, name: str, *, digest: str, source: str, context: str) -> None:
        """Attach the cells a verb read; `digest` is of their content, `context` e.g. training."""
        dataset = Dataset(name=name, digest=digest, source=source, context=context)
        self._log(Log(datasets=(dataset,)))

    def log_metrics(self, metrics: Mapping[str, float], *, step: int = 0) -> None:
        """Log a handful of final numbers; a training loop writes to its journal instead."""
        now = now_ms()
        points = tuple(
            Metric(key=metric_key(name), value=float(value), step=step, timestamp_ms=now)
            for name, value in metrics.items()
        )
        self._log(Log(metrics=points))

    def log_artifacts(self, path: str | os.PathLike[str], folder: str | None = None) -> None:
        """Copy a file, or all files of a folder, to the run's artifacts."""
        home = self._ledger.folder if self._ledger is not None else None
        self._log(Log(artifacts=(Artifact(path=relative(Path(path), home), to=folder),)))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags, replacing those of the same names."""
        self._log(Log(tags=dict(tags)))

    def describe(self, text: str) -> None:
        """Set the run's note, Markdown that MLflow shows above the run; the newest counts."""
        self.set_tags({NOTE: text})

    def finish(self, status: str) -> None:
        """Send what waits, and set the final status unless this verb only joined the run."""
        ended_ms = now_ms()
        if self._ledger is not None and self.owned:
            self._ledger.change(lambda record: replace(record, status=status, ended_ms=ended_ms))
        if self.ref is None:
            return
        try:
            if self._ledger is not None and (record := self._ledger.read()) is not None:
                deliver(self.ref, record.missing, folder=self._ledger.folder)
                self._ledger.settle(record.missing)
            if self.owned:
                connect(self.ref.tracking_uri).set_terminated(self.ref.run_id, status, ended_ms)
        except Exception as error:  # noqa: BLE001  (a mirror: no failure of it may end a run)
            warn(f"MLflow lacks the last of this run ({explain(error)}). {later(self._ledger)}")

    def _log(self, log: Log) -> None:
        if self._ledger is not None:
            self._ledger.owe(log)
        if self.ref is None or self._waiting:
            return
        try:
            deliver(self.ref, log, folder=self._ledger.folder if self._ledger else None)
        except Exception as error:  # noqa: BLE001  (a mirror: no failure of it may end a run)
            warn(f"MLflow did not take a record ({explain(error)}); going on.")
            self._waiting = True
            return
        if self._ledger is not None:
            self._ledger.settle(log)


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

    It is the run that `mlflow run` made for this process, else the one that `train` or `tune` made
    for the same folder (which they go on with and other verbs join), else a new one. Enter it
    before Ray starts: workers inherit this process's environment, and MLFLOW_RUN_ID is taken out
    of it here. It ends FINISHED, FAILED, or KILLED (a signal, or a scheduler's stop); a run that
    was only joined keeps status and end.

    Args:
        verb: The verb's name, e.g. train.
        experiment_dir: The folder that the run belongs to; remembers the run in `tracking.json`.
        name: The run's name; the folder's name if not given.
        experiment: The MLflow experiment; MLFLOW_EXPERIMENT_NAME or `sedd` if not given.
        tracking_uri: The store; MLFLOW_TRACKING_URI or ./mlflow.db if not given.
        parent: The run under which this one is shown; one that is gone on with moves there.

    Raises:
        UsageError: The tracking URI or the credentials are wrong.
        StorageError: The SQLite file is damaged, or of another MLflow.
    """
    folder = Path(experiment_dir).expanduser().resolve() if experiment_dir is not None else None
    given_id = os.environ.pop("MLFLOW_RUN_ID", None)
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)
    uri = resolve_uri(tracking_uri or (parent.tracking_uri if parent else None))
    origin = Origin(
        verb=verb,
        name=name or (folder.name if folder is not None else verb),
        folder=folder,
        given_id=given_id,
        parent=parent,
    )
    run = open_run(uri, experiment or default_experiment(), origin)
    status = "FAILED"
    try:
        with sigterm_unwinds():
            yield run
        status = "FINISHED"
    except BaseException as error:
        status = status_of(error)
        raise
    finally:
        run.finish(status)


def open_run(uri: str, experiment: str, origin: Origin) -> DriverRun:
    """Find or make the run, and the ledger that its folder keeps of it.

    Raises:
        UsageError: The tracking URI or the credentials are wrong.
        StorageError: The SQLite file is damaged, or of another MLflow.
    """
    folder, claim, began = origin.folder, None, time.monotonic()
    try:
        if _SILENT_UNTIL.get(uri, 0.0) > began:
            message = "nor a moment ago, when it let us wait"
            raise TrackingUnavailableError(message)
        store = open_store(uri, experiment)
        if folder is not None and origin.given_id is None:
            make_known(store, folder)
        claim = claim_run(store, origin)
    except TrackingUnavailableError as error:
        now = time.monotonic()
        if now - began > PATIENCE_S:
            _SILENT_UNTIL[uri] = now + SILENCE_S
        ledger = _ledger(origin, joined=_may_join(origin))
        warn(f"MLflow at {redact(uri)} does not answer ({error}); going on. {later(ledger)}")
    else:
        ledger = _ledger(origin, joined=not claim.owned)
    owned = claim.owned if claim else not _may_join(origin)
    if ledger is not None:
        run_id = claim.ref.run_id if claim else origin.given_id
        _remember(ledger, origin, uri, experiment, run_id=run_id, owned=owned)
    return DriverRun(claim.ref if claim else None, owned=owned, ledger=ledger)


def later(ledger: Ledger | None) -> str:
    """How what MLflow lacks gets there."""
    if ledger is None:
        return "Nothing of it is kept: it belongs to no folder."
    return (
        f"Everything is kept in {ledger.folder}; when MLflow is back: python -m pipelines.tracking "
        f"sync --experiment_dir {shlex.quote(str(ledger.folder))}"
    )


def _may_join(origin: Origin) -> bool:
    """Whether, as far as the folder tells, this verb writes to the run of another."""
    if origin.folder is None or origin.given_id is not None or origin.verb in KEEPERS:
        return False
    return Ledger(origin.folder / RECORD_NAME).read() is not None


def _ledger(origin: Origin, *, joined: bool) -> Ledger | None:
    if origin.folder is None:
        return None
    return ledger_of(origin.folder, KEEPERS[0] if joined else origin.verb)


def _remember(
    ledger: Ledger,
    origin: Origin,
    uri: str,
    experiment: str,
    *,
    run_id: str | None,
    owned: bool,
) -> None:
    """Bring the record up to this run; what MLflow still lacks of it stays noted."""
    record = ledger.read()
    if record is not None and not owned:
        return
    begun = Record(
        verb=origin.verb if owned else KEEPERS[0],
        name=origin.name,
        experiment=experiment,
        tracking_uri=uri,
        run_id=run_id,
        status="RUNNING",
    )
    if record is not None:
        begun = replace(
            begun,
            run_id=run_id or record.run_id,
            started_ms=record.started_ms,
            missing=record.missing,
        )
    begun.save(ledger.path)
