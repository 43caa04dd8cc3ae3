"""What the unperturbed cells of a cell type look like: all the model knows of an unseen type.

Per cell type and gene: mean, spread and detection rate of log1p expression, and the histogram
over token bins. Some control cells are kept as they are, because a counterfactual cell is the
perturbed twin of a real one.
"""

from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Bool, Float, Int, Num, UInt8

from sedd.errors import DataError


@dataclass(frozen=True)
class ControlStatistics:
    """Control cells of each cell type, summarised; types in vocabulary order.

    Attributes:
        mean_log1p: Mean of log1p(counts per 10k).
        std_log1p: Its standard deviation.
        detection: Share of cells that show the gene at all.
        histogram: Number of cells in each token bin.
        global_histogram: The same over all training cells, perturbed ones too.
    """

    mean_log1p: Float[np.ndarray, "types genes"]
    std_log1p: Float[np.ndarray, "types genes"]
    detection: Float[np.ndarray, "types genes"]
    histogram: Float[np.ndarray, "types genes bins"]
    global_histogram: Float[np.ndarray, "genes bins"]

    def log_prior(
        self, *, global_share: float, pseudo_count: float = 1.0
    ) -> Float[np.ndarray, "types genes bins"]:
        """Log of (1 - share) x control histogram of the type + share x global histogram.

        Each histogram is smoothed by `pseudo_count` cells spread like the one it falls back on:
        the type's like the global one, the global one like a uniform law.
        """
        bins = self.histogram.shape[-1]
        everywhere = self.global_histogram + pseudo_count / bins
        everywhere = everywhere / everywhere.sum(-1, keepdims=True)
        own = self.histogram + pseudo_count * everywhere
        own = own / own.sum(-1, keepdims=True)
        return np.log((1 - global_share) * own + global_share * everywhere).astype(np.float32)

    def features(self) -> Float[np.ndarray, "types genes 3"]:
        """Mean, spread and detection of every gene, as inputs of order one."""
        return np.stack([self.mean_log1p / 2, self.std_log1p, self.detection], -1, dtype=np.float32)


@dataclass(frozen=True)
class ControlCells:
    """Real control cells of each type to start counterfactual sampling from.

    Rows are ordered by cell type; `values` are raw counts, or log1p for models of log1p data.
    `batch` is the number of each cell's batch, the number of batches where it has none.
    """

    cell_type: Int[np.ndarray, " cells"]
    row: Int[np.ndarray, " cells"]
    depth: Float[np.ndarray, " cells"]
    values: Num[np.ndarray, "cells genes"]
    batch: Int[np.ndarray, " cells"]

    def select(
        self, chosen: Int[np.ndarray, " chosen"] | Bool[np.ndarray, " cells"]
    ) -> "ControlCells":
        """The cells of an index array or mask, in the order given."""
        return ControlCells(
            **{field.name: getattr(self, field.name)[chosen] for field in fields(self)}
        )

    def of_type(self, cell_type: int) -> "ControlCells":
        """The control cells of one type; DataError if there is none."""
        chosen = self.cell_type == cell_type
        if not chosen.any():
            raise DataError(
                f"There is no control cell of cell type number {cell_type} to start from. "
                "Add control cells of that type to the training data."
            )
        return self.select(chosen)

    def positions(self, row: Int[np.ndarray, " asked"]) -> Int[np.ndarray, " asked"]:
        """Where the cells of these rows of the training file stand; ValueError if one does not."""
        order = np.argsort(self.row)
        found = order[np.searchsorted(self.row, row, sorter=order).clip(max=len(order) - 1)]
        if not np.array_equal(self.row[found], row):
            unknown = row[self.row[found] != row]
            msg = f"Rows {unknown[:5].tolist()} of the training file are not among these cells."
            raise ValueError(msg)
        return found


def histogram(
    tokens: UInt8[np.ndarray, "cells genes"], num_bins: int
) -> Float[np.ndarray, "genes bins"]:
    """How many cells show each bin of each gene."""
    num_genes = tokens.shape[1]
    slot = tokens.astype(np.int64) + np.arange(num_genes) * num_bins
    counts = np.bincount(slot.ravel(), minlength=num_genes * num_bins)
    return counts.reshape(num_genes, num_bins).astype(np.float32)


def control_statistics(
    tokens: UInt8[np.ndarray, "cells genes"],
    log1p: Float[np.ndarray, "cells genes"],
    *,
    cell_type: Int[np.ndarray, " cells"],
    is_control: np.ndarray,
    num_types: int,
    num_bins: int,
) -> ControlStatistics:
    """Summarise training cells. A type without controls borrows the mean over the other types."""
    means, stds, detections, histograms, missing = [], [], [], [], []
    for number in range(num_types):
        rows = np.flatnonzero(is_control & (cell_type == number))
        missing.append(len(rows) == 0)
        cells = log1p[rows] if len(rows) else np.zeros((1, log1p.shape[1]), np.float32)
        means.append(cells.mean(0))
        stds.append(cells.std(0))
        detections.append((cells > 0).mean(0))
        histograms.append(histogram(tokens[rows], num_bins))
    present = ~np.asarray(missing)
    return ControlStatistics(
        mean_log1p=_borrowed(means, present),
        std_log1p=_borrowed(stds, present),
        detection=_borrowed(detections, present),
        histogram=np.stack(histograms),
        global_histogram=histogram(tokens, num_bins),
    )


def _borrowed(
    rows: list[np.ndarray], present: Bool[np.ndarray, " types"]
) -> Float[np.ndarray, "types genes"]:
    """One row per type; types that are not there get the mean of those that are."""
    values = np.stack(rows).astype(np.float32)
    if present.any():
        values[~present] = values[present].mean(0)
    return values
