"""Intervals of scores over cells: they cover, and resample what they should."""

from dataclasses import asdict, astuple, fields

import numpy as np
import pytest

from sedd.evaluation.baselines import ADDITIVE, no_change, shifted, split_half_ceiling
from sedd.evaluation.energy import energy_distance
from sedd.evaluation.metrics import Scores, score
from sedd.evaluation.prediction import Prediction
from sedd.evaluation.resampling import ScoreBootstrap, _energy_distances, _Resampled

SHIFT = np.linspace(0, 2, 12)
CONTROL = np.maximum(np.random.default_rng(9).normal(size=(300, 12)) + 0.8, 0)


def cells(num: int, rng: np.random.Generator, *, scale: float = 1.0, size: float = 1.0):
    """Cells with a shift of `size` times the real one and `scale` times the real spread."""
    return np.maximum(scale * rng.normal(size=(num, 12)) + 0.8 + size * SHIFT, 0)


def intervals(prediction: Prediction, real: np.ndarray, **options: int):
    scores = score(prediction, real, CONTROL)
    return ScoreBootstrap(real, CONTROL, **options).intervals(prediction, scores)


def test_the_intervals_cover_in_ninety_to_all_of_two_hundred_repeats(monkeypatch):
    """50 real and 50 predicted cells with 70 % of the shift, a tenth more spread.

    Energy distance and variance ratio are unbiased and must cover their value between large
    samples; the others hold the noise of few cells and must cover their mean at 50 cells.
    """
    monkeypatch.setattr("sedd.evaluation.metrics.NUM_HALVINGS", 1)  # for speed; no part in this
    rng = np.random.default_rng(1)
    large = score(
        Prediction.of_cells("model", cells(1500, rng, scale=1.1, size=0.7)),
        cells(1500, rng),
        CONTROL,
        max_cells=None,
    )
    repeats = []
    for seed in range(200):
        rng = np.random.default_rng([2, seed])
        predicted = Prediction.of_cells("model", cells(50, rng, scale=1.1, size=0.7))
        repeats.append(intervals(predicted, cells(50, rng), num_resamples=60, seed=seed))

    truth = {
        name: np.mean([each[name].estimate for each in repeats])
        for name in ("pearson", "mse", "zero_fraction_error")
    } | {name: getattr(large, name) for name in ("energy_distance", "variance_ratio")}
    coverage = {
        name: np.mean([each[name].low <= value <= each[name].high for each in repeats])
        for name, value in truth.items()
    }

    assert all(0.9 <= covered <= 1 for covered in coverage.values()), coverage
    # Where the spread is right rather than too wide, misses happen.
    assert coverage["energy_distance"] < 1
    assert coverage["variance_ratio"] < 1


def test_resampled_energy_distances_are_not_biased_by_cells_drawn_twice():
    """Two samples of one law: with pairs of a cell and its copy, the mean would be 2 D / n = .9.

    Given the cells, the mean of the resamples is their U-statistic: 2000 resamples are within 4
    standard errors of it.
    """
    rng = np.random.default_rng(0)
    predicted, real = Prediction.of_cells("model", cells(15, rng)), cells(15, rng)

    replicates = ScoreBootstrap(real, CONTROL, num_resamples=2000)._replicates(predicted)

    distances = replicates["energy_distance"]
    standard_error = distances.std() / np.sqrt(2000)
    assert standard_error < 0.03
    expected = energy_distance(predicted.cells_log1p, real)
    assert distances.mean() == pytest.approx(expected, abs=4 * standard_error)


def test_resampled_variances_are_not_those_of_fewer_cells():
    """8 cells against 80: without its correction the smaller side would lose a quarter."""
    rng = np.random.default_rng(0)
    predicted, real = Prediction.of_cells("model", cells(8, rng)), cells(80, rng)

    ratios = ScoreBootstrap(real, CONTROL, num_resamples=2000)._replicates(predicted)

    ratio = score(predicted, real, CONTROL).variance_ratio
    assert ratios["variance_ratio"].mean() == pytest.approx(ratio, rel=0.03)


def test_every_score_has_an_interval_around_it_within_its_range():
    rng = np.random.default_rng(0)
    programs = rng.normal(size=(130, 2)) @ rng.normal(size=(2, 240))
    both = np.maximum(rng.normal(size=(130, 240)) + np.linspace(0, 2, 240) + programs, 0)
    control = np.maximum(rng.normal(size=(50, 240)), 0)
    prediction = Prediction.of_cells("model", both[:60])
    scores = score(prediction, both[60:], control)

    found = ScoreBootstrap(both[60:], control).intervals(prediction, scores)

    assert list(found) == [field.name for field in fields(Scores)]
    for name, interval in found.items():
        assert interval.estimate == getattr(scores, name)
        assert interval.low < interval.estimate < interval.high, name
    assert found["common_degs"].high <= 1
    assert found["pearson"].high <= 1


def test_four_times_the_cells_halve_the_interval():
    names, widths = ("variance_ratio", "zero_fraction_error"), []
    for num in (50, 200):
        rng = np.random.default_rng(0)
        prediction = Prediction.of_cells("model", cells(num, rng, size=0.7))
        found = intervals(prediction, cells(num, rng), num_resamples=1000)
        widths.append([found[name].high - found[name].low for name in names])

    assert np.divide(*widths) == pytest.approx([2, 2], rel=0.2)


def test_a_prediction_of_no_shift_keeps_its_pearson_of_zero():
    found = intervals(no_change(CONTROL), cells(60, np.random.default_rng(0)))

    assert astuple(found["pearson"]) == (0, 0, 0)
    assert found["mse"].high > found["mse"].low > 0


def test_a_stated_mean_stays_and_moves_with_its_cells():
    """The additive mean is not that of its clipped cells, so the interval must be around it."""
    prediction = shifted(ADDITIVE, CONTROL, SHIFT)
    real = cells(400, np.random.default_rng(0))

    found = intervals(prediction, real)

    assert found["pearson"].low < found["pearson"].estimate < found["pearson"].high
    assert found["mse"].estimate == score(prediction, real, CONTROL).mse


def test_the_ceiling_is_resampled_against_the_half_it_has_not_seen():
    real = cells(80, np.random.default_rng(0))
    ceiling = split_half_ceiling(real)
    assert ceiling.against_log1p is not None
    scores = score(ceiling, real, CONTROL)

    whole = ScoreBootstrap(np.full_like(real, np.nan), CONTROL).intervals(ceiling, scores)

    half = Prediction.of_cells("half", ceiling.cells_log1p)
    known = ScoreBootstrap(ceiling.against_log1p, CONTROL).intervals(half, scores)
    for name, interval in whole.items():
        np.testing.assert_array_equal(astuple(interval), astuple(known[name]))
    assert whole["energy_distance"].high > whole["energy_distance"].low


def test_too_few_cells_and_undefined_scores_have_no_bounds():
    real = cells(30, np.random.default_rng(0))
    single = Prediction.of_cells("model", real[:1])

    few = intervals(single, real)
    found = intervals(Prediction.of_cells("model", real[:20]), real)

    assert all(np.isnan([each.low, each.high]).all() for each in few.values())
    assert {k: v.estimate for k, v in few.items()} == pytest.approx(
        asdict(score(single, real, CONTROL)), nan_ok=True
    )
    # 12 genes are too few for a top 100, and independent genes have no correlation structure.
    for name in ("common_degs", "correlation_structure"):
        assert np.isnan(astuple(found[name])).all()


def test_a_cap_on_cells_bounds_the_energy_distance_alone():
    rng = np.random.default_rng(0)
    prediction, real = Prediction.of_cells("model", cells(200, rng, size=0.7)), cells(200, rng)
    scores = score(prediction, real, CONTROL)

    full, capped = (
        ScoreBootstrap(real, CONTROL, max_cells=cap).intervals(prediction, scores)
        for cap in (None, 50)
    )

    widths = [each["energy_distance"].high - each["energy_distance"].low for each in (full, capped)]
    assert widths[1] > 1.5 * widths[0]
    assert capped["pearson"] == full["pearson"]


def test_energy_of_a_resample_that_is_the_sample_is_that_of_its_units():
    """Units of 12, 6 and 2 cells that lie apart: all pairs would give another number."""
    rng = np.random.default_rng(0)
    units = np.repeat([0, 1, 2], [12, 6, 2])
    x, y = rng.normal(size=(20, 5)) + 3 * units[:, None], rng.normal(size=(30, 5))
    whole = [
        _Resampled(cells, np.full((1, len(cells)), 1 / len(cells)), of)
        for cells, of in ((x, units), (y, None))
    ]

    found = _energy_distances(*whole, None, rng)

    assert found == pytest.approx(energy_distance(x, y, x_units=units))
    assert abs(found - energy_distance(x, y)) > 0.1


def test_resamples_of_a_single_unit_leave_the_interval_as_it_is():
    rng = np.random.default_rng(0)
    cells, real = rng.normal(size=(2, 12, 5))
    units = np.repeat([0, 1], [11, 1])
    prediction = Prediction.of_cells("model", cells, None, units)

    interval = ScoreBootstrap(real, real).intervals(prediction, score(prediction, real, real))

    assert interval["energy_distance"].low < interval["energy_distance"].high
