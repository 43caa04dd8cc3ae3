"""The journal of a run: every metric, on disk first, one JSON line per step.

`metrics.jsonl` is the truth and MLflow its mirror. A line is written whole and fsynced before
`flush` returns, so a killed run loses at most the points since the last flush, and a tracking
server that is down loses nothing.
"""

import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from sedd.errors import StorageError

FILE_NAME = "metrics.jsonl"


@dataclass(frozen=True, kw_only=True)
class Point:
    """The metrics of one step, with the moment they were taken (milliseconds since 1970)."""

    step: int
    timestamp_ms: int
    metrics: Mapping[str, float]


def now_ms() -> int:
    """The wall clock in milliseconds, as MLflow counts time."""
    return time.time_ns() // 1_000_000


class Journal:
    """Appends points to a journal file; one writer at a time.

    Opening a journal drops a last line that was cut off by a crash. Timestamps never go back,
    even when the clock does.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        flush_every_s: float = 1.0,
        clock_ms: Callable[[], int] = now_ms,
    ) -> None:
        self.path = Path(path)
        self._clock_ms = clock_ms
        self._flush_every_s = flush_every_s
        self._pending: list[bytes] = []
        self._flushed_at = time.monotonic()
        with _storage_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            points = read_journal(self.path)
            self._last_ms = points[-1].timestamp_ms if points else 0
            self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o644)
            self._size = _whole_lines(self.path)
            os.ftruncate(self._file, self._size)
            _sync_folder(self.path.parent)

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Note the metrics of a step; written at the next flush, at most a second later."""
        self._last_ms = max(self._last_ms, self._clock_ms())
        self._pending.append(_encode(Point(step=step, timestamp_ms=self._last_ms, metrics=metrics)))
        if time.monotonic() - self._flushed_at >= self._flush_every_s:
            self.flush()

    def flush(self) -> None:
        """Bring every noted point to the disk; on a full disk the file keeps its whole lines."""
        self._flushed_at = time.monotonic()
        if not self._pending:
            return
        block = b"".join(self._pending)
        with _storage_errors(self.path):
            try:
                _write_at(self._file, block, self._size)
            except OSError:
                os.ftruncate(self._file, self._size)
                raise
            os.fsync(self._file)
        self._size += len(block)
        self._pending.clear()

    def close(self) -> None:
        """Flush and let go of the file."""
        try:
            self.flush()
        finally:
            os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read_journal(path: str | os.PathLike[str]) -> list[Point]:
    """All points of a journal in file order; none where there is no file.

    A last line without its end is a write that a crash cut off and is left out. A damaged line
    before the last is a damaged file.

    Raises:
        StorageError: The file cannot be read, or a line in its middle is no point.
    """
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        message = f"The journal {path} cannot be read: {error.strerror}."
        raise StorageError(message) from error
    return _decode(content[: content.rfind(b"\n") + 1], path)


def truncate_after(path: str | os.PathLike[str], step: int) -> int:
    """Remove the points of steps above `step`, which a resumed run will take again.

    The file is replaced in one move, so a crash leaves the old journal or the new one.

    Returns:
        How many points were removed.
    """
    points = read_journal(path)
    kept = [point for point in points if point.step <= step]
    if len(kept) == len(points):
        return 0
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    with _storage_errors(target):
        try:
            with temporary.open("wb") as file:
                file.writelines(_encode(point) for point in kept)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
            _sync_folder(target.parent)
        finally:
            temporary.unlink(missing_ok=True)
    return len(points) - len(kept)


class JournalFollower:
    """Reads a journal while another process writes it: each poll returns what is new.

    A journal that was truncated or replaced is read from its start again, and `restarted` says so.
    """

    restarted: bool = False
    """Whether the last poll began again at the start of another file."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self._inode = -1
        self._offset = 0

    def poll(self) -> list[Point]:
        """The points whose lines were completed since the last poll."""
        try:
            with self._path.open("rb") as file:
                state = os.fstat(file.fileno())
                replaced = state.st_ino != self._inode or state.st_size < self._offset
                self.restarted = replaced and self._inode != -1
                if replaced:
                    self._inode, self._offset = state.st_ino, 0
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        return _decode(whole, self._path)


def _encode(point: Point) -> bytes:
    """One line; nan and inf as text, since JSON has no word for them."""
    metrics = {
        name: number if math.isfinite(number) else str(number)
        for name, number in ((name, float(value)) for name, value in point.metrics.items())
    }
    line = {"step": point.step, "timestamp_ms": point.timestamp_ms, "metrics": metrics}
    return json.dumps(line, allow_nan=False).encode() + b"\n"


def _decode(content: bytes, path: str | os.PathLike[str]) -> list[Point]:
    points: list[Point] = []
    for number, line in enumerate(content.splitlines(), start=1):
        try:
            entry = json.loads(line)
            metrics = {str(name): float(value) for name, value in entry["metrics"].items()}
            points.append(
                Point(
                    step=int(entry["step"]),
                    timestamp_ms=int(entry["timestamp_ms"]),
                    metrics=metrics,
                )
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            message = (
                f"Line {number} of the journal {path} is damaged: {line[:80]!r}. "
                "Restore the file, or delete that line and run the same command again."
            )
            raise StorageError(message) from error
    return points


def _whole_lines(path: Path) -> int:
    """How many bytes of the file end in a newline."""
    return path.read_bytes().rfind(b"\n") + 1


def _write_at(file: int, block: bytes, offset: int) -> None:
    written = 0
    while written < len(block):
        written += os.pwrite(file, block[written:], offset + written)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _storage_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        message = (
            f"The journal {path} cannot be written: {error.strerror}. "
            "Make room or choose another --experiment_dir, then run the same command again."
        )
        raise StorageError(message) from error
