"""What the baselines of an evaluation are told beside the cells."""

import numpy as np
import pytest
import torch

from pipelines.experiment import load_cells, split_cells
from pipelines.scoring import paired, read_truth, units_of, warn_of_lone_units
from sedd.checkpoint import best_or_newest, load_trained
from sedd.data.splits import SplitConfig
from sedd.evaluation.baselines import RIDGE, baseline_predictions
from sedd.evaluation.prediction import Prediction
from tests.tiny_experiment import tiny_config, tiny_experiment
from tests.worlds import tiny_cells


@pytest.mark.parametrize("separator", ["w", None])
def test_baselines_read_labels_and_vectors_as_the_model_does(separator, tmp_path):
    """With the separator "w", "lower" is made of "lo" and "er"."""
    parts = ("lower",) if separator is None else ("lo", "er")
    vectors = {name: torch.tensor([number, 1.0]) for number, name in enumerate(parts)}
    torch.save(vectors | {"raise": torch.tensor([0.5, 7.0])}, tmp_path / "vectors.pt")
    config = tiny_config(
        tmp_path,
        SplitConfig(kind="unseen_perturbation", perturbations=("raise",)),
        cond_labels_pt_path=str(tmp_path / "vectors.pt"),
        combination_separator=separator,
    )
    tiny_experiment(tmp_path, tiny_cells(), config)
    cells = load_cells(config)
    trained = load_trained(best_or_newest(config.checkpoints), config.model)

    truth = read_truth(cells, split_cells(config, cells), trained, "control")

    told = truth.training.perturbations
    assert told is not None
    assert told.vectors is not None
    assert told.parts == {"control": ("control",), "lower": parts, "raise": ("raise",)}
    expected = {"control": [0, 0], "lower": [len(parts) - 1, len(parts)], "raise": [0.5, 7]}
    np.testing.assert_array_equal(np.stack(list(told.vectors.values())), list(expected.values()))
    names = [made.name for made in baseline_predictions(truth.training, "T cell", "raise")]
    assert RIDGE in names


class OneType:
    """Ten control cells of one type; what `paired` and `score_condition` read of a truth."""

    log1p = np.random.default_rng(0).normal(3, 1, (10, 4))

    def controls(self, cell_type: str) -> np.ndarray:
        assert cell_type == "T"
        return self.log1p


def test_twins_are_scored_by_their_effect_and_a_population_by_its_mean():
    truth, rows = OneType(), np.array([1, 1, 5])
    cells = truth.log1p[rows] + [1, 0, 0, -1]

    twins, population = (
        paired(truth, "T", Prediction.of_cells(mode, cells, rows))
        for mode in ("counterfactual", "population")
    )

    effect = twins.mean_log1p - truth.log1p.mean(0)
    np.testing.assert_allclose(effect, [1, 0, 0, -1], atol=1e-12)
    np.testing.assert_array_equal(population.mean_log1p, cells.mean(0))


def test_units_follow_each_other():
    assert units_of(5, 2).tolist() == [0, 0, 1, 1, 2]


def test_conditions_that_were_drawn_as_one_unit_are_named(capsys):
    one, two, nothing = (
        {"population": Prediction.of_cells("population", np.zeros((6, 2)), None, units)}
        for units in (units_of(6, 6), units_of(6, 3), None)
    )

    warn_of_lone_units({("T", "a"): two, ("T", "b"): nothing})
    assert capsys.readouterr().err == ""

    warn_of_lone_units({("T", "a"): two, ("T", "b"): one, ("B", "b"): one})
    said = capsys.readouterr().err
    assert "2 of 3 conditions (T × b, B × b) were drawn as one unit" in said
    assert "inference.shard_size at most a quarter" in said
