"""Drawing cells: which genes to reveal when, and which bin to give them.

The denoiser is a callable `denoise(tokens, genes)` that returns the logits over the bins at the
genes asked for (all of them if None), given the visible tokens; conditions are bound before.
Randomness comes from the generator that is handed in, and from nowhere else. Where genes are
revealed in blocks, the quantiles of a batch are a Latin hypercube (McKay, Beckman and Conover
1979): each cell on its own is an exact draw, and the mean over few cells is nearer to that of the
law than independent draws would be.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor

from sedd.diffusion.graph import AbsorbingGraph
from sedd.diffusion.noise import LogLinearNoise


@runtime_checkable
class Denoise(Protocol):
    """Logits over the bins of `genes`, given the visible tokens of a batch of cells."""

    def __call__(
        self, tokens: Int[Tensor, "batch genes"], genes: Int[Tensor, "batch some"] | None
    ) -> Float[Tensor, "batch some bins"]:
        """See the class."""
        ...


RevealRate = Callable[[float, float], float]


def even_blocks(num_genes: int, num_steps: int) -> list[int]:
    """Sizes of `num_steps` blocks that cover the genes, as equal as can be (no empty block)."""
    num_steps = min(num_steps, num_genes)
    bounds = [round(step * num_genes / num_steps) for step in range(num_steps + 1)]
    return [end - start for start, end in pairwise(bounds)]


def sample_blocks(
    denoise: Denoise,
    shape: tuple[int, int],
    graph: AbsorbingGraph,
    *,
    blocks: Sequence[int],
    generator: Generator,
    temperature: float = 1.0,
) -> Int[Tensor, "batch genes"]:
    """Positions first: a random order of genes per cell, revealed block by block.

    Has the law of first-hitting sampling with fixed block sizes (arXiv:2409.02908): exact with
    blocks of one gene, exact with any blocks where genes are independent, and static shapes.
    """
    order = _random_order(shape, generator)
    tokens = torch.full_like(order, graph.mask)
    quantiles = latin_hypercube(torch.zeros_like(order), generator)
    for genes in order.split(list(blocks), dim=1):
        probabilities = _probabilities(denoise(tokens, genes), temperature)
        values = inverse_cdf(probabilities, quantiles.gather(1, genes))
        tokens = tokens.scatter(1, genes, values)
    return tokens


def sample_counterfactual(
    denoise_control: Denoise,
    denoise_perturbed: Denoise,
    control: Int[Tensor, "batch genes"],
    graph: AbsorbingGraph,
    *,
    blocks: Sequence[int],
    generator: Generator,
    temperature: float = 1.0,
) -> Int[Tensor, "batch genes"]:
    """The perturbed twin of each control cell: the same quantile of each gene, under another law.

    Block by block, the control cell's own bin says where it lies in the model's distribution
    under "control" given that cell's revealed genes (a uniform draw within the bin's mass); the
    twin takes the bin at the same quantile under the perturbation, given the twin's revealed
    genes. A perturbation that changes nothing returns the control cells themselves.
    """
    order = _random_order(control.shape, generator)
    within = latin_hypercube(control, generator)
    seen = torch.full_like(control, graph.mask)
    twin = seen
    for genes in order.split(list(blocks), dim=1):
        value = control.gather(1, genes)
        before = _probabilities(denoise_control(seen, genes), temperature)
        after = _probabilities(denoise_perturbed(twin, genes), temperature)
        moved = _same_quantile(before, after, value, within.gather(1, genes))
        seen = seen.scatter(1, genes, value)
        twin = twin.scatter(1, genes, moved)
    return twin


def sample_by_time(
    denoise: Denoise,
    shape: tuple[int, int],
    graph: AbsorbingGraph,
    *,
    reveal: RevealRate,
    num_steps: int,
    generator: Generator,
    temperature: float = 1.0,
) -> Int[Tensor, "batch genes"]:
    """Walk back in time; each masked gene is revealed on its own with probability reveal(t, s).

    What is still masked at the end is *drawn*, never set to the likeliest bin.
    """
    device = generator.device
    tokens = torch.full(shape, graph.mask, dtype=torch.int64, device=device)
    times = torch.linspace(1, 0, num_steps + 1, dtype=torch.float64).tolist()
    for step, (now, then) in enumerate(pairwise(times)):
        last = step == num_steps - 1
        probabilities = _probabilities(denoise(tokens, None), temperature)
        values = inverse_cdf(probabilities, _uniform(shape, generator))
        revealed = _uniform(shape, generator) < (1.0 if last else reveal(now, then))
        tokens = torch.where(graph.masked(tokens) & revealed, values, tokens)
    return tokens


def euler(noise: LogLinearNoise) -> RevealRate:
    """One Euler step of the reverse rate: (t - s) sigma'(t) / (exp(sigma(t)) - 1)."""

    def reveal(now: float, then: float) -> float:
        t = torch.tensor([now], dtype=torch.float64)
        return float((now - then) * noise.rate(t) / torch.expm1(noise.total(t)))

    return reveal


def tweedie(noise: LogLinearNoise) -> RevealRate:
    """The exact posterior step: (exp(-sigma(s)) - exp(-sigma(t))) / (1 - exp(-sigma(t)))."""

    def reveal(now: float, then: float) -> float:
        kept_then, kept_now = (-noise.total(torch.tensor([then, now], dtype=torch.float64))).exp()
        return float((kept_then - kept_now) / (1 - kept_now))

    return reveal


def latin_hypercube(
    strata: Int[Tensor, "batch genes"], generator: Generator
) -> Float[Tensor, "batch genes"]:
    """Uniform numbers, spread evenly in each gene over the cells that share its stratum.

    The n cells of a stratum fall one each into the n equal parts of (0, 1), in random order, and
    the orders of different genes are independent.
    """
    order = (strata + _uniform(strata.shape, generator) / 2).argsort(0)
    ranked = strata.gather(0, order).mT.contiguous()
    first = torch.searchsorted(ranked, ranked).mT
    behind_last = torch.searchsorted(ranked, ranked, right=True).mT
    position = torch.arange(len(strata), device=strata.device)[:, None] - first
    spread = (position + _uniform(strata.shape, generator)) / (behind_last - first)
    return torch.empty_like(spread).scatter(0, order, spread)


def inverse_cdf(
    probabilities: Float[Tensor, "*shape bins"], uniform: Float[Tensor, "*shape"]
) -> Int[Tensor, "*shape"]:
    """The bin at quantile `uniform`; a bin of probability zero is never returned.

    Float64 throughout: a float32 race loses tails below 1e-7.
    """
    cumulative = probabilities.double().cumsum(-1)
    target = uniform.double().unsqueeze(-1) * cumulative[..., -1:]
    last_possible = probabilities.shape[-1] - 1 - (probabilities > 0).flip(-1).int().argmax(-1)
    return torch.minimum((cumulative <= target).sum(-1), last_possible)


def _same_quantile(
    before: Float[Tensor, "*shape bins"],
    after: Float[Tensor, "*shape bins"],
    value: Int[Tensor, "*shape"],
    uniform: Float[Tensor, "*shape"],
) -> Int[Tensor, "*shape"]:
    """The bin of `after` at a quantile drawn from the mass that `before` gives to `value`.

    Quantiles are measured from the nearer end: 1 - 1e-17 is 1, and a bin that far out in the
    upper tail would lead to the last bin of all. Where the laws are equal the bin stays.
    """
    last_bin = before.shape[-1] - 1
    cumulative = before.cumsum(-1)
    high = cumulative.gather(-1, value[..., None]) > cumulative[..., -1:] / 2
    before_turned, after_turned = (torch.where(high, p.flip(-1), p) for p in (before, after))
    turned = torch.where(high[..., 0], last_bin - value, value)
    moved = inverse_cdf(after_turned, _quantile_within(before_turned, turned, uniform))
    moved = torch.where(high[..., 0], last_bin - moved, moved)
    return torch.where((before == after).all(-1), value, moved)


def _quantile_within(
    probabilities: Float[Tensor, "*shape bins"],
    value: Int[Tensor, "*shape"],
    uniform: Float[Tensor, "*shape"],
) -> Float[Tensor, "*shape"]:
    """A quantile drawn uniformly from the mass of `value`, strictly inside it."""
    cumulative = probabilities.double().cumsum(-1)
    mass = probabilities.double().gather(-1, value[..., None])
    upper = cumulative.gather(-1, value[..., None])
    inside = uniform.unsqueeze(-1).clamp(1e-6, 1 - 1e-6)
    return ((upper - mass * (1 - inside)) / cumulative[..., -1:]).squeeze(-1)


def _probabilities(
    logits: Float[Tensor, "batch some bins"], temperature: float
) -> Float[Tensor, "batch some bins"]:
    return (logits.double() / temperature).softmax(-1)


def _uniform(shape: Sequence[int], generator: Generator) -> Float[Tensor, "..."]:
    return torch.rand(
        tuple(shape), generator=generator, device=generator.device, dtype=torch.float64
    )


def _random_order(shape: Sequence[int], generator: Generator) -> Int[Tensor, "batch genes"]:
    return _uniform(shape, generator).argsort(1)
