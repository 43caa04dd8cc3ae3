"""How far a long job is: a live bar on a terminal, plain lines everywhere else.

Both say the same: step, loss, cells per second, time left. A log file gets one line every few
seconds, flushed, so that `tail -f` of a scheduler's log shows where the job stands.
"""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TextIO

SMOOTHING_S = 30.0  # the rate is that of the last half minute


class Progress(Protocol):
    """What a job tells while it runs."""

    def update(self, step: int, *, cells: int, loss: float | None = None) -> None:
        """Say where the job is.

        Args:
            step: Steps (or units) done.
            cells: Cells seen or made since the start of this process.
            loss: The newest loss, where there is one.
        """
        ...

    def note(self, text: str) -> None:
        """Print a line that stays, e.g. `checkpoint at step 500`."""
        ...


@dataclass(frozen=True, kw_only=True)
class Pace:
    """How fast a job is, and how long it still takes."""

    cells_per_s: float | None
    seconds_left: float | None


class Speedometer:
    """Rates over the recent past: a resumed job's earlier steps do not count as done quickly."""

    def __init__(self, total: int, clock: Callable[[], float]) -> None:
        self._total = total
        self._clock = clock
        self._marks: list[tuple[float, int, int]] = []

    def measure(self, step: int, cells: int) -> Pace:
        """Take a reading."""
        now = self._clock()
        self._marks.append((now, step, cells))
        while len(self._marks) > 2 and self._marks[1][0] <= now - SMOOTHING_S:
            del self._marks[0]
        then, first_step, first_cells = self._marks[0]
        elapsed = now - then
        if elapsed <= 0:
            return Pace(cells_per_s=None, seconds_left=None)
        steps_per_s = (step - first_step) / elapsed
        left = max(0, self._total - step) / steps_per_s if steps_per_s > 0 else None
        return Pace(cells_per_s=(cells - first_cells) / elapsed, seconds_left=left)


@contextmanager
def progress(
    label: str,
    total: int,
    *,
    start: int = 0,
    unit: str = "step",
    stream: TextIO | None = None,
    every_s: float = 10.0,
) -> Iterator[Progress]:
    """A bar on a terminal, lines every `every_s` seconds otherwise.

    Args:
        label: What runs, e.g. `train`.
        total: The step at which it is done.
        start: The step at which this process begins.
        unit: What a step is called.
        stream: Where to write; stderr if not given.
        every_s: Pause between two plain lines.
    """
    out = stream or sys.stderr
    if out.isatty():
        with _live_bar(label, total, start, unit, out) as bar:
            yield bar
    else:
        yield PlainProgress(label, total, start=start, unit=unit, stream=out, every_s=every_s)


class PlainProgress:
    """Lines for logs: `train step 120/1000 loss 0.4312 5310 cells/s 2:41 left`."""

    def __init__(
        self,
        label: str,
        total: int,
        *,
        start: int = 0,
        unit: str = "step",
        stream: TextIO,
        every_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._stream, self._every_s, self._clock = stream, every_s, clock
        self._speed = Speedometer(total, clock)
        self._speed.measure(start, 0)
        self._written_at = clock()

    def update(self, step: int, *, cells: int, loss: float | None = None) -> None:
        """Write a line if the last one is old enough, and always at the end."""
        pace = self._speed.measure(step, cells)
        now = self._clock()
        if now - self._written_at < self._every_s and step < self._total:
            return
        self._written_at = now
        parts = [f"{self._label} {self._unit} {step}/{self._total}", *describe(loss, pace)]
        self.note("  ".join(parts))

    def note(self, text: str) -> None:
        """Write a line now."""
        self._stream.write(f"{text}\n")
        self._stream.flush()


def describe(loss: float | None, pace: Pace) -> list[str]:
    """Loss, rate and time left, as far as they are known."""
    parts = [] if loss is None else [f"loss {loss:.4f}"]
    if pace.cells_per_s is not None:
        parts.append(f"{pace.cells_per_s:,.0f} cells/s")
    if pace.seconds_left is not None:
        parts.append(f"{clock_text(pace.seconds_left)} left")
    return parts


def clock_text(seconds: float) -> str:
    """A duration as 0:09, 12:30 or 3:05:00."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@contextmanager
def _live_bar(
    label: str, total: int, start: int, unit: str, stream: TextIO
) -> Iterator["_BarProgress"]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn(f"{unit} {{task.completed:.0f}}/{{task.total:.0f}}"),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, console=Console(file=stream)) as bar:
        task = bar.add_task(label, total=total, completed=start, state="")
        yield _BarProgress(bar, task, Speedometer(total, time.monotonic), start)


class _BarProgress:
    """The terminal's bar."""

    def __init__(self, bar: Any, task: int, speed: Speedometer, start: int) -> None:
        self._bar, self._task, self._speed = bar, task, speed
        self._speed.measure(start, 0)

    def update(self, step: int, *, cells: int, loss: float | None = None) -> None:
        state = "  ".join(describe(loss, self._speed.measure(step, cells)))
        self._bar.update(self._task, completed=step, state=state)

    def note(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)
