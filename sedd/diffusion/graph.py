"""The absorbing graph: every bin of a gene leads to MASK and nothing leads back."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor


@dataclass(frozen=True)
class AbsorbingGraph:
    """States of one gene: `num_bins` expression bins and, after them, MASK."""

    num_bins: int

    @property
    def mask(self) -> int:
        """The absorbing state; it is never a bin."""
        return self.num_bins

    def rate_matrix(self) -> Float[Tensor, "states states"]:
        """Generator Q of the forward process, rows sum to zero (float64)."""
        matrix = -torch.eye(self.num_bins + 1, dtype=torch.float64)
        matrix[:, self.mask] += 1.0
        return matrix

    def corrupt(
        self,
        clean: Int[Tensor, "batch genes"],
        sigma: Float[Tensor, " batch"],
        *,
        generator: Generator,
    ) -> Int[Tensor, "batch genes"]:
        """Mask each gene on its own with probability 1 - exp(-sigma)."""
        uniform = torch.rand(clean.shape, generator=generator, device=clean.device)
        return torch.where(uniform < -torch.expm1(-sigma)[:, None], self.mask, clean)

    def mask_exactly(
        self,
        clean: Int[Tensor, "batch genes"],
        counts: Int[Tensor, " batch"],
        *,
        generator: Generator,
    ) -> Int[Tensor, "batch genes"]:
        """Mask `counts[cell]` genes of each cell, every set of that size equally likely."""
        order = torch.rand(clean.shape, generator=generator, device=clean.device).argsort(1)
        return torch.where(rank_of(order) < counts[:, None], self.mask, clean)

    def masked(self, tokens: Int[Tensor, "batch genes"]) -> Bool[Tensor, "batch genes"]:
        """Which genes are hidden."""
        return tokens == self.mask


def rank_of(order: Int[Tensor, "batch genes"]) -> Int[Tensor, "batch genes"]:
    """Place of each gene in the cell's order: the inverse permutation, without a second sort."""
    places = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def stratified_mask_counts(
    num_cells: int, num_genes: int, *, generator: Generator, device: torch.device | None = None
) -> Int[Tensor, " cells"]:
    """Mask counts uniform in 1..num_genes, one per equal slice of that range, in random order.

    Stratifying over the batch leaves each count uniform and lowers the variance of the loss.
    """
    slices = torch.randperm(num_cells, generator=generator, device=device)
    within = torch.rand(num_cells, generator=generator, device=device, dtype=torch.float64)
    position = (slices + within) / num_cells
    return (position * num_genes).long().clamp_(max=num_genes - 1) + 1
