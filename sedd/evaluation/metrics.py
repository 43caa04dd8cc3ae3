"""Scores of predicted cells against real perturbed cells of the same cell type.

All arrays are log1p(counts per 10,000), `[cells, genes]`, the same genes in the same order. A score
that cannot be computed (too few cells, no variance) is nan, never a made-up number. Sums run in
float64 whatever the cells are stored in.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from sedd.evaluation.differential import common_degs
from sedd.evaluation.energy import energy_distance, finite_control_floor
from sedd.evaluation.prediction import Prediction
from sedd.evaluation.variance import variance_ratio

MAX_CELLS = 2000
NUM_HALVINGS = 10
NUM_CORRELATED_GENES = 100
ROUNDING = 1e-9

Cells = Float[np.ndarray, "cells genes"]
Predicted = Float[np.ndarray, "predicted genes"]
Real = Float[np.ndarray, "real genes"]
Control = Float[np.ndarray, "control genes"]
Mean = Float[np.ndarray, " genes"]


@dataclass(frozen=True)
class Scores:
    """What one prediction is worth for one condition: the functions of these names."""

    pearson: float
    mse: float
    energy_distance: float
    zero_fraction_error: float
    variance_ratio: float
    common_degs: float
    correlation_structure: float


@dataclass(frozen=True)
class Limits:
    """What the real cells of a condition allow anyone to reach.

    Near 0, `shift_reliability` says that the real shift is noise which nobody can predict;
    `control_floor` is the energy distance left by copying a finite set of control cells.
    """

    shift_reliability: float
    control_floor: float


def score(
    prediction: Prediction,
    real_log1p: Real,
    control_log1p: Control,
    *,
    max_cells: int | None = MAX_CELLS,
    seed: int = 0,
) -> Scores:
    """Score a prediction on the real perturbed cells, or on the cells it names itself.

    `prediction.against_log1p`, which only the ceiling has, replaces `real_log1p`. `max_cells`
    bounds the cells of each side in the energy distance; everything else uses all cells.
    """
    if prediction.against_log1p is not None:
        real_log1p = prediction.against_log1p
    _require_cells(real=real_log1p, control=control_log1p, predicted=prediction.cells_log1p)
    cells_log1p, mean_log1p = prediction.cells_log1p, prediction.mean_log1p
    real_mean, control_mean = mean_expression(real_log1p), mean_expression(control_log1p)
    return Scores(
        pearson=pearson_of_shift(mean_log1p, real_mean, control_mean),
        mse=mse_of_means(mean_log1p, real_mean),
        energy_distance=energy_distance(
            cells_log1p, real_log1p, x_units=prediction.unit, max_cells=max_cells, seed=seed
        ),
        zero_fraction_error=zero_fraction_error(cells_log1p, real_log1p),
        variance_ratio=variance_ratio(cells_log1p, real_log1p),
        common_degs=common_degs(cells_log1p, real_log1p, control_log1p),
        correlation_structure=correlation_structure(cells_log1p, real_log1p, seed=seed),
    )


def limits(
    real_log1p: Real, control_log1p: Control, *, max_cells: int | None = MAX_CELLS, seed: int = 0
) -> Limits:
    """How reproducible the real shift is, and how near a finite set of controls can come."""
    _require_cells(real=real_log1p, control=control_log1p)
    return Limits(
        shift_reliability=shift_reliability(real_log1p, control_log1p, seed=seed),
        control_floor=finite_control_floor(control_log1p, max_cells=max_cells, seed=seed),
    )


def mean_expression(cells_log1p: Cells) -> Mean:
    """Mean log1p expression of each gene, in float64."""
    return cells_log1p.mean(axis=0, dtype=np.float64)


def pearson_of_shift(
    predicted_mean_log1p: Mean, real_mean_log1p: Mean, control_mean_log1p: Mean
) -> float:
    """Pearson over genes of (predicted mean - control mean) and (real mean - control mean).

    A prediction without any shift scores 0, since it says nothing about the direction; a *real*
    shift that is the same for every gene leaves nothing to correlate with: nan. Both sides subtract
    the same controls, whose sampling noise a prediction shares with the truth unless it adds an
    effect to those very controls, as the additive baseline and twins do. Where control cells are
    few and effects weak, that favours the mean of other cells, the ceiling, and a little every
    sampled population: read it beside `shift_reliability`, which shares nothing.
    """
    return pearson(predicted_mean_log1p - control_mean_log1p, real_mean_log1p - control_mean_log1p)


def mse_of_means(predicted_mean_log1p: Mean, real_mean_log1p: Mean) -> float:
    """Mean over genes of the squared difference of mean log1p expression."""
    return float(np.mean(np.square(predicted_mean_log1p - real_mean_log1p, dtype=np.float64)))


def zero_fraction_error(predicted_log1p: Predicted, real_log1p: Real) -> float:
    """Mean over genes of |P(expression is 0) predicted - real|."""
    return float(np.abs((predicted_log1p == 0).mean(0) - (real_log1p == 0).mean(0)).mean())


def correlation_structure(predicted_log1p: Predicted, real_log1p: Real, *, seed: int = 0) -> float:
    """`rel` = cov(corr_predicted, corr_real) / cov(corr_half1, corr_half2) over gene pairs.

    Gene-gene correlations of the `NUM_CORRELATED_GENES` genes that vary most in the real cells. The
    denominator estimates the variance of the true correlations without their sampling noise, from
    disjoint halves of the real cells, averaged over `NUM_HALVINGS` halvings. So 1 is the real
    structure, 0 none of it, and a value above 1 overstates it; a gene that is constant in the
    prediction counts as uncorrelated. nan with fewer than four real or two predicted cells, fewer
    than three varying genes, or halves that agree no better than those of independent genes would
    (within 3 standard errors, 1/sqrt(pairs)): then there is no structure to find.
    """
    genes, variance = real_structure(real_log1p, seed=seed)
    if len(predicted_log1p) < 2 or np.isnan(variance):
        return float("nan")
    predicted = _correlations(predicted_log1p[:, genes])
    covariance = np.cov(predicted, _correlations(real_log1p[:, genes]))[0, 1]
    return float(covariance / variance)


def real_structure(real_log1p: Real, *, seed: int = 0) -> tuple[Int[np.ndarray, " varying"], float]:
    """The genes of `correlation_structure` and its denominator, nan where there is no structure."""
    variance = real_log1p.var(axis=0, dtype=np.float64)
    genes = np.argsort(-variance, kind="stable")[:NUM_CORRELATED_GENES]
    genes = genes[variance[genes] > ROUNDING]
    if len(real_log1p) < 4 or len(genes) < 3:
        return genes, float("nan")
    halves = [
        np.stack([_correlations(real_log1p[half][:, genes]) for half in halving])
        for halving in halvings(len(real_log1p), seed)
    ]
    agreement = np.mean([pearson(first, second) for first, second in halves])
    if not agreement > 3 / np.sqrt(halves[0].shape[1]):
        return genes, float("nan")
    return genes, float(np.mean([np.cov(pair)[0, 1] for pair in halves]))


def shift_reliability(real_log1p: Real, control_log1p: Control, *, seed: int = 0) -> float:
    """Reliability of the real mean shift: split-half Pearson r, stepped up as 2r / (1 + r).

    Both the perturbed and the control cells are halved, so the halves share no noise; r is averaged
    over `NUM_HALVINGS` halvings before the Spearman-Brown formula takes it to all cells. 0 where
    the halves do not agree; nan with fewer than two cells of either kind.
    """
    if min(len(real_log1p), len(control_log1p)) < 2:
        return float("nan")
    halved = zip(
        halvings(len(real_log1p), seed), halvings(len(control_log1p), seed + 1), strict=True
    )
    shifts = (
        [
            mean_expression(real_log1p[real]) - mean_expression(control_log1p[control])
            for real, control in zip(real_halves, control_halves, strict=True)
        ]
        for real_halves, control_halves in halved
    )
    return spearman_brown(float(np.mean([pearson(first, second) for first, second in shifts])))


def spearman_brown(half_r: float) -> float:
    """Reliability of the whole from the correlation of its halves; 0 for a negative one."""
    return 0.0 if half_r <= 0 else 2 * half_r / (1 + half_r)


def pearson(predicted: Float[np.ndarray, " n"], real: Float[np.ndarray, " n"]) -> float:
    """Pearson correlation; 0 where the prediction is constant, nan where the real values are."""
    predicted, real = predicted - predicted.mean(), real - real.mean()
    norms = np.linalg.norm(predicted), np.linalg.norm(real)
    if min(norms) <= ROUNDING:
        return 0.0 if norms[1] > ROUNDING else float("nan")
    return float(predicted @ real / (norms[0] * norms[1]))


def _correlations(cells_log1p: Cells) -> Float[np.ndarray, " pairs"]:
    """Pearson correlation of each pair of genes; 0 where one of them is constant."""
    centred = cells_log1p.astype(np.float64) - mean_expression(cells_log1p)
    norms = np.linalg.norm(centred, axis=0)
    unit = np.divide(centred, norms, out=np.zeros_like(centred), where=norms > ROUNDING)
    return (unit.T @ unit)[np.triu_indices(unit.shape[1], k=1)]


def halvings(
    num_cells: int, seed: int
) -> Iterator[tuple[Int[np.ndarray, " first"], Int[np.ndarray, " second"]]]:
    """`NUM_HALVINGS` random splits of the cells into two halves, by the seed."""
    rng = np.random.default_rng(seed)
    for _ in range(NUM_HALVINGS):
        order = rng.permutation(num_cells)
        yield order[: num_cells // 2], order[num_cells // 2 :]


def _require_cells(**groups: Float[np.ndarray, "_cells _genes"]) -> None:
    empty = [name for name, cells_log1p in groups.items() if len(cells_log1p) == 0]
    if empty:
        msg = f"No {' and no '.join(empty)} cells to score. Leave this condition out of `score`."
        raise ValueError(msg)
