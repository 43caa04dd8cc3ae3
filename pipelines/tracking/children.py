"""The MLflow runs of a sweep's trials: children of one parent, each ended as its trial ended."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.command_line import warn
from pipelines.journal import FILE_NAME, read_journal
from pipelines.tracking.faults import explain
from pipelines.tracking.mirror import Copier, mirror
from pipelines.tracking.record import RECORD_NAME, Ledger
from pipelines.tracking.run import DriverRun, driver_run
from pipelines.tracking.store import RunRef
from sedd.errors import Preempted, SeddError


@dataclass
class _Child:
    run: DriverRun
    stack: ExitStack
    folder: Path


class Children:
    """Child runs that are open now; those still open when the block ends are KILLED."""

    def __init__(self, parent: RunRef | None, *, tracking_uri: str | None = None) -> None:
        self._parent, self._tracking_uri = parent, tracking_uri
        self._open: dict[str, _Child] = {}
        self._unfinished: list[Path] = []

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._open):
            self._close(name, Preempted("the sweep was stopped"))
        for folder in self._unfinished:
            self._send_rest(folder)

    def begin(self, name: str, folder: Path) -> DriverRun:
        """Open the run of a trial, or go on with the one it has, and mirror its journal."""
        if name in self._open:
            return self._open[name].run
        stack = ExitStack()
        run = stack.enter_context(
            driver_run(
                "train",
                experiment_dir=folder,
                name=name,
                tracking_uri=self._tracking_uri,
                parent=self._parent,
            )
        )
        stack.enter_context(mirror(run.ref, folder / FILE_NAME))
        self._open[name] = _Child(run=run, stack=stack, folder=folder)
        return run

    def end(
        self,
        name: str,
        state: str,
        *,
        reason: str,
        metrics: Mapping[str, float],
        config: Mapping[str, Any],
        text: str,
    ) -> None:
        """End the run of a trial: FINISHED, FAILED, or KILLED where it was stopped early.

        Args:
            name: The trial's name.
            state: finished, stopped, failed or broken.
            reason: Why it did not finish; a tag.
            metrics: Final numbers.
            config: The configuration it had, as plain values; a budget in seconds is in it only
                after the trial was paced.
            text: The same as YAML.
        """
        child = self._open.get(name)
        if child is None:
            return
        child.run.log_config(config, text=text)
        child.run.log_metrics(metrics)
        child.run.set_tags({"sedd.trial": state, **({"sedd.reason": reason} if reason else {})})
        endings = {
            "stopped": Preempted(reason),
            "failed": SeddError(reason),
            "broken": SeddError(reason),
        }
        if state == "stopped":
            self.expect_rest(child.folder)
        self._close(name, endings.get(state))

    def expect_rest(self, folder: Path) -> None:
        """Send, when the block ends, what a stopped trial wrote after its run had ended.

        A driver that was killed could not, so the next one names the trials that were stopped.
        """
        self._unfinished.append(folder)

    def _close(self, name: str, error: BaseException | None) -> None:
        """Leave the run's block as if this had been raised in it."""
        child = self._open.pop(name)
        child.stack.__exit__(type(error) if error else None, error, None)

    def _send_rest(self, folder: Path) -> None:
        record = Ledger(folder / RECORD_NAME).read()
        if self._parent is None or record is None or record.run_id is None:
            return
        try:
            Copier(replace(self._parent, run_id=record.run_id)).send(
                read_journal(folder / FILE_NAME)
            )
        except Exception as error:  # noqa: BLE001  (a mirror: no failure of it may end a sweep)
            warn(f"MLflow lacks the last steps of {folder} ({explain(error)}).")
