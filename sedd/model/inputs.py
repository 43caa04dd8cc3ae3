"""What a denoiser is built from and what it is asked: sizes, statistics, conditions."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor


@dataclass(frozen=True)
class Sizes:
    """The sizes a denoiser is built for."""

    num_genes: int
    num_bins: int
    num_perturbations: int
    num_cell_types: int


@dataclass(frozen=True)
class Initial:
    """What the data say before any training, in the model's own units.

    Attributes:
        basis: Ordinal basis over the bins (`ordinal_basis`).
        levels: log1p of each bin's mean value.
        tilt: Coefficients on the basis per perturbation and gene.
        gene_mean: Mean of `levels` per gene over training cells.
        gene_std: Its standard deviation.
        components: Principal directions of the standardised levels.
        depth_mean: Mean log depth of training cells.
        depth_std: Its standard deviation.
        perturbation_vectors: Given vectors of the perturbations, or None to learn them.
        cell_type_vectors: Given vectors of the cell types, or None to learn them.
    """

    basis: Float[Tensor, "rank bins"]
    levels: Float[Tensor, " bins"]
    tilt: Float[Tensor, "perturbations genes rank"]
    gene_mean: Float[Tensor, " genes"]
    gene_std: Float[Tensor, " genes"]
    components: Float[Tensor, "genes factors"]
    depth_mean: float
    depth_std: float
    perturbation_vectors: Float[Tensor, "perturbations given"] | None = None
    cell_type_vectors: Float[Tensor, "types given_for_types"] | None = None


@dataclass(frozen=True)
class Condition:
    """What is asked of each cell of a batch.

    Attributes:
        perturbation: Number of the perturbation; 0 is control.
        cell_type: Row of `Contexts`: which control cells stand for the type.
        label: Number of the cell-type label, or the number of types for "not told".
        log_depth: Natural log of the library size.
    """

    perturbation: Int[Tensor, " batch"]
    cell_type: Int[Tensor, " batch"]
    label: Int[Tensor, " batch"]
    log_depth: Float[Tensor, " batch"]

    def select(self, rows: slice) -> "Condition":
        """The condition of some cells."""
        return Condition(
            self.perturbation[rows], self.cell_type[rows], self.label[rows], self.log_depth[rows]
        )

    def to(self, device: torch.device) -> "Condition":
        """The same on another device."""
        return Condition(
            self.perturbation.to(device),
            self.cell_type.to(device),
            self.label.to(device),
            self.log_depth.to(device),
        )

    def with_hidden_labels(self, hidden: Bool[Tensor, " batch"], not_told: int) -> "Condition":
        """The same with some cell-type labels replaced by "not told"."""
        return replace(self, label=torch.where(hidden, not_told, self.label))

    def as_control(self) -> "Condition":
        """The same cells, asked for without the perturbation."""
        return replace(self, perturbation=torch.zeros_like(self.perturbation))


@dataclass(frozen=True)
class Contexts:
    """Cell types as the model sees them: their control cells, summarised."""

    features: Float[Tensor, "types genes 3"]
    log_prior: Float[Tensor, "types genes bins"]

    def to(self, device: torch.device) -> "Contexts":
        """The same on another device."""
        return Contexts(self.features.to(device), self.log_prior.to(device))


@dataclass(frozen=True)
class Batch:
    """Cells, still clean, and what each of them is."""

    tokens: UInt8[Tensor, "batch genes"]
    condition: Condition

    def __len__(self) -> int:
        """Number of cells."""
        return len(self.tokens)

    def to(self, device: torch.device) -> "Batch":
        """The same on another device."""
        return Batch(self.tokens.to(device), self.condition.to(device))
