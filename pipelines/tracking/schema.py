"""Databases of another MLflow than this one: older ones can be upgraded, newer ones cannot."""

import importlib.metadata
import re
from pathlib import Path


def advice(error: BaseException, address: str) -> str:
    """What to do about a database whose schema MLflow says is not its own.

    Args:
        error: MLflow's, which names the revision that it found.
        address: Of the database, without secrets.
    """
    import mlflow

    found = re.search(r"found version (\w+)", str(error))
    migrations = Path(mlflow.__file__).parent / "store" / "db_migrations" / "versions"
    here = importlib.metadata.version("mlflow")
    if found and not any(migrations.glob(f"{found[1]}_*.py")):
        return (
            f"{address} was written by another version of MLflow, a newer one than this ({here}). "
            "Install that version here, or name another store with MLFLOW_TRACKING_URI."
        )
    return (
        f"{address} was written by another version of MLflow, an older one than this ({here}). "
        f"Make a copy, then run `mlflow db upgrade {address}`."
    )
