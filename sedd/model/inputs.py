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
    num_batches: int = 0


@dataclass(frozen=True)
class Initial:
    """What the data say before any training, in the model's own units.

    Attributes:
        basis: Ordinal basis over the bins (`ordinal_basis`).
        levels: log1p of each bin's mean value.
        direction: What the expected effects in `Contexts.tilt` multiply.
        gene_mean: Mean of `levels` per gene over training cells.
        gene_std: Its standard deviation.
        components: Principal directions of the standardised levels.
        depth_mean: Mean log depth of training cells.
        depth_std: Its standard deviation.
        parts: Numbers of the parts of each perturbation (of itself, unless it is a combination),
            -1 where it has fewer.
        targets: Number of the gene that each part acts on, -1 where it is not among the genes.
        perturbation_vectors: Given vectors of the parts, or None to learn them.
        cell_type_vectors: Given vectors of the cell types, or None to learn them.
    """

    basis: Float[Tensor, "rank bins"]
    levels: Float[Tensor, " bins"]
    direction: Float[Tensor, " bins"]
    gene_mean: Float[Tensor, " genes"]
    gene_std: Float[Tensor, " genes"]
    components: Float[Tensor, "genes factors"]
    depth_mean: float
    depth_std: float
    parts: Int[Tensor, "perturbations most"]
    targets: Int[Tensor, "perturbations most"]
    perturbation_vectors: Float[Tensor, "parts given"] | None = None
    cell_type_vectors: Float[Tensor, "types given_for_types"] | None = None


@dataclass(frozen=True)
class Condition:
    """What is asked of each cell of a batch.

    Attributes:
        perturbation: Number of the perturbation; 0 is control, the number of perturbations is
            "not told".
        cell_type: Row of `Contexts`: which control cells stand for the type.
        label: Number of the cell-type label, or the number of types for "not told".
        log_depth: Natural log of the library size.
        batch: Number of the batch (donor, plate) that the cell is from, or the number of batches
            for "not told".
    """

    perturbation: Int[Tensor, " batch"]
    cell_type: Int[Tensor, " batch"]
    label: Int[Tensor, " batch"]
    log_depth: Float[Tensor, " batch"]
    batch: Int[Tensor, " batch"]

    def select(self, rows: slice) -> "Condition":
        """The condition of some cells."""
        return Condition(
            self.perturbation[rows],
            self.cell_type[rows],
            self.label[rows],
            self.log_depth[rows],
            self.batch[rows],
        )

    def to(self, device: torch.device) -> "Condition":
        """The same on another device."""
        return Condition(
            self.perturbation.to(device),
            self.cell_type.to(device),
            self.label.to(device),
            self.log_depth.to(device),
            self.batch.to(device),
        )

    def with_hidden_labels(self, hidden: Bool[Tensor, " batch"], not_told: int) -> "Condition":
        """The same with some cell-type labels replaced by "not told"."""
        return replace(self, label=torch.where(hidden, not_told, self.label))

    def with_hidden_perturbations(
        self, hidden: Bool[Tensor, " batch"], not_told: int
    ) -> "Condition":
        """The same with some perturbations replaced by "not told"."""
        return replace(self, perturbation=torch.where(hidden, not_told, self.perturbation))

    def with_hidden_batches(self, hidden: Bool[Tensor, " batch"], not_told: int) -> "Condition":
        """The same with some batches replaced by "not told"."""
        return replace(self, batch=torch.where(hidden, not_told, self.batch))

    def as_control(self) -> "Condition":
        """The same cells, asked for without the perturbation."""
        return replace(self, perturbation=torch.zeros_like(self.perturbation))


@dataclass(frozen=True)
class Contexts:
    """Cell types as the model sees them: their control cells, summarised.

    Attributes:
        features: Mean, spread and detection rate of each gene.
        log_prior: Log law of each gene.
        tilt: Expected effect of each perturbation in any type: coefficient of `Initial.direction`
            in the log law.
    """

    features: Float[Tensor, "types genes 3"]
    log_prior: Float[Tensor, "types genes bins"]
    tilt: Float[Tensor, "perturbations genes"]

    def tilt_of(self, condition: Condition) -> Float[Tensor, "batch genes"]:
        """Expected effect on each cell; none where the perturbation is not told."""
        told = condition.perturbation < len(self.tilt)
        number = torch.where(told, condition.perturbation, 0)
        return self.tilt[number] * told[:, None]

    def to(self, device: torch.device) -> "Contexts":
        """The same on another device."""
        return Contexts(
            self.features.to(device),
            self.log_prior.to(device),
            self.tilt.to(device),
        )


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
