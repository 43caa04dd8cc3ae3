"""What a schedule is worth and which one is best, against exact laws and brute force."""

from functools import partial
from itertools import combinations, pairwise

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from sedd.diffusion.graph import AbsorbingGraph
from sedd.diffusion.sampling import even_blocks
from sedd.diffusion.schedule import (
    InformationProfile,
    equal_blocks,
    knee,
    measure_profile,
    measured_blocks,
    never_rising,
    optimal_blocks,
    step_bounds,
    visible_grid,
)
from tests.diffusion.exact import (
    EnumeratedWorld,
    block_nelbo,
    information_profile,
    random_world,
)

WORLD = random_world(4, 3, seed=0)
PARTITIONS = [[4], [1, 3], [3, 1], [2, 2], [1, 1, 2], [1, 2, 1], [2, 1, 1], [1, 1, 1, 1]]


def profile_of(entropy: list[float] | np.ndarray) -> InformationProfile:
    """A profile that is known at every number of visible genes."""
    return InformationProfile(len(entropy), tuple(range(len(entropy))), tuple(map(float, entropy)))


def falling(num_genes: int, seed: int = 0) -> InformationProfile:
    drops = np.random.default_rng(seed).gamma(0.2, size=num_genes)
    return profile_of(1 + drops[::-1].cumsum()[::-1])


def measured(world: EnumeratedWorld, num_cells: int, **given: int) -> InformationProfile:
    clean = world.draw(num_cells, Generator().manual_seed(0))

    def denoise(tokens: Tensor, rows: slice) -> Tensor:
        return world.denoise(tokens, None)

    generator = Generator().manual_seed(1)
    return measure_profile(denoise, clean, world.graph, generator=generator, **given)


# The worth of a schedule.


@pytest.mark.parametrize("blocks", PARTITIONS, ids=str)
def test_the_formula_is_the_expected_nelbo_of_that_schedule(blocks):
    profile = profile_of(information_profile(WORLD))

    assert profile.nelbo(blocks) * 4 == pytest.approx(block_nelbo(WORLD, blocks), rel=1e-12)


def test_one_gene_at_a_time_gives_the_entropy_and_all_at_once_the_marginal_entropies():
    profile = profile_of(information_profile(WORLD))

    alone = torch.special.entr(WORLD.marginals).sum().item()
    assert profile.nelbo([1, 1, 1, 1]) * 4 == pytest.approx(WORLD.entropy, rel=1e-12)
    assert profile.nelbo([4]) * 4 == pytest.approx(alone, rel=1e-12)


def test_between_points_the_profile_is_a_line_and_after_the_last_it_is_constant():
    profile = InformationProfile(10, (0, 4, 6), (3.0, 1.0, 0.5))

    assert profile.at(np.array([0, 1, 4, 5, 6, 9])).tolist() == [3.0, 2.5, 1.0, 0.75, 0.5, 0.5]
    assert profile.nelbo([1, 4, 5]) == pytest.approx((3.0 + 4 * 2.5 + 5 * 0.75) / 10)


@pytest.mark.parametrize("blocks", [[2, 1], [4, 1], [4, 0], [5, -1]], ids=str)
def test_blocks_that_do_not_cover_the_genes_are_refused(blocks):
    with pytest.raises(ValueError, match=r"wanted sizes above 0 that cover 4, as `even_blocks`"):
        profile_of([2, 1, 1, 1]).nelbo(blocks)


@pytest.mark.parametrize(
    ("visible", "entropy"),
    [
        ((0, 1), (1.0, 2.0)), ((1, 2), (2.0, 1.0)), ((0, 5), (2.0, 1.0)),
        ((0, 2, 2), (3.0, 2.0, 1.0)), ((0, 1, 2), (3.0, 2.0)), ((0, 1), (1.0, float("nan"))),
    ],
)  # fmt: skip
def test_what_is_no_profile_is_refused(visible, entropy):
    with pytest.raises(ValueError, match=r"are no profile of 5 genes.*Measure it with"):
        InformationProfile(5, visible, entropy)


# Measuring it.


def test_the_measured_profile_is_the_exact_one():
    exact = information_profile(WORLD)

    found = measured(WORLD, 100_000, chunk=100_000)

    assert found.visible == (0, 1, 2, 3)
    # The standard error of the entropy of a gene is at most .003 here; exact drops are .03 to .1.
    np.testing.assert_allclose(found.entropy, exact, atol=0.01)
    np.testing.assert_allclose(np.diff(found.entropy), np.diff(exact), atol=0.006)


def test_the_same_genes_are_compared_so_that_few_cells_show_how_much_others_tell():
    """Genes of entropy 0 to log 8 that are independent: no drop at any number of cells."""
    shown = torch.eye(8, dtype=torch.float64) * 1e-9
    for gene in range(8):
        shown[gene, : gene + 1] += 1.0
    laws = shown / shown.sum(1, keepdim=True)
    generator = Generator().manual_seed(0)
    clean = torch.stack(
        [torch.multinomial(law, 5, replacement=True, generator=generator) for law in laws], dim=1
    )

    def denoise(tokens: Tensor, rows: slice) -> Tensor:
        return laws.log().clamp(min=-50).expand(len(tokens), -1, -1)

    found = measure_profile(denoise, clean, AbsorbingGraph(8), generator=generator)

    # A mean over whatever genes happen to be masked would wander by .7 / sqrt(5).
    np.testing.assert_allclose(found.entropy, np.mean(np.log(np.arange(1, 9))), rtol=1e-5)


def test_the_profile_depends_on_the_cells_and_not_on_the_chunks_they_come_in():
    whole, *others = (measured(WORLD, 300, chunk=chunk) for chunk in (300, 128, 7))

    for other in others:
        np.testing.assert_allclose(other.entropy, whole.entropy, rtol=1e-6)


def test_each_chunk_is_asked_with_its_own_rows_and_with_the_number_of_genes_of_the_grid():
    asked, clean = [], torch.arange(60).reshape(6, 10) % 3

    def denoise(tokens: Tensor, rows: slice) -> Tensor:
        visible = tokens != 3
        assert torch.equal(tokens[visible], clean[rows][visible])
        asked.append((rows.start, set(visible.sum(1).tolist())))
        return torch.zeros(*tokens.shape, 3)

    measure_profile(denoise, clean, AbsorbingGraph(3), generator=Generator(), num_points=4, chunk=4)

    grid = visible_grid(10, 4)
    assert asked == [(first, {seen}) for first in (0, 4) for seen in grid]


@pytest.mark.parametrize("num_genes", [1, 2, 20, 21, 40, 300, 5000])
def test_the_grid_rises_from_none_to_all_but_one_and_is_dense_where_few_are_visible(num_genes):
    grid = visible_grid(num_genes, 20)

    assert (grid[0], grid[-1]) == (0, num_genes - 1)
    assert all(low < high for low, high in pairwise(grid))
    assert len(grid) == num_genes if num_genes <= 20 else 13 <= len(grid) <= 20
    if num_genes >= 300:
        assert sum(seen <= num_genes / 10 for seen in grid) >= 8


def test_a_point_weighs_as_many_genes_as_were_masked_there(monkeypatch):
    given = []

    def recording(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
        given.append(weights.tolist())
        return never_rising(values, weights)

    monkeypatch.setattr("sedd.diffusion.schedule.never_rising", recording)
    measured(WORLD, 10)

    assert given == [[4, 3, 2, 1]]


def test_what_rises_is_pooled_by_weight():
    fitted = never_rising(np.array([5.0, 3.0, 6.0, 2.0, 2.5]), np.array([1.0, 2.0, 1.0, 3.0, 1.0]))

    # 3 and 6 meet at (2 x 3 + 6) / 3 = 4; 2 and 2.5 at 8.5 / 4.
    np.testing.assert_allclose(fitted, [5.0, 4.0, 4.0, 2.125, 2.125])


def test_pooling_goes_on_backwards_until_nothing_rises():
    fitted = never_rising(np.array([3.0, 2.0, 10.0]), np.ones(3))

    np.testing.assert_allclose(fitted, 5.0)


# The best blocks.


@pytest.mark.parametrize("num_steps", range(1, 10))
def test_no_partition_into_as_many_blocks_is_better(num_steps):
    for seed in range(5):
        profile = falling(9, seed)

        blocks = optimal_blocks(profile, num_steps)

        every = [
            np.diff([0, *inner, 9]).tolist() for inner in combinations(range(1, 9), num_steps - 1)
        ]
        assert len(blocks) == num_steps
        assert profile.nelbo(blocks) == pytest.approx(min(map(profile.nelbo, every)), rel=1e-12)


@pytest.mark.parametrize("num_genes", [7, 100, 700, 3000])
@pytest.mark.parametrize("num_steps", [1, 2, 5, 16])
def test_the_best_blocks_are_never_worse_than_even_ones(num_genes, num_steps):
    profile = falling(num_genes)

    best = profile.nelbo(optimal_blocks(profile, num_steps))

    even = profile.nelbo(even_blocks(num_genes, num_steps))
    assert best <= even
    if num_genes > 7 and num_steps > 1:
        assert best < even - 1e-4


def test_a_thinned_grid_of_boundaries_loses_next_to_nothing(monkeypatch):
    profile = InformationProfile(900, (0, 30, 300, 899), (2.0, 1.5, 1.2, 1.1))
    thinned = [profile.nelbo(optimal_blocks(profile, steps)) for steps in (3, 8, 30)]

    monkeypatch.setattr("sedd.diffusion.schedule.MAX_BOUNDS", 900)
    full = [profile.nelbo(optimal_blocks(profile, steps)) for steps in (3, 8, 30)]

    np.testing.assert_allclose(thinned, full, rtol=2e-5)


@pytest.mark.parametrize("num_steps", [1, 3, 8, 100])
def test_where_nothing_is_told_by_other_genes_blocks_are_even(num_steps):
    for num_genes in (100, 700):
        profile = InformationProfile(num_genes, (0,), (0.7,))

        assert optimal_blocks(profile, num_steps) == even_blocks(num_genes, num_steps)
        assert profile.nelbo(optimal_blocks(profile, num_steps)) == pytest.approx(0.7)


def test_where_the_first_genes_tell_all_the_first_blocks_are_small():
    profile = profile_of([4.0, 3.0, 2.0, 1.5] + [1.0] * 96)

    assert optimal_blocks(profile, 5) == [1, 1, 1, 1, 96]
    assert optimal_blocks(profile, 2) == [4, 96]


def test_a_hedge_adds_an_even_fall():
    profile = InformationProfile(10, (0, 5), (3.0, 1.0)).hedged(0.5)

    assert profile.entropy == (4.0, 1.5)


def test_measured_blocks_of_a_noisy_profile_beat_even_ones_on_the_profile_without_noise():
    """Where it is flat, the noise of a profile would have blocks piled up at each step of it."""
    true = 1 + 0.1 * np.exp(-np.arange(100) / 10)
    clean, gained = profile_of(true), {"hedged": 0.0, "optimal": 0.0}
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(0, 0.02, 100)
        noisy = profile_of(never_rising(true + noise, np.ones(100)))
        even = clean.nelbo(even_blocks(100, 16))
        gained["hedged"] += even - clean.nelbo(measured_blocks(noisy, 16))
        gained["optimal"] += even - clean.nelbo(optimal_blocks(noisy, 16))

    assert gained["hedged"] > max(0.0, gained["optimal"])


@pytest.mark.parametrize("num_steps", [1, 2, 5, 16, 60])
def test_measured_blocks_are_never_worse_than_even_ones_by_their_own_profile(num_steps):
    late = profile_of([2.0] * 55 + [1.0] * 5)
    for profile in (falling(60), late):
        blocks = measured_blocks(profile, num_steps)

        assert (len(blocks), sum(blocks)) == (num_steps, 60)
        assert profile.nelbo(blocks) <= profile.nelbo(even_blocks(60, num_steps))


def test_more_steps_than_genes_are_one_gene_at_a_time():
    assert optimal_blocks(falling(6), 50) == measured_blocks(falling(6), 50) == [1] * 6


# How many steps.


def test_the_bound_of_each_number_of_steps_falls_to_that_of_one_gene_at_a_time():
    profile = falling(64)

    bounds = step_bounds(profile, (1, 2, 4, 8, 16, 32, 64, 128))

    assert [bound.num_steps for bound in bounds] == [1, 2, 4, 8, 16, 32, 64]
    assert bounds[0].even == bounds[0].measured == profile.entropy[0]
    assert bounds[-1].even == bounds[-1].measured == pytest.approx(np.mean(profile.entropy))
    for fewer, more in pairwise(bounds):
        assert more.measured < fewer.measured
        assert more.even < fewer.even
    assert all(bound.measured < bound.even for bound in bounds[1:-1])


def test_the_knee_is_the_first_power_of_two_that_leaves_a_twentieth():
    """With H = 1 - v / G, T even blocks leave (1 / T - 1 / G) / (1 - 1 / G) of the gain."""
    profile = profile_of(1 - np.arange(256) / 256)

    shares = [1 / steps - 1 / 256 for steps in (16, 32)]
    assert shares[1] < 0.05 * (1 - 1 / 256) < shares[0]
    assert knee(profile, equal_blocks) == knee(profile) == 32
    assert knee(profile, left=0.3) == 4
    assert knee(profile, left=0.0) == 256


def test_the_knee_of_the_best_blocks_comes_earlier_where_the_first_genes_tell_most():
    profile = profile_of(1 + 0.5 ** np.arange(200))

    assert knee(profile) < knee(profile, partial(equal_blocks))


@pytest.mark.parametrize("num_genes", [1, 30])
def test_one_step_is_enough_where_genes_are_independent(num_genes):
    assert knee(InformationProfile(num_genes, (0,), (0.3,))) == 1
    assert knee(InformationProfile(num_genes, (0,), (0.0,)), equal_blocks) == 1
