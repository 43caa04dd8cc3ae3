"""Energy distances between populations of cells, in blocks of bounded memory.

Cells are log1p(counts per 10,000), `[cells, genes]`; sums run in float64.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

BLOCK_CELLS = 512

Cells = Float[np.ndarray, "cells genes"]
Control = Float[np.ndarray, "control genes"]
Mean = Float[np.ndarray, " genes"]


def energy_distance(
    x_log1p: Float[np.ndarray, "x genes"],
    y_log1p: Float[np.ndarray, "y genes"],
    *,
    x_units: Int[np.ndarray, " x"] | None = None,
    max_cells: int | None = None,
    seed: int = 0,
) -> float:
    """Unbiased Euclidean energy distance, 2 E|x - y| - E|x - x'| - E|y - y'|.

    Means within a sample leave out each cell's distance to itself (Székely & Rizzo 2013, as a
    U-statistic), so two samples of one law score 0 on average and sometimes below. Cells that were
    drawn together and spread evenly over their law are farther from each other than independent
    ones, which would make a sample look better than its law: with `x_units`, the mean over pairs
    (x, x') of different units of |x - y| + |x' - y| - |x - x'| stands for the first two terms. A
    cell weighs alike in both, as much as it has partners, so that what a small unit happens to hold
    cancels. Where there is one unit only, all pairs count. With `max_cells`, each side is first cut
    to that many cells, drawn without replacement by `seed`. Memory is bounded by blocks of cells;
    nan where a side has fewer than two cells.
    """
    rng = np.random.default_rng(seed)
    rows = kept_rows(len(x_log1p), max_cells, rng)
    x_log1p, y_log1p = x_log1p[rows], subsample(y_log1p, max_cells, rng)
    if min(len(x_log1p), len(y_log1p)) < 2:
        return float("nan")
    # Distances do not depend on the origin; near the cells, the matmul form cancels less.
    origin_log1p = x_log1p.mean(axis=0, dtype=np.float64)
    to_truth = np.concatenate(
        [
            sum(distances(x, y, origin_log1p).sum(axis=1) for y in _blocks(y_log1p)) / len(y_log1p)
            for x in _blocks(x_log1p)
        ]
    )
    units = np.zeros(len(x_log1p), int) if x_units is None else x_units[rows]
    between = np.average(to_truth, weights=_partners(units))
    return float(2 * between - _mean_pairwise(x_log1p, units) - _mean_pairwise(y_log1p))


def finite_control_floor(
    control_log1p: Control, *, max_cells: int | None = None, seed: int = 0
) -> float:
    """Energy distance that a perfect copy of n control cells keeps from fresh control cells.

    Cells drawn with replacement from n controls repeat each other, so E|x - x'| within them is
    (n - 1)/n D, where D is the mean distance of two different controls, while their distance to
    fresh cells and of fresh cells among themselves is D: the energy distance is D / n in
    expectation, whatever the number drawn. This is that expectation, without the noise of a
    bootstrap (measured against the n controls themselves, a bootstrap would show -D / n). Using
    each control cell once, as no-change and the counterfactual mode do, or smoothing avoids it.
    """
    some_log1p = subsample(control_log1p, max_cells, np.random.default_rng(seed))
    return _mean_pairwise(some_log1p) / len(control_log1p)


def subsample(
    cells_log1p: Cells, max_cells: int | None, rng: np.random.Generator
) -> Float[np.ndarray, "kept genes"]:
    """At most `max_cells` cells, drawn without replacement and in their order."""
    return cells_log1p[kept_rows(len(cells_log1p), max_cells, rng)]


def kept_rows(
    num_cells: int, max_cells: int | None, rng: np.random.Generator
) -> slice | Int[np.ndarray, " kept"]:
    """All cells, or `max_cells` of them drawn without replacement, in their order."""
    if max_cells is None or num_cells <= max_cells:
        return slice(None)
    return np.sort(rng.choice(num_cells, max_cells, replace=False))


def _partners(units: Int[np.ndarray, " cells"]) -> Int[np.ndarray, " cells"]:
    """Of how many cells each one makes a pair with: those of other units, where there are any."""
    _, unit, sizes = np.unique(units, return_inverse=True, return_counts=True)
    return len(units) - (sizes[unit] if len(sizes) > 1 else np.ones_like(unit))


def _mean_pairwise(cells_log1p: Cells, units: Int[np.ndarray, " cells"] | None = None) -> float:
    """Mean distance of two different cells, of different units where there are several.

    nan for fewer than two cells.
    """
    total, pairs = _pairwise(cells_log1p)
    if units is not None and len(members := [units == unit for unit in np.unique(units)]) > 1:
        for rows in members:
            within, number = _pairwise(cells_log1p[rows])
            total, pairs = total - within, pairs - number
    return total / pairs if pairs else float("nan")


def _pairwise(cells_log1p: Cells) -> tuple[float, int]:
    """Sum of the Euclidean distances of ordered pairs of different cells, and their number."""
    origin_log1p = cells_log1p.mean(axis=0, dtype=np.float64)
    blocks, total = list(_blocks(cells_log1p)), 0.0
    for i, block in enumerate(blocks):
        itself = distances(block, block, origin_log1p)
        np.fill_diagonal(itself, 0)
        total += itself.sum() + 2 * sum(
            distances(block, later, origin_log1p).sum() for later in blocks[i + 1 :]
        )
    return float(total), len(cells_log1p) * (len(cells_log1p) - 1)


def _blocks(cells_log1p: Cells) -> Iterator[Float[np.ndarray, "block genes"]]:
    for start in range(0, len(cells_log1p), BLOCK_CELLS):
        yield cells_log1p[start : start + BLOCK_CELLS]


def distances(
    x_log1p: Float[np.ndarray, "x genes"], y_log1p: Float[np.ndarray, "y genes"], origin_log1p: Mean
) -> Float[np.ndarray, "x y"]:
    """Euclidean distances as |x|^2 + |y|^2 - 2 x.y, in float64."""
    x, y = x_log1p - origin_log1p, y_log1p - origin_log1p
    squared = np.square(x).sum(1)[:, None] + np.square(y).sum(1)[None, :]
    squared -= 2 * (x @ y.T)
    return np.sqrt(np.maximum(squared, 0, out=squared), out=squared)
