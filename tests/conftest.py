"""What all tests share: a clean environment, one Ray, one ready MLflow database."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

# Before torch is imported anywhere: two threads on two busy cores are slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"

USER_SETTINGS = (
    "CELL_TYPE",
    "CELL_TYPE_COL",
    "CELLTYPE_LABELS_PT_PATH",
    "CHECKPOINT_DIR",
    "COND_LABELS_PT_PATH",
    "CONFIG",
    "EXPERIMENT_DIR",
    "MLFLOW_EXPERIMENT_ID",
    "MLFLOW_EXPERIMENT_NAME",
    "MLFLOW_RUN_ID",
    "MLFLOW_TRACKING_URI",
    "RAY_ADDRESS",
    "RESUME",
    "TRAIN_DATA_PATH",
)


@pytest.fixture(autouse=True)
def no_settings_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable of the developer's shell must not change what a test sees."""
    for name in USER_SETTINGS:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def real_cells_folder() -> Path:
    """The folder of real cells; tests that need it are skipped where there is none."""
    given = os.environ.get("SEDD_TEST_DATA")
    if not given:
        pytest.skip("SEDD_TEST_DATA is not set: tests on real cells need their folder")
    folder = ROOT / given
    if not folder.is_dir():
        pytest.fail(f"SEDD_TEST_DATA={given} is no folder")
    return folder


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database without runs; making one takes seconds, copying it none."""
    from pipelines.tracking import open_store

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    open_store(f"sqlite:///{path}", experiment="unused")
    return path


@pytest.fixture
def tracking_uri(
    empty_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A SQLite store of this test alone, named by MLFLOW_TRACKING_URI."""
    path = tmp_path / "mlflow.db"
    shutil.copy(empty_store, path)
    uri = f"sqlite:///{path}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    yield uri
    _close_store(uri)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[object]:
    """One local Ray for the whole session; `connect` inside a test uses it again."""
    from pipelines.cluster import connect

    with connect(num_workers=1) as cluster:
        yield cluster


def _close_store(uri: str) -> None:
    """Let go of the database connections that MLflow caches by address."""
    from mlflow.tracking._tracking_service.utils import _tracking_store_registry

    _tracking_store_registry.get_store(uri).engine.dispose()
