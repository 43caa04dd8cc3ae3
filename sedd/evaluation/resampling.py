"""Intervals of the scores of one condition, from resampled cells.

Estimates stay where they are; resamples only say how far a score spreads, at these numbers of
cells. Their own mean is no better estimate: noise counts twice in them, which raises scores like
MSE. Scores that noise biases at any number of cells (Pearson, MSE, zero fractions) keep that bias:
`Limits.shift_reliability` tells how large it may be.
"""

from dataclasses import asdict, dataclass, replace
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import norm

from sedd.evaluation.differential import TOP, error_floor, t_statistic, top_genes
from sedd.evaluation.energy import distances, kept_rows
from sedd.evaluation.metrics import (
    MAX_CELLS,
    ROUNDING,
    Scores,
    mean_expression,
    real_structure,
)
from sedd.evaluation.prediction import Prediction
from sedd.evaluation.uncertainty import LEVEL, Interval

NUM_RESAMPLES = 200
RANGES = {
    "pearson": (-1.0, 1.0),
    "mse": (0.0, np.inf),
    "zero_fraction_error": (0.0, 1.0),
    "variance_ratio": (0.0, np.inf),
    "common_degs": (0.0, 1.0),
}
"""Where a score has bounds, its interval keeps them."""

Real = Float[np.ndarray, "real genes"]
Control = Float[np.ndarray, "control genes"]
Weights = Float[np.ndarray, "resamples cells"]
Replicates = Float[np.ndarray, " resamples"]


class ScoreBootstrap:
    """Resamples of the cells of one condition, for the intervals of every method's scores.

    Cells of each side are drawn with replacement; the control cells stay, since every method and
    the truth are measured against the same ones. Where a score pairs cells of one sample, in the
    energy distance, a cell drawn twice is no pair of different cells, so such pairs are left out
    (with them, every resample would look too concentrated), and so are pairs of one unit where
    there are several.
    """

    def __init__(
        self,
        real_log1p: Real,
        control_log1p: Control,
        *,
        max_cells: int | None = MAX_CELLS,
        num_resamples: int = NUM_RESAMPLES,
        seed: int = 0,
    ) -> None:
        self.control_log1p = control_log1p
        self.num_resamples, self.max_cells, self.seed = num_resamples, max_cells, seed
        self.real = _Resampled.draw(real_log1p, num_resamples, np.random.default_rng(seed))

    def intervals(self, prediction: Prediction, scores: Scores) -> dict[str, Interval]:
        """The interval of each of the `scores` of a prediction, within the range of the score.

        A stated mean moves as the mean of its cells does, but a prediction of no shift stays one.
        Like `metrics.score`, it takes the cells that a prediction names itself for the real ones.
        nan bounds with fewer than three cells on a side or an undefined score.
        """
        if prediction.against_log1p is not None:
            own = ScoreBootstrap(
                prediction.against_log1p,
                self.control_log1p,
                max_cells=self.max_cells,
                num_resamples=self.num_resamples,
                seed=self.seed,
            )
            return own.intervals(replace(prediction, against_log1p=None), scores)
        estimates = asdict(scores)
        if min(len(prediction.cells_log1p), len(self.real.cells_log1p)) < 3:
            nan = float("nan")
            return {name: Interval(value, nan, nan) for name, value in estimates.items()}
        replicates = self._replicates(prediction)
        quantile = float(norm.ppf((1 + LEVEL) / 2))
        return {
            name: _around(value, float(np.std(replicates[name])), quantile, RANGES.get(name))
            for name, value in estimates.items()
        }

    def _replicates(self, prediction: Prediction) -> dict[str, Replicates]:
        rng = np.random.default_rng([self.seed, 1])
        real, cells_log1p = self.real, prediction.cells_log1p
        predicted = _Resampled.draw(cells_log1p, self.num_resamples, rng, prediction.unit)
        control_mean = mean_expression(self.control_log1p)
        shift = prediction.mean_log1p - control_mean
        if np.ptp(shift) <= ROUNDING:
            predicted_shifts = np.broadcast_to(shift, (self.num_resamples, len(shift)))
        else:
            predicted_shifts = shift + predicted.means - mean_expression(cells_log1p)
        real_shifts = real.means - control_mean
        return {
            "pearson": _pearson_of_rows(predicted_shifts, real_shifts),
            "mse": np.square(predicted_shifts - real_shifts).mean(axis=1),
            "energy_distance": _energy_distances(predicted, real, self.max_cells, rng),
            "zero_fraction_error": np.abs(predicted.zeros - real.zeros).mean(axis=1),
            "variance_ratio": predicted.total_variances / real.total_variances,
            "common_degs": self._common_degs(predicted),
            "correlation_structure": self._correlation_structures(predicted),
        }

    def _common_degs(self, predicted: "_Resampled") -> Replicates:
        top = predicted.top_genes(self.control_log1p, self._floor)
        return (top & self._real_top).sum(axis=1) / TOP

    @cached_property
    def _real_top(self) -> Bool[np.ndarray, "resamples genes"]:
        return self.real.top_genes(self.control_log1p, self._floor)

    @cached_property
    def _floor(self) -> float:
        return error_floor(self.real.cells_log1p, self.control_log1p)

    def _correlation_structures(self, predicted: "_Resampled") -> Replicates:
        genes, truth, variances = self._real_structure
        if np.isnan(variances).all():
            return variances
        centred = truth - truth.mean(axis=1, keepdims=True)
        return (centred * predicted.correlations(genes)).mean(axis=1) / variances

    @cached_property
    def _real_structure(self) -> tuple[np.ndarray, np.ndarray, Replicates]:
        """Genes, their real correlations in each resample, and the variance of the true ones.

        Correlations of a resample hold the noise of the real cells twice. nan where some resamples
        have no more than that: then a ratio to what is left has no spread to speak of.
        """
        cells_log1p = self.real.cells_log1p
        genes, variance = real_structure(cells_log1p)
        if np.isnan(variance):
            return genes, np.empty(0), np.full(self.num_resamples, np.nan)
        truth = self.real.correlations(genes)
        once = np.full((1, len(cells_log1p)), 1 / len(cells_log1p))
        noise = _Resampled(cells_log1p, once).correlations(genes).var() - variance
        variances = truth.var(axis=1) - 2 * noise
        return genes, truth, variances if variances.min() > 0 else np.full_like(variances, np.nan)


@dataclass(frozen=True, eq=False)
class _Resampled:
    """Cells of one side, the share of each in each resample, and which were drawn together."""

    cells_log1p: Float[np.ndarray, "cells genes"]
    weights: Weights
    unit: Int[np.ndarray, " cells"] | None = None

    @classmethod
    def draw(
        cls,
        cells_log1p: Float[np.ndarray, "cells genes"],
        num: int,
        rng: np.random.Generator,
        unit: Int[np.ndarray, " cells"] | None = None,
    ) -> "_Resampled":
        """As many cells as there are, drawn with replacement, `num` times."""
        cells = len(cells_log1p)
        drawn = rng.multinomial(cells, np.full(cells, 1 / max(cells, 1)), size=num)
        return cls(cells_log1p, drawn / max(cells, 1), unit)

    @cached_property
    def means(self) -> Float[np.ndarray, "resamples genes"]:
        return self.weights @ self.cells_log1p.astype(np.float64)

    @cached_property
    def zeros(self) -> Float[np.ndarray, "resamples genes"]:
        return self.weights @ (self.cells_log1p == 0).astype(np.float64)

    @cached_property
    def total_variances(self) -> Replicates:
        """Sum over genes of each resample's variance, its loss of one degree of freedom undone."""
        centred = self.cells_log1p - mean_expression(self.cells_log1p)
        squares = np.einsum("cg,cg->c", centred, centred)
        total = self.weights @ squares - np.square(self.weights @ centred).sum(axis=1)
        return total * (len(centred) / (len(centred) - 1)) ** 2

    @property
    def are_pairs(self) -> Float[np.ndarray, "cells cells"]:
        """1 for two cells whose distance counts: different ones, of different units if any."""
        if self.unit is None or (self.unit == self.unit[0]).all():
            return 1.0 - np.eye(len(self.cells_log1p))
        return (self.unit[:, None] != self.unit).astype(np.float64)

    def top_genes(
        self, control_log1p: Control, floor: float
    ) -> Bool[np.ndarray, "resamples genes"]:
        """Top genes of each resample by Welch's t with a floor under its error."""
        control = control_log1p.astype(np.float64)
        squares = self.weights @ np.square(self.cells_log1p, dtype=np.float64)
        variances = np.maximum(squares - np.square(self.means), 0)
        error = variances / (len(self.cells_log1p) - 1) + control.var(0, ddof=1) / len(control)
        return top_genes(t_statistic(self.means - control.mean(0), error, floor), TOP)

    def correlations(self, genes: Int[np.ndarray, " _chosen"]) -> Float[np.ndarray, "resamples _"]:
        """Gene-gene correlations of each resample, 0 where a gene is constant."""
        cells = self.cells_log1p[:, genes].astype(np.float64)
        cells -= cells.mean(axis=0)
        pairs = np.triu_indices(len(genes), k=1)
        rows = []
        for weights in self.weights:
            centred = cells - weights @ cells
            covariance = (centred * weights[:, None]).T @ centred
            scale = np.sqrt(covariance.diagonal())
            scale = np.outer(scale, scale)
            unit = np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > ROUNDING)
            rows.append(unit[pairs])
        return np.stack(rows)


def _around(
    estimate: float, spread: float, quantile: float, bounds: tuple[float, float] | None = None
) -> Interval:
    low, high = bounds or (-np.inf, np.inf)
    reach = quantile * spread
    return Interval(estimate, max(estimate - reach, low), min(estimate + reach, high))


def _energy_distances(
    x: _Resampled, y: _Resampled, max_cells: int | None, rng: np.random.Generator
) -> Replicates:
    """Energy distance of each resample, from three matrices of distances between cells.

    As in `energy_distance`, a cell of x weighs as much as it has partners. Resamples that happen to
    hold a single unit where there are several are left out.
    """
    x, y = (_capped(side, max_cells, rng) for side in (x, y))
    origin = mean_expression(x.cells_log1p)
    between = distances(x.cells_log1p, y.cells_log1p, origin)
    within_x, x_weights = _within(x, origin)
    within_y, _ = _within(y, origin)
    to_y = np.einsum("rx,rx->r", x_weights, y.weights @ between.T)
    found = 2 * to_y - within_x - within_y
    return found[np.isfinite(found)]


def _within(
    side: _Resampled, origin: Float[np.ndarray, " genes"]
) -> tuple[Replicates, Float[np.ndarray, "resamples cells"]]:
    """Mean distance of two cells in each resample, and how much of it each cell makes up."""
    pairs = side.are_pairs
    partners = side.weights * (side.weights @ pairs)
    total = partners.sum(axis=1)
    apart = pairs * distances(side.cells_log1p, side.cells_log1p, origin)
    with np.errstate(invalid="ignore"):
        means = np.einsum("rc,rc->r", side.weights, side.weights @ apart) / total
        return means, partners / total[:, None]


def _capped(side: _Resampled, max_cells: int | None, rng: np.random.Generator) -> _Resampled:
    rows = kept_rows(len(side.cells_log1p), max_cells, rng)
    if isinstance(rows, slice):
        return side
    unit = None if side.unit is None else side.unit[rows]
    return _Resampled.draw(side.cells_log1p[rows], len(side.weights), rng, unit)


def _pearson_of_rows(
    predicted: Float[np.ndarray, "resamples genes"], real: Float[np.ndarray, "resamples genes"]
) -> Replicates:
    predicted = predicted - predicted.mean(axis=1, keepdims=True)
    real = real - real.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(predicted, axis=1) * np.linalg.norm(real, axis=1)
    products = np.einsum("rg,rg->r", predicted, real)
    return np.divide(products, norms, out=np.zeros_like(products), where=norms > ROUNDING)
