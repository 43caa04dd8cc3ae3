"""Counts become bins and come back with their mean."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from sedd.data.tokens import Tokenizer
from sedd.errors import DataError

FUZZ = settings(max_examples=60, deadline=None, derandomize=True)
SHAPES = arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)


def dispersed_counts(num_cells: int, mean: list[float], dispersion: float, seed: int) -> np.ndarray:
    """Negative binomial counts, cells x genes."""
    rng = np.random.default_rng(seed)
    rate = np.array(mean) * rng.gamma(1 / dispersion, dispersion, (num_cells, len(mean)))
    return rng.poisson(rate)


@given(arrays.arrays(np.int64, SHAPES, elements=st.integers(0, 9)), st.integers(0, 10**6))
@FUZZ
def test_counts_below_the_exact_ones_come_back_as_they_were(counts, largest):
    values = np.vstack([counts, np.full((1, counts.shape[1]), largest)])
    tokenizer = Tokenizer.fit(values, exact=10)

    decoded = tokenizer.decode(tokenizer.encode(counts), np.random.default_rng(0))

    np.testing.assert_array_equal(decoded, counts)


@given(
    num_cells=st.integers(1, 400),
    log_means=st.lists(st.floats(-2, 4), min_size=1, max_size=8),
    dispersion=st.floats(0.01, 5),
    seed=st.integers(0, 2**32),
)
@FUZZ
def test_the_mean_of_every_gene_survives_encoding_and_decoding(
    num_cells, log_means, dispersion, seed
):
    counts = dispersed_counts(num_cells, [10**m for m in log_means], dispersion, seed)
    tokenizer = Tokenizer.fit(counts)

    tokens = tokenizer.encode(counts)

    # Exact but for the float32 of the bin means (6e-8 of each).
    expected = tokenizer.expected(tokens).mean(0, dtype=np.float64)
    np.testing.assert_allclose(expected, counts.mean(0), rtol=2e-7)
    # Rounding up or down at random adds at most 1/4 to the variance of a cell: five sigma.
    decoded = tokenizer.decode(tokens, np.random.default_rng(seed))
    assert (np.abs(decoded.mean(0) - counts.mean(0)) < 2.5 / np.sqrt(num_cells) + 1e-5).all()


def test_a_gene_that_sits_at_the_edge_of_a_bin_keeps_its_mean():
    # Bin 13 to 16 is shown by too few cells of the first gene for a mean of its own.
    counts = np.zeros((1000, 2), np.int64)
    counts[:49, 0], counts[:, 1] = 13, 16
    tokenizer = Tokenizer.fit(counts)

    restored = tokenizer.expected(tokenizer.encode(counts)).mean(0)

    np.testing.assert_allclose(restored, [0.637, 16], rtol=1e-6)


def test_new_cells_of_the_same_law_keep_their_mean_within_one_percent():
    mean = [0.3, 3, 30, 300, 3000]
    tokenizer = Tokenizer.fit(dispersed_counts(4000, mean, 0.3, seed=0))
    new = dispersed_counts(4000, mean, 0.3, seed=1)

    decoded = tokenizer.decode(tokenizer.encode(new), np.random.default_rng(2))

    np.testing.assert_allclose(decoded.mean(0), new.mean(0), rtol=0.01)


@given(
    arrays.arrays(np.int64, (5, 3), elements=st.integers(0, 10**5)),
    arrays.arrays(np.int64, (4, 3), elements=st.integers(0, 2**40)),
)
@FUZZ
def test_no_count_however_large_becomes_mask_and_only_zero_becomes_bin_zero(seen, unseen):
    tokenizer = Tokenizer.fit(seen)

    tokens = tokenizer.encode(unseen)

    assert tokens.max() < tokenizer.num_bins <= 64
    np.testing.assert_array_equal(tokens == 0, unseen == 0)


def test_more_counts_never_mean_a_lower_token_or_a_lower_decoding():
    counts = np.arange(5000)[:, None]
    tokenizer = Tokenizer.fit(counts)

    tokens = tokenizer.encode(counts)

    assert (np.diff(tokens[:, 0].astype(int)) >= 0).all()
    assert (np.diff(tokenizer.means[0]) > 0).all()
    assert len(np.unique(tokens)) == tokenizer.num_bins


def test_bins_are_single_counts_up_to_the_exact_ones_and_grow_by_the_ratio_above():
    edges = Tokenizer.fit(np.array([[100_000]]), exact=6, ratio=1.5).edges

    np.testing.assert_array_equal(edges[:6], np.arange(6))
    growth = edges[7:] / edges[6:-1]
    # A width is rounded to a whole count: half a count of at least 6.
    assert (np.abs(growth - 1.5) < 0.5 / edges[6:-1] + 1e-9).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64, np.float32, np.float64])
def test_tokens_do_not_depend_on_the_number_type_of_the_counts(dtype):
    counts = dispersed_counts(50, [0.5, 20], 0.5, seed=0).clip(max=255)
    tokenizer = Tokenizer.fit(counts)

    np.testing.assert_array_equal(tokenizer.encode(counts.astype(dtype)), tokenizer.encode(counts))
    np.testing.assert_allclose(Tokenizer.fit(counts.astype(dtype)).means, tokenizer.means)


def test_cells_without_any_count_can_be_encoded():
    tokenizer = Tokenizer.fit(np.zeros((3, 2), np.int64))

    np.testing.assert_array_equal(tokenizer.encode(np.array([[0, 0]])), [[0, 0]])
    assert tokenizer.encode(np.array([[7, 0]])).max() < tokenizer.num_bins


def test_counts_that_need_too_many_bins_are_refused_with_what_to_change():
    counts = np.array([[0, 50_000]])

    with pytest.raises(DataError, match=r"up to 50000 need \d+ bins, 64 .*Raise data\.bin_ratio"):
        Tokenizer.fit(counts, ratio=1.05)

    assert Tokenizer.fit(counts, ratio=1.3).num_bins <= 64


def test_log1p_values_come_back_within_a_bin_and_with_their_mean():
    rng = np.random.default_rng(0)
    values = np.log1p(rng.poisson(2.0, (500, 4)) * 1.7).astype(np.float32)
    tokenizer = Tokenizer.fit(values, kind="log1p")

    tokens = tokenizer.encode(values)
    decoded = tokenizer.decode(tokens, rng)

    width = np.diff(tokenizer.edges[1:]).max()
    # The decoding is a mean of the bin, scaled by less than a percent to keep the gene's mean.
    assert np.abs(decoded - values).max() < width + 0.01 * values.max()
    np.testing.assert_allclose(decoded.mean(0), values.mean(0), rtol=1e-5)
    np.testing.assert_array_equal(tokens == 0, values == 0)
    assert tokens.max() < tokenizer.num_bins


def test_a_log1p_value_below_all_that_were_fitted_is_not_zero():
    tokenizer = Tokenizer.fit(np.array([[0.0, 1.0], [2.0, 3.0]]), kind="log1p")

    np.testing.assert_array_equal(tokenizer.encode(np.array([[0.0, 0.2]])) > 0, [[False, True]])


def test_log1p_values_outside_the_fitted_ones_never_become_mask():
    nothing = Tokenizer.fit(np.zeros((2, 1)), kind="log1p")
    some = Tokenizer.fit(np.array([[0.0], [2.0]]), kind="log1p")

    assert nothing.encode(np.array([[3.0]])).max() < nothing.num_bins
    assert some.encode(np.array([[9.0]])).max() < some.num_bins


def test_levels_are_log1p_of_the_mean_counts_of_the_bins():
    counts = dispersed_counts(300, [0.5, 5.0, 60.0], 0.5, seed=0)
    tokenizer = Tokenizer.fit(counts)

    levels = tokenizer.levels

    np.testing.assert_allclose(np.expm1(levels), tokenizer.means.mean(0), rtol=1e-5)
    np.testing.assert_allclose(levels[:10], np.log1p(np.arange(10)), rtol=1e-6)
    assert (np.diff(levels) > 0).all()


def test_levels_of_log1p_values_are_the_values_themselves():
    values = np.log1p(dispersed_counts(300, [0.5, 5.0], 0.5, seed=0)).astype(np.float32)
    tokenizer = Tokenizer.fit(values, kind="log1p")

    np.testing.assert_array_equal(tokenizer.levels, tokenizer.means.mean(0))
    assert tokenizer.levels[0] == 0
    assert tokenizer.levels[-1] == pytest.approx(values.max(), rel=0.05)
