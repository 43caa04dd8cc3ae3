"""The tiny worlds keep what they promise to the tests that lean on them."""

from itertools import product

import numpy as np
import torch

from tests.worlds import (
    a_cell_type_without_controls,
    latent_class_world,
    one_strong_perturbation,
    tiny_cells,
    two_genes_two_bins,
)


def test_two_genes_depend_on_each_other():
    joint = two_genes_two_bins()

    assert joint.dtype == torch.float64
    assert joint.sum().item() == 1.0
    independent = torch.outer(joint.sum(1), joint.sum(0))
    torch.testing.assert_close(joint[1, 1] - independent[1, 1], torch.tensor(0.125).double())


def test_latent_conditionals_are_those_of_the_enumerated_law():
    world = latent_class_world(3, seed=0, num_bins=3)
    states = torch.tensor(list(product(range(3), repeat=3)))
    probability = world.log_probability(states).exp()
    torch.testing.assert_close(probability.sum(), torch.tensor(1.0).double())

    noised = torch.tensor([[2, 3, 3], [3, 0, 1], [3, 3, 3]])
    found = world.conditionals(noised)

    for row, cell in enumerate(noised):
        fits = ((states == cell) | (cell == 3)).all(1)
        torch.testing.assert_close(
            world.log_probability(noised)[row].exp(), probability[fits].sum()
        )
        for gene in (cell == 3).nonzero().ravel():
            expected = torch.zeros(3).double()
            expected.index_add_(0, states[fits, gene], probability[fits])
            torch.testing.assert_close(found[row, gene], expected / expected.sum())


def test_latent_samples_have_the_stated_marginals_and_correlations():
    world = latent_class_world(20, seed=1)
    tokens = world.sample(50_000, generator=torch.Generator().manual_seed(2))

    shares = torch.nn.functional.one_hot(tokens, 4).double().mean(0)
    correlation = torch.corrcoef(tokens.T.double())
    # Standard errors are at most sqrt(0.25 / 50,000) = 0.0022 and 1 / sqrt(50,000) = 0.0045.
    torch.testing.assert_close(shares, world.marginals, atol=0.01, rtol=0)
    torch.testing.assert_close(correlation, world.bin_correlation, atol=0.02, rtol=0)
    assert world.bin_correlation.fill_diagonal_(0).abs().max() > 0.3


def test_cells_have_the_stated_means():
    cells = one_strong_perturbation()
    drug = cells.select(rows=cells.perturbation == "drug").expression.mean(axis=0)
    # Standard errors over 200 cells are 0.28 at mean 16 and 0.1 at mean 2.
    np.testing.assert_allclose(drug, [16.0] * 4 + [2.0] * 8, atol=1.1)

    tiny = tiny_cells()
    assert tiny.expression.shape == (360, 40)
    lowered = tiny.select(rows=(tiny.perturbation == "lower") & (tiny.cell_type == "T cell"))
    expected = [1.0] * 10 + [1.0] * 10 + [0.5] * 6 + [8.0] * 6 + [0.5] * 6 + [3.0] * 2
    np.testing.assert_allclose(lowered.expression.mean(axis=0), expected, atol=1.8)


def test_b_cells_without_controls_have_none():
    cells = a_cell_type_without_controls()

    assert set(cells.perturbation[cells.cell_type == "B cell"]) == {"drug"}
    assert set(cells.perturbation[cells.cell_type == "T cell"]) == {"control", "drug"}
