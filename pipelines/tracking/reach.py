"""Reaching a store for a verb that is nothing without it: its errors as messages."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from pipelines.tracking import store as mlflow_store
from pipelines.tracking.store import TrackingUnavailableError
from sedd.errors import StorageError

FOREIGN = {"mlflow", "sqlalchemy", "requests", "urllib3"}
"""Packages whose errors say that the store failed, not that we did."""


@contextmanager
def reachable(tracking_uri: str) -> Iterator[None]:
    """Turn what MLflow raises into messages; errors of others pass.

    Raises:
        UsageError: The address or the credentials are wrong.
        StorageError: The server does not answer, or does not take what it was given.
    """
    at = mlflow_store.redact(tracking_uri)
    try:
        yield
    except TrackingUnavailableError as error:
        message = f"MLflow at {at} does not answer: {error}. Run the same command when it is back."
        raise StorageError(message) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in FOREIGN:
            raise
        if getattr(error, "error_code", "") in {"UNAUTHENTICATED", "PERMISSION_DENIED"}:
            with mlflow_store.opening(tracking_uri):
                raise
        message = f"MLflow at {at} failed: {mlflow_store.explain(error)}."
        raise StorageError(message) from error


@contextmanager
def global_store(tracking_uri: str) -> Iterator[None]:
    """For the block this store is the global one: MLflow finds the files of models by no other.

    Its SQL registry looks for logged models there, and so does what downloads them.
    """
    import mlflow

    named = os.environ.get("MLFLOW_TRACKING_URI")  # `set_tracking_uri` writes it, whoever calls
    mlflow.set_tracking_uri(tracking_uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)  # pyright: ignore[reportArgumentType]
        if named is not None:
            os.environ["MLFLOW_TRACKING_URI"] = named
