"""The bound against the entropy of enumerated worlds, and against SEDD's score entropy."""

import math

import numpy as np
import pytest
import torch
from torch import Generator, Tensor
from torch.nn import functional

from sedd.diffusion.graph import AbsorbingGraph, stratified_mask_counts
from sedd.diffusion.loss import log_score, nelbo_per_gene, score_entropy
from sedd.diffusion.noise import LogLinearNoise
from tests.diffusion.exact import EnumeratedWorld, exact_nelbo, masks, random_world
from tests.worlds import two_genes_two_bins

WORLDS = {
    "two genes, two bins": EnumeratedWorld(two_genes_two_bins()),
    "four genes, three bins": random_world(4, 3, seed=0),
}


@pytest.fixture(params=WORLDS.values(), ids=WORLDS.keys())
def world(request) -> EnumeratedWorld:
    return request.param


def random_logits(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


# The bound


def test_the_bound_of_the_exact_conditionals_is_the_entropy(world):
    assert exact_nelbo(world, world.denoise) == pytest.approx(world.entropy, abs=1e-12)


def test_the_bound_of_the_marginals_is_the_sum_of_their_entropies(world):
    marginals = world.independent()

    nelbo = exact_nelbo(world, marginals.denoise)

    assert nelbo == pytest.approx(torch.special.entr(world.marginals).sum().item(), abs=1e-12)
    assert nelbo > world.entropy + 0.05


def test_the_bound_of_even_odds_is_the_log_of_the_number_of_cells(world):
    nelbo = exact_nelbo(world, lambda tokens, _: torch.ones(*tokens.shape, world.num_bins).double())

    assert nelbo == pytest.approx(math.log(len(world.cells)), abs=1e-12)


def test_no_denoiser_has_a_bound_below_the_entropy():
    """The exact conditionals, bent a little in any direction, only get worse."""
    world = random_world(3, 3, seed=1)
    for seed in range(20):
        bend = 0.1 * random_logits(world.num_genes, world.num_bins, seed=seed)
        nelbo = exact_nelbo(world, lambda tokens, _, bend=bend: world.denoise(tokens, None) + bend)
        assert nelbo > world.entropy + 1e-5


def test_the_estimate_from_random_masks_is_unbiased_and_steadier_than_the_one_over_time():
    """200,000 cells. Stratified counts make the true error smaller than the standard error."""
    world, num_cells = random_world(4, 3, seed=0), 200_000
    generator = Generator().manual_seed(3)
    clean = world.draw(num_cells, generator)
    logits = random_logits(4, 3).expand(num_cells, 4, 3)

    counts = stratified_mask_counts(num_cells, 4, generator=generator)
    noised = world.graph.mask_exactly(clean, counts, generator=generator)
    by_count = nelbo_per_gene(logits, clean, world.graph.masked(noised))

    t = torch.rand(num_cells, generator=generator, dtype=torch.float64)
    noised = world.graph.corrupt(clean, LogLinearNoise(0.0).total(t), generator=generator)
    masked = world.graph.masked(noised)
    by_time = nelbo_per_gene(logits, clean, masked) * masked.sum(1) / 4 / t

    exact = exact_nelbo(world, lambda tokens, _: logits[: len(tokens)]) / 4
    error = by_count.std().item() / math.sqrt(num_cells)
    assert by_count.mean().item() == pytest.approx(exact, abs=4 * error)
    assert by_count.var() < 0.7 * by_time.var()


def test_each_cell_weighs_the_same_however_many_of_its_genes_are_masked():
    logits = random_logits(2, 5, 3)
    clean = torch.tensor([[0, 1, 2, 0, 1], [2, 2, 1, 0, 0]])
    masked = torch.tensor([[True, False, False, False, False], [True, True, False, True, True]])

    per_cell = nelbo_per_gene(logits, clean, masked)

    surprise = [
        [-math.log(math.exp(row[b]) / sum(map(math.exp, row))) for row, b in zip(*cell)]  # noqa: B905
        for cell in zip(logits.tolist(), clean.tolist(), strict=True)
    ]
    expected = [surprise[0][0], sum(surprise[1][gene] for gene in (0, 1, 3, 4)) / 4]
    np.testing.assert_allclose(per_cell.numpy(), expected, rtol=1e-12)


def test_an_unmasked_gene_costs_nothing_and_teaches_nothing():
    logits = random_logits(3, 6, 4).requires_grad_()
    clean = torch.randint(4, (3, 6), generator=Generator().manual_seed(1))
    masked = torch.tensor([[True, False, True, False, False, True]]).repeat(3, 1)
    masked[2] = False

    loss = nelbo_per_gene(logits, clean, masked)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    changed = torch.where(masked[..., None], logits, logits + random_logits(3, 6, 4, seed=2))

    assert torch.equal(nelbo_per_gene(changed, clean, masked), loss)
    assert not gradient[~masked].any()
    assert gradient[masked].abs().sum(-1).min() > 1e-3
    assert loss[2] == 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_normalised_in_single_precision(dtype):
    logits = random_logits(8, 20, 32).to(dtype)
    clean = torch.randint(32, (8, 20), generator=Generator().manual_seed(1))
    masked = torch.ones(8, 20, dtype=torch.bool)

    loss = nelbo_per_gene(logits, clean, masked)

    assert loss.dtype == torch.float32
    exact = nelbo_per_gene(logits.double(), clean, masked)
    # float32 is good to 1e-6 here; a bfloat16 softmax is off by 1e-2 per gene.
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)


# The score-entropy view


def score_entropy_over_time(world: EnumeratedWorld, denoise) -> float:
    """Integral over t of rate(t) times the expected score entropy, by Gauss-Legendre.

    With eps = 0 the integrand is a polynomial in t of degree G - 1: eight nodes are exact.
    """
    noise, total = LogLinearNoise(eps=0.0), 0.0
    nodes, weights = np.polynomial.legendre.leggauss(8)
    for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
        t = torch.tensor([t], dtype=torch.float64)
        sigma = noise.total(t)
        for mask in masks(world.num_genes):
            noised = torch.where(mask, world.graph.mask, world.cells)
            hidden = world.graph.masked(noised)
            log_scores = log_score(denoise(noised, None), sigma.expand(len(noised)))
            entropy = score_entropy(log_scores, world.cells, hidden, sigma.expand(len(noised)))
            chance = torch.where(mask, t, 1 - t).prod()
            total += weight * (noise.rate(t) * chance * (world.law @ entropy.sum(1))).item()
    return total


def test_score_entropy_integrated_over_time_is_the_bound(world):
    exact = score_entropy_over_time(world, world.denoise)
    marginal = score_entropy_over_time(world, world.independent().denoise)

    assert exact == pytest.approx(world.entropy, abs=1e-10)
    assert marginal == pytest.approx(exact_nelbo(world, world.independent().denoise), abs=1e-10)


@pytest.mark.parametrize("sigma", [0.01, 0.1, 0.4, 0.6, 2.0, 6.0])
def test_score_entropy_is_cross_entropy_plus_a_fine_for_scores_that_are_not_normalised(sigma):
    """SE = r [CE(softmax(a)) + Z - 1 - log Z] for log scores a - log(exp(sigma) - 1)."""
    raw = random_logits(5, 7, 4) - 1
    clean = torch.randint(4, (5, 7), generator=Generator().manual_seed(1))
    masked = torch.ones(5, 7, dtype=torch.bool)
    sigmas = torch.full((5,), sigma, dtype=torch.float64)
    ratio = 1 / math.expm1(sigma)

    raw_entropy = score_entropy(raw + math.log(ratio), clean, masked, sigmas)
    normalised_entropy = score_entropy(log_score(raw, sigmas), clean, masked, sigmas)

    cross_entropy = functional.cross_entropy(raw.mT, clean, reduction="none")
    mass = raw.exp().sum(-1)
    expected = ratio * (cross_entropy + mass - 1 - mass.log())
    torch.testing.assert_close(raw_entropy, expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(normalised_entropy, ratio * cross_entropy, rtol=1e-9, atol=0)


def test_score_entropy_is_zero_at_the_true_ratio_positive_beside_it_and_zero_where_visible():
    sigma = torch.tensor([0.3, 3.0], dtype=torch.float64)
    clean = torch.tensor([[0, 1, 2], [2, 0, 1]])
    masked = torch.tensor([[True, True, False], [True, True, False]])
    # exp(-800) is 0: the true ratio is r at the clean bin and 0 at the others.
    truth = torch.full((2, 3, 3), -800.0, dtype=torch.float64)
    log_ratio = -torch.expm1(sigma).log()[:, None, None].expand(2, 3, 1)
    truth = truth.scatter(-1, clean[..., None], log_ratio)

    at_truth = score_entropy(truth, clean, masked, sigma)
    beside = [
        score_entropy(truth + shift * random_logits(2, 3, 3, seed=seed), clean, masked, sigma)
        for seed, shift in [(0, 0.01), (1, 0.1), (2, 1.0)]
    ]

    torch.testing.assert_close(at_truth, torch.zeros(2, 3).double(), atol=1e-14, rtol=0)
    for entropy in beside:
        assert (entropy[masked] > 0).all()
        assert not entropy[~masked].any()


def test_the_score_of_a_bin_is_the_ratio_of_noised_probabilities(world):
    """s = P_t(gene shows the bin, the rest as it is) / P_t(gene masked, the rest as it is)."""
    t = torch.tensor([0.37], dtype=torch.float64)
    sigma = LogLinearNoise().total(t)
    lost = -torch.expm1(-sigma)
    mask = AbsorbingGraph(world.num_bins).mask
    noised = torch.full((1, world.num_genes), mask)
    noised[0, 1:] = 1
    noised[0, -1] = mask if world.num_genes > 2 else 1
    cell = noised.clone()

    found = log_score(world.denoise(noised, None), sigma).exp()[0, 0]

    def probability(tokens: Tensor) -> Tensor:
        kept = (tokens < mask).sum()
        fits = ((world.cells == tokens) | (tokens == mask)).all(1)
        hidden = world.num_genes - kept
        return world.law[fits].sum() * (1 - lost) ** kept * lost**hidden

    ratios = []
    for number in range(world.num_bins):
        cell[0, 0] = number
        ratios.append(probability(cell) / probability(noised))
    torch.testing.assert_close(found, torch.cat(ratios), rtol=1e-10, atol=0)
