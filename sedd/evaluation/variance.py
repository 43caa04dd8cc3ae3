"""Do predicted cells scatter as much as real ones, in total and gene by gene?"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

EXPRESSED = 0.05
"""Calibration looks at genes that at least this share of the real cells express."""

MIN_GENES = 3
WITHIN = (0.8, 1.25)
ROUNDING = 1e-9

Predicted = Float[np.ndarray, "predicted genes"]
Real = Float[np.ndarray, "real genes"]
Variance = Float[np.ndarray, " genes"]


@dataclass(frozen=True)
class VarianceCalibration:
    """How predicted variances follow real ones over the expressed genes.

    `slope` and `correlation` are those of log predicted on log real variance: both are 1 where each
    gene varies as it should, the slope is 0 where all genes vary alike. `share_within` counts the
    genes whose predicted variance is `WITHIN` 0.8 to 1.25 times the real one.
    """

    slope: float
    correlation: float
    share_within: float


def variance_ratio(predicted_log1p: Predicted, real_log1p: Real) -> float:
    """Sum over genes of predicted variances / sum over genes of real variances.

    The ratio of sums needs no cut-off for silent genes, which a mean of ratios would blow up on;
    below 1 the cells are too alike, above 1 too scattered. Variances are unbiased; nan where a side
    has fewer than two cells or the real cells do not vary.
    """
    if min(len(predicted_log1p), len(real_log1p)) < 2:
        return float("nan")
    real, predicted = variances(real_log1p).sum(), variances(predicted_log1p).sum()
    return float(predicted / real) if real > ROUNDING else float("nan")


def variance_calibration(predicted_log1p: Predicted, real_log1p: Real) -> VarianceCalibration:
    """Slope, correlation and share of well-predicted variances over the expressed genes.

    A gene without variance in the prediction counts against `share_within`; having no logarithm, it
    cannot enter slope and correlation. Noise of few real cells pulls the slope a little below 1.
    nan where a side has fewer than two cells, or fewer than `MIN_GENES` genes are left.
    """
    undefined = VarianceCalibration(*3 * [float("nan")])
    if min(len(predicted_log1p), len(real_log1p)) < 2:
        return undefined
    real, predicted = variances(real_log1p), variances(predicted_log1p)
    expressed = ((real_log1p > 0).mean(0) >= EXPRESSED) & (real > ROUNDING)
    if expressed.sum() < MIN_GENES:
        return undefined
    ratio = predicted[expressed] / real[expressed]
    share = float(np.mean((ratio >= WITHIN[0]) & (ratio <= WITHIN[1])))
    varies = expressed & (predicted > ROUNDING)
    if varies.sum() < MIN_GENES:
        return VarianceCalibration(float("nan"), float("nan"), share)
    covariance = np.cov(np.log(predicted[varies]), np.log(real[varies]))
    if min(covariance.diagonal()) <= ROUNDING:
        return VarianceCalibration(float("nan"), float("nan"), share)
    correlation = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
    return VarianceCalibration(
        float(covariance[0, 1] / covariance[1, 1]), float(correlation), share
    )


def variances(cells_log1p: Float[np.ndarray, "_cells genes"]) -> Variance:
    """Unbiased variance of each gene, in float64."""
    return cells_log1p.var(axis=0, ddof=1, dtype=np.float64)
