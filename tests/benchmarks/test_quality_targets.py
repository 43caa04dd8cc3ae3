"""Each target is met at its threshold and missed just past it; the page says which."""

import pandas as pd
import pytest

from benchmarks.quality_results import Results
from benchmarks.quality_study import Published, Study, read_study
from benchmarks.quality_table import to_markdown
from benchmarks.quality_targets import TARGETS
from sedd.errors import ConfigError

MODE = "counterfactual"
DEFAULTS = {
    "pearson": 0.5, "attainable": 0.6, "energy_distance": 1.0, "mse": 0.1, "common_degs": 0.5,
    "variance_ratio": 1.0, "zero_fraction_error": 0.01, "correlation_structure": 0.5,
    "num_real": 50, "num_control": 50, "shift_reliability": 0.9, "control_floor": 0.02,
}  # fmt: skip


def scores(**values: dict[str, list[dict[str, float]]]) -> pd.DataFrame:
    """Rows of methods by condition A, B, …; several of one condition are seeds."""
    rows = []
    for method, conditions in values.items():
        for condition, seeds in conditions.items():
            labels = {"cell_type": condition, "perturbation": "x", "condition": condition}
            rows += [
                {"variant": "full", "fold": condition, "seed": seed, "method": method}
                | labels | DEFAULTS | given
                for seed, given in enumerate(seeds)
            ]  # fmt: skip
    return pd.DataFrame(rows)


def results(separation: list[dict] | None = None, **values) -> Results:
    facts = {
        "variant": "full", "fold": "A", "seed": 0, "trained_model": "m", "data_digest": "d" * 64,
        "cpu_seconds_training": 90.0, "cpu_seconds_generating": 30.0, "commit": "abc",
        "peak_rss_mb": 7, "machine": "here", "genes": ["g1", "g2"],
    }  # fmt: skip
    empty = pd.DataFrame()
    found = pd.DataFrame(separation or [])
    return Results(scores(**values), found, empty, empty, pd.DataFrame([facts]))


def judge(name: str, found: Results, mode: str = MODE) -> tuple[bool, str]:
    verdict = TARGETS[name].judge(found, mode)
    return verdict.met, verdict.value


def of_mode(metric: str, **values: float | list[float]) -> dict:
    """One row for each value of a condition."""
    return {
        condition: [{metric: value} for value in (given if isinstance(given, list) else [given])]
        for condition, given in values.items()
    }


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


def told_apart(method: str, *, score: float, collapsed: bool = False, seed: int = 0) -> dict:
    return {
        "variant": "full", "fold": "A", "seed": seed, "cell_type": "A", "method": method,
        "discrimination_l1": score, "discrimination_cosine": score, "predicted": 0.1, "real": 0.1,
        "collapsed": collapsed,
    }  # fmt: skip


def test_discrimination_must_be_above_additive_and_equality_is_not():
    for score, met in ((0.9, True), (0.8, False)):
        rows = [told_apart(MODE, score=score), told_apart("additive", score=0.8)]
        found = results(rows, counterfactual=of_mode("pearson", A=1))
        assert judge("discrimination_above_additive", found) == (met, f"{score:.3f} to 0.800")


def test_one_ring_of_the_alarm_in_any_seed_is_too_many():
    for rings, met in ((0, True), (1, False)):
        rows = [
            told_apart(MODE, score=1, collapsed=seed < rings, seed=seed) for seed in range(3)
        ] + [told_apart("mean_of_others", score=0, collapsed=True)]
        found = results(rows, counterfactual=of_mode("pearson", A=1))
        assert judge("alarm_silent", found) == (met, f"rang in {rings} of 3")


@pytest.mark.parametrize(("mine", "met"), [(0.07, True), (0.08, False)])
def test_noise_may_cost_no_change_and_the_floor_of_finite_controls(mine, met):
    no_change = {"A": [{"energy_distance": 0.05, "control_floor": 0.025}]}
    found = results(counterfactual=of_mode("energy_distance", A=mine), no_change=no_change)

    assert judge("nothing_invented", found) == (met, f"{mine:.3f} of 0.075")


# The page.


def page_study(**changes) -> Study:
    content = {"name": "tiny", "question": "?", "folds": "cell_types", "config": {}}
    return Study(**content | {"variants": {"full": {}}} | changes)


def page(found: Results, **changes) -> list[str]:
    return to_markdown(page_study(**changes), found, command="do").splitlines()


def test_the_page_says_what_was_met_and_what_was_missed():
    found = results(
        counterfactual=of_mode("common_degs", A=0.61),
        population=of_mode("common_degs", A=0.59),
        no_change=of_mode("common_degs", A=0),
    )

    lines = page(found, targets=("common_degs",))

    assert "| common DEGs of the top 100 ≥ .60 | met: 0.610 | MISSED: 0.590 |" in lines
    assert "## Targets" not in page(found)
    assert "1 trainings, 2 CPU minutes in all" in "".join(lines)


def test_published_figures_stand_beneath_ours_under_their_source():
    found = results(
        counterfactual=of_mode("pearson", A=0.9, B=0.8),
        population=of_mode("pearson", A=0.7),
        additive=of_mode("pearson", A=0.6),
        no_change=of_mode("pearson", A=0.0),
    )
    published = Published(source="A paper.", metrics=("pearson",), methods={"scGen": (0.87,)})

    lines = page(found, published=published)

    start = lines.index("## Published figures")
    assert lines[start + 2] == "A paper."
    rows = [line.split(" | ") for line in lines[start + 6 : start + 11]]
    assert [(row[0], row[1].split()[0]) for row in rows] == [
        ("| counterfactual (ours)", "0.850"), ("| population (ours)", "0.700"),
        ("| additive (ours)", "0.600"), ("| no change (ours)", "0.000"), ("| scGen", "0.870"),
    ]  # fmt: skip


def test_a_target_that_does_not_exist_is_named_before_anything_runs(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(
        "name: x\nquestion: y\nfolds: pairs\nconfig: {}\nvariants: {a: {}}\n"
        "targets: [common_degs, fame]\n"
    )

    with pytest.raises(ConfigError, match=r"no targets \['fame'\].*alarm_silent"):
        read_study(path)
