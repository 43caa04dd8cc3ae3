"""The only package that speaks to MLflow.

A driver opens the store and owns the run (`driver_run`); workers get a `RunRef`, plain data, and
never touch MLflow's global state. Metrics go to the journal on disk first and a thread (`mirror`)
copies them here. A tracking server that does not answer costs a warning, never the run:
`python -m pipelines.tracking sync --experiment_dir E` fills in what it missed.
"""

from pipelines.tracking.mirror import SyncReport, mirror, sync
from pipelines.tracking.record import git_commit
from pipelines.tracking.run import DriverRun, driver_run
from pipelines.tracking.store import RunRef, Store, TrackingUnavailableError, open_store

__all__ = [
    "DriverRun",
    "RunRef",
    "Store",
    "SyncReport",
    "TrackingUnavailableError",
    "driver_run",
    "git_commit",
    "mirror",
    "open_store",
    "sync",
]
