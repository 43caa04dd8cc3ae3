"""Welch's t against scanpy, scipy and laws; the top genes two predictions have in common."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_ind

from sedd.evaluation.differential import common_degs, error_floor, top_genes, welch_t


def tied_cells(num_cells: int, seed: int, num_genes: int = 30, shift: float = 0.0) -> np.ndarray:
    """Sparse log counts with many ties; the rate of a gene grows with its number and the shift."""
    rate = np.linspace(0.05, 3, num_genes) * np.exp(shift * np.linspace(-1, 1, num_genes))
    counts = np.random.default_rng(seed).poisson(rate, size=(num_cells, num_genes))
    return np.log1p(counts).astype(np.float32)


@pytest.mark.slow  # scanpy compiles for half a minute
def test_t_is_that_of_scanpy():
    import scanpy

    perturbed, control = tied_cells(40, 0, shift=0.5), tied_cells(55, 1)
    cells = anndata.AnnData(
        np.concatenate([perturbed, control]),
        obs=pd.DataFrame(
            {"label": pd.Categorical(["IFNb"] * 40 + ["control"] * 55)}, index=map(str, range(95))
        ),
    )
    cells.uns["log1p"] = {"base": None}

    scanpy.tl.rank_genes_groups(
        cells, "label", groups=["IFNb"], reference="control", method="t-test"
    )

    theirs = scanpy.get.rank_genes_groups_df(cells, "IFNb").set_index("names").scores
    np.testing.assert_allclose(
        welch_t(perturbed, control), theirs.reindex(cells.var_names), rtol=1e-4, atol=1e-5
    )


def test_t_is_that_of_scipy_and_its_sign_says_where_perturbed_cells_are_higher():
    perturbed, control = tied_cells(40, 0, shift=0.5), tied_cells(55, 1)

    t = welch_t(perturbed, control)

    both = perturbed.astype(np.float64), control.astype(np.float64)
    np.testing.assert_allclose(t, ttest_ind(*both, equal_var=False).statistic, rtol=1e-9)
    assert t[8] < 0 < t[-1]


def test_genes_that_differ_without_any_spread_come_first_and_those_that_agree_last():
    perturbed, control = np.float32([[2, 1, 0], [2, 1, 1]]), np.float32([[1, 1, 2], [1, 1, 3]])

    np.testing.assert_array_equal(welch_t(perturbed, control)[:2], [np.inf, 0])
    assert welch_t(perturbed, control)[2] == pytest.approx(-2 / np.sqrt(0.5))


def test_a_tiny_constant_on_silent_genes_makes_no_gene_a_changed_one():
    """What adding a mean does to genes that no control cell shows: each has an infinite plain t."""
    silent = np.zeros((200, 60), np.float32)
    control, real = (np.hstack([tied_cells(200, seed), silent]) for seed in (0, 1))
    real[:, :5] += 2
    shifted = control + np.float32(1e-3)
    shifted[:, :5] += 2

    assert np.isinf(welch_t(shifted, control)[30:]).all()
    assert common_degs(shifted, real, control, k=5) == 1


def test_a_gene_that_only_perturbed_cells_show_can_be_at_the_top():
    control, real = tied_cells(200, 0), tied_cells(200, 1)
    control[:, :5] = 0
    real[:, :5] = np.random.default_rng(2).gamma(2, size=(200, 5))

    elsewhere = control.copy()
    elsewhere[:, 5:10] += 2

    assert common_degs(real[:100], real[100:], control, k=5) == 1
    assert common_degs(elsewhere, real, control, k=5) == 0


def test_the_floor_is_the_median_error_of_the_genes_that_vary():
    one, other = tied_cells(40, 0), tied_cells(55, 1)
    error = np.sqrt(one.var(0, ddof=1) / 40 + other.var(0, ddof=1) / 55)
    silent = [np.zeros((len(cells), 100), np.float32) for cells in (one, other)]

    floor = error_floor(np.hstack([one, silent[0]]), np.hstack([other, silent[1]]))

    assert floor == pytest.approx(np.median(error), rel=1e-5)
    np.testing.assert_allclose(
        welch_t(one, other, floor=floor), (one.mean(0) - other.mean(0)) / (error + floor), rtol=1e-3
    )
    assert error_floor(*silent) == 0


@pytest.mark.parametrize("sizes", [(1, 5), (5, 1)])
def test_a_test_without_two_cells_a_side_is_refused_with_both_numbers(sizes):
    with pytest.raises(ValueError, match=f"{sizes[0]} perturbed and {sizes[1]} control cells"):
        welch_t(np.zeros((sizes[0], 3)), np.zeros((sizes[1], 3)))


def test_top_genes_are_the_largest_in_size_and_never_those_without_effect():
    t = np.array([[0.0, -3.0, 2.0, 1.0], [0.0, 0.0, 0.0, -0.5]])

    np.testing.assert_array_equal(
        top_genes(t, 2), [[False, True, True, False], [False, False, False, True]]
    )


def test_common_degs_counts_the_genes_found_on_both_sides():
    """Genes 0-3 really change; the prediction knows 0 and 1 and makes up 8 and 9."""
    rng = np.random.default_rng(0)
    control, real, predicted = rng.normal(size=(3, 50, 20))
    real[:, :4] += 4
    predicted[:, [0, 1, 8]] += 4
    predicted[:, 9] -= 4

    assert common_degs(predicted, real, control, k=4) == 0.5
    assert common_degs(real, real, control, k=4) == 1


def test_the_controls_themselves_have_no_degs_in_common():
    control, real = tied_cells(40, 0), tied_cells(40, 1, shift=0.5)

    assert common_degs(control, real, control, k=10) == 0


def test_common_degs_is_undefined_where_more_than_half_of_what_differs_would_be_at_the_top():
    control, real = tied_cells(40, 0), tied_cells(40, 1, shift=0.5)
    silent = np.zeros((40, 100), np.float32)

    cells = np.hstack([real, silent]), np.hstack([real, silent]), np.hstack([control, silent])

    assert common_degs(*cells, k=15) == 1
    assert np.isnan(common_degs(*cells, k=16))
