"""Units of generation drawn in this process, for tests that need no actors."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pipelines import evaluate, generate
from pipelines.fanout import Source, _Generator
from sedd.generation import Unit
from sedd.inference import InferenceConfig

if TYPE_CHECKING:
    from tests.evaluated_lab import Lab


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """The units are drawn here, by the object that is otherwise an actor of Ray."""
    draw_here(monkeypatch)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> "Lab":
    """Two evaluated experiments on the same cells, a good and a bad one, and their MLflow store."""
    from tests.evaluated_lab import make_lab

    with pytest.MonkeyPatch.context() as monkeypatch:
        draw_here(monkeypatch)
        return make_lab(tmp_path_factory.mktemp("lab"), empty_store)


@pytest.fixture
def registry_uri(lab: "Lab", tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A copy of the lab's store, so that each test starts with nothing registered."""
    from tests.evaluated_lab import close_store

    shutil.copy(lab.database, tmp_path / "mlflow.db")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    yield uri
    close_store(uri)


def draw_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace Ray's actors by this process, in every verb that draws."""

    from pipelines import rematch

    def run_units(
        source: Source,
        units: Sequence[Unit],
        config: InferenceConfig,
        parts: Path,
        **_: object,
    ) -> None:
        parts.mkdir(parents=True, exist_ok=True)
        generator = _Generator(source, config, str(parts))
        for unit in units:
            generator.draw(unit)

    for verb in (generate, evaluate, rematch):
        monkeypatch.setattr(verb, "run_units", run_units)
