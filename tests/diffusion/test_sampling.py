"""The samplers against exact laws: what they draw, in which order, and what they leave alone."""

import math
from functools import partial

import pytest
import torch
from torch import Generator, Tensor

from sedd.diffusion import sampling
from sedd.diffusion.graph import AbsorbingGraph
from sedd.diffusion.noise import LogLinearNoise
from sedd.diffusion.sampling import (
    euler,
    even_blocks,
    inverse_cdf,
    latin_hypercube,
    sample_blocks,
    sample_by_time,
    sample_counterfactual,
    tweedie,
)
from tests.diffusion.exact import (
    EnumeratedWorld,
    at_genes,
    block_law,
    divergence,
    fit_p_value,
    information_profile,
    random_world,
    step_law,
    twin_law,
)
from tests.worlds import LatentClassWorld, latent_class_world, two_genes_two_bins

WORLD = random_world(4, 3, seed=0)
NUM_CELLS = 100_000
"""Draws per chi-square. A p-value below 1e-4 means a bug, since the seeds are fixed; with 81
kinds of cells the test sees laws that are 1e-3 nats from the right one."""

RULES = {"euler": euler(LogLinearNoise()), "tweedie": tweedie(LogLinearNoise())}


def forward_rate_rule(num_steps: int, now: float, then: float) -> float:
    """A mistake seen in the field: reveal at the rate of the *forward* process."""
    rate = LogLinearNoise().rate(torch.tensor([now], dtype=torch.float64))
    return float(-torch.expm1(-rate / num_steps))


def drawn_in_blocks(world: EnumeratedWorld, blocks: list[int], **options) -> Tensor:
    shape, generator = (NUM_CELLS, world.num_genes), Generator().manual_seed(0)
    cells = sample_blocks(
        world.denoise, shape, world.graph, blocks=blocks, generator=generator, **options
    )
    return world.numbers(cells)


def drawn_by_time(world: EnumeratedWorld, num_steps: int, rule: str) -> Tensor:
    shape, generator = (NUM_CELLS, world.num_genes), Generator().manual_seed(1)
    cells = sample_by_time(
        world.denoise,
        shape,
        world.graph,
        reveal=RULES[rule],
        num_steps=num_steps,
        generator=generator,
    )
    return world.numbers(cells)


class Watched:
    """A denoiser that remembers what it was shown."""

    def __init__(self, denoise) -> None:
        self.denoise, self.shown, self.asked = denoise, [], []

    def __call__(self, tokens: Tensor, genes: Tensor | None) -> Tensor:
        self.shown.append(tokens.clone())
        self.asked.append(genes)
        return self.denoise(tokens, genes)


# Exact laws of the samplers


def test_blocks_of_one_gene_draw_the_law_of_the_data():
    assert divergence(WORLD.law, block_law(WORLD, [1, 1, 1, 1])) == pytest.approx(0, abs=1e-12)
    assert fit_p_value(drawn_in_blocks(WORLD, [1, 1, 1, 1]), WORLD.law) > 1e-4


def test_two_dependent_genes_come_out_as_they_are_in_the_data():
    world = EnumeratedWorld(two_genes_two_bins())

    shares = torch.bincount(drawn_in_blocks(world, [1, 1])) / NUM_CELLS

    # 4 standard errors of a share are at most 4 sqrt(.25 / 100,000) = .0063.
    torch.testing.assert_close(shares.double(), world.law, atol=0.0063, rtol=0)


@pytest.mark.parametrize("blocks", [[4], [2, 2], [1, 3], [3, 1], [1, 1, 2]])
def test_larger_blocks_draw_their_own_law_and_not_that_of_the_data(blocks):
    drawn = drawn_in_blocks(WORLD, blocks)

    assert fit_p_value(drawn, block_law(WORLD, blocks)) > 1e-4
    assert fit_p_value(drawn, WORLD.law) < 1e-9


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("num_steps", [1, 3, 8])
def test_steps_in_time_draw_the_law_of_genes_that_choose_their_own_step(rule, num_steps):
    assert fit_p_value(drawn_by_time(WORLD, num_steps, rule), step_law(WORLD, num_steps)) > 1e-4


def test_the_error_shrinks_with_more_blocks_and_as_one_over_the_number_of_steps():
    by_blocks = [divergence(WORLD.law, block_law(WORLD, even_blocks(4, n))) for n in (1, 2, 3, 4)]
    steps = [1, 2, 4, 8, 16, 32, 64, 128]
    by_steps = [divergence(WORLD.law, step_law(WORLD, n)) for n in steps]

    total_correlation = divergence(WORLD.law, WORLD.independent().law)
    assert by_blocks[0] == pytest.approx(total_correlation, abs=1e-12)
    assert by_blocks[0] > by_blocks[1] > by_blocks[2] > 1e-3
    assert by_blocks[3] == pytest.approx(0, abs=1e-12)
    assert by_blocks[1] < by_steps[1]
    assert by_steps == sorted(by_steps, reverse=True)
    assert (
        max(n * error for n, error in zip(steps, by_steps, strict=True)) < total_correlation + 1e-9
    )
    # Genes collide in a step with a chance in proportion to 1 / steps. So does the share of cells
    # that are wrong; the divergence is of second order in it.
    coarse, fine = ((step_law(WORLD, n) - WORLD.law).abs().sum().item() for n in (64, 128))
    assert fine / coarse == pytest.approx(1 / 2, abs=0.03)
    assert by_steps[-1] / by_steps[-2] == pytest.approx(1 / 4, abs=0.05)


def test_the_information_profile_bounds_the_cross_entropy_of_every_partition_into_blocks():
    """sum over blocks of size x h(genes visible before) >= entropy + divergence."""
    profile = information_profile(WORLD)
    partitions = [[4], [1, 3], [3, 1], [2, 2], [1, 1, 2], [1, 2, 1], [2, 1, 1], [1, 1, 1, 1]]

    excess = []
    for blocks in partitions:
        starts = [sum(blocks[:number]) for number in range(len(blocks))]
        bound = sum(size * profile[start] for size, start in zip(blocks, starts, strict=True))
        excess.append(bound - WORLD.entropy - divergence(WORLD.law, block_law(WORLD, blocks)))

    assert profile == sorted(profile, reverse=True)
    assert min(excess) > -1e-12
    assert excess[0] == pytest.approx(0, abs=1e-12)
    assert excess[-1] == pytest.approx(0, abs=1e-12)
    assert max(excess) > 1e-3


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_every_sampler_is_exact_where_genes_are_independent(num_steps):
    world = random_world(3, 3, seed=2).independent()

    torch.testing.assert_close(step_law(world, num_steps), world.law, rtol=1e-12, atol=0)
    for blocks in ([3], [2, 1], [1, 1, 1]):
        assert fit_p_value(drawn_in_blocks(world, blocks), world.law) > 1e-4
    for rule in RULES:
        assert fit_p_value(drawn_by_time(world, num_steps, rule), world.law) > 1e-4


def test_what_is_left_at_the_end_is_drawn_and_not_set_to_the_likeliest_bin():
    """With one step everything is left; three quarters of the cells would show one bin."""
    world = EnumeratedWorld(torch.tensor([0.75, 0.25], dtype=torch.float64))

    for rule in RULES:
        assert drawn_by_time(world, 1, rule).double().mean() == pytest.approx(0.25, abs=0.006)


def test_temperature_divides_the_logits():
    world = random_world(3, 3, seed=2).independent()
    cold = EnumeratedWorld(world.joint.square() / world.joint.square().sum())

    assert fit_p_value(drawn_in_blocks(world, [2, 1], temperature=0.5), cold.law) > 1e-4
    frozen = drawn_in_blocks(world, [2, 1], temperature=1e-3)
    assert frozen.unique().tolist() == [int(world.law.argmax())]


def test_one_evaluation_gives_the_marginals_of_the_samples():
    marginals = WORLD.denoise(torch.full((1, 4), WORLD.graph.mask), None).softmax(-1)[0]

    cells = WORLD.cells[drawn_in_blocks(WORLD, [1, 1, 1, 1])]

    shares = torch.nn.functional.one_hot(cells, 3).double().mean(0)
    torch.testing.assert_close(marginals, WORLD.marginals, rtol=1e-12, atol=0)
    torch.testing.assert_close(shares, marginals, atol=0.0063, rtol=0)  # 4 s.e. at most


# When genes are revealed


@pytest.mark.parametrize("eps", [1e-3, 1e-5])
def test_euler_and_tweedie_reveal_the_step_as_a_share_of_the_time_that_is_left(eps):
    noise = LogLinearNoise(eps)
    for now, then in [(1.0, 0.98), (0.7, 0.2), (0.5, 0.4999), (0.01, 0.005), (0.02, 0.0)]:
        share = (now - then) / now

        assert euler(noise)(now, then) == pytest.approx(share, rel=1e-9)
        assert tweedie(noise)(now, then) == pytest.approx(share, rel=1e-9)


def test_the_rate_of_the_forward_process_reveals_all_genes_at_once():
    assert forward_rate_rule(50, 1.0, 0.98) > 0.999
    assert RULES["euler"](1.0, 0.98) == pytest.approx(0.02, rel=1e-9)


@pytest.mark.parametrize("rule", RULES)
def test_each_step_reveals_the_same_share_of_the_genes(rule):
    num_steps, world = 10, EnumeratedWorld(two_genes_two_bins())
    watched = Watched(world.denoise)

    sample_by_time(
        watched,
        (40_000, 2),
        world.graph,
        reveal=RULES[rule],
        num_steps=num_steps,
        generator=Generator().manual_seed(2),
    )

    hidden = [world.graph.masked(tokens).double().mean().item() for tokens in watched.shown]
    # 5 standard errors of a share of 80,000 genes are at most 5 sqrt(.25 / 80,000) = .0088.
    assert hidden == pytest.approx([1 - step / num_steps for step in range(num_steps)], abs=0.0088)
    assert hidden[0] == 1


@pytest.mark.parametrize(
    ("num_genes", "num_steps"), [(10, 4), (7, 7), (5, 2), (3, 100), (1, 1), (1000, 32), (2000, 333)]
)
def test_even_blocks_cover_the_genes_and_differ_by_at_most_one(num_genes, num_steps):
    sizes = even_blocks(num_genes, num_steps)

    assert sum(sizes) == num_genes
    assert len(sizes) == min(num_genes, num_steps)
    assert 1 <= min(sizes) <= max(sizes) <= min(sizes) + 1


def test_blocks_that_do_not_add_up_to_the_genes_are_refused():
    with pytest.raises(RuntimeError, match=r"sum exactly to 4|split"):
        drawn_in_blocks(WORLD, [1, 2])


# What samplers must leave alone


def every_sampler():
    time = {"reveal": RULES["tweedie"], "num_steps": 6}
    return {
        "blocks": partial(sample_blocks, blocks=[1, 2, 1]),
        "steps": partial(sample_by_time, **time),
        "twins": partial(twins_of_drawn_controls, blocks=[1, 2, 1]),
    }


def twins_of_drawn_controls(denoise, shape, graph, *, blocks, generator):
    control = WORLD.draw(shape[0], generator)
    return sample_counterfactual(
        WORLD.denoise, denoise, control, graph, blocks=blocks, generator=generator
    )


@pytest.mark.parametrize("sampler", every_sampler().values(), ids=every_sampler())
def test_a_revealed_gene_never_changes_and_no_gene_stays_masked(sampler):
    watched = Watched(WORLD.denoise)

    cells = sampler(watched, (2000, 4), WORLD.graph, generator=Generator().manual_seed(3))

    assert not WORLD.graph.masked(cells).any()
    assert cells.min() >= 0
    assert WORLD.graph.masked(watched.shown[0]).all()
    for before, after in zip(watched.shown, [*watched.shown[1:], cells], strict=True):
        visible = ~WORLD.graph.masked(before)
        assert torch.equal(before[visible], after[visible])


def test_every_cell_has_a_random_order_of_its_own_and_meets_each_gene_once():
    watched = Watched(WORLD.denoise)

    sample_blocks(
        watched, (24_000, 4), WORLD.graph, blocks=[1, 2, 1], generator=Generator().manual_seed(4)
    )

    order = torch.cat(watched.asked, 1)
    assert torch.equal(order.sort(1).values, torch.arange(4).expand(24_000, 4))
    number = order @ 4 ** torch.arange(4)
    # 24 orders, 1000 of each: 5 standard errors are 155.
    orders, times = number.unique(return_counts=True)
    assert len(orders) == 24
    assert (times - 1000).abs().max() < 155


@pytest.mark.parametrize("sampler", every_sampler().values(), ids=every_sampler())
def test_all_randomness_comes_from_the_generator(sampler):
    torch.manual_seed(0)
    state = torch.random.get_rng_state()

    draws = [
        sampler(WORLD.denoise, (300, 4), WORLD.graph, generator=Generator().manual_seed(seed))
        for seed in (5, 5, 6)
    ]

    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(torch.random.get_rng_state(), state)


# Inverse CDF


PROBABILITIES = torch.tensor([0.0, 0.3, 0.0, 0.699989, 1e-5, 1e-6, 0.0], dtype=torch.float64)


def test_each_bin_is_drawn_from_an_interval_as_long_as_its_probability():
    """No draws: the quantiles at which the answer changes say the probability of each bin."""
    borders = torch.tensor([0.3, 0.999989, 0.999999], dtype=torch.float64)

    below, above = (
        inverse_cdf(PROBABILITIES.expand(3, -1), borders + shift).tolist()
        for shift in (-1e-12, 1e-12)
    )

    # So each interval is right to 2e-12: two millionths of the rarest bin.
    assert below == [1, 3, 4]
    assert above == [3, 4, 5]


def test_a_bin_of_probability_zero_is_never_drawn_and_the_ends_are_safe():
    edges = PROBABILITIES.cumsum(0)
    uniform = torch.cat(
        [
            torch.tensor([0.0, 5e-324, 1 - 2**-53, 1.0], dtype=torch.float64),
            edges,
            torch.nextafter(edges, torch.zeros_like(edges)),
            torch.rand(100_000, generator=Generator().manual_seed(0), dtype=torch.float64),
        ]
    ).clamp(0, 1)

    bins = inverse_cdf(PROBABILITIES.expand(len(uniform), -1), uniform)

    assert set(bins.tolist()) <= {1, 3, 4, 5}
    assert bins[:4].tolist() == [1, 1, 5, 5]


def test_the_mass_need_not_be_one():
    uniform = torch.rand(1000, generator=Generator().manual_seed(1), dtype=torch.float64)
    probabilities = torch.tensor([0.25, 0.5, 0.25], dtype=torch.float64).expand(1000, 3)

    halved, doubled = (
        inverse_cdf(probabilities / 2, uniform),
        inverse_cdf(8 * probabilities, uniform),
    )

    assert torch.equal(halved, doubled)
    assert torch.equal(halved, (uniform >= 0.25).long() + (uniform >= 0.75))


def test_bins_come_as_often_as_they_should():
    law = random_world(1, 16, seed=3).law
    uniform = torch.rand(NUM_CELLS, generator=Generator().manual_seed(2), dtype=torch.float64)

    assert fit_p_value(inverse_cdf(law.expand(NUM_CELLS, -1), uniform), law) > 1e-4


def test_tails_of_single_precision_logits_are_drawn_with_double_precision_quantiles(monkeypatch):
    """A float32 uniform has steps of 6e-8: a bin of 1e-8 comes never or six times too often."""
    met = []

    def watched(probabilities: Tensor, uniform: Tensor) -> Tensor:
        met.append((probabilities, uniform))
        return inverse_cdf(probabilities, uniform)

    monkeypatch.setattr(sampling, "inverse_cdf", watched)
    logits = torch.tensor([0.0, math.log(1e-8)])
    sample_blocks(
        lambda _, genes: logits.expand(*genes.shape, 2),
        (1000, 3),
        AbsorbingGraph(2),
        blocks=[3],
        generator=Generator().manual_seed(0),
    )

    ((probabilities, uniform),) = met
    assert probabilities.dtype == uniform.dtype == torch.float64
    assert (uniform != uniform.float().double()).double().mean() > 0.99
    assert probabilities[0, 0, 1].item() == pytest.approx(1e-8, rel=1e-5)


# Quantiles of the cells of a batch


def test_the_cells_of_a_stratum_fall_one_each_into_equal_parts():
    strata = torch.tensor([[0, 7], [3, 7], [0, 7], [3, 7], [0, 7], [1, 7]])

    found = latin_hypercube(strata, Generator().manual_seed(0))

    def parts(gene: int, cells: list[int]) -> list[int]:
        return sorted((found[cells, gene] * len(cells)).long().tolist())

    assert parts(0, [0, 2, 4]) == [0, 1, 2]
    assert parts(0, [1, 3]) == [0, 1]
    assert parts(1, list(range(6))) == list(range(6))


def test_a_quantile_is_uniform_and_tells_nothing_of_other_genes():
    """10,000 batches of 4 cells: a cell's part, and where in it; correlations within 4 sigma."""
    generator, strata = Generator().manual_seed(1), torch.zeros(4, 3, dtype=torch.int64)
    first = torch.stack([latin_hypercube(strata, generator)[0] for _ in range(10_000)])

    counts = torch.stack([(first * 20).long() == part for part in range(20)]).sum(1)
    assert ((counts - 500).abs() < 4 * math.sqrt(500)).all()
    assert (torch.corrcoef(first.T) - torch.eye(3)).abs().max() < 0.04


@pytest.mark.parametrize("twins", [False, True])
def test_the_mean_of_few_cells_is_nearer_to_the_law_than_that_of_independent_draws(twins):
    """A gene that 30 % of cells show, in batches of 50: 15 cells, give or take less than 1.

    The standard deviation of independent draws is sqrt(50 x .3 x .7) = 3.2 cells. In twins, too,
    of those 50 cells that do not show it, whatever else the batch holds: here 50 that do.
    """

    def law(share: float):
        logits = torch.tensor([1 - share, share]).double().log()
        return lambda _, genes: logits.expand(*genes.shape, 2)

    graph, control = AbsorbingGraph(2), (torch.arange(100) % 2).repeat(8, 1).T
    options = {"blocks": [3, 5], "generator": Generator().manual_seed(2)}
    if twins:
        cells = sample_counterfactual(law(0.5), law(0.65), control, graph, **options)[::2]
    else:
        cells = sample_blocks(law(0.3), (50, 8), graph, **options)

    assert ((cells.sum(0) - 15).abs() <= 1).all()


# Twins of control cells


CONTROL, PERTURBED = random_world(3, 3, seed=4), random_world(3, 3, seed=5)


def drawn_twins(control: EnumeratedWorld, perturbed: EnumeratedWorld, blocks: list[int]):
    generator = Generator().manual_seed(7)
    own = control.draw(NUM_CELLS, generator)
    twins = sample_counterfactual(
        control.denoise, perturbed.denoise, own, control.graph, blocks=blocks, generator=generator
    )
    return own, twins


@pytest.mark.parametrize("temperature", [1.0, 0.25, 3.0])
def test_a_perturbation_that_changes_nothing_returns_the_control_cells(temperature):
    """Also cells that the model holds for impossible: their bins have mass 1e-30 and less."""
    generator = Generator().manual_seed(8)
    control = torch.randint(5, (4000, 6), generator=generator)
    logits = torch.tensor([0.0, -12.0, -70.0, 0.0, -30.0]).double()

    twins = sample_counterfactual(
        lambda _, genes: logits.expand(*genes.shape, 5),
        lambda _, genes: logits.expand(*genes.shape, 5),
        control,
        AbsorbingGraph(5),
        blocks=[1, 3, 2],
        generator=generator,
        temperature=temperature,
    )

    assert torch.equal(twins, control)


def test_a_bin_far_out_in_a_tail_keeps_its_quantile():
    """Laws exp(-2 bin) and exp(-1.9 bin), also mirrored; the tail beyond bin 30 holds 1e-26.

    Counted from the wrong end that quantile is 1, and the twin would show the last bin of all.
    """
    number = torch.arange(64, dtype=torch.float64)
    before, after = -2 * number, -1.9 * number
    value = torch.tensor([[5, 30, 45]]).repeat(1000, 1)
    beyond = [laws.exp().flip(0).cumsum(0).flip(0) for laws in (before, after)]
    before_beyond, after_beyond = (mass / mass[0] for mass in beyond)

    twins = {
        mirrored: sample_counterfactual(
            lambda _, genes, flip=mirrored: _laws(before, genes, mirrored=flip),
            lambda _, genes, flip=mirrored: _laws(after, genes, mirrored=flip),
            63 - value if mirrored else value,
            AbsorbingGraph(64),
            blocks=[3],
            generator=Generator().manual_seed(9),
        )
        for mirrored in (False, True)
    }

    for mirrored, twin in twins.items():
        twin = 63 - twin if mirrored else twin
        # The mass beyond the twin's bin is less than what lies from the control's bin on.
        assert (after_beyond[twin] > before_beyond[value + 1]).all()
        assert (after_beyond[twin + 1] < before_beyond[value]).all()
        assert (twin >= value).all()


def _laws(logits: Tensor, genes: Tensor, *, mirrored: bool) -> Tensor:
    return (logits.flip(0) if mirrored else logits).expand(*genes.shape, -1)


def test_a_perturbation_that_changes_nothing_leaves_dependent_genes_alone():
    for blocks in ([3], [1, 2], [1, 1, 1]):
        own, twins = drawn_twins(CONTROL, CONTROL, blocks)
        assert torch.equal(twins, own)


@pytest.mark.parametrize("blocks", [[3], [2, 1], [1, 1, 1]])
def test_a_cell_and_its_twin_share_their_quantiles(blocks):
    """The joint law of both, by overlap of intervals; 729 pairs."""
    own, twins = drawn_twins(CONTROL, PERTURBED, blocks)

    pairs = CONTROL.numbers(own) * len(CONTROL.cells) + PERTURBED.numbers(twins)
    assert fit_p_value(pairs, twin_law(CONTROL, PERTURBED, blocks).flatten()) > 1e-4


def test_twins_made_gene_by_gene_follow_the_perturbed_law():
    law = twin_law(CONTROL, PERTURBED, [1, 1, 1])
    _, twins = drawn_twins(CONTROL, PERTURBED, [1, 1, 1])

    torch.testing.assert_close(law.sum(0), PERTURBED.law, rtol=1e-11, atol=0)
    torch.testing.assert_close(law.sum(1), CONTROL.law, rtol=1e-11, atol=0)
    assert fit_p_value(PERTURBED.numbers(twins), PERTURBED.law) > 1e-4


def test_two_dependent_genes_keep_the_perturbed_law_in_their_twins():
    perturbed = EnumeratedWorld(two_genes_two_bins())
    control = EnumeratedWorld(two_genes_two_bins().flip(0))

    _, twins = drawn_twins(control, perturbed, [1, 1])

    shares = torch.bincount(perturbed.numbers(twins)) / NUM_CELLS
    torch.testing.assert_close(shares.double(), perturbed.law, atol=0.0063, rtol=0)


def test_twins_of_independent_genes_follow_the_perturbed_law_in_any_blocks():
    control, perturbed = CONTROL.independent(), PERTURBED.independent()
    for blocks in ([3], [2, 1], [1, 1, 1]):
        _, twins = drawn_twins(control, perturbed, blocks)

        law = twin_law(control, perturbed, blocks).sum(0)
        torch.testing.assert_close(law, perturbed.law, rtol=1e-11, atol=0)
        assert fit_p_value(perturbed.numbers(twins), perturbed.law) > 1e-4


def test_one_block_keeps_the_dependence_of_the_control_cells():
    """Same marginals, independent under the perturbation: in one block nothing moves."""
    own, together = drawn_twins(CONTROL, CONTROL.independent(), [3])
    _, one_by_one = drawn_twins(CONTROL, CONTROL.independent(), [1, 1, 1])

    # Marginals summed in another order may differ in the last digit: one cell in a million moves.
    assert (own != together).sum() <= 1
    assert fit_p_value(CONTROL.numbers(one_by_one), CONTROL.independent().law) > 1e-4


def test_a_gene_that_is_raised_is_raised_in_every_twin():
    """Quantiles are kept, so where the perturbed CDF lies below, no twin lies below its cell."""
    low = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    control = EnumeratedWorld(torch.outer(low, low))
    perturbed = EnumeratedWorld(torch.outer(low.flip(0), low))

    own, twins = drawn_twins(control, perturbed, [1, 1])

    assert (twins[:, 0] >= own[:, 0]).all()
    assert (twins[:, 0] - own[:, 0]).double().mean() == pytest.approx(1.0, abs=0.01)
    assert torch.equal(twins[:, 1], own[:, 1])


# A cell state that a hundred genes share


def test_blocks_bring_gene_gene_correlations_back_and_one_step_loses_them():
    """Three hidden classes; exact conditionals. The means cannot tell the samplers apart."""
    world = latent_class_world(100, seed=0)
    resample = world.sample(2000, generator=Generator().manual_seed(1))

    in_32 = drawn_latent(world, 32)
    at_once = drawn_latent(world, 1)

    best = correlation_slope(world, resample)
    assert best == pytest.approx(1, abs=0.05)
    assert correlation_slope(world, in_32) > 0.9 * best
    assert abs(correlation_slope(world, at_once)) < 0.05
    for cells in (in_32, at_once):
        shares = torch.nn.functional.one_hot(cells, world.num_bins).double().mean(0)
        # 400 shares of 2000 cells: 5 standard errors are at most 5 sqrt(.25 / 2000) = .056.
        torch.testing.assert_close(shares, world.marginals, atol=0.056, rtol=0)


def drawn_latent(world: LatentClassWorld, num_steps: int) -> Tensor:
    return sample_blocks(
        lambda tokens, genes: at_genes(world.conditionals(tokens).log(), genes),
        (2000, world.num_genes),
        AbsorbingGraph(world.num_bins),
        blocks=even_blocks(world.num_genes, num_steps),
        generator=Generator().manual_seed(2),
    )


def correlation_slope(world: LatentClassWorld, cells: Tensor) -> float:
    """Slope through the origin of drawn on true correlations between different genes."""
    pairs = torch.triu_indices(world.num_genes, world.num_genes, offset=1).unbind()
    true, found = world.bin_correlation[pairs], torch.corrcoef(cells.T.double())[pairs]
    return ((true @ found) / (true @ true)).item()
