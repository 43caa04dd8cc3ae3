"""Counts to tokens and back.

A token is a bin: small counts each have their own, larger ones share bins whose width grows
geometrically. Zero is always its own bin. MASK is not a bin: it is the number after the last.
Decoding gives every bin its mean among the training cells, gene by gene where a gene shows the
bin often enough, and scales each gene's wide bins so that encoding and decoding keep its mean.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Integer, Num, UInt8

from sedd.errors import DataError

ENOUGH = 50
"""Cells that must show a bin before a gene gets a bin mean of its own."""


@dataclass(frozen=True)
class Tokenizer:
    """Bins of one dataset: `edges[b]` is the least value of bin b, `means[gene, b]` its decoding.

    `kind` tells the space of the values: raw counts, or log1p of normalised counts.
    """

    kind: Literal["counts", "log1p"]
    edges: Float[np.ndarray, " bins"]
    means: Float[np.ndarray, "genes bins"]

    @property
    def num_bins(self) -> int:
        """Number of bins; also the token of MASK."""
        return len(self.edges)

    @property
    def centers(self) -> Float[np.ndarray, " bins"]:
        """Mean value of each bin over all genes, in the space of `kind`."""
        return self.means.mean(0)

    @classmethod
    def fit(
        cls,
        values: Num[np.ndarray, "cells genes"],
        *,
        kind: Literal["counts", "log1p"] = "counts",
        exact: int = 10,
        ratio: float = 1.3,
        max_bins: int = 64,
    ) -> "Tokenizer":
        """Choose the bins from training cells and measure what each bin holds.

        Args:
            values: Raw counts or log1p values of the training cells.
            kind: Space of `values`.
            exact: Counts below this have a bin of their own (counts only).
            ratio: Growth of the bins above `exact` (counts only).
            max_bins: Most bins allowed; log1p values get this many at most.

        Raises:
            DataError: The values need more than `max_bins` bins.
        """
        if kind == "counts":
            edges = _count_edges(int(values.max(initial=1)), exact, ratio)
        else:
            edges = _log1p_edges(values, max_bins)
        if len(edges) > max_bins:
            raise DataError(
                f"Counts up to {int(values.max())} need {len(edges)} bins, {max_bins} are allowed. "
                "Raise data.bin_ratio, lower data.exact_counts, or check for outlier counts."
            )
        bare = cls(kind, edges, np.zeros((values.shape[1], len(edges)), np.float32))
        return cls(kind, edges, _bin_means(values, bare.encode(values), edges))

    @property
    def levels(self) -> Float[np.ndarray, " bins"]:
        """log1p of the mean count of each bin (the value itself for log1p data)."""
        return np.log1p(self.centers) if self.kind == "counts" else self.centers

    def encode(self, values: Num[np.ndarray, "cells genes"]) -> UInt8[np.ndarray, "cells genes"]:
        """Token of each value; values above the last edge fall in the last bin."""
        if self.kind == "counts":
            table = np.searchsorted(self.edges, np.arange(int(self.edges[-1]) + 1), side="right")
            clipped = np.minimum(values, int(self.edges[-1])).astype(np.int64)
            return (table - 1).astype(np.uint8)[clipped]
        found = np.searchsorted(self.edges, values, side="right") - 1
        # A value below any that was fitted is still not zero.
        return np.clip(found, values > 0, self.num_bins - 1).astype(np.uint8)

    def expected(
        self, tokens: Integer[np.ndarray, "cells genes"]
    ) -> Float[np.ndarray, "cells genes"]:
        """Mean value of each token's bin, in the space of `kind`."""
        return self.means[np.arange(self.means.shape[0]), tokens]

    def decode(
        self, tokens: Integer[np.ndarray, "cells genes"], rng: np.random.Generator
    ) -> Num[np.ndarray, "cells genes"]:
        """Values for tokens: whole counts whose mean is the bin's (int32), or log1p (float32).

        A count bin that holds several counts is rounded up or down at random, so that counts are
        whole and their mean stays.
        """
        expected = self.expected(tokens)
        if self.kind == "log1p":
            return expected
        return np.floor(expected + rng.random(expected.shape, dtype=np.float32)).astype(np.int32)


def _count_edges(largest: int, exact: int, ratio: float) -> Float[np.ndarray, " bins"]:
    edges = list(range(min(exact, largest + 1)))
    width = 1.0
    while edges[-1] + round(width) <= largest:
        edges.append(edges[-1] + round(width))
        width = max(1.0, (ratio - 1) * edges[-1])
    return np.asarray(edges, np.float64)


def _log1p_edges(
    values: Num[np.ndarray, "cells genes"], max_bins: int
) -> Float[np.ndarray, " bins"]:
    positive = values[values > 0]
    if positive.size == 0:
        return np.zeros(1)
    grid = np.linspace(positive.min(), positive.max(), max_bins)[:-1]
    return np.unique(np.concatenate([[0.0], grid.astype(np.float64)]))


def _bin_means(
    values: Num[np.ndarray, "cells genes"],
    tokens: UInt8[np.ndarray, "cells genes"],
    edges: Float[np.ndarray, " bins"],
) -> Float[np.ndarray, "genes bins"]:
    num_genes, num_bins = values.shape[1], len(edges)
    slot = tokens.astype(np.int64) + np.arange(num_genes) * num_bins
    count = np.bincount(slot.ravel(), minlength=num_genes * num_bins)
    total = np.bincount(slot.ravel(), values.ravel(), minlength=num_genes * num_bins)
    count, total = count.reshape(num_genes, num_bins), total.reshape(num_genes, num_bins)
    pooled = np.where(count.sum(0) > 0, total.sum(0) / count.sum(0).clip(1), edges)
    own = total / count.clip(1)
    means = np.where(count >= ENOUGH, own, pooled)
    wide = pooled > edges  # a bin of a single value needs no correction
    wanted, decoded = (total * wide).sum(1), (count * means * wide).sum(1)
    scale = np.divide(wanted, decoded, out=np.ones(num_genes), where=decoded > 0)
    return np.where(wide, means * scale[:, None], means).astype(np.float32)
