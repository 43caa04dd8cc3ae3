"""The mirror: copies a journal's points to MLflow, each once, whatever happens in between.

A point counts as present when MLflow holds the same value of that metric at that step, so steps
that a resumed run repeats bit for bit, and syncs that are run twice, leave no second row. Metrics
under `speed/` and `system/` describe the machine and never repeat: there any value at that step
counts.
"""

import math
import os
import shlex
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.command_line import warn
from pipelines.journal import JournalFollower, Point
from pipelines.tracking.faults import explain
from pipelines.tracking.store import (
    Metric,
    RunRef,
    connect,
    metric_history,
    metric_key,
    send_metrics,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

MACHINE_PREFIXES = ("speed/", "system/")
LONGEST_PAUSE_S = 60.0


class Copier:
    """Sends metrics that a run does not hold yet; asks MLflow once per metric name."""

    def __init__(self, ref: RunRef) -> None:
        self._ref = ref
        self._client: MlflowClient | None = None
        self._present: dict[str, dict[int, list[float]]] = {}

    def send(self, points: Iterable[Point]) -> int:
        """Send what is missing of these points; returns how many values that were."""
        if self._client is None:
            self._client = connect(self._ref.tracking_uri)
        missing = [m for m in _metrics(points) if not self._has(self._client, m)]
        send_metrics(self._client, self._ref.run_id, missing)
        return len(missing)

    def forget(self) -> None:
        """Ask MLflow anew what it holds, after a send that failed or a journal that shrank."""
        self._present.clear()

    def _has(self, client: "MlflowClient", metric: Metric) -> bool:
        if metric.key not in self._present:
            held: dict[int, list[float]] = {}
            for old in metric_history(client, self._ref.run_id, metric.key):
                held.setdefault(old.step, []).append(old.value)
            self._present[metric.key] = held
        values = self._present[metric.key].get(metric.step, [])
        if metric.key.startswith(MACHINE_PREFIXES):
            return bool(values)
        return any(_same(value, metric.value) for value in values)


@contextmanager
def mirror(
    ref: RunRef | None,
    journal_path: str | os.PathLike[str],
    *,
    interval_s: float = 2.0,
    patience_s: float = 30.0,
) -> Iterator[None]:
    """While the block runs, a thread copies the journal's new points to MLflow.

    The block neither waits for MLflow nor hears of its errors. At the end the last points are
    given `patience_s`; what did not get through is named in a warning and stays in the journal.

    Args:
        ref: The run; None (MLflow was down at the start) mirrors nothing.
        journal_path: The journal that the block writes.
        interval_s: Pause between two looks at the journal.
        patience_s: How long the end of the block may wait for MLflow.
    """
    if ref is None:
        yield
        return
    thread = _MirrorThread(ref, Path(journal_path), interval_s)
    thread.start()
    try:
        yield
    finally:
        thread.finish(patience_s)


class _MirrorThread(threading.Thread):
    """Follows a journal until told to finish; pauses longer the longer MLflow is away."""

    def __init__(self, ref: RunRef, journal: Path, interval_s: float) -> None:
        super().__init__(name="mlflow-mirror", daemon=True)
        self._journal = journal
        self._interval_s = interval_s
        self._follower = JournalFollower(journal)
        self._copier = Copier(ref)
        self._backlog: list[Point] = []
        self._ending = threading.Event()
        self._failure = ""

    def run(self) -> None:
        failures = 0
        while True:
            last_round = self._ending.is_set()
            failures = 0 if self._copy() else failures + 1
            if last_round:
                return
            self._ending.wait(min(self._interval_s * 2**failures, LONGEST_PAUSE_S))

    def finish(self, patience_s: float) -> None:
        self._ending.set()
        self.join(patience_s)
        if self.is_alive() or self._failure:
            reason = self._failure or f"it did not answer within {patience_s:g} s"
            folder = shlex.quote(str(self._journal.parent))
            warn(
                f"MLflow lacks the last metrics ({reason}); they are in {self._journal}. Later: "
                f"python -m pipelines.tracking sync --experiment_dir {folder}"
            )

    def _copy(self) -> bool:
        try:
            self._backlog += self._follower.poll()
            if self._follower.restarted:
                self._copier.forget()
            self._copier.send(self._backlog)
        except Exception as error:  # noqa: BLE001  (a mirror: no failure of it may end a run)
            if not self._failure:
                warn(f"MLflow does not take metrics ({explain(error)}); the journal keeps them.")
            self._failure = explain(error)
            self._copier.forget()
            return False
        self._backlog.clear()
        self._failure = ""
        return True


def _metrics(points: Iterable[Point]) -> list[Metric]:
    return [
        Metric(key=metric_key(name), value=value, step=p.step, timestamp_ms=p.timestamp_ms)
        for p in points
        for name, value in p.metrics.items()
    ]


def _same(stored: float, value: float) -> bool:
    """Equal as MLflow stores it: nan is nan, and infinity becomes the largest float."""
    if math.isnan(value):
        return math.isnan(stored)
    largest = sys.float_info.max
    return stored == max(-largest, min(largest, value))
