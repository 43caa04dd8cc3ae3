"""How genes are masked, against the forward process and by counting."""

from itertools import combinations

import pytest
import torch
from scipy import stats
from torch import Generator

from sedd.diffusion.graph import AbsorbingGraph, rank_of, stratified_mask_counts
from sedd.diffusion.noise import LogLinearNoise

GRAPH = AbsorbingGraph(num_bins=4)


@pytest.mark.parametrize("t", [0.02, 0.5, 0.97])
def test_corruption_follows_the_matrix_exponential_of_the_rate(t):
    sigma = LogLinearNoise().total(torch.tensor([t], dtype=torch.float64))
    transition = torch.matrix_exp(sigma * GRAPH.rate_matrix())
    clean = torch.arange(4).repeat_interleave(50_000)[None]

    noised = GRAPH.corrupt(clean, sigma, generator=Generator().manual_seed(0))

    for state in range(4):
        shares = torch.bincount(noised[clean == state], minlength=5) / 50_000
        # 4 standard errors of a share are at most 4 sqrt(.25 / 50,000) = .009; an impossible
        # transition (gene to another bin) must not occur once.
        torch.testing.assert_close(shares.double(), transition[state], atol=0.009, rtol=0)
        assert not shares[transition[state] == 0].any()


def test_mask_is_no_bin_and_absorbs():
    rate = GRAPH.rate_matrix()

    assert GRAPH.mask == 4
    assert rate.sum(1).tolist() == [0.0] * 5
    assert rate[GRAPH.mask].tolist() == [0.0] * 5
    assert torch.matrix_exp(50 * rate)[:, GRAPH.mask].min() > 1 - 1e-15


def test_each_cell_is_corrupted_by_its_own_noise():
    sigma = torch.tensor([0.0, 0.5, 40.0], dtype=torch.float64)
    clean = torch.zeros(3, 40_000, dtype=torch.int64)

    noised = GRAPH.corrupt(clean, sigma, generator=Generator().manual_seed(1))

    shares = GRAPH.masked(noised).double().mean(1)
    assert shares[0] == 0
    assert shares[1].item() == pytest.approx(1 - 0.6065307, abs=0.01)  # 4 s.e. = .0098
    assert shares[2] == 1


def test_the_rank_is_the_inverse_of_the_order():
    order = torch.rand(20, 300, generator=Generator().manual_seed(0)).argsort(1)

    assert torch.equal(rank_of(order), order.argsort(1))
    assert rank_of(torch.tensor([[2, 0, 1]])).tolist() == [[1, 2, 0]]


def test_exactly_as_many_genes_are_masked_as_asked_and_the_others_are_untouched():
    counts = torch.tensor([1, 5, 7, 3, 0])
    clean = torch.randint(4, (5, 7), generator=Generator().manual_seed(0))

    noised = GRAPH.mask_exactly(clean, counts, generator=Generator().manual_seed(1))

    masked = GRAPH.masked(noised)
    assert masked.sum(1).tolist() == counts.tolist()
    assert torch.equal(noised[~masked], clean[~masked])


@pytest.mark.parametrize("size", [1, 2, 3])
def test_every_set_of_genes_is_masked_equally_often(size):
    """60,000 draws: a set that came up 5% more or less often than others would give p < 1e-6."""
    clean = torch.zeros(60_000, 4, dtype=torch.int64)
    counts = torch.full((60_000,), size)

    noised = GRAPH.mask_exactly(clean, counts, generator=Generator().manual_seed(2))

    names = GRAPH.masked(noised).long() @ torch.tensor([1, 2, 4, 8])
    sets = [sum(2**gene for gene in genes) for genes in combinations(range(4), size)]
    times = torch.bincount(names, minlength=16)[sets]
    assert times.sum() == 60_000
    assert stats.chisquare(times.numpy()).pvalue > 1e-3


def test_neighbouring_cells_are_masked_independently():
    clean = torch.zeros(40_000, 3, dtype=torch.int64)
    counts = torch.ones(40_000, dtype=torch.int64)

    noised = GRAPH.mask_exactly(clean, counts, generator=Generator().manual_seed(3))

    gene = GRAPH.masked(noised).long().argmax(1).view(-1, 2)
    pairs = torch.bincount(gene @ torch.tensor([3, 1]), minlength=9)
    assert stats.chisquare(pairs.numpy()).pvalue > 1e-3


def test_a_batch_has_one_mask_count_in_each_slice_of_the_range():
    generator = Generator().manual_seed(0)

    whole = stratified_mask_counts(60, 12, generator=generator)
    few = stratified_mask_counts(5, 1000, generator=generator)

    assert torch.bincount(whole, minlength=13).tolist() == [0] + [5] * 12
    assert ((few.sort().values - 1) // 200).tolist() == [0, 1, 2, 3, 4]


def test_the_mask_count_of_any_one_cell_is_uniform():
    """7 cells share 5 counts, so slices and counts do not line up; 4,000 batches."""
    generator = Generator().manual_seed(4)

    counts = torch.stack([stratified_mask_counts(7, 5, generator=generator) for _ in range(4000)])

    for cell in range(7):
        times = torch.bincount(counts[:, cell], minlength=6)
        assert times[0] == 0
        assert stats.chisquare(times[1:].numpy()).pvalue > 1e-4
