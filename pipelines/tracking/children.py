"""The MLflow runs of a sweep's trials: children of one parent, each ended as its trial ended."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.command_line import warn
from pipelines.journal import FILE_NAME, read_journal
from pipelines.tracking.faults import explain
from pipelines.tracking.mirror import Copier, mirror
from pipelines.tracking.run import DriverRun, driver_run
from pipelines.tracking.store import RunRef
from sedd.errors import Preempted, SeddError


@dataclass
class _Child:
    run: DriverRun
    stack: ExitStack
    journal: Path


class Children:
    """Child runs that are open now; those still open when the block ends are KILLED."""

    def __init__(self, parent: RunRef | None, *, tracking_uri: str | None = None) -> None:
        self._parent, self._tracking_uri = parent, tracking_uri
        self._open: dict[str, _Child] = {}
        self._stopped: list[tuple[RunRef, Path]] = []

    def __enter__(self) -> "Children":
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._open):
            self._close(name, Preempted("the sweep was stopped"))
        for ref, journal in self._stopped:
            self._send_rest(ref, journal)

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
        self._open[name] = _Child(run=run, stack=stack, journal=folder / FILE_NAME)
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
        if state == "stopped" and child.run.ref is not None:
            self._stopped.append((child.run.ref, child.journal))
        self._close(name, endings.get(state))

    def _close(self, name: str, error: BaseException | None) -> None:
        """Leave the run's block as if this had been raised in it."""
        child = self._open.pop(name)
        child.stack.__exit__(type(error) if error else None, error, None)

    def _send_rest(self, ref: RunRef, journal: Path) -> None:
        """Send the steps that a trial took between the word to stop and its end."""
        try:
            Copier(ref).send(read_journal(journal))
        except Exception as error:  # noqa: BLE001  (a mirror: no failure of it may end a sweep)
            warn(f"MLflow lacks the last steps of {journal.parent} ({explain(error)}).")
