"""Each target is met at its threshold and missed just past it; the page says which."""

import pytest

from benchmarks.quality_results import Results
from benchmarks.quality_study import read_study
from benchmarks.quality_targets import TARGETS, require_targets
from sedd.errors import ConfigError
from tests.benchmarks.tables import of_mode, results, told_apart

MODE = "counterfactual"
NAN = float("nan")


def both(metric: str, **values) -> dict:
    """The same scores of the model and of additive."""
    return dict.fromkeys((MODE, "additive"), of_mode(metric, **values))


def judge(name: str, found: Results, mode: str = MODE) -> tuple[bool, str]:
    verdict = TARGETS[name].found(found, mode)
    return verdict.met, verdict.value


@pytest.mark.parametrize(
    ("name", "metric", "good", "bad"),
    [
        ("share_of_attainable", "attainable", {"A": 1.0, "B": 0.87}, {"A": 1.0, "B": 0.85}),
        ("common_degs", "common_degs", {"A": 0.4, "B": 0.81}, {"A": 0.4, "B": 0.79}),
        ("zero_fraction", "zero_fraction_error", {"A": 0.0, "B": 0.039}, {"A": 0.0, "B": 0.041}),
        ("correlation_structure", "correlation_structure", {"A": 0.81}, {"A": 0.79}),
    ],
)
def test_a_mean_over_conditions_of_the_mean_over_seeds(name, metric, good, bad):
    met, _ = judge(name, results(counterfactual=of_mode(metric, **good)))
    missed, value = judge(name, results(counterfactual=of_mode(metric, **bad)))
    # A third seed of one condition must not make that condition count more.
    seeds = {
        condition: [value] * (3 if condition == "A" else 1) for condition, value in bad.items()
    }
    again, same = judge(name, results(counterfactual=of_mode(metric, **seeds)))

    assert (met, missed, again) == (True, False, False)
    assert value == same


def test_less_dependence_is_asked_of_cells_that_must_make_it_themselves():
    rows = of_mode("correlation_structure", A=0.7)
    found = results(counterfactual=rows, population=rows)

    assert judge("correlation_structure", found) == (False, "0.700")
    assert judge("correlation_structure", found, "population") == (True, "0.700")


def test_pearson_above_additive_needs_an_interval_without_zero():
    additive = of_mode("pearson", A=0.5, B=0.6, C=0.7)
    clear = of_mode("pearson", A=0.60, B=0.71, C=0.79)
    unclear = of_mode("pearson", A=0.90, B=0.55, C=0.71)

    assert judge("pearson_above_additive", results(counterfactual=clear, additive=additive))[0]
    met, value = judge("pearson_above_additive", results(counterfactual=unclear, additive=additive))
    assert not met
    assert value.startswith("+0.120 [-")


@pytest.mark.parametrize(
    ("name", "metric", "rival"),
    [
        ("pearson_never_below_additive", "pearson", "additive"),
        ("energy_below_no_change", "energy_distance", "no_change"),
        ("energy_below_additive", "energy_distance", "additive"),
    ],
)
def test_everywhere_means_in_each_condition_over_its_seeds(name, metric, rival):
    better = 1 if metric == "pearson" else -1
    rivals = of_mode(metric, A=0.5, B=0.5)
    good = of_mode(metric, A=[0.5 + 0.3 * better, 0.5 - 0.2 * better], B=0.5 + 0.1 * better)
    bad = of_mode(metric, A=[0.5 + 0.3 * better, 0.5 - 0.4 * better], B=0.5 + 0.1 * better)

    assert judge(name, results(**{MODE: good, rival: rivals})) == (True, "2 of 2")
    assert judge(name, results(**{MODE: bad, rival: rivals})) == (False, "1 of 2")


def test_the_largest_conditions_are_those_with_most_real_cells():
    def rows(fourth: float, largest: float) -> dict:
        sizes = {"A": 400, "B": 300, "C": 200, "D": 100}
        values = {"A": largest, "B": 0.94, "C": 0.93, "D": fourth}
        return {c: [{"pearson": values[c], "num_real": sizes[c]}] for c in sizes}

    assert judge("pearson_of_largest", results(counterfactual=rows(0.1, 0.95))) == (
        True,
        "A 0.950, B 0.940, C 0.930",
    )
    assert not judge("pearson_of_largest", results(counterfactual=rows(0.99, 0.929)))[0]


@pytest.mark.parametrize(("mine", "met"), [(1.5, True), (1.51, False)])
def test_the_strongest_responder_is_farthest_from_its_controls(mine, met):
    found = results(
        counterfactual=of_mode("energy_distance", A=0.9, B=mine),
        additive=of_mode("energy_distance", A=1.0, B=3.0),
        no_change=of_mode("energy_distance", A=2.0, B=9.0),
    )

    assert judge("energy_of_strongest", found) == (met, f"B {mine:.2f} to 3.00")


@pytest.mark.parametrize("outlier", [0.89, 1.16])
def test_the_variance_ratio_holds_in_every_condition(outlier):
    good = results(counterfactual=of_mode("variance_ratio", A=0.9, B=1.15))
    bad = results(counterfactual=of_mode("variance_ratio", A=1.0, B=outlier))

    assert judge("variance_ratio", good) == (True, "2 of 2; 0.90 to 1.15")
    assert judge("variance_ratio", bad)[0] is False


def test_discrimination_must_be_above_additive_and_equality_is_not():
    for score, met in ((0.9, True), (0.8, False)):
        rows = [
            told_apart(MODE, discrimination_l1=score),
            told_apart("additive", discrimination_l1=0.8),
        ]
        found = results(rows, **both("pearson", A=1))
        assert judge("discrimination_above_additive", found) == (met, f"{score:.3f} to 0.800")


def test_one_ring_of_the_alarm_in_any_seed_is_too_many():
    for rings, met in ((0, True), (1, False)):
        rows = [told_apart(MODE, collapsed=seed < rings, seed=seed) for seed in range(3)] + [
            told_apart("mean_of_others", collapsed=True)
        ]
        found = results(rows, counterfactual=of_mode("pearson", A=1))
        assert judge("alarm_silent", found) == (met, f"rang in {rings} of 3")


@pytest.mark.parametrize("unknown", ["predicted", "real"])
def test_an_alarm_that_could_not_ring_was_not_silent(unknown):
    undefined = told_apart(MODE, seed=1, **{unknown: NAN})
    rows = of_mode("pearson", A=1)

    some = results([told_apart(MODE), undefined], counterfactual=rows)
    none = results([undefined], counterfactual=rows)

    assert judge("alarm_silent", some) == (True, "rang in 0 of 1; undefined in 1")
    assert judge("alarm_silent", none) == (False, "rang in 0 of 0; undefined in 1")
    assert judge("alarm_silent", results(counterfactual=rows)) == (False, "rang in 0 of 0")


@pytest.mark.parametrize(("mine", "met"), [(0.07, True), (0.08, False)])
def test_noise_may_cost_no_change_and_the_floor_of_finite_controls(mine, met):
    no_change = {"A": [{"energy_distance": 0.05, "control_floor": 0.025}]}
    found = results(counterfactual=of_mode("energy_distance", A=mine), no_change=no_change)

    assert judge("nothing_invented", found) == (met, f"{mine:.3f} of 0.075")


@pytest.mark.parametrize(
    ("name", "needed"),
    [
        ("pearson_above_additive", "additive"),
        ("pearson_never_below_additive", "additive"),
        ("energy_below_no_change", "no change"),
        ("energy_below_additive", "additive"),
        ("energy_of_strongest", "additive, no change"),
        ("discrimination_above_additive", "additive"),
        ("nothing_invented", "no change"),
    ],
)
def test_a_target_without_its_baseline_is_missed_and_says_which(name, needed):
    rows = [told_apart(MODE)]

    found = results(rows, counterfactual=of_mode("pearson", A=1.0, B=1.0))

    assert judge(name, found) == (False, f"no scores of {needed}")


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_no_target_is_met_by_nothing(name):
    assert judge(name, results(additive=of_mode("pearson", A=1.0)))[0] is False


def test_a_baseline_is_compared_where_it_was_scored_and_the_rest_is_counted():
    mine = of_mode("pearson", A=0.9, B=0.9, C=0.1)
    found = results(counterfactual=mine, additive=of_mode("pearson", A=0.5, B=0.5))

    assert judge("pearson_never_below_additive", found) == (
        True,
        "2 of 2; no scores of additive in 1",
    )
    assert judge("pearson_above_additive", found)[1].startswith("+0.400")


@pytest.mark.parametrize("name", ["pearson_never_below_additive", "energy_below_additive"])
def test_nothing_to_compare_is_not_everywhere(name):
    mine, additive = of_mode("pearson", A=0.9), of_mode("pearson", B=0.5)

    found = judge(name, results(counterfactual=mine, additive=additive))

    assert found == (False, "0 of 0; no scores of additive in 1")


def test_what_is_invented_is_counted_where_no_change_was_scored():
    mine = of_mode("energy_distance", A=0.07, B=9.0)
    no_change = {"A": [{"energy_distance": 0.05, "control_floor": 0.025}]}

    found = judge("nothing_invented", results(counterfactual=mine, no_change=no_change))

    assert found == (True, "0.070 of 0.075")


def test_the_strongest_responder_needs_additive_there():
    found = results(
        counterfactual=of_mode("energy_distance", A=0.9, B=1.5),
        additive=of_mode("energy_distance", A=2.0),
        no_change=of_mode("energy_distance", A=2.0, B=9.0),
    )

    assert judge("energy_of_strongest", found) == (False, "no scores of additive in B")


def test_without_two_perturbations_nothing_is_told_apart():
    found = results(**both("pearson", A=1))

    assert judge("discrimination_above_additive", found) == (False, "nothing to tell apart")


def test_conditions_of_a_group_do_not_make_additive_beaten():
    """Two perturbations of +.1 and one of 0, in three types each: nine conditions, three groups."""
    gains = {"x": 0.1, "y": 0.12, "z": 0.0}
    names = {f"{kind} × {name}": name for kind in "ABC" for name in gains}
    mine = {c: [{"pearson": 0.5 + gains[name], "group": name}] for c, name in names.items()}
    additive = {c: [{"pearson": 0.5, "group": name}] for c, name in names.items()}

    met, value = judge("pearson_above_additive", results(counterfactual=mine, additive=additive))

    assert not met
    assert value.startswith("+0.073 [-")


def test_a_target_that_does_not_exist_is_named_before_anything_runs(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        "name: x\nquestion: y\nfolds: pairs\nconfig: {}\nvariants: {a: {}}\n"
        "targets: [common_degs, fame]\n"
    )

    with pytest.raises(ConfigError, match=r"'x': no targets \['fame'\].*alarm_silent"):
        require_targets(read_study(path))
