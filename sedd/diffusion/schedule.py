"""How many genes to reveal at each step: one measurement instead of many samplings.

H(v), the *information profile*, is the mean cross-entropy of a masked gene when v random genes
are visible, in nats. A sampler that reveals blocks of sizes k_1, k_2, ... at v_1 = 0, v_2 = k_1,
... visible genes has the NELBO sum_b k_b H(v_b) / G nats per gene. So the profile says, without
drawing a cell, what a schedule is worth, which one is best for a number of steps, and from how
many steps on more of them buy little.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from sedd.diffusion.graph import AbsorbingGraph, rank_of
from sedd.diffusion.loss import nelbo_per_gene
from sedd.diffusion.sampling import even_blocks

STEPS = (1, 2, 4, 8, 16, 32, 64)
"""Numbers of network evaluations that are compared."""
MAX_BOUNDS = 512
"""Up to this many genes every block boundary is tried; of more genes, about so many."""
HEDGE = 0.3
"""Share of the profile's fall that `measured_blocks` takes to be spread evenly over the genes.

The best blocks of a profile of a few hundred cells fit its noise too. Fitted on one half of the
validation cells of the training types and scored on the other (Kang PBMC, 113 cells each, 16
fits), blocks without a hedge lose to even ones from 32 steps on; .3 gains at every number of
steps from 2 to 64, and most of .1, .3, 1 and 3 at 4, 8, 16 and 64 steps.
"""


@runtime_checkable
class DenoiseRows(Protocol):
    """Logits over the bins of all genes of some of the measured cells, conditions bound."""

    def __call__(
        self, tokens: Int[Tensor, "batch genes"], rows: slice
    ) -> Float[Tensor, "batch genes bins"]:
        """Logits given the visible tokens of the cells at `rows`."""
        ...


@dataclass(frozen=True)
class InformationProfile:
    """H(v) at some numbers of visible genes; linear between them, constant after the last.

    Between two points of a convex profile the line lies above it: bounds are never understated.
    """

    num_genes: int
    visible: tuple[int, ...]
    """Numbers of visible genes, rising from 0."""
    entropy: tuple[float, ...]
    """H in nats per masked gene, never rising: knowing more genes cannot hurt."""

    def __post_init__(self) -> None:
        """Check that it is a profile."""
        rises = all(low < high for low, high in pairwise((*self.visible, self.num_genes)))
        falls = all(high >= low for high, low in pairwise(self.entropy))
        same = len(self.visible) == len(self.entropy)
        if not (same and rises and falls and self.visible[0] == 0):
            message = (
                f"Visible genes {self.visible} with entropies {self.entropy} are no profile of "
                f"{self.num_genes} genes: numbers must rise from 0 to below that, entropies fall. "
                "Measure it with `measure_profile`."
            )
            raise ValueError(message)

    @classmethod
    def from_json(cls, text: str) -> "InformationProfile":
        """What `to_json` wrote."""
        content = json.loads(text)
        return cls(
            content["num_genes"],
            tuple(content["visible_genes"]),
            tuple(map(float, content["nats_per_masked_gene"])),
        )

    def to_json(self) -> str:
        """As text that explains itself."""
        content = {
            "num_genes": self.num_genes,
            "visible_genes": self.visible,
            "nats_per_masked_gene": self.entropy,
        }
        return json.dumps(content, indent=1)

    def at(self, visible: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
        """H at any numbers of visible genes."""
        return np.interp(visible, self.visible, self.entropy)

    def hedged(self, share: float) -> "InformationProfile":
        """The same with an even fall added: `share` of the fall from the first to the last."""
        fall = share * (self.entropy[0] - self.entropy[-1])
        known = zip(self.visible, self.entropy, strict=True)
        entropy = tuple(value + fall * (1 - seen / self.num_genes) for seen, value in known)
        return InformationProfile(self.num_genes, self.visible, entropy)

    def nelbo(self, blocks: Sequence[int]) -> float:
        """NELBO of a sampler that reveals these blocks, in nats per gene.

        Raises:
            ValueError: The blocks do not cover the genes.
        """
        *starts, end = accumulate(blocks, initial=0)
        if end != self.num_genes or any(size < 1 for size in blocks):
            message = (
                f"Blocks {list(blocks)} cover {end} genes; wanted sizes above 0 that cover "
                f"{self.num_genes}, as `even_blocks` gives."
            )
            raise ValueError(message)
        return float(np.dot(blocks, self.at(np.array(starts)))) / self.num_genes


Schedule = Callable[[InformationProfile, int], list[int]]
"""Block sizes for a number of steps."""


@dataclass(frozen=True)
class StepBound:
    """NELBO (nats per gene) of a number of steps, with even and with measured blocks."""

    num_steps: int
    even: float
    measured: float


@torch.no_grad()
def measure_profile(
    denoise: DenoiseRows,
    clean: Int[Tensor, "cells genes"],
    graph: AbsorbingGraph,
    *,
    generator: Generator,
    num_points: int = 20,
    chunk: int = 128,
) -> InformationProfile:
    """Measure H on clean cells, at `visible_grid` numbers of visible genes.

    Each cell keeps one random order of its genes, so what is masked at one point was masked at
    those before, and H falls from point to point by what the *same* genes of the same cells
    become easier: differences between genes and between cells cancel. What sampling error is
    left to rise is levelled by isotonic regression, weighted by the number of masked genes.
    The result depends on cells and generator, not on `chunk`.
    """
    num_cells, num_genes = clean.shape
    visible = visible_grid(num_genes, num_points)
    uniform = torch.rand(clean.shape, generator=generator, dtype=torch.float64)
    rank = rank_of(uniform.argsort(1))
    before, after = np.zeros(len(visible)), np.zeros(len(visible))
    for first in range(0, num_cells, chunk):
        rows = slice(first, first + chunk)
        for point, (seen, then) in enumerate(pairwise((*visible, num_genes))):
            logits = denoise(torch.where(rank[rows] < seen, clean[rows], graph.mask), rows)
            truth, order = clean[rows].to(logits.device), rank[rows].to(logits.device)
            before[point] += float(nelbo_per_gene(logits, truth, order >= seen).double().sum())
            after[point] += float(nelbo_per_gene(logits, truth, order >= then).double().sum())
    falls = after[:-1] - before[1:]
    entropy = (before[0] - np.concatenate([[0.0], falls.cumsum()])) / num_cells
    weights = num_genes - np.array(visible, np.float64)
    return InformationProfile(num_genes, visible, tuple(never_rising(entropy, weights).tolist()))


def visible_grid(num_genes: int, num_points: int) -> tuple[int, ...]:
    """About `num_points` numbers of visible genes: half evenly, half dense near none visible.

    The first genes tell most (they show the state of the cell), so H is steep there.
    """
    if num_genes <= num_points:
        return tuple(range(num_genes))
    half = num_points // 2
    even = np.linspace(0, num_genes - 1, num_points - half)
    dense = np.geomspace(1, num_genes / 4, half)
    return tuple(np.unique(np.concatenate([even, dense]).round().astype(int)).tolist())


def optimal_blocks(profile: InformationProfile, num_steps: int) -> list[int]:
    """The `num_steps` block sizes with the smallest NELBO; even blocks where nothing is better.

    Dynamic programming over block boundaries, O(num_steps n^2) for n boundaries: all genes up to
    `MAX_BOUNDS`, else a grid like `visible_grid` that holds the even boundaries too.
    """
    num_genes, even = profile.num_genes, even_blocks(profile.num_genes, num_steps)
    bounds = _candidate_bounds(num_genes, even)
    cost = (bounds[None, :] - bounds[:, None]) * profile.at(bounds)[:, None]
    cost[bounds[None, :] <= bounds[:, None]] = np.inf  # [start, end] of a block
    total, came_from = cost[0], []
    for _ in even[1:]:
        totals = total[:, None] + cost
        came_from.append(totals.argmin(0))
        total = totals.min(0)
    path = [len(bounds) - 1]
    for start_of in reversed(came_from):
        path.append(int(start_of[path[-1]]))
    blocks = [int(size) for size in np.diff(bounds[[0, *path[::-1]]])]
    return blocks if profile.nelbo(blocks) < profile.nelbo(even) * (1 - 1e-12) else even


def measured_blocks(profile: InformationProfile, num_steps: int) -> list[int]:
    """Block sizes that suit other cells too: best for the hedged profile, never below even."""
    blocks = optimal_blocks(profile.hedged(HEDGE), num_steps)
    even = even_blocks(profile.num_genes, num_steps)
    return blocks if profile.nelbo(blocks) < profile.nelbo(even) else even


def equal_blocks(profile: InformationProfile, num_steps: int) -> list[int]:
    """Even blocks, as a `Schedule`: nothing is taken from the profile but the number of genes."""
    return even_blocks(profile.num_genes, num_steps)


def step_bounds(profile: InformationProfile, steps: Sequence[int] = STEPS) -> tuple[StepBound, ...]:
    """What each number of steps (at most one per gene) is worth, without drawing a cell."""
    return tuple(
        StepBound(
            number,
            profile.nelbo(equal_blocks(profile, number)),
            profile.nelbo(measured_blocks(profile, number)),
        )
        for number in steps
        if number <= profile.num_genes
    )


def knee(
    profile: InformationProfile, schedule: Schedule = measured_blocks, *, left: float = 0.05
) -> int:
    """The smallest power of two of steps that leaves at most `left` of what steps can gain.

    What steps can gain is the NELBO of one step minus that of one gene at a time; where genes
    are independent that is nothing, and one step is enough.
    """
    one = profile.nelbo([profile.num_genes])
    all_of_them = profile.nelbo([1] * profile.num_genes)
    target = all_of_them + max(left * (one - all_of_them), 1e-12 * abs(one))
    number = 1
    while number < profile.num_genes and profile.nelbo(schedule(profile, number)) > target:
        number *= 2
    return min(number, profile.num_genes)


def never_rising(
    values: Float[np.ndarray, " n"], weights: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Weighted least-squares fit that never rises: neighbours that do are pooled."""
    pools: list[tuple[float, float, int]] = []  # mean, weight, length
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        pool = (value, weight, 1)
        while pools and pools[-1][0] < pool[0]:
            mean, heavy, length = pools.pop()
            both = heavy + pool[1]
            pool = ((mean * heavy + pool[0] * pool[1]) / both, both, length + pool[2])
        pools.append(pool)
    return np.repeat([mean for mean, _, _ in pools], [length for _, _, length in pools])


def _candidate_bounds(num_genes: int, even: Sequence[int]) -> Int[np.ndarray, " bounds"]:
    if num_genes <= MAX_BOUNDS:
        return np.arange(num_genes + 1)
    grid = visible_grid(num_genes, max(MAX_BOUNDS, 2 * len(even)))
    return np.unique([*grid, *accumulate(even, initial=0)])
