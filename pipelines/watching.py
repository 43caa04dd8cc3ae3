"""The driver's view of workers in other processes: it reads what they write."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipelines.journal import JournalFollower
from pipelines.progress import Progress, progress


@contextmanager
def follow_journal(path: Path, *, total: int, poll_s: float = 0.5) -> Iterator[None]:
    """Show the progress of a training run from its journal while the block runs."""
    follower = JournalFollower(path)
    before = follower.poll()
    first = before[-1].step if before else 0
    ended = threading.Event()
    with progress("train", total, start=first) as shown:

        def watch() -> None:
            seen_before: float | None = None
            while True:
                last_look = ended.wait(poll_s)
                for point in follower.poll():
                    cells = point.metrics.get("train/cells_seen", 0.0)
                    seen_before = cells if seen_before is None else seen_before
                    loss = point.metrics.get("train/loss")
                    shown.update(point.step, cells=int(cells - seen_before), loss=loss)
                    _note_validation(shown, point.step, point.metrics.get("val/nelbo"))
                if last_look:
                    return

        thread = threading.Thread(target=watch, name="progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(5)


def _note_validation(shown: Progress, step: int, nelbo: float | None) -> None:
    if nelbo is not None:
        shown.note(f"step {step}  validation NELBO {nelbo:.4f} nats/gene")
