"""What a plain `kill` does: it ends a verb as Ctrl-C does, through every `finally`."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


class Terminated(KeyboardInterrupt):
    """SIGTERM came to this process, e.g. from `kill`.

    A KeyboardInterrupt, because out of a wait for workers Ray lets nothing else come as it was.
    """

    exit_code = 128 + signal.SIGTERM


@contextmanager
def sigterm_unwinds() -> Iterator[None]:
    """SIGTERM raises `Terminated` inside the block.

    Handlers that others have put in place stay, and threads other than the main one, which cannot
    have any, do without.
    """
    if not _in_main_thread() or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    came = threading.Event()

    def leave(number: int, frame: FrameType | None) -> NoReturn:
        del number, frame
        came.set()
        raise Terminated

    signal.signal(signal.SIGTERM, leave)
    try:
        yield
    except KeyboardInterrupt as error:
        # Ray makes a plain KeyboardInterrupt of every kind of it.
        if came.is_set() and not isinstance(error, Terminated):
            raise Terminated from error
        raise
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def sigterm_kept() -> Iterator[None]:
    """What SIGTERM did before the block it does after it, whatever `ray.init` puts in place.

    Raises:
        Terminated: SIGTERM came during the block, and Ray answered with its number as exit code.
    """
    if not _in_main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit as error:
        if error.code == signal.SIGTERM:
            raise Terminated from error
        raise
    finally:
        signal.signal(signal.SIGTERM, before)


def _in_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
