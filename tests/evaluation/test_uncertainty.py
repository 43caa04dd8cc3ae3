"""Intervals of means over conditions: coverage by simulation, closed forms and laws."""

import numpy as np
import pytest
from scipy.stats import ttest_1samp, ttest_rel

from sedd.evaluation.uncertainty import Interval, mean_interval, paired_difference

NAN = float("nan")


def folds(num: int, num_seeds: int, seed: int, mean: float = 0.9) -> dict[int, list[float]]:
    """Scores whose mean differs between conditions (.1) and between seeds within one (.05)."""
    rng = np.random.default_rng(seed)
    return {
        fold: [float(mean + 0.1 * effect + 0.05 * noise) for noise in rng.normal(size=num_seeds)]
        for fold, effect in enumerate(rng.normal(size=num))
    }


def test_with_one_seed_the_interval_is_that_of_student():
    values = folds(8, 1, 0)
    flat = [value for (value,) in values.values()]

    found = mean_interval(values, num_resamples=40000)

    known = ttest_1samp(flat, 0).confidence_interval(0.95)
    width = known.high - known.low
    assert found.estimate == pytest.approx(np.mean(flat))
    assert found.low == pytest.approx(known.low, abs=0.01 * width)
    assert found.high == pytest.approx(known.high, abs=0.01 * width)


@pytest.mark.parametrize(("num", "num_seeds"), [(8, 1), (8, 3), (4, 3)])
def test_the_interval_covers_the_mean_over_all_conditions(num: int, num_seeds: int):
    """300 repeats at 95 % have a standard error of .013; wide is allowed, narrow is not."""
    covered = [
        found.low <= 0.9 <= found.high
        for seed in range(300)
        for found in (mean_interval(folds(num, num_seeds, seed), num_resamples=400, seed=seed),)
    ]

    assert 0.91 <= np.mean(covered) <= 0.99


def test_conditions_and_not_seeds_are_what_counts():
    """Copies of a seed are no news; copies of a condition would be."""
    values = folds(6, 1, 0)
    copied = {fold: seeds * 5 for fold, seeds in values.items()}

    once, more = mean_interval(values), mean_interval(copied)

    assert more.high - more.low == pytest.approx(once.high - once.low, rel=0.05)


def test_seeds_that_disagree_widen_the_interval():
    steady = {fold: [0.5, 0.5] for fold in range(6)}
    shaky = {fold: [0.3, 0.7] for fold in range(6)}

    assert mean_interval(steady) == Interval(0.5, 0.5, 0.5)
    found = mean_interval(shaky)
    assert found.estimate == 0.5
    # Mean of two draws from .3 and .7: a variance of .02 in each of 6 conditions.
    expected = 2.571 * np.sqrt(6 / 5) * np.sqrt(0.02 / 6)
    assert found.high - 0.5 == pytest.approx(expected, rel=0.05)


def test_a_paired_difference_cancels_what_conditions_share():
    ours = folds(8, 1, 0)
    theirs = {f: [v - 0.02 - 0.001 * (f % 2)] for f, (v,) in ours.items()}

    found = paired_difference(ours, theirs, 40000)

    known = ttest_rel(list(ours.values()), list(theirs.values())).confidence_interval(0.95)
    assert found.estimate == pytest.approx(0.0205)
    assert found.low == pytest.approx(float(known.low[0]), rel=0.01)
    assert found.high == pytest.approx(float(known.high[0]), rel=0.01)
    assert found.excludes_zero
    assert mean_interval(ours).high - mean_interval(ours).low > 0.05


def test_a_difference_takes_the_conditions_both_have_and_seeds_in_any_number():
    ours = {"a": [1.0, 3.0], "b": [5.0], "c": [9.0], "d": [NAN, 4.0]}
    theirs = {"a": [1.0], "b": [1.0, 3.0, 2.0], "c": [NAN], "d": [3.0], "e": [100.0]}

    found = paired_difference(ours, theirs)

    assert found.estimate == pytest.approx(((2 - 1) + (5 - 2) + (4 - 3)) / 3)


def test_undefined_values_are_left_out_and_one_condition_has_no_interval():
    one = mean_interval({"a": [0.25, NAN, 0.75], "b": [NAN]})

    assert one.estimate == 0.5
    assert np.isnan([one.low, one.high]).all()
    assert not one.excludes_zero
    assert np.isnan(mean_interval({"a": [NAN]}).estimate)


def grouped(num: int, size: int, seed: int) -> tuple[dict, dict]:
    """One seed of conditions whose groups differ (.1) more than the conditions of one (.05)."""
    rng = np.random.default_rng(seed)
    values, clusters = {}, {}
    for group, effect in enumerate(rng.normal(size=num)):
        for place, noise in enumerate(rng.normal(size=size)):
            values[group, place] = [float(0.9 + 0.1 * effect + 0.05 * noise)]
            clusters[group, place] = group
    return values, clusters


def test_of_equal_groups_the_interval_is_that_of_student_on_their_means():
    values, clusters = grouped(6, 3, 0)
    means = np.reshape(list(values.values()), (6, 3)).mean(axis=1)

    found = mean_interval(values, clusters=clusters, num_resamples=40000)

    known = ttest_1samp(means, 0).confidence_interval(0.95)
    width = known.high - known.low
    assert found.estimate == pytest.approx(means.mean())
    assert found.low == pytest.approx(known.low, abs=0.01 * width)
    assert found.high == pytest.approx(known.high, abs=0.01 * width)


def test_groups_cover_the_mean_where_conditions_alone_are_too_sure():
    """300 repeats at 95 % have a standard error of .013; alone, they cover about .75."""
    covered = {True: 0, False: 0}
    for seed in range(300):
        values, clusters = grouped(6, 4, seed)
        for told in covered:
            found = mean_interval(
                values, clusters=clusters if told else None, num_resamples=400, seed=seed
            )
            covered[told] += found.low <= 0.9 <= found.high

    assert 0.91 <= covered[True] / 300 <= 0.99
    assert covered[False] / 300 < 0.85


def test_groups_of_one_condition_change_nothing():
    values = folds(6, 3, 0)
    clusters = {fold: f"group {fold}" for fold in values}

    assert mean_interval(values, clusters=clusters) == mean_interval(values)


def test_a_group_counts_by_its_conditions_and_goes_as_a_whole():
    """Two groups, four equally likely draws of them, whose means are known."""
    values = {"a1": [0.2], "a2": [0.2], "a3": [0.2], "b": [1.0]}
    clusters = {"a1": "a", "a2": "a", "a3": "a", "b": "b"}

    found = mean_interval(values, clusters=clusters, num_resamples=40000)

    # Draws aa, ab, ba, bb have means .2, .4, .4 and 1; t with one degree of freedom is 12.706.
    spread = np.std([0.2, 0.4, 0.4, 1.0]) * np.sqrt(2)
    assert found.estimate == pytest.approx(0.4)
    assert found.high - 0.4 == pytest.approx(12.706 * spread, rel=0.02)


def test_one_group_of_many_conditions_has_no_interval():
    values = folds(5, 2, 0)

    found = mean_interval(values, clusters=dict.fromkeys(values, "all"))

    assert found.estimate == mean_interval(values).estimate
    assert np.isnan([found.low, found.high]).all()


def test_a_group_without_a_defined_value_is_no_group():
    values = {"a": [0.1], "b": [0.3], "c": [NAN]}

    found = mean_interval(values, clusters={"a": "one", "b": "one", "c": "two"})

    assert np.isnan([found.low, found.high]).all()


def test_a_paired_difference_draws_groups_for_both_sides():
    ours, clusters = grouped(6, 3, 0)
    theirs = {key: [value - 0.02 * (key[0] + 1)] for key, (value,) in ours.items()}
    gaps = [0.02 * (group + 1) for group in range(6)]

    found = paired_difference(ours, theirs, 40000, clusters=clusters)

    known = ttest_1samp(gaps, 0).confidence_interval(0.95)
    assert found.low == pytest.approx(known.low, rel=0.02)
    assert found.high == pytest.approx(known.high, rel=0.02)


def test_bounds_stay_within_what_a_score_can_reach():
    assert Interval(0.9, 0.7, 1.1).within(-1.0, 1.0) == Interval(0.9, 0.7, 1.0)
    assert Interval(0.1, -0.2, 0.4).within(0.0, np.inf) == Interval(0.1, 0.0, 0.4)
    unknown = Interval(0.5, NAN, NAN).within(0.0, 1.0)
    assert unknown.estimate == 0.5
    assert np.isnan([unknown.low, unknown.high]).all()


def test_a_seed_repeats_its_interval():
    values = folds(5, 2, 0)

    assert mean_interval(values, seed=1) == mean_interval(values, seed=1)
    assert mean_interval(values, seed=1) != mean_interval(values, seed=2)
