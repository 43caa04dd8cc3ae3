"""The gate's rule: whom a candidate has to beat, by how much it may lose, what never wins."""

import math

import pytest

from pipelines.contest import MEASURES, Rival, baseline, compare, judge
from sedd.evaluation.uncertainty import Interval

ENERGY, PEARSON = MEASURES
ONE, TWO = ("B cell", "IFNb"), ("T cell", "IFNb")
NAN = float("nan")


def scores(energy, pearson, *, half=0.0):
    """A method's scores in `ONE`, or in both conditions where pairs are given; ± `half`."""

    def by_condition(values):
        values = values if isinstance(values, tuple) else (values,)
        return {
            condition: Interval(value, value - half, value + half)
            for condition, value in zip((ONE, TWO), values, strict=False)
        }

    return {"energy_distance": by_condition(energy), "pearson": by_condition(pearson)}


ADDITIVE = Rival("additive", "additive", scores(2.0, 0.8, half=9.0))


def champion(energy, pearson, *, half):
    return Rival("champion", "champion", scores(energy, pearson, half=half), incumbent=True)


@pytest.mark.parametrize(
    ("energy", "pearson", "promoted"),
    [
        (1.9, 0.81, True),
        (1.9, 0.79, False),
        (2.1, 0.81, False),
        (2.0, 0.81, False),  # as good as additive does not beat it
        (1.9, 0.8, False),
    ],
)
def test_the_baseline_has_to_be_beaten_in_both_measures_whatever_its_interval(
    energy, pearson, promoted
):
    assert judge(scores(energy, pearson), [ADDITIVE]).promoted is promoted


@pytest.mark.parametrize(
    ("energy", "pearson", "promoted"),
    [
        (1.0, 0.9, True),  # the same again
        (1.09, 0.9, True),  # worse, by less than the interval of ± .1
        (1.11, 0.9, False),
        (1.0, 0.81, True),
        (1.0, 0.79, False),
        (0.1, 0.79, False),  # one measure does not make up for the other
    ],
)
def test_a_champion_is_followed_within_its_own_interval_and_not_beyond(energy, pearson, promoted):
    verdict = judge(
        scores(energy, pearson), [Rival("a", "a", scores(3.0, 0.0)), champion(1.0, 0.9, half=0.1)]
    )

    assert verdict.promoted is promoted


def test_a_too_small_energy_distance_is_as_bad_as_one_too_large():
    rival = champion(0.05, 0.9, half=0.1)

    assert compare(ENERGY, scores(-0.14, 0.9), rival).holds
    assert not compare(ENERGY, scores(-0.16, 0.9), rival).holds


def test_the_margin_of_a_mean_is_that_of_independent_cells_in_each_condition():
    rival = champion((1.0, 3.0), (0.9, 0.9), half=0.2)

    found = compare(ENERGY, scores((2.0, 2.0), (0.9, 0.9)), rival)

    assert found.margin == pytest.approx(math.sqrt(2 * 0.2**2) / 2)
    assert (found.candidate, found.other, found.num_conditions) == (2.0, 2.0, 2)
    assert found.holds


def test_conditions_are_paired_so_an_easy_one_is_no_help():
    """A candidate that was not scored where it is hard has the better mean, and does not win."""
    easy = scores(0.5, 0.95)
    both = Rival("additive", "additive", scores((1.0, 5.0), (0.9, 0.1)))

    verdict = judge(easy, [both])

    assert not verdict.promoted
    assert math.isnan(verdict.numbers["energy_distance.candidate"])


@pytest.mark.parametrize("missing", ["energy_distance", "pearson"])
@pytest.mark.parametrize("value", [NAN, math.inf])
def test_a_score_that_is_not_known_never_wins(missing, value):
    unknown = {**scores(0.1, 0.99), missing: scores(value, value)[missing]}

    assert not judge(unknown, [ADDITIVE]).promoted
    assert not judge(
        unknown, [Rival("a", "a", scores(3.0, 0.0)), champion(1.0, 0.9, half=9.0)]
    ).promoted


@pytest.mark.parametrize("incumbent", [True, False])
def test_nobody_is_beaten_where_there_is_nothing_to_compare_with(incumbent):
    rival = Rival("additive", "additive", scores(NAN, NAN), incumbent=incumbent)

    assert not compare(ENERGY, scores(0.1, 0.99), rival).holds


def test_a_condition_that_nobody_can_be_scored_in_does_not_count():
    """Pearson is undefined where the real shift is constant, for everyone."""
    rival = Rival("additive", "additive", scores((2.0, 2.0), (0.8, NAN)))

    assert judge(scores((1.0, 1.0), (0.9, NAN)), [rival]).promoted


def test_an_unknown_interval_of_the_champion_grants_no_margin():
    rival = champion(1.0, 0.9, half=NAN)

    assert compare(ENERGY, scores(1.0, 0.9), rival).holds
    assert not compare(ENERGY, scores(1.0001, 0.9), rival).holds


def test_a_champion_that_cannot_be_judged_is_not_replaced():
    verdict = judge(scores(0.1, 0.99), [ADDITIVE], objection="it knows no B cells")

    assert not verdict.promoted
    assert verdict.sentence.startswith("it knows no B cells; ")


def test_the_sentence_says_first_what_fails_and_has_every_number():
    verdict = judge(scores(1.5, 0.7), [ADDITIVE, champion(1.0, 0.69, half=0.1)], note="so it is")

    assert verdict.sentence == (
        "Pearson of the shift does not beat additive (0.7, additive 0.8; 1 condition); "
        "energy distance is worse than champion (1.5, champion 1 ± 0.1; 1 condition); "
        "energy distance beats additive (1.5, additive 2; 1 condition); "
        "Pearson of the shift is not worse than champion (0.7, champion 0.69 ± 0.1; 1 condition); "
        "so it is."
    )
    assert verdict.numbers == {
        "energy_distance.candidate": 1.5,
        "energy_distance.additive": 2.0,
        "energy_distance.champion": 1.0,
        "energy_distance.champion.margin": pytest.approx(0.1),
        "pearson.candidate": 0.7,
        "pearson.additive": 0.8,
        "pearson.champion": 0.69,
        "pearson.champion.margin": pytest.approx(0.1),
    }


def test_the_mean_of_others_stands_in_where_no_effect_can_be_added():
    methods = {"additive": scores(1.0, 0.5), "mean_of_others": scores((7.0, 8.0), (0.1, 0.2))}

    both, others = baseline(methods), baseline({"mean_of_others": methods["mean_of_others"]})

    assert [s.estimate for s in both.scores["energy_distance"].values()] == [1.0, 8.0]
    assert (both.name, others.name) == ("additive", "mean of others")
    assert not judge(scores(0.1, 0.99), [baseline({})]).promoted
