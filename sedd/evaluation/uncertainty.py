"""How sure a number is: an interval for a mean over conditions, and for a difference of two.

Intervals are at `LEVEL` and centred at the estimate, as wide as the spread of bootstrap resamples
says. Conditions that share something (a perturbation, a cell type) go together as groups.
`resampling` makes the intervals of a single condition's scores.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import t

LEVEL = 0.95
NUM_RESAMPLES = 4000
NOBODY = -1
"""Where a group has fewer conditions than the largest."""


@dataclass(frozen=True)
class Interval:
    """An estimate with the bounds of its 95 % confidence interval; nan where unknown."""

    estimate: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether both bounds are on the same side of zero."""
        return self.low > 0 or self.high < 0

    def within(self, low: float, high: float) -> "Interval":
        """The same with bounds that a number between `low` and `high` can reach."""
        ends = np.clip([self.low, self.high], low, high)
        return Interval(self.estimate, float(ends[0]), float(ends[1]))


def mean_interval(
    values: Mapping[Hashable, Sequence[float]],
    *,
    clusters: Mapping[Hashable, Hashable] | None = None,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean over conditions of their mean over seeds, with the interval of other such groups.

    Groups are drawn with replacement, each with all of its conditions, then seeds within each
    condition. With n groups the resamples' spread is taken times sqrt(n / (n - 1)) and Student's t
    with n - 1 degrees of freedom, without which few groups look too sure (Hesterberg, The American
    Statistician 69, 2015); drawing seeds adds a little to it, so that the interval errs on the wide
    side. An undefined value is left out, and so is a condition without any; nan bounds with fewer
    than two groups.

    Args:
        values: What each condition has, one value for each seed.
        clusters: The group of each condition; without it every condition is a group of its own.
        num_resamples: How often groups are drawn.
        seed: Of the drawing.
    """
    zeros = dict.fromkeys(values, (0.0,))
    return paired_difference(values, zeros, num_resamples, clusters=clusters, seed=seed)


def paired_difference(
    values: Mapping[Hashable, Sequence[float]],
    others: Mapping[Hashable, Sequence[float]],
    num_resamples: int = NUM_RESAMPLES,
    *,
    clusters: Mapping[Hashable, Hashable] | None = None,
    seed: int = 0,
) -> Interval:
    """Mean over the conditions that both have of (values - others), as in `mean_interval`.

    Both sides get the same drawn conditions, so that easy and hard ones cancel; seeds are drawn for
    each side by itself and may differ in number.
    """
    found = {key: _defined(values[key], others[key]) for key in values if key in others}
    found = {key: sides for key, sides in found.items() if min(map(len, sides)) > 0}
    if not found:
        return Interval(*3 * [float("nan")])
    both = list(found.values())
    estimate = float(np.mean([np.mean(one) - np.mean(other) for one, other in both]))
    members = _members([key if clusters is None else clusters[key] for key in found])
    num = len(members)
    if num < 2:
        return Interval(estimate, float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    drawn = members[rng.integers(num, size=(num_resamples, num))].reshape(num_resamples, -1)
    one, other = (_drawn_means([sides[i] for sides in both], drawn, rng) for i in (0, 1))
    means = np.average(one - other, axis=1, weights=drawn != NOBODY)
    spread = float(means.std() * np.sqrt(num / (num - 1)))
    reach = spread * float(t.ppf((1 + LEVEL) / 2, num - 1))
    return Interval(estimate, estimate - reach, estimate + reach)


def _members(groups: Sequence[Hashable]) -> Int[np.ndarray, "groups most"]:
    """Places of the conditions of each group, a row for each, filled up with `NOBODY`."""
    places: dict[Hashable, list[int]] = {}
    for place, group in enumerate(groups):
        places.setdefault(group, []).append(place)
    most = max(map(len, places.values()))
    return np.array([row + [NOBODY] * (most - len(row)) for row in places.values()])


def _defined(*sides: Sequence[float]) -> list[Float[np.ndarray, " seeds"]]:
    arrays = [np.asarray(side, dtype=np.float64) for side in sides]
    return [array[~np.isnan(array)] for array in arrays]


def _drawn_means(
    values: Sequence[Float[np.ndarray, " _seeds"]],
    drawn: Int[np.ndarray, "resamples conditions"],
    rng: np.random.Generator,
) -> Float[np.ndarray, "resamples conditions"]:
    """Mean over seeds drawn with replacement within each drawn condition."""
    counts = np.array([len(seeds) for seeds in values])
    padded = np.zeros((len(values), counts.max()))
    for row, seeds in zip(padded, values, strict=True):
        row[: len(seeds)] = seeds
    places = np.arange(counts.max()) < counts[drawn][..., None]
    picks = (rng.random(places.shape) * counts[drawn][..., None]).astype(int)
    return (padded[drawn[..., None], picks] * places).sum(-1) / counts[drawn]
