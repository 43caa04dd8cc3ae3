"""Rank sums against scanpy, scipy and laws; the top genes two predictions have in common."""

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy.stats import mannwhitneyu, norm

from sedd.evaluation.differential import common_degs, rank_sum, rank_sum_z, top_genes


def tied_cells(num_cells: int, seed: int, num_genes: int = 30, shift: float = 0.0) -> np.ndarray:
    """Sparse log counts with many ties; the rate of a gene grows with its number and the shift."""
    rate = np.linspace(0.05, 3, num_genes) * np.exp(shift * np.linspace(-1, 1, num_genes))
    counts = np.random.default_rng(seed).poisson(rate, size=(num_cells, num_genes))
    return np.log1p(counts).astype(np.float32)


@pytest.mark.slow  # scanpy compiles for half a minute
def test_z_is_that_of_scanpy_with_its_tie_correction():
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
        cells, "label", groups=["IFNb"], reference="control", method="wilcoxon", tie_correct=True
    )

    theirs = scanpy.get.rank_genes_groups_df(cells, "IFNb").set_index("names").scores
    np.testing.assert_allclose(
        rank_sum_z(perturbed, control), theirs.reindex(cells.var_names), rtol=1e-5, atol=1e-6
    )


def test_z_is_that_of_scipy_and_its_sign_says_where_perturbed_cells_are_higher(monkeypatch):
    monkeypatch.setattr("sedd.evaluation.differential.BLOCK_GENES", 7)
    perturbed, control = tied_cells(40, 0, shift=0.5), tied_cells(55, 1)

    z = rank_sum_z(perturbed, control)

    both = perturbed.astype(np.float64), control.astype(np.float64)
    p = mannwhitneyu(*both, use_continuity=False, method="asymptotic").pvalue
    np.testing.assert_allclose(np.abs(z), norm.isf(p / 2), rtol=1e-9)
    differences = perturbed.mean(0) - control.mean(0)
    assert np.array_equal(np.sign(z[[8, -1]]), np.sign(differences[[8, -1]]))
    assert z[8] < 0 < z[-1]


def test_without_an_effect_z_is_a_standard_normal():
    """4000 genes with ties: the variance of z has a standard error of .022."""
    rng = np.random.default_rng(0)
    cells = rng.poisson(0.7, size=(70, 4000)).astype(np.float32)

    z = rank_sum_z(cells[:30], cells[30:])

    assert np.mean(z) == pytest.approx(0, abs=4 / np.sqrt(4000))
    assert np.var(z) == pytest.approx(1, abs=4 * 0.0224)


def test_placements_are_the_control_cells_below_with_ties_half():
    perturbed, control = np.float32([[2, 0], [0, 0]]), np.float32([[0, 0], [1, 0], [2, 0]])

    test = rank_sum(perturbed, control)

    np.testing.assert_array_equal(test.placements, [[2.5, 1.5], [0.5, 1.5]])
    assert test.z[1] == 0


def test_rank_sums_ignore_any_growing_transformation():
    perturbed, control = tied_cells(30, 0, shift=0.3), tied_cells(30, 1)

    np.testing.assert_array_equal(
        rank_sum_z(perturbed, control), rank_sum_z(np.expm1(perturbed), np.expm1(control))
    )


def test_a_rank_sum_without_cells_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match="0 perturbed and 5 control cells"):
        rank_sum(np.zeros((0, 3)), np.zeros((5, 3)))


def test_top_genes_are_the_largest_in_size_and_never_those_without_effect():
    z = np.array([[0.0, -3.0, 2.0, 1.0], [0.0, 0.0, 0.0, -0.5]])

    np.testing.assert_array_equal(
        top_genes(z, 2), [[False, True, True, False], [False, False, False, True]]
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


def test_common_degs_is_undefined_where_every_gene_that_differs_would_be_at_the_top():
    control, real = tied_cells(40, 0), tied_cells(40, 1, shift=0.5)
    silent = np.zeros((40, 100), np.float32)

    cells = np.hstack([real, silent]), np.hstack([real, silent]), np.hstack([control, silent])

    assert common_degs(*cells, k=29) == 1
    assert np.isnan(common_degs(*cells, k=30))
