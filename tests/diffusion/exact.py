"""Laws of cells, of samplers and of twins by enumeration, for worlds of a few genes and bins.

Nothing here is drawn: a law is a float64 vector with one probability for each row of
`EnumeratedWorld.cells`. Written from the definitions, so that it can contradict the samplers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from math import comb, factorial

import torch
from scipy import stats
from torch import Generator, Tensor

from sedd.diffusion.graph import AbsorbingGraph
from sedd.diffusion.loss import nelbo_per_gene

Groups = tuple[tuple[int, ...], ...]
"""Sets of genes that are revealed one set after another; together all genes."""


@dataclass(frozen=True, eq=False)
class EnumeratedWorld:
    """A joint law of a few genes, small enough to sum over."""

    joint: Tensor
    """P(bin of gene 0, bin of gene 1, ...), float64, one axis per gene."""

    @property
    def num_genes(self) -> int:
        return self.joint.ndim

    @property
    def num_bins(self) -> int:
        return self.joint.shape[0]

    @property
    def graph(self) -> AbsorbingGraph:
        return AbsorbingGraph(self.num_bins)

    @property
    def law(self) -> Tensor:
        """P of each row of `cells`."""
        return self.joint.flatten()

    @property
    def entropy(self) -> float:
        return torch.special.entr(self.law).sum().item()

    @cached_property
    def cells(self) -> Tensor:
        """Every cell there is, int64 [cells, genes]."""
        return torch.tensor(list(product(range(self.num_bins), repeat=self.num_genes)))

    @property
    def marginals(self) -> Tensor:
        """P(gene g shows bin b), [genes, bins]."""
        shown = torch.nn.functional.one_hot(self.cells, self.num_bins).double()
        return torch.einsum("c,cgb->gb", self.law, shown)

    def independent(self) -> "EnumeratedWorld":
        """The same marginals without dependence."""
        joint = torch.ones((), dtype=torch.float64)
        for marginal in self.marginals:
            joint = joint[..., None] * marginal
        return EnumeratedWorld(joint)

    def denoise(self, tokens: Tensor, genes: Tensor | None) -> Tensor:
        """Exact conditionals as logits: log P(visible genes with gene g at bin b)."""
        strides = self._strides(self.num_bins + 1)
        number = (tokens * strides).sum(1)
        moved = (torch.arange(self.num_bins) - tokens[..., None]) * strides[:, None]
        logits = self._visible.flatten()[number[:, None, None] + moved].log()
        return logits if genes is None else at_genes(logits, genes)

    def numbers(self, tokens: Tensor) -> Tensor:
        """Which row of `cells` each clean cell is."""
        return (tokens * self._strides(self.num_bins)).sum(1)

    def draw(self, num_cells: int, generator: Generator) -> Tensor:
        """Clean cells, int64 [cells, genes]."""
        rows = torch.multinomial(self.law, num_cells, replacement=True, generator=generator)
        return self.cells[rows]

    @cached_property
    def _visible(self) -> Tensor:
        """P(visible genes) of every noised cell: along each axis, MASK is the sum of the bins."""
        visible = self.joint
        for axis in range(self.num_genes):
            visible = torch.cat([visible, visible.sum(axis, keepdim=True)], axis)
        return visible

    def _strides(self, states: int) -> Tensor:
        return states ** torch.arange(self.num_genes - 1, -1, -1)


def random_world(num_genes: int, num_bins: int, seed: int) -> EnumeratedWorld:
    """A law without structure whose genes depend on each other; equal seeds, equal worlds."""
    generator = Generator().manual_seed(seed)
    logits = 1.5 * torch.randn(num_bins**num_genes, generator=generator, dtype=torch.float64)
    return EnumeratedWorld(logits.softmax(0).reshape((num_bins,) * num_genes))


def at_genes(logits: Tensor, genes: Tensor) -> Tensor:
    """The logits of the genes that were asked for, another set in each cell."""
    return logits.gather(1, genes[..., None].expand(-1, -1, logits.shape[-1]))


def divergence(law: Tensor, other: Tensor) -> float:
    """Kullback-Leibler divergence of `other` from `law`, in nats."""
    return (law * (law.log() - other.log())).sum().item()


def masks(num_genes: int) -> Tensor:
    """Every set of genes that can be masked, bool [sets, genes]; the empty set is left out."""
    return torch.tensor(list(product([False, True], repeat=num_genes)))[1:]


def entropy_by_mask(world: EnumeratedWorld, denoise: Callable[..., Tensor]) -> Tensor:
    """Mean cross-entropy of a masked gene, over the cells of the world, for each of `masks`."""
    entropies = []
    for mask in masks(world.num_genes):
        noised = torch.where(mask, world.graph.mask, world.cells)
        per_cell = nelbo_per_gene(denoise(noised, None), world.cells, world.graph.masked(noised))
        entropies.append(world.law @ per_cell)
    return torch.stack(entropies)


def exact_nelbo(world: EnumeratedWorld, denoise: Callable[..., Tensor]) -> float:
    """The bound in nats per cell: sum over masks M of (|M|-1)! (G-|M|)! / G! sum_M entropy."""
    total, num_genes = 0.0, world.num_genes
    for mask, entropy in zip(
        masks(num_genes), entropy_by_mask(world, denoise).tolist(), strict=True
    ):
        size = int(mask.sum())
        ways = factorial(size - 1) * factorial(num_genes - size) / factorial(num_genes)
        total += ways * size * entropy
    return total


def information_profile(world: EnumeratedWorld) -> list[float]:
    """h(a): mean entropy of a masked gene when `a` random genes are visible, a = 0..G-1."""
    sizes = masks(world.num_genes).sum(1)
    entropies = entropy_by_mask(world, world.denoise)
    return [entropies[sizes == size].mean().item() for size in range(world.num_genes, 0, -1)]


def block_law(world: EnumeratedWorld, blocks: Sequence[int]) -> Tensor:
    """Law of cells revealed in blocks of random genes, each gene of a block on its own."""
    revealings = [
        groups for groups in ordered_groups(world.num_genes) if [*map(len, groups)] == [*blocks]
    ]
    return sum(_law_of(world, groups) for groups in revealings) / len(revealings)


def block_nelbo(world: EnumeratedWorld, blocks: Sequence[int]) -> float:
    """Expected -log P(cell | order of its genes) of cells of the world, in nats per cell."""
    revealings = [
        groups for groups in ordered_groups(world.num_genes) if [*map(len, groups)] == [*blocks]
    ]
    return -sum(world.law @ _law_of(world, groups).log() for groups in revealings).item() / len(
        revealings
    )


def step_law(world: EnumeratedWorld, num_steps: int) -> Tensor:
    """Law of cells when each gene is revealed in a step of its own choice, uniform over steps.

    Genes that chose the same step form a group; `comb` counts the steps that groups can fall on.
    """
    return sum(
        comb(num_steps, len(groups)) / num_steps**world.num_genes * _law_of(world, groups)
        for groups in ordered_groups(world.num_genes)
    )


def twin_law(control: EnumeratedWorld, perturbed: EnumeratedWorld, blocks: Sequence[int]) -> Tensor:
    """P(control cell, twin), [cells, cells]: each gene of the twin at its partner's quantile.

    A quantile that is uniform within the mass of the control's bin falls into a bin of the twin
    with the share of that mass which the two bins have in common.
    """
    own = control.cells.repeat_interleave(len(control.cells), 0)
    twin = perturbed.cells.repeat(len(control.cells), 1)
    revealings = [
        groups for groups in ordered_groups(control.num_genes) if [*map(len, groups)] == [*blocks]
    ]
    total = torch.zeros(len(own), dtype=torch.float64)
    for groups in revealings:
        seen = torch.full_like(own, control.graph.mask)
        made = torch.full_like(twin, perturbed.graph.mask)
        probability = control.law[control.numbers(own)]
        for genes in map(list, groups):
            low, high = _interval(control.denoise(seen, None), own)
            twin_low, twin_high = _interval(perturbed.denoise(made, None), twin)
            common = torch.minimum(high, twin_high) - torch.maximum(low, twin_low)
            probability = probability * (common.clamp(min=0) / (high - low))[:, genes].prod(1)
            seen[:, genes], made[:, genes] = own[:, genes], twin[:, genes]
        total += probability / len(revealings)
    return total.view(len(control.cells), -1)


def ordered_groups(num_genes: int) -> list[Groups]:
    """Every way to reveal the genes in groups, one group after another."""
    found = []
    for turns in product(range(num_genes), repeat=num_genes):
        if set(turns) == set(range(max(turns) + 1)):
            found.append(
                tuple(
                    tuple(gene for gene in range(num_genes) if turns[gene] == turn)
                    for turn in range(max(turns) + 1)
                )
            )
    return found


def fit_p_value(drawn: Tensor, law: Tensor) -> float:
    """Chi-square p-value of drawn row numbers against a law; the rarest rows count as one."""
    counts = torch.bincount(drawn, minlength=len(law)).double()
    expected = law / law.sum() * len(drawn)
    assert not counts[law == 0].any(), "drawn what cannot happen"
    rare = expected <= expected[expected >= 10].min()
    observed, wanted = (
        torch.cat([of[~rare], of[rare].sum()[None]]).numpy() for of in (counts, expected)
    )
    return float(stats.chisquare(observed, wanted).pvalue)


def _law_of(world: EnumeratedWorld, groups: Groups) -> Tensor:
    noised = torch.full_like(world.cells, world.graph.mask)
    log_law = torch.zeros(len(world.cells), dtype=torch.float64)
    for genes in map(list, groups):
        conditional = world.denoise(noised, None).log_softmax(-1)
        at_bin = conditional.gather(-1, world.cells[..., None]).squeeze(-1)
        log_law += at_bin[:, genes].sum(1)
        noised[:, genes] = world.cells[:, genes]
    return log_law.exp()


def _interval(logits: Tensor, bins: Tensor) -> tuple[Tensor, Tensor]:
    """Quantiles at which the mass of a bin begins and ends, each [cells, genes]."""
    bounds = torch.nn.functional.pad(logits.softmax(-1).cumsum(-1), (1, 0))
    low, high = (bounds.gather(-1, (bins + end)[..., None]).squeeze(-1) for end in (0, 1))
    return low, high
