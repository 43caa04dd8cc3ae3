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
