"""`sync`: MLflow's copy of a folder's runs is brought up to what the folder holds."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.command_line import warn
from pipelines.journal import FILE_NAME, read_journal
from pipelines.tracking.faults import redact
from pipelines.tracking.log import deliver
from pipelines.tracking.mirror import Copier
from pipelines.tracking.origin import TAG_PARENT, create_run, folder_tags
from pipelines.tracking.record import RECORD_NAME, Ledger, Record
from pipelines.tracking.store import RunRef, Store, connect, open_store, opening
from sedd.errors import UsageError


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """What a sync found in the journals and what of it MLflow lacked."""

    run_id: str
    """The folder's run; that of a sweep is the parent of its trials' runs."""
    points: int
    sent: int
    runs: int


def sync(experiment_dir: str | os.PathLike[str], *, tracking_uri: str | None = None) -> SyncReport:
    """Bring MLflow's copy of a folder's runs up to the folder; running it twice changes nothing.

    A run that MLflow never heard of (it was down when the run began) is made here, with the times
    and the status that the folder remembers. Points of the journal that MLflow lacks are sent, and
    what the driver logged and MLflow did not take: configuration, tags, data sets, note, final
    numbers, files. In the folder of a sweep the runs of its trials and of the refitted winner
    follow, each under the sweep's own run.

    Args:
        experiment_dir: The run's folder, with its `tracking.json`.
        tracking_uri: The store; the folder's, or MLFLOW_TRACKING_URI, if not given.

    Raises:
        UsageError: The folder holds no tracked run, or its run was deleted in MLflow.
        TrackingUnavailableError: MLflow still does not answer.
    """
    folder = Path(experiment_dir).expanduser().resolve()
    first, *others = _ledgers(folder)
    record = Record.load(first.path)
    uri = tracking_uri or (None if "***" in record.tracking_uri else record.tracking_uri)
    store = open_store(uri, record.experiment)
    report = _sync_run(store, first, parent_id=None)
    for ledger in (*others, *_children(folder)):
        parent_id = report.run_id if ledger.folder != folder else None
        try:
            more = _sync_run(store, ledger, parent_id=parent_id)
        except UsageError as error:
            warn(f"{ledger.folder} is left out: {error}")
            continue
        report = replace(
            report,
            points=report.points + more.points,
            sent=report.sent + more.sent,
            runs=report.runs + 1,
        )
    return report


def make_known(store: Store, folder: Path) -> None:
    """Give the folder's run to a store that was away when it began, before another verb joins it.

    Raises:
        TrackingUnavailableError: The store is away again.
    """
    ledger = Ledger(folder / RECORD_NAME)
    record = ledger.read()
    if record is not None and record.run_id is None:
        _sync_run(store, ledger, parent_id=None)


def _ledgers(folder: Path) -> list[Ledger]:
    """The ledgers of a folder, its own run's first."""
    own = folder / RECORD_NAME
    others = sorted(path for path in folder.glob("tracking-*.json"))
    found = [*([own] if own.exists() or not others else []), *others]
    return [Ledger(path) for path in found]


def _children(folder: Path) -> Iterator[Ledger]:
    """The ledgers of a sweep's trials and of its refitted winners; `best` may link to one."""
    children = (*sorted(folder.glob("trials/*")), *sorted(folder.glob("refits/*")), folder / "best")
    for child in dict.fromkeys(child.resolve() for child in children):
        if (child / RECORD_NAME).exists():
            yield from _ledgers(child)


def _sync_run(store: Store, ledger: Ledger, *, parent_id: str | None) -> SyncReport:
    record = Record.load(ledger.path)
    with opening(store.tracking_uri):
        ref = _run_of(store, ledger, record)
        client = connect(store.tracking_uri)
        run = client.get_run(ref.run_id)
        if run.info.lifecycle_stage != "active":
            message = (
                f"The run {ref.run_id} of {ledger.folder} is deleted in "
                f"{redact(store.tracking_uri)}. Bring it back with `mlflow runs restore --run-id "
                f"{ref.run_id}`, or delete {ledger.path} to forget it."
            )
            raise UsageError(message)
        if parent_id is not None and run.data.tags.get(TAG_PARENT) != parent_id:
            client.set_tag(ref.run_id, TAG_PARENT, parent_id)
        deliver(ref, record.missing, folder=ledger.folder)
        ledger.settle(record.missing)
        keeps_journal = ledger.path.name == RECORD_NAME
        points = read_journal(ledger.folder / FILE_NAME) if keeps_journal else []
        sent = Copier(ref).send(points)
        if record.status != "RUNNING" and run.info.status == "RUNNING":
            client.set_terminated(ref.run_id, record.status, record.ended_ms)
    return SyncReport(
        run_id=ref.run_id, points=sum(len(p.metrics) for p in points), sent=sent, runs=1
    )


def _run_of(store: Store, ledger: Ledger, record: Record) -> RunRef:
    """The run that the record names, or a new one where it names none."""
    if record.run_id is not None:
        run = connect(store.tracking_uri).get_run(record.run_id)
        return RunRef(
            tracking_uri=store.tracking_uri,
            experiment_id=run.info.experiment_id,
            run_id=record.run_id,
        )
    ref = create_run(
        store,
        verb=record.verb,
        name=record.name,
        tags=folder_tags(ledger.folder),
        started_ms=record.started_ms,
    )
    ledger.change(lambda known: replace(known, run_id=ref.run_id, tracking_uri=store.tracking_uri))
    return ref
