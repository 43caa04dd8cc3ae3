"""Which genes tell perturbed cells from control cells: a t of each gene, and those at its top."""

import numpy as np
from jaxtyping import Bool, Float, Int

TOP = 100

Perturbed = Float[np.ndarray, "cells genes"]
Control = Float[np.ndarray, "control genes"]
Real = Float[np.ndarray, "real genes"]
Genes = Float[np.ndarray, " genes"]
T = Float[np.ndarray, "*rows genes"]


def welch_t(perturbed_log1p: Perturbed, control_log1p: Control, *, floor: float = 0.0) -> Genes:
    """Welch's t of each gene, positive where perturbed cells are higher, `floor` in its error.

    Without a floor, that of scanpy's `rank_genes_groups(method="t-test")`. Not a rank-sum test: it
    would call a gene changed in which a method adds a tiny constant to every cell, since all zeros
    become larger than the zeros of the control cells, and so forbid any method that shifts cells.

    Raises:
        ValueError: There are fewer than two cells on one side.
    """
    sizes = len(perturbed_log1p), len(control_log1p)
    if min(sizes) < 2:
        msg = (
            f"A t-test needs two cells on each side; got {sizes[0]} perturbed and {sizes[1]} "
            "control cells. Leave this condition out."
        )
        raise ValueError(msg)
    difference, squared_error = _shift(perturbed_log1p, control_log1p)
    return t_statistic(difference, squared_error, floor)


def error_floor(real_log1p: Real, control_log1p: Control) -> float:
    """Median standard error of the differences of real cells, over the genes that vary; 0 if none.

    The constant that SAM adds to every standard error (Tusher, Tibshirani & Chu, PNAS 98, 2001).
    Without it a gene that is silent in the control cells and gets a constant, however small, has
    no error and an infinite t: then the silent genes are the top genes of all methods that shift
    cells by a mean.
    """
    error = np.sqrt(_shift(real_log1p, control_log1p)[1])
    return float(np.median(error[error > 0])) if error.any() else 0.0


def t_statistic(
    difference: T, squared_error: T, floor: float = 0.0
) -> Float[np.ndarray, "*rows genes"]:
    """Difference / (standard error + floor); 0 where there is no difference, inf for no error."""
    with np.errstate(divide="ignore"):
        return np.divide(
            difference,
            np.sqrt(squared_error) + floor,
            out=np.zeros_like(difference),
            where=difference != 0,
        )


def common_degs(
    predicted_log1p: Float[np.ndarray, "predicted genes"],
    real_log1p: Real,
    control_log1p: Control,
    *,
    k: int = TOP,
) -> float:
    """Share of the real top k genes that are among the predicted top k.

    Both sides are ranked by |t| of Welch's test against the *same real* control cells, largest
    first, equal values in gene order, as scPerturBench does, but with the `error_floor` of the real
    cells in both; direction does not count, nor does a cut on p or fold change. A gene with t = 0
    is never among the top, so the controls themselves score 0. Always divided by k. nan where fewer
    than 2 k genes differ at all in the real cells (most would be at the top, whoever ranks), or
    with fewer than two cells on a side. Chance is k / genes.
    """
    if min(map(len, (predicted_log1p, real_log1p, control_log1p))) < 2:
        return float("nan")
    floor = error_floor(real_log1p, control_log1p)
    real_t = welch_t(real_log1p, control_log1p, floor=floor)
    if np.count_nonzero(real_t) < 2 * k:
        return float("nan")
    predicted = top_genes(welch_t(predicted_log1p, control_log1p, floor=floor), k)
    return float((predicted & top_genes(real_t, k)).sum() / k)


def top_genes(t: T, k: int) -> Bool[np.ndarray, "*rows genes"]:
    """Whether each gene is among the k with the largest |t|, those with t = 0 left out."""
    order: Int[np.ndarray, "*rows k"] = np.argsort(-np.abs(t), axis=-1, kind="stable")[..., :k]
    top = np.zeros(t.shape, dtype=bool)
    np.put_along_axis(top, order, values=True, axis=-1)
    return top & (t != 0)


def _shift(perturbed_log1p: Perturbed, control_log1p: Control) -> tuple[Genes, Genes]:
    """Difference of the means of each gene, and its squared standard error."""
    (perturbed, perturbed_error), (control, control_error) = (
        (cells.mean(0, dtype=np.float64), cells.var(0, dtype=np.float64, ddof=1) / len(cells))
        for cells in (perturbed_log1p, control_log1p)
    )
    return perturbed - control, perturbed_error + control_error
