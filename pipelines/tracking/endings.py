"""How a run ends: the status that MLflow shows, by what ended it."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

from sedd.errors import Preempted

# Exit codes that mean "stopped from outside": signals, as shells and as Ray count them.
STOPPED = {signal.SIGTERM.value, 128 + signal.SIGINT, 128 + signal.SIGTERM, Preempted.exit_code}


def status_of(error: BaseException) -> str:
    """The MLflow status of a run that this exception ends."""
    if isinstance(error, SystemExit):
        if error.code in (None, 0):
            return "FINISHED"
        return "KILLED" if error.code in STOPPED else "FAILED"
    return "KILLED" if isinstance(error, KeyboardInterrupt | Preempted) else "FAILED"


@contextmanager
def sigterm_unwinds() -> Iterator[None]:
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
