"""Which cells the judges are given for each method of an evaluation."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from pipelines.judging import judge_predictions, require_judgeable, write_judged
from pipelines.scoring import Truth
from sedd.data.splits import SplitConfig, make_split
from sedd.errors import UsageError
from sedd.evaluation.baselines import (
    ADDITIVE,
    CEILING,
    MEAN_OF_OTHERS,
    NO_CHANGE,
    RIDGE,
    TrainingCells,
)
from sedd.evaluation.judge_tables import Judged
from sedd.evaluation.judges import CELL_EVAL, Verdict
from sedd.evaluation.prediction import Prediction
from tests.worlds import tiny_cells

HELD_OUT = [("B cell", "lower"), ("B cell", "raise")]
UNSEEN_TYPE = SplitConfig(kind="unseen_cell_type", cell_types=("B cell",))


def truth_of(cells, held_out: SplitConfig = UNSEEN_TYPE) -> Truth:
    split = make_split(
        held_out,
        perturbation=cells.perturbation,
        cell_type=cells.cell_type,
        control_name="control",
    )
    known = np.sort(np.concatenate([split.train, split.validation]))
    log1p = cells.log1p_cp10k()
    training = TrainingCells(
        log1p[known], cells.cell_type[known], cells.perturbation[known], "control"
    )
    return Truth(cells, log1p, split, training)


@pytest.fixture
def asked(monkeypatch):
    """Questions by method, put to a judge who writes them down and says 1."""
    questions = {}

    def listen(name, question, folder):
        questions[folder.name] = question
        return Verdict(name, "0.8.2", {}, {"mae": 1.0}, ())

    monkeypatch.setattr("sedd.evaluation.judges.judge", listen)
    return questions


def twins(truth: Truth, perturbation: str, rows: np.ndarray) -> Prediction:
    """Generated cells that copy the control cells at these rows."""
    return Prediction.of_cells("counterfactual", truth.log1p[rows], rows)


def test_each_method_is_asked_about_all_perturbations_with_the_counts_it_stands_for(
    asked, tmp_path
):
    cells = tiny_cells()
    cells = replace(cells, depth=cells.depth + 500)  # a panel of a larger library
    truth = truth_of(cells)
    control = np.flatnonzero((cells.cell_type == "B cell") & (cells.perturbation == "control"))
    chosen = control[[5, 3, 3, 9]]
    predictions = {c: {"counterfactual": twins(truth, c[1], chosen)} for c in HELD_OUT}

    judged = judge_predictions([CELL_EVAL], truth, predictions, tmp_path)

    methods = ["counterfactual", NO_CHANGE, MEAN_OF_OTHERS, ADDITIVE, RIDGE, CEILING]
    assert [entry.method for entry in judged] == list(asked) == methods
    dense = cells.expression.toarray()
    for question in asked.values():
        assert question.perturbations == ("lower", "raise")
        np.testing.assert_array_equal(question.control.counts, dense[control])
        np.testing.assert_array_equal(question.control.depth, cells.depth[control])
    predicted = asked["counterfactual"].predicted
    np.testing.assert_array_equal(predicted.counts, np.concatenate([dense[chosen]] * 2))
    np.testing.assert_array_equal(predicted.depth, np.concatenate([cells.depth[chosen]] * 2))
    assert list(predicted.perturbation) == ["lower"] * 4 + ["raise"] * 4
    np.testing.assert_array_equal(asked[NO_CHANGE].predicted.counts[:40], dense[control])
    others = (cells.cell_type != "B cell") & (cells.perturbation == "lower")
    np.testing.assert_array_equal(asked[MEAN_OF_OTHERS].predicted.counts[:80], dense[others])


def test_the_mean_of_others_of_an_unseen_perturbation_is_judged_at_its_own_library_sizes(
    asked, tmp_path
):
    cells = tiny_cells()
    truth = truth_of(cells, SplitConfig(kind="unseen_perturbation", perturbations=("raise",)))
    predictions = {("T cell", "raise"): {"counterfactual": twins(truth, "raise", np.arange(4))}}

    judge_predictions([CELL_EVAL], truth, predictions, tmp_path)

    assert list(asked) == ["counterfactual", NO_CHANGE, MEAN_OF_OTHERS, CEILING]
    others = (cells.cell_type == "T cell") & (cells.perturbation == "lower")
    predicted = asked[MEAN_OF_OTHERS].predicted
    dense = cells.expression.toarray()
    np.testing.assert_array_equal(predicted.counts, dense[others])
    np.testing.assert_array_equal(predicted.depth, cells.depth[others])


def test_the_ceiling_is_judged_on_cells_that_it_has_not_seen(asked, tmp_path):
    truth = truth_of(tiny_cells())
    rows = np.arange(4)
    predictions = {c: {"population": twins(truth, c[1], rows)} for c in HELD_OUT}

    judge_predictions([CELL_EVAL], truth, predictions, tmp_path)

    seen, unseen = asked[CEILING].predicted.counts, asked[CEILING].real.counts
    assert len(seen) == len(unseen) == 40
    real = asked[NO_CHANGE].real.counts
    everything = sorted(map(tuple, np.concatenate([seen, unseen])))
    assert everything == sorted(map(tuple, real))
    assert len(set(everything)) == 80


def test_a_method_without_a_prediction_for_each_perturbation_is_not_asked(asked, tmp_path):
    truth = truth_of(tiny_cells())
    modes = {"population": twins(truth, "lower", np.arange(4))}
    predictions = {HELD_OUT[0]: modes, HELD_OUT[1]: {}}

    judge_predictions([CELL_EVAL], truth, predictions, tmp_path)

    assert "population" not in asked
    assert ADDITIVE in asked


def test_without_judges_nothing_is_asked_and_old_tables_go(asked, tmp_path):
    truth = truth_of(tiny_cells())
    verdict = Verdict(CELL_EVAL, "0.8.2", {}, {"mae": 0.5}, ())

    write_judged(tmp_path, [Judged(ADDITIVE, "B cell", verdict)])
    value = pd.read_csv(tmp_path / "judges.csv")["value"].tolist()
    write_judged(tmp_path, judge_predictions([], truth, {}, tmp_path))

    assert value == [0.5]
    assert not asked
    assert not list(tmp_path.iterdir())


def test_log1p_data_cannot_be_judged_which_is_said_before_an_install_is_asked_for():
    with pytest.raises(UsageError, match=r"hold log1p values.*without --judges"):
        require_judgeable([CELL_EVAL], "log1p")
    require_judgeable([], "log1p")
