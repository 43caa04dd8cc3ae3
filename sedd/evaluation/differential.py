"""Which genes tell perturbed cells from control cells: Wilcoxon rank sums and their top genes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata

TOP = 100
BLOCK_GENES = 256

Perturbed = Float[np.ndarray, "cells genes"]
Control = Float[np.ndarray, "control genes"]
Real = Float[np.ndarray, "real genes"]
Z = Float[np.ndarray, " genes"]


@dataclass(frozen=True, eq=False)
class RankSum:
    """The rank-sum test of every gene, kept as a sum over the perturbed cells.

    `placements` counts, for each perturbed cell and gene, the control cells below it, ties as one
    half. Their sum is the Mann-Whitney U; `spread` is its standard deviation under no effect.
    """

    placements: Perturbed
    num_control: int
    spread: Z

    @property
    def z(self) -> Z:
        """(U - its expectation) / spread; 0 for a gene with one value in all cells."""
        excess = self.placements.sum(0) - len(self.placements) * self.num_control / 2
        return np.divide(excess, self.spread, out=np.zeros_like(excess), where=self.spread > 0)


def rank_sum(perturbed_log1p: Perturbed, control_log1p: Control) -> RankSum:
    """Wilcoxon rank-sum test of perturbed against control cells, gene by gene.

    The variance of U is that of the pooled ranks as they are, n m / (N (N - 1)) sum (r - mean)^2,
    which is the usual tie correction in one formula. Without continuity correction, like scanpy's
    `rank_genes_groups(method="wilcoxon", tie_correct=True)`.

    Raises:
        ValueError: There are no cells on one side.
    """
    num_perturbed, num_control = len(perturbed_log1p), len(control_log1p)
    if min(num_perturbed, num_control) == 0:
        msg = (
            f"A rank-sum test needs cells on both sides; got {num_perturbed} perturbed and "
            f"{num_control} control cells. Leave this condition out."
        )
        raise ValueError(msg)
    placements = np.empty(perturbed_log1p.shape)
    squares = np.empty(perturbed_log1p.shape[1])
    for genes in _blocks(perturbed_log1p.shape[1]):
        pooled = rankdata(
            np.concatenate([perturbed_log1p[:, genes], control_log1p[:, genes]]), axis=0
        )
        own = rankdata(perturbed_log1p[:, genes], axis=0)
        placements[:, genes] = pooled[:num_perturbed] - own
        squares[genes] = np.square(pooled - (len(pooled) + 1) / 2).sum(0)
    total = num_perturbed + num_control
    factor = num_perturbed * num_control / (total * max(total - 1, 1))
    return RankSum(placements, num_control, np.sqrt(factor * squares))


def rank_sum_z(perturbed_log1p: Perturbed, control_log1p: Control) -> Z:
    """Tie-corrected z of each gene's rank sum; positive where perturbed cells are higher."""
    return rank_sum(perturbed_log1p, control_log1p).z


def common_degs(
    predicted_log1p: Float[np.ndarray, "predicted genes"],
    real_log1p: Real,
    control_log1p: Control,
    *,
    k: int = TOP,
) -> float:
    """Share of the real top k genes that are among the predicted top k.

    Both sides are ranked by |z| of the rank-sum test against the *same real* control cells, largest
    first, equal values in gene order; direction does not count, nor does a cut on p or fold change.
    A gene with z = 0 is never among the top, so the controls themselves score 0. Always divided by
    k. (scPerturBench, whose table calls this common DEGs, ranks by |t| of Welch's test.) nan where
    no more than k genes differ at all in the real cells: they would all be at the top. Chance is k
    / genes.
    """
    real_z = rank_sum_z(real_log1p, control_log1p)
    if np.count_nonzero(real_z) <= k:
        return float("nan")
    predicted = top_genes(rank_sum_z(predicted_log1p, control_log1p), k)
    return float((predicted & top_genes(real_z, k)).sum() / k)


def top_genes(z: Float[np.ndarray, "*rows genes"], k: int) -> Bool[np.ndarray, "*rows genes"]:
    """Whether each gene is among the k with the largest |z|, those with z = 0 left out."""
    order: Int[np.ndarray, "*rows k"] = np.argsort(-np.abs(z), axis=-1, kind="stable")[..., :k]
    top = np.zeros(z.shape, dtype=bool)
    np.put_along_axis(top, order, values=True, axis=-1)
    return top & (z != 0)


def _blocks(num_genes: int) -> Iterator[slice]:
    for start in range(0, num_genes, BLOCK_GENES):
        yield slice(start, start + BLOCK_GENES)
