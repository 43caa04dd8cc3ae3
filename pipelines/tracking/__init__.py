"""The only package that speaks to MLflow.

A driver opens the store and owns the run (`driver_run`); workers get a `RunRef`, plain data, and
never touch MLflow's global state. Metrics go to the journal on disk first and a thread (`mirror`)
copies them here. A tracking server that does not answer costs a warning, never the run:
`python -m pipelines.tracking sync --experiment_dir E` fills in what it missed.
"""

from pipelines.tracking.facts import git_commit
from pipelines.tracking.faults import TrackingUnavailableError
from pipelines.tracking.mirror import mirror
from pipelines.tracking.run import DriverRun, driver_run
from pipelines.tracking.store import RunRef, Store, open_store
from pipelines.tracking.syncing import SyncReport, sync

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
