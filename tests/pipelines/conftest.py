"""Units of generation drawn in this process, for tests that need no actors."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from pipelines import evaluate, generate
from pipelines.fanout import Source, _Generator
from sedd.generation import Unit
from sedd.inference import InferenceConfig


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """The units are drawn here, by the object that is otherwise an actor of Ray."""

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

    monkeypatch.setattr(generate, "run_units", run_units)
    monkeypatch.setattr(evaluate, "run_units", run_units)
