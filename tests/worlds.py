"""Tiny worlds whose answers are known by construction."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy import sparse
from torch import Tensor

from sedd.data.cells import Cells, Source
from sedd.data.digest import content_digest


def two_genes_two_bins() -> Tensor:
    """The joint law [bin of gene 0, bin of gene 1] of two dependent genes, float64, sum 1.

    Marginals are (0.55, 0.45) and (0.5, 0.5); P(1, 1) is 0.35 where independent genes would have
    0.225, so the covariance of the two bins is 0.125.
    """
    return torch.tensor([[0.40, 0.15], [0.10, 0.35]], dtype=torch.float64)


@dataclass(frozen=True)
class LatentClassWorld:
    """Cells fall into hidden classes; within a class the genes are independent.

    MASK is the token after the last bin, as in `AbsorbingGraph`.
    """

    class_probabilities: Tensor
    """float64 [classes]."""

    bin_probabilities: Tensor
    """float64 [classes, genes, bins]."""

    @property
    def num_genes(self) -> int:
        return self.bin_probabilities.shape[1]

    @property
    def num_bins(self) -> int:
        return self.bin_probabilities.shape[2]

    @property
    def marginals(self) -> Tensor:
        """P(gene g shows bin b), float64 [genes, bins]."""
        return torch.einsum("c,cgb->gb", self.class_probabilities, self.bin_probabilities)

    @property
    def bin_correlation(self) -> Tensor:
        """Correlation over cells of the genes' bin numbers, float64 [genes, genes]."""
        bins = torch.arange(self.num_bins, dtype=torch.float64)
        by_class = self.bin_probabilities @ bins
        centred = by_class - self.class_probabilities @ by_class
        covariance = centred.T @ (self.class_probabilities[:, None] * centred)
        mean = self.marginals @ bins
        variance = self.marginals @ bins.square() - mean.square()
        correlation = covariance / torch.outer(variance, variance).sqrt()
        return correlation.fill_diagonal_(1.0)

    def sample(self, num_cells: int, *, generator: torch.Generator) -> Tensor:
        """Clean tokens, int64 [cells, genes]."""
        classes = torch.multinomial(
            self.class_probabilities, num_cells, replacement=True, generator=generator
        )
        cumulative = self.bin_probabilities.cumsum(-1)[classes]
        uniform = torch.rand((num_cells, self.num_genes), generator=generator, dtype=torch.float64)
        return (uniform[..., None] > cumulative[..., :-1]).sum(-1)

    def log_probability(self, tokens: Tensor) -> Tensor:
        """Log P of the visible genes of each cell, float64 [cells]; MASK is summed over."""
        return torch.logsumexp(self._joint_with_class(tokens), dim=-1)

    def conditionals(self, noised: Tensor) -> Tensor:
        """P(gene g shows bin b | the visible genes), float64 [cells, genes, bins].

        Exact at masked genes. At a visible gene it is the law of a second, independent copy of
        that gene given all visible ones; a loss must not look at it.
        """
        posterior = torch.softmax(self._joint_with_class(noised), dim=-1)
        return torch.einsum("nc,cgb->ngb", posterior, self.bin_probabilities)

    def _joint_with_class(self, tokens: Tensor) -> Tensor:
        """Log P(class, visible genes), float64 [cells, classes]."""
        visible = tokens < self.num_bins
        rows = tokens.clamp(max=self.num_bins - 1)
        log_bins = self.bin_probabilities.log().permute(1, 2, 0)
        chosen = log_bins[torch.arange(self.num_genes), rows]
        seen = torch.where(visible[..., None], chosen, 0.0).sum(1)
        return self.class_probabilities.log() + seen


def latent_class_world(
    num_genes: int, seed: int, *, num_classes: int = 3, num_bins: int = 4
) -> LatentClassWorld:
    """Random classes that differ clearly in every gene; equal seeds give equal worlds."""
    generator = torch.Generator().manual_seed(seed)
    weight = 0.5 + torch.rand(num_classes, generator=generator, dtype=torch.float64)
    shape = (num_classes, num_genes, num_bins)
    logits = 1.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
    return LatentClassWorld(weight / weight.sum(), torch.softmax(logits, dim=-1))


def one_strong_perturbation() -> Cells:
    """200 control and 200 "drug" T cells, 12 genes of independent Poisson counts.

    Every gene has mean 2, but under the drug GENE000 to GENE003 have mean 16.
    """
    means = np.full((2, 12), 2.0)
    means[1, :4] = 16.0
    return _poisson_cells(means, ["T cell", "T cell"], ["control", "drug"], num_cells=200, seed=1)


def a_cell_type_without_controls() -> Cells:
    """50 cells each of T cells under control and drug, and of B cells under the drug alone."""
    means = np.full((3, 6), 3.0)
    return _poisson_cells(
        means,
        ["T cell", "T cell", "B cell"],
        ["control", "drug", "drug"],
        num_cells=50,
        seed=2,
    )


def tiny_cells() -> Cells:
    """360 cells, 40 of each of 3 types under control, "raise" and "lower"; 40 genes.

    Counts are independent Poisson. GENE000 to GENE009 start at mean 1 and are 6 under "raise",
    GENE010 to GENE019 start at 6 and are 1 under "lower", in all types alike. Of GENE020 to
    GENE037 each type has six markers of mean 8, 0.5 in the others. GENE038 and GENE039 have mean 3.
    """
    types = ("B cell", "T cell", "monocyte")
    perturbations = ("control", "raise", "lower")
    means = np.full((3, 3, 40), 3.0)
    means[:, :, :10], means[:, 1, :10] = 1.0, 6.0
    means[:, :, 10:20], means[:, 2, 10:20] = 6.0, 1.0
    means[:, :, 20:38] = 0.5
    for position in range(3):
        means[position, :, 20 + 6 * position : 26 + 6 * position] = 8.0
    return _poisson_cells(
        means.reshape(9, 40),
        [cell_type for cell_type in types for _ in perturbations],
        [perturbation for _ in types for perturbation in perturbations],
        num_cells=40,
        seed=3,
    )


@dataclass(frozen=True)
class OneSubpopulationResponds:
    """Cells of one type, `responder` or not, before and after; row i is the same cell twice.

    `log1p` is log1p of counts per 10,000 of the depth before.
    """

    responder: np.ndarray
    control_counts: np.ndarray
    perturbed_counts: np.ndarray

    @property
    def control_log1p(self) -> np.ndarray:
        return self._log1p(self.control_counts)

    @property
    def perturbed_log1p(self) -> np.ndarray:
        return self._log1p(self.perturbed_counts)

    def _log1p(self, counts: np.ndarray) -> np.ndarray:
        depth = self.control_counts.sum(1, keepdims=True)
        return np.log1p(counts / depth * 1e4).astype(np.float32)


def one_subpopulation_responds() -> OneSubpopulationResponds:
    """200 cells that respond and 100 that do not, in random order; 50 genes of Poisson counts.

    GENE000 to GENE009 have mean 2 and gain 10 more in responders; of GENE010 to GENE029 ten mark
    the responders and ten the others (mean 10 and 1); the rest have mean 5. Nothing else changes,
    and in the others nothing at all.
    """
    rng = np.random.default_rng(4)
    responder = rng.permutation(np.repeat([True, False], [200, 100]))
    means = np.full((300, 50), 5.0)
    means[:, :10] = 2.0
    means[:, 10:20] = np.where(responder, 10.0, 1.0)[:, None]
    means[:, 20:30] = np.where(responder, 1.0, 10.0)[:, None]
    control = rng.poisson(means)
    gained = np.zeros_like(control)
    gained[responder, :10] = rng.poisson(10.0, (200, 10))
    return OneSubpopulationResponds(responder, control, control + gained)


def _poisson_cells(
    means: np.ndarray,
    cell_types: list[str],
    perturbations: list[str],
    *,
    num_cells: int,
    seed: int,
) -> Cells:
    """`num_cells` of each condition (a row of `means`), in random order."""
    rng = np.random.default_rng(seed)
    row = rng.permutation(np.repeat(np.arange(len(means)), num_cells))
    counts = rng.poisson(means[row]).astype(np.int32)
    return cells_of(
        counts,
        cell_type=np.array(cell_types, dtype=object)[row],
        perturbation=np.array(perturbations, dtype=object)[row],
    )


def two_donors() -> Cells:
    """480 cells, 60 of each of 2 types under control and "drug" from each of 2 donors; 30 genes.

    Counts are independent Poisson. GENE000 to GENE004 have mean 8 in "donor 1" and 2 in "donor 2",
    GENE005 to GENE009 the reverse, so that depth tells nothing of the donor. GENE010 to GENE014
    have mean 2 and are 8 under the drug, all others have mean 4, in both types.
    """
    kinds = [(t, p, d) for t in ("B cell", "T cell") for p in ("control", "drug") for d in "12"]
    means = np.full((8, 30), 4.0)
    for row, (_, perturbation, donor) in zip(means, kinds, strict=True):
        row[:5], row[5:10] = (8.0, 2.0) if donor == "1" else (2.0, 8.0)
        row[10:15] = 8.0 if perturbation == "drug" else 2.0
    rng = np.random.default_rng(5)
    order = rng.permutation(np.repeat(np.arange(8), 60))
    cell_type, perturbation, donor = np.array(kinds, dtype=object)[order].T
    cells = cells_of(rng.poisson(means[order]), cell_type=cell_type, perturbation=perturbation)
    return replace(cells, batch=np.array([f"donor {number}" for number in donor], dtype=object))


def cells_of(counts: np.ndarray, *, cell_type: np.ndarray, perturbation: np.ndarray) -> Cells:
    """Dense counts and labels as `Cells`, genes named GENE000, GENE001, ..."""
    expression = sparse.csr_array(counts.astype(np.int32))
    genes = tuple(f"GENE{index:03d}" for index in range(counts.shape[1]))
    depth = counts.sum(1).astype(np.float64)
    digest = content_digest(expression, genes, (perturbation, cell_type), depth)
    names = np.array([f"cell_{index:04d}" for index in range(len(counts))], dtype=object)
    return Cells(
        expression, genes, perturbation, cell_type, depth, "counts", names, Source("world", digest)
    )
