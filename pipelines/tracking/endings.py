"""How a run ends: the status that MLflow shows, by what ended it."""

import signal

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
