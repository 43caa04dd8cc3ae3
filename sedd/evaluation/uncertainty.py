"""How sure a number is: an interval for a mean over conditions, and for a difference of two.

Intervals are at `LEVEL` and centred at the estimate, as wide as the spread of bootstrap resamples
says; `resampling` makes those of a single condition's scores.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import t

LEVEL = 0.95
NUM_RESAMPLES = 4000


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


def mean_interval(
    values: Mapping[Hashable, Sequence[float]],
    *,
    num_resamples: int = NUM_RESAMPLES,
    seed: int = 0,
) -> Interval:
    """Mean over conditions of their mean over seeds, with the interval of other such conditions.

    Conditions are drawn with replacement, then seeds within each drawn one. With n conditions the
    resamples' spread is taken times sqrt(n / (n - 1)) and Student's t with n - 1 degrees of
    freedom, without which few conditions look too sure (Hesterberg, The American Statistician 69,
    2015); drawing seeds adds a little to it, so that the interval errs on the wide side. An
    undefined value is left out, and so is a condition without any; nan bounds with fewer than two
    conditions.
    """
    return paired_difference(values, dict.fromkeys(values, (0.0,)), num_resamples, seed=seed)


def paired_difference(
    values: Mapping[Hashable, Sequence[float]],
    others: Mapping[Hashable, Sequence[float]],
    num_resamples: int = NUM_RESAMPLES,
    *,
    seed: int = 0,
) -> Interval:
    """Mean over the conditions that both have of (values - others), as in `mean_interval`.

    Both sides get the same drawn conditions, so that easy and hard ones cancel; seeds are drawn for
    each side by itself and may differ in number.
    """
    both = [_defined(values[key], others[key]) for key in values if key in others]
    both = [sides for sides in both if min(map(len, sides)) > 0]
    if not both:
        return Interval(*3 * [float("nan")])
    estimate = float(np.mean([np.mean(one) - np.mean(other) for one, other in both]))
    num = len(both)
    if num < 2:
        return Interval(estimate, float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    drawn = rng.integers(num, size=(num_resamples, num))
    one, other = (_drawn_means([sides[i] for sides in both], drawn, rng) for i in (0, 1))
    spread = float((one - other).mean(axis=1).std() * np.sqrt(num / (num - 1)))
    reach = spread * float(t.ppf((1 + LEVEL) / 2, num - 1))
    return Interval(estimate, estimate - reach, estimate + reach)


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
