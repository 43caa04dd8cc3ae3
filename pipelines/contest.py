"""The gate: whether a newly registered model may become the champion.

Judged by two measures over the same held-out conditions, and both must agree: the energy distance
says how near the cells are to the real ones, the Pearson of the shift whether their change has the
right direction. Each alone can be had cheaply, the first by changing nothing where effects are
weak, the second by an effect of any size. A score that is not known never wins.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sedd.evaluation.uncertainty import Interval

Condition = tuple[str, str]
Scores = Mapping[str, Mapping[Condition, Interval]]
"""By measure and (cell type, perturbation): the score with its interval over resampled cells."""


@dataclass(frozen=True)
class Measure:
    """A score; the smaller the `loss` of a value, the better the value."""

    key: str
    title: str
    loss: Callable[[float], float]


MEASURES = (
    Measure("energy_distance", "energy distance", abs),
    Measure("pearson", "Pearson of the shift", lambda value: -value),
)


@dataclass(frozen=True)
class Rival:
    """Whom the candidate is compared with.

    An incumbent keeps its place unless the candidate is as good, within the noise of the
    incumbent's own scores; any other rival has to be beaten.
    """

    key: str
    """Stands in the names of numbers."""
    name: str
    scores: Scores
    incumbent: bool = False


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One measure against one rival: means over the conditions that define the rival's score."""

    measure: Measure
    rival: Rival
    num_conditions: int
    candidate: float
    """Mean score of the candidate; nan if it lacks one of the conditions."""
    other: float
    margin: float
    """How much worse the candidate may be: half of the incumbent's 95 % interval, else 0."""
    holds: bool

    @property
    def sentence(self) -> str:
        """The comparison in words and numbers."""
        words = (
            {True: "is not worse than", False: "is worse than"}
            if self.rival.incumbent
            else {True: "beats", False: "does not beat"}
        )
        spread = f" ± {self.margin:.3g}" if self.margin else ""
        numbers = f"{self.candidate:.3g}, {self.rival.name} {self.other:.3g}{spread}"
        where = f"{self.num_conditions} condition{'s' if self.num_conditions != 1 else ''}"
        return f"{self.measure.title} {words[self.holds]} {self.rival.name} ({numbers}; {where})"


@dataclass(frozen=True)
class Verdict:
    """The gate's answer, with what it rests on."""

    comparisons: Sequence[Comparison]
    objection: str | None = None
    """Why the comparison could not be made, if it could not."""
    note: str | None = None
    """What a reader of the numbers has to know beside."""

    @property
    def promoted(self) -> bool:
        """Whether the candidate may become the champion."""
        return not self.objection and all(each.holds for each in self.comparisons)

    @property
    def sentence(self) -> str:
        """Why, in one sentence; what fails comes first."""
        ordered = sorted(self.comparisons, key=lambda each: each.holds)
        reasons = [self.objection] if self.objection else []
        notes = [self.note] if self.note else []
        return "; ".join([*reasons, *(each.sentence for each in ordered), *notes]) + "."

    @property
    def numbers(self) -> dict[str, float]:
        """Every number of the comparisons, by measure and who it belongs to."""
        found = {}
        for each in self.comparisons:
            found[f"{each.measure.key}.candidate"] = each.candidate
            found[f"{each.measure.key}.{each.rival.key}"] = each.other
            if each.margin:
                found[f"{each.measure.key}.{each.rival.key}.margin"] = each.margin
        return found


def judge(
    candidate: Scores,
    rivals: Sequence[Rival],
    *,
    objection: str | None = None,
    note: str | None = None,
) -> Verdict:
    """Compare a candidate's scores with those of its rivals, condition by condition.

    Args:
        candidate: Its scores.
        rivals: The additive baseline, and the champion if there is one that could be judged.
        objection: Why a champion could not be judged on these conditions; then nobody wins.
        note: How they were judged, if in another way than as they were evaluated.
    """
    comparisons = [compare(measure, candidate, rival) for rival in rivals for measure in MEASURES]
    return Verdict(comparisons, objection, note)


def compare(measure: Measure, candidate: Scores, rival: Rival) -> Comparison:
    """One measure against one rival, over the conditions in which the rival's score is defined.

    The margin is that of the mean over the conditions as they are, from cells drawn again within
    each; an unknown interval grants none.
    """
    theirs = {
        condition: score
        for condition, score in rival.scores.get(measure.key, {}).items()
        if np.isfinite(score.estimate)
    }
    nowhere = Interval(*3 * [float("nan")])
    ours = [candidate.get(measure.key, {}).get(condition, nowhere) for condition in theirs]
    gains = [
        measure.loss(other.estimate) - measure.loss(own.estimate)
        for own, other in zip(ours, theirs.values(), strict=True)
    ]
    margin = _margin(list(theirs.values())) if rival.incumbent else 0.0
    gain = _mean(gains)
    return Comparison(
        measure=measure,
        rival=rival,
        num_conditions=len(theirs),
        candidate=_mean([own.estimate for own in ours]),
        other=_mean([other.estimate for other in theirs.values()]),
        margin=margin,
        holds=bool(np.isfinite(gain) and (gain >= -margin if rival.incumbent else gain > 0)),
    )


def baseline(methods: Mapping[str, Scores]) -> Rival:
    """The additive baseline; the mean of others stands in where there is no effect to add.

    For a perturbation that no training cell shows nothing can be added.
    """
    from sedd.evaluation.baselines import ADDITIVE, MEAN_OF_OTHERS

    first, second = (methods.get(name, {}) for name in (ADDITIVE, MEAN_OF_OTHERS))
    scores = {
        measure.key: {**second.get(measure.key, {}), **first.get(measure.key, {})}
        for measure in MEASURES
    }
    key = ADDITIVE if first else MEAN_OF_OTHERS
    return Rival(key, key.replace("_", " "), scores)


def _margin(scores: Sequence[Interval]) -> float:
    halves = [(score.high - score.low) / 2 for score in scores]
    if not halves or not np.isfinite(halves).all():
        return 0.0
    return float(np.sqrt(np.square(halves).sum()) / len(halves))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
