"""What a model has to reach in a quality study, each target judged from its scores.

A target takes the results of one variant and the name of a mode. It gives what was found, and
whether that is enough; every value is a mean over seeds, and over conditions where it says so.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd

from benchmarks.quality_results import Results, by_condition
from sedd.evaluation.baselines import ADDITIVE, NO_CHANGE
from sedd.evaluation.uncertainty import paired_difference


@dataclass(frozen=True)
class Found:
    """What a mode reached."""

    value: str
    met: bool


@dataclass(frozen=True)
class Target:
    """What is wanted, in words, and how it is judged."""

    wanted: str
    judge: Callable[[Results, str], Found]


def share_of_attainable(results: Results, mode: str) -> Found:
    """Mean over conditions of Pearson over the reliability of the real shift."""
    share = _means(results, mode, "attainable").mean()
    return Found(f"{share:.3f}", share >= 0.93)


def pearson_above_additive(results: Results, mode: str) -> Found:
    """The paired difference over conditions, with its interval."""
    scores = results.scores
    mine, other = (
        by_condition(scores[scores["method"] == name], "pearson") for name in (mode, ADDITIVE)
    )
    found = paired_difference(mine, other)
    value = f"{found.estimate:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
    return Found(value, found.low > 0)


def pearson_never_below_additive(results: Results, mode: str) -> Found:
    """Stricter than "not significantly below": the mean over seeds is compared as it is."""
    better = _means(results, mode, "pearson") >= _means(results, ADDITIVE, "pearson")
    return _everywhere(better)


def pearson_of_largest(results: Results, mode: str) -> Found:
    """The three conditions with most real cells."""
    rows = results.scores[results.scores["method"] == mode]
    largest = rows.groupby("condition")["num_real"].first().nlargest(3).index
    found = _means(results, mode, "pearson")[largest]
    return Found(", ".join(f"{name} {value:.3f}" for name, value in found.items()),
                 bool((found >= 0.93).all()))  # fmt: skip


def energy_below_no_change(results: Results, mode: str) -> Found:
    """In every condition."""
    distance = "energy_distance"
    return _everywhere(_means(results, mode, distance) < _means(results, NO_CHANGE, distance))


def energy_below_additive(results: Results, mode: str) -> Found:
    """In every condition."""
    distance = "energy_distance"
    return _everywhere(_means(results, mode, distance) < _means(results, ADDITIVE, distance))


def energy_of_strongest(results: Results, mode: str) -> Found:
    """Against additive, in the condition that is farthest from its control cells."""
    strongest = _means(results, NO_CHANGE, "energy_distance").idxmax()
    mine, additive = (
        float(_means(results, name, "energy_distance")[strongest]) for name in (mode, ADDITIVE)
    )
    return Found(f"{strongest} {mine:.2f} to {additive:.2f}", mine <= additive / 2)


def common_degs(results: Results, mode: str) -> Found:
    """Mean over conditions."""
    share = _means(results, mode, "common_degs").mean()
    return Found(f"{share:.3f}", share >= 0.60)


def variance_ratio(results: Results, mode: str) -> Found:
    """In every condition."""
    ratio = _means(results, mode, "variance_ratio")
    found = _everywhere(ratio.between(0.9, 1.15))
    return Found(f"{found.value}; {ratio.min():.2f} to {ratio.max():.2f}", found.met)


def correlation_structure(results: Results, mode: str) -> Found:
    """Mean over conditions; counterfactual cells inherit it, population cells must make it."""
    share = _means(results, mode, "correlation_structure").mean()
    return Found(f"{share:.3f}", share >= (0.8 if mode == "counterfactual" else 0.6))


def zero_fraction(results: Results, mode: str) -> Found:
    """Mean over conditions."""
    error = _means(results, mode, "zero_fraction_error").mean()
    return Found(f"{error:.4f}", error <= 0.02)


def discrimination_above_additive(results: Results, mode: str) -> Found:
    """Mean over cell types of the perturbation discrimination score."""
    scores = results.separation.groupby(["method", "cell_type"])["discrimination_l1"].mean()
    mine, additive = (float(scores[name].mean()) for name in (mode, ADDITIVE))
    return Found(f"{mine:.3f} to {additive:.3f}", mine > additive)


def alarm_silent(results: Results, mode: str) -> Found:
    """In every cell type and seed."""
    rows = results.separation[results.separation["method"] == mode]
    collapsed = rows["collapsed"].astype(bool)
    return Found(f"rang in {int(collapsed.sum())} of {len(rows)}", not collapsed.any())


def nothing_invented(results: Results, mode: str) -> Found:
    """Mean energy distance against that of no change plus its finite-control floor."""
    mine = _means(results, mode, "energy_distance").mean()
    allowed = (
        _means(results, NO_CHANGE, "energy_distance") + _means(results, NO_CHANGE, "control_floor")
    ).mean()
    return Found(f"{mine:.3f} of {allowed:.3f}", mine <= allowed)


TARGETS: Mapping[str, Target] = {
    target.judge.__name__: target
    for target in (
        Target("Pearson of shift ≥ .93 of the attainable", share_of_attainable),
        Target("Pearson above additive, interval without zero", pearson_above_additive),
        Target("Pearson in no condition below additive", pearson_never_below_additive),
        Target("Pearson ≥ .93 in the three largest conditions", pearson_of_largest),
        Target("energy distance below no change everywhere", energy_below_no_change),
        Target("energy distance below additive everywhere", energy_below_additive),
        Target("energy distance ≤ half of additive's, strongest responder", energy_of_strongest),
        Target("common DEGs of the top 100 ≥ .60", common_degs),
        Target("variance ratio .9 to 1.15 everywhere", variance_ratio),
        Target("correlation structure ≥ .8 (population: .6)", correlation_structure),
        Target("zero-fraction error ≤ .02", zero_fraction),
        Target("discrimination (PDS) above additive", discrimination_above_additive),
        Target("collapse alarm silent", alarm_silent),
        Target("energy distance ≤ no change + control floor", nothing_invented),
    )
}


def _means(results: Results, method: str, metric: str) -> pd.Series:
    """Mean over seeds for each condition, by its name."""
    rows = results.scores[results.scores["method"] == method]
    return rows.groupby("condition")[metric].mean()


def _everywhere(held: pd.Series) -> Found:
    return Found(f"{int(held.sum())} of {len(held)}", bool(held.all()))
