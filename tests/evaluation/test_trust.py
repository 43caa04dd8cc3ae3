"""What stands beside a score: its columns, its share of the attainable, intervals of means."""

import numpy as np
import pandas as pd
import pytest

from sedd.evaluation.baselines import split_half_ceiling
from sedd.evaluation.metrics import Limits, Scores, score
from sedd.evaluation.prediction import Prediction
from sedd.evaluation.resampling import ScoreBootstrap
from sedd.evaluation.trust import (
    Trust,
    assess,
    attainable_shares,
    mean_intervals,
    share_of_attainable,
    trust_columns,
)
from sedd.evaluation.uncertainty import Interval, mean_interval
from sedd.evaluation.variance import VarianceCalibration, variance_calibration

SCORES = Scores(0.6, 0.2, 2.0, 0.1, 1.5, 0.5, 0.4)
NAN = float("nan")


def test_a_share_of_the_attainable_is_pearson_by_reliability_where_there_is_something_to_attain():
    assert share_of_attainable(0.6, Limits(0.8, 0.1)) == pytest.approx(0.75)
    assert share_of_attainable(0.6, Limits(0.2, 0.1)) == pytest.approx(3)
    for limits in (Limits(0.19, 0.1), Limits(0.0, 0.1), Limits(NAN, 0.1), None):
        assert np.isnan(share_of_attainable(0.6, limits))
        assert attainable_shares({"model": SCORES}, limits) == {}
    assert attainable_shares({"model": SCORES}, Limits(0.6, 0.1)) == {"model": 1}


def test_columns_hold_bounds_calibration_and_share_or_nothing():
    trust = Trust({"mse": Interval(0.2, 0.1, 0.3)}, VarianceCalibration(0.9, 0.8, 0.7))

    columns = trust_columns(SCORES, trust, Limits(0.8, 0.1))
    without = trust_columns(None, None, None)

    assert (columns["mse_low"], columns["mse_high"]) == (0.1, 0.3)
    assert np.isnan(columns["pearson_low"])
    assert columns["pearson_of_attainable"] == pytest.approx(0.75)
    assert [columns[f"variance_{k}"] for k in ("slope", "correlation", "share_within")] == [
        0.9,
        0.8,
        0.7,
    ]
    assert list(without) == list(columns)
    assert np.isnan(list(without.values())).all()


def test_the_ceiling_is_assessed_on_the_cells_it_names():
    rng = np.random.default_rng(0)
    real, control = rng.normal(size=(40, 9)) + 3, rng.normal(size=(30, 9))
    ceiling, bootstrap = split_half_ceiling(real), ScoreBootstrap(real, control)
    assert ceiling.against_log1p is not None
    plain = Prediction.of_cells("model", real[:20])

    unseen, seen = (
        assess(prediction, score(prediction, real, control), real, bootstrap).calibration
        for prediction in (ceiling, plain)
    )

    assert unseen == variance_calibration(ceiling.cells_log1p, ceiling.against_log1p)
    assert seen == variance_calibration(real[:20], real)


def test_intervals_of_means_are_taken_over_the_cell_types_of_each_method():
    rows = pd.DataFrame(
        {
            "cell_type": ["T", "T", "T", "B", "B", "NK"],
            "perturbation": ["x", "x", "y", "x", "x", "x"],
            "method": ["a", "b", "a", "a", "b", "a"],
            "pearson": [0.1, 0.5, 0.3, 0.8, NAN, 0.4],
            "mse": 1.0,
        }
    )
    types = {0: "T", 2: "T", 3: "B", 5: "NK"}

    found = mean_intervals(rows, ["pearson", "mse"])
    of_t = mean_intervals(rows[rows["cell_type"] == "T"], ["pearson"])

    values = {0: [0.1], 2: [0.3], 3: [0.8], 5: [0.4]}
    assert found["a"]["pearson"] == mean_interval(values, clusters=types)
    assert found["a"]["pearson"] != mean_interval(values)
    assert found["a"]["mse"] == Interval(1.0, 1.0, 1.0)
    assert found["b"]["pearson"].estimate == 0.5
    assert np.isnan(found["b"]["pearson"].low)
    assert of_t["a"]["pearson"] == mean_interval({0: [0.1], 2: [0.3]})
