"""Numbers and labels to vectors, and the ordinal basis over the bins."""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class ScalarEmbedding(nn.Module):
    """A number of order one to a vector: Fourier features, then a two-layer network."""

    frequencies: Tensor

    def __init__(self, dim: int, num_frequencies: int = 16) -> None:
        super().__init__()
        self.register_buffer("frequencies", math.pi * torch.linspace(0.25, 4, num_frequencies))
        self.network = nn.Sequential(
            nn.Linear(2 * num_frequencies + 1, dim), nn.SiLU(), nn.Linear(dim, dim)
        )

    def forward(self, values: Float[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
        """Embed one number per cell."""
        angles = values[:, None] * self.frequencies
        return self.network(torch.cat([values[:, None], angles.sin(), angles.cos()], dim=1))


class LabelEmbedding(nn.Module):
    """Labels to vectors: learned per label, or a learned map of given vectors.

    Given vectors (one row per label, e.g. protein embeddings of the target genes) are
    standardised and pass through a two-layer network, so a label never seen in training has a
    meaning too.
    """

    vectors: Tensor

    def __init__(
        self, num_labels: int, dim: int, vectors: Float[Tensor, "labels given"] | None = None
    ) -> None:
        super().__init__()
        if vectors is None:
            self.table = nn.Embedding(num_labels, dim)
            return
        scale = vectors.std(0, keepdim=True).clamp(min=1e-6) if num_labels > 1 else 1.0
        self.register_buffer("vectors", (vectors - vectors.mean(0, keepdim=True)) / scale)
        self.network = nn.Sequential(
            nn.Linear(vectors.shape[1], dim), nn.SiLU(), nn.Linear(dim, dim)
        )

    def forward(self, labels: Int[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
        """Embed one label per cell."""
        if hasattr(self, "table"):
            return self.table(labels)
        return self.network(self.vectors[labels])


class PerturbationEmbedding(nn.Module):
    """A perturbation as the sum of its parts; "not told" is a vector of its own.

    Args:
        parts: Numbers of the parts of each perturbation, -1 where it has fewer.
        dim: Length of an embedding.
        vectors: Given vectors of the parts, or None to learn an embedding of each.
        can_be_hidden: Whether a perturbation may be "not told" (number = perturbations).
    """

    parts: Tensor

    def __init__(
        self,
        parts: Int[Tensor, "perturbations most"],
        dim: int,
        vectors: Float[Tensor, "parts given"] | None = None,
        *,
        can_be_hidden: bool = False,
    ) -> None:
        super().__init__()
        nothing = torch.full((1, parts.shape[1]), -1)
        self.register_buffer("parts", torch.cat([parts, nothing]))
        self.single = LabelEmbedding(int(parts.max()) + 1, dim, vectors)
        if can_be_hidden:
            self.hidden = nn.Parameter(torch.zeros(dim))

    def forward(self, perturbation: Int[Tensor, " batch"]) -> Float[Tensor, "batch dim"]:
        """The sum over the parts."""
        total = self.each(perturbation).sum(1)
        if not hasattr(self, "hidden"):
            return total
        is_hidden = perturbation == len(self.parts) - 1
        return total + is_hidden[:, None] * self.hidden

    def each(self, perturbation: Int[Tensor, " batch"]) -> Float[Tensor, "batch most dim"]:
        """Each part; zero where there are fewer."""
        parts = self.parts[perturbation]
        embedded = self.single(parts.clamp(min=0).flatten()).unflatten(0, parts.shape)
        return embedded * (parts >= 0)[..., None]


class TargetFlag(nn.Module):
    """Tells the denoiser which genes a perturbation acts on; nothing before training.

    What happens to a target (it falls when knocked down, rises when activated) is learned from all
    perturbations together, so that it holds for one whose effect was never seen.

    Args:
        targets: Number of the gene that each part of a perturbation acts on, -1 for none.
        genes_per_token: Neighbouring genes that share a token.
        dim: Width of the stream.
        rank: Coefficients per gene.
    """

    targets: Tensor

    def __init__(
        self, targets: Int[Tensor, "perturbations most"], genes_per_token: int, dim: int, rank: int
    ) -> None:
        super().__init__()
        nothing = torch.full((1, targets.shape[1]), -1)  # the perturbation is not told
        self.register_buffer("targets", torch.cat([targets, nothing]))
        self.slots = nn.Parameter(torch.zeros(genes_per_token, dim))
        self.shift = nn.Parameter(torch.zeros(rank))

    def on_tokens(
        self, stream: Float[Tensor, "batch groups dim"], perturbation: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch groups dim"]:
        """Mark the tokens that hold a target, by its place in them."""
        cell, gene = self._hits(perturbation)
        per_token = len(self.slots)
        marks = self.slots[gene % per_token]
        return stream.index_put((cell, gene // per_token), marks, accumulate=True)

    def on_genes(
        self, coefficients: Float[Tensor, "batch genes rank"], perturbation: Int[Tensor, " batch"]
    ) -> Float[Tensor, "batch genes rank"]:
        """Shift the coefficients of the targets, all alike."""
        cell, gene = self._hits(perturbation)
        shifts = self.shift.expand(len(gene), -1)
        return coefficients.index_put((cell, gene), shifts, accumulate=True)

    def _hits(
        self, perturbation: Int[Tensor, " batch"]
    ) -> tuple[Int[Tensor, " hits"], Int[Tensor, " hits"]]:
        """Cell and gene of each target in the batch."""
        targets = self.targets[perturbation]
        cell, part = torch.nonzero(targets >= 0, as_tuple=True)
        return cell, targets[cell, part]


def ordinal_basis(
    centers: Float[np.ndarray, " bins"], rank: int | None
) -> Float[np.ndarray, "rank bins"]:
    """Smooth functions over the ordered bins, orthonormal and free of the constant.

    Spanned by [is zero], [is the first bin above zero] and powers of log1p(center); a softmax
    over `log prior + coefficients @ basis` then needs `rank` numbers per gene instead of one per
    bin, and neighbouring bins share what they learn. `rank=None` gives every bin its own
    coefficient: the identity, which is not free of the constant. Otherwise rows have unit root
    mean square.
    """
    num_bins = len(centers)
    if rank is None or rank >= num_bins - 1:
        return np.eye(num_bins, dtype=np.float32)
    level = np.log1p(centers.astype(np.float64))
    level = level / max(level.max(), 1e-12)
    number = np.arange(num_bins)
    columns = [np.ones(num_bins), number == 0, level, level**2, number == 1]
    columns += [level**power for power in range(3, rank)]
    orthonormal, _ = np.linalg.qr(np.stack(columns[: rank + 1], axis=1).astype(np.float64))
    return (orthonormal[:, 1:].T * math.sqrt(num_bins)).astype(np.float32)
