"""What a model has to reach in a quality study, each target judged from its scores.

A target takes the results of one variant and the name of a mode. It gives what was found, and
whether that is enough; every value is a mean over seeds, and over conditions where it says so. A
target that holds the model against a baseline is judged where the baseline was scored, and is
missed where it was scored nowhere.
"""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import pandas as pd

from benchmarks.markdown import interval, spoken
from benchmarks.quality_results import Results, difference_of
from benchmarks.quality_study import Study
from sedd.errors import ConfigError
from sedd.evaluation.baselines import ADDITIVE, NO_CHANGE


@dataclass(frozen=True)
class Found:
    """What a mode reached."""

    value: str
    met: bool


@dataclass(frozen=True)
class Target:
    """What is wanted, in words, how it is judged, and the baselines it is held against."""

    wanted: str
    judge: Callable[[Results, str], Found]
    against: tuple[str, ...] = ()

    def found(self, results: Results, mode: str) -> Found:
        """What the mode reached."""
        scored = set(results.scores["method"])
        missing = [spoken(name) for name in (mode, *self.against) if name not in scored]
        if missing:
            return Found(f"no scores of {', '.join(missing)}", met=False)
        return self.judge(results, mode)


def require_targets(study: Study) -> None:
    """ConfigError if the study names a target that there is not."""
    unknown = sorted(set(study.targets) - set(TARGETS))
    if unknown:
        raise ConfigError(
            f"Study {study.name!r}: no targets {unknown}. Choose from: {', '.join(TARGETS)}."
        )


def share_of_attainable(results: Results, mode: str) -> Found:
    """Mean over conditions of Pearson over the reliability of the real shift."""
    share = _means(results, mode, "attainable").mean()
    return Found(f"{share:.3f}", share >= 0.93)


def pearson_above_additive(results: Results, mode: str) -> Found:
    """The paired difference over conditions, with its interval."""
    mine, other = (results.scores[results.scores["method"] == name] for name in (mode, ADDITIVE))
    found = difference_of(mine, other, "pearson")
    return Found(interval(found, "{:+.3f}"), found.low > 0)


def pearson_never_below_additive(results: Results, mode: str) -> Found:
    """Stricter than "not significantly below": the mean over seeds is compared as it is."""
    return _everywhere_against(ADDITIVE, results, mode, "pearson", operator.ge)


def pearson_of_largest(results: Results, mode: str) -> Found:
    """The three conditions with most real cells."""
    rows = results.scores[results.scores["method"] == mode]
    largest = rows.groupby("condition")["num_real"].first().nlargest(3).index
    found = _means(results, mode, "pearson")[largest]
    return Found(", ".join(f"{name} {value:.3f}" for name, value in found.items()),
                 bool((found >= 0.93).all()))  # fmt: skip


def energy_below_no_change(results: Results, mode: str) -> Found:
    """In every condition."""
    return _everywhere_against(NO_CHANGE, results, mode, "energy_distance", operator.lt)


def energy_below_additive(results: Results, mode: str) -> Found:
    """In every condition."""
    return _everywhere_against(ADDITIVE, results, mode, "energy_distance", operator.lt)


def energy_of_strongest(results: Results, mode: str) -> Found:
    """Against additive, in the condition that is farthest from its control cells."""
    strongest = _means(results, NO_CHANGE, "energy_distance").idxmax()
    pairs = _pairs(results, mode, ADDITIVE, "energy_distance")
    if strongest not in pairs.index:
        return Found(f"no scores of additive in {strongest}", met=False)
    mine, additive = pairs.loc[strongest]
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
    scores = {
        name: _told_apart(results, name).groupby("cell_type")["discrimination_l1"].mean()
        for name in (mode, ADDITIVE)
    }
    pairs = pd.DataFrame(scores).dropna()
    if pairs.empty:
        return Found("nothing to tell apart", met=False)
    mine, additive = pairs[mode].mean(), pairs[ADDITIVE].mean()
    return Found(f"{mine:.3f} to {additive:.3f}", mine > additive)


def alarm_silent(results: Results, mode: str) -> Found:
    """In every cell type and seed whose likeness is defined, and in one at least."""
    rows = _told_apart(results, mode)
    defined = rows[rows[["predicted", "real"]].notna().all(axis=1)]
    rings, undefined = int(defined["collapsed"].astype(bool).sum()), len(rows) - len(defined)
    value = f"rang in {rings} of {len(defined)}" + f"; undefined in {undefined}" * (undefined > 0)
    return Found(value, rings == 0 and len(defined) > 0)


def nothing_invented(results: Results, mode: str) -> Found:
    """Mean energy distance against that of no change plus its finite-control floor."""
    pairs = _pairs(results, mode, NO_CHANGE, "energy_distance")
    floor = _means(results, NO_CHANGE, "control_floor")
    mine, allowed = pairs[mode].mean(), (pairs[NO_CHANGE] + floor[pairs.index]).mean()
    return Found(f"{mine:.3f} of {allowed:.3f}", mine <= allowed)


TARGETS: Mapping[str, Target] = {
    target.judge.__name__: target
    for target in (
        Target("Pearson of shift ≥ .93 of the attainable", share_of_attainable),
        Target(
            "Pearson above additive, interval without zero", pearson_above_additive, (ADDITIVE,)
        ),
        Target("Pearson in no condition below additive", pearson_never_below_additive, (ADDITIVE,)),
        Target("Pearson ≥ .93 in the three largest conditions", pearson_of_largest),
        Target("energy distance below no change everywhere", energy_below_no_change, (NO_CHANGE,)),
        Target("energy distance below additive everywhere", energy_below_additive, (ADDITIVE,)),
        Target(
            "energy distance ≤ half of additive's, strongest responder",
            energy_of_strongest,
            (ADDITIVE, NO_CHANGE),
        ),
        Target("common DEGs of the top 100 ≥ .60", common_degs),
        Target("variance ratio .9 to 1.15 everywhere", variance_ratio),
        Target("correlation structure ≥ .8 (population: .6)", correlation_structure),
        Target("zero-fraction error ≤ .02", zero_fraction),
        Target("discrimination (PDS) above additive", discrimination_above_additive, (ADDITIVE,)),
        Target("collapse alarm silent", alarm_silent),
        Target("energy distance ≤ no change + control floor", nothing_invented, (NO_CHANGE,)),
    )
}


def _means(results: Results, method: str, metric: str) -> pd.Series:
    """Mean over seeds for each condition, by its name."""
    rows = results.scores[results.scores["method"] == method]
    return rows.groupby("condition")[metric].mean()


def _pairs(results: Results, mode: str, rival: str, metric: str) -> pd.DataFrame:
    """Both columns of means, over the conditions that both have."""
    columns = {name: _means(results, name, metric) for name in (mode, rival)}
    return pd.concat(columns, axis=1, join="inner")


def _told_apart(results: Results, method: str) -> pd.DataFrame:
    """How a method told perturbations apart, by cell type and seed; maybe no row."""
    columns = ["cell_type", "method", "discrimination_l1", "predicted", "real", "collapsed"]
    rows = results.separation.reindex(columns=columns)
    return rows[rows["method"] == method]


def _everywhere_against(
    rival: str, results: Results, mode: str, metric: str, better: Callable[..., pd.Series]
) -> Found:
    pairs = _pairs(results, mode, rival, metric)
    found = _everywhere(better(pairs[mode], pairs[rival]))
    alone = len(_means(results, mode, metric)) - len(pairs)
    rest = f"; no scores of {spoken(rival)} in {alone}" if alone else ""
    return Found(found.value + rest, found.met)


def _everywhere(held: pd.Series) -> Found:
    return Found(f"{int(held.sum())} of {len(held)}", bool(len(held) and held.all()))
