"""Separation of perturbations and the card's facts, from an evaluation's results."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from pipelines import model_card, scoring
from pipelines.journal import FILE_NAME, Journal
from sedd.config import Config
from sedd.evaluation.baselines import CEILING, NO_CHANGE, split_half_ceiling
from sedd.evaluation.report import ConditionResult
from sedd.evaluation.shifts import Perturbations

NAMES = ("A", "B", "C", "D")


class World:
    """One cell type, four perturbations with shifts of their own, 40 cells each."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.shifts = rng.normal(size=(4, 500))
        self.log1p = np.concatenate(
            [rng.normal(size=(40, 500)), *(rng.normal(size=(40, 500)) + s for s in self.shifts)]
        )
        self.cells = SimpleNamespace(genes=tuple(f"g{i}" for i in range(500)))
        self.training = SimpleNamespace(perturbations=None)

    def controls(self, cell_type: str) -> np.ndarray:
        return self.log1p[:40]

    def held_out(self, cell_type: str, perturbation: str) -> np.ndarray:
        return 40 * (1 + NAMES.index(perturbation)) + np.arange(40)


def separate(world: World, found: list[ConditionResult]):
    return scoring.separate(world, {(r.cell_type, r.perturbation): r.shifts for r in found})


def results(world: World, **methods: np.ndarray) -> list[ConditionResult]:
    """A result for each perturbation; each method gives its shifts by row."""
    return [
        ConditionResult("K562", name, 40, 40, 40, {}, shifts={k: v[i] for k, v in methods.items()})
        for i, name in enumerate(NAMES)
    ]


def test_each_method_is_placed_among_the_perturbations_of_the_type_and_the_ceiling_among_halves():
    world = World()
    halves = np.stack([split_half_ceiling(world.log1p[world.held_out("K562", n)]).mean_log1p
                       for n in NAMES]) - world.controls("K562").mean(0)  # fmt: skip
    methods = {"model": world.shifts, NO_CHANGE: 0 * world.shifts, CEILING: halves}

    found = separate(world, results(world, **methods))

    assert [(each.method, each.num_predicted) for each in found] == [
        ("model", 4), (NO_CHANGE, 4), (CEILING, 4)
    ]  # fmt: skip
    assert [each.discrimination_cosine for each in found] == [1, 0.5, 1]
    # Halves against themselves would have a distance of 0 and hide that they are noisy.
    assert not found[0].likeness.collapsed


@pytest.mark.parametrize("joined", [True, False])
def test_the_genes_that_a_label_joins_do_not_count_whatever_joins_them(joined):
    """A's target falls in the prediction; it rises in A's real cells more than in any other's."""
    world = World()
    target = int(np.argmax(world.shifts[0] - world.shifts[1:].max(0)))
    parts = ("other", f"g{target}") if joined else ("A",)
    world.training.perturbations = Perturbations({n: (n,) for n in NAMES} | {"A": parts})
    predicted = world.shifts.copy()
    predicted[0, target] = -1e4

    (found,) = separate(world, results(world, model=predicted))

    assert found.discrimination_cosine == (1 if joined else 0.75)


def test_one_answer_for_all_raises_the_alarm_in_table_and_metrics():
    world = World()
    same = np.tile(world.shifts[0], (4, 1))
    separations = separate(world, results(world, model=same, other=world.shifts))

    (table,) = model_card.separation_tables(separations)
    metrics = model_card.separation_metrics(separations, "model")

    assert table.notes == ("Alarm: the shifts by model are more alike than the real ones.",)
    assert list(table.table.index) == ["model", "other"]
    assert table.table.loc["model", "likeness"] == pytest.approx(1)
    assert metrics == {
        "eval/discrimination_l1": pytest.approx(0.5),
        "eval/discrimination_cosine": pytest.approx(0.5),
        "eval/collapse_alarms": 1.0,
    }
    assert model_card.separation_metrics(separations, "nobody") == {}


def test_a_single_perturbation_and_a_method_with_gaps_are_left_out():
    world = World()
    every = results(world, model=world.shifts, gaps=world.shifts)
    del every[2].shifts["gaps"]

    assert separate(world, every[:1]) == []
    assert [each.method for each in separate(world, every)] == ["model"]


def test_documents_are_written_and_those_of_an_earlier_evaluation_go(tmp_path: Path, monkeypatch):
    world = World()
    cards = []
    monkeypatch.setattr(model_card, "_write_card", lambda path, *_: cards.append(path))
    several = results(world, model=world.shifts)

    model_card.document(tmp_path, None, world, None, None, several)
    table = pd.read_csv(tmp_path / "separation.csv")
    model_card.document(tmp_path, None, world, None, None, several[:1])

    assert table["num_candidates"].tolist() == [4]
    assert table["collapse_alarm"].tolist() == [False]
    assert not (tmp_path / "separation.csv").exists()
    assert cards == 2 * [tmp_path / "model_card.md"]


def test_training_time_is_that_of_all_steps_of_the_journal(tmp_path: Path):
    config = Config(experiment_dir=str(tmp_path))
    assert model_card._training_seconds(config) is None

    journal = Journal(tmp_path / FILE_NAME)
    journal.append(1, {"speed/cells_per_s": config.training.batch_size / 2.0})
    journal.append(2, {"speed/cells_per_s": config.training.batch_size / 0.5})
    journal.append(2, {"val/nelbo": 1.0})
    journal.close()

    assert model_card._training_seconds(config) == pytest.approx(2.5)
