"""Control cells are summarised as what they are, and smoothed towards what is known elsewhere."""

import numpy as np
import pytest

from sedd.data.controls import ControlCells, ControlStatistics, control_statistics, histogram
from sedd.errors import DataError

NUM_BINS = 4


def statistics(tokens, cell_type, is_control, num_types=2) -> ControlStatistics:
    tokens = np.array(tokens, np.uint8)
    return control_statistics(
        tokens,
        tokens.astype(np.float32),
        cell_type=np.array(cell_type),
        is_control=np.array(is_control),
        num_types=num_types,
        num_bins=NUM_BINS,
    )


def random_statistics(seed: int = 0) -> ControlStatistics:
    rng = np.random.default_rng(seed)
    return statistics(
        rng.integers(0, NUM_BINS, (60, 5)), rng.integers(0, 2, 60), rng.random(60) < 0.5
    )


def test_statistics_are_those_of_the_control_cells_of_the_type_alone():
    found = statistics([[0, 1], [2, 1], [3, 3], [3, 0]], [0, 0, 0, 1], [True, True, False, True])

    np.testing.assert_array_equal(found.mean_log1p, [[1, 1], [3, 0]])
    np.testing.assert_array_equal(found.std_log1p, [[1, 0], [0, 0]])
    np.testing.assert_array_equal(found.detection, [[0.5, 1], [1, 0]])
    np.testing.assert_array_equal(found.histogram[0], [[1, 0, 1, 0], [0, 2, 0, 0]])
    # The global histogram counts perturbed cells too.
    np.testing.assert_array_equal(found.global_histogram, [[1, 0, 1, 2], [1, 2, 0, 1]])


def test_a_histogram_counts_every_cell_once_per_gene():
    tokens = np.random.default_rng(0).integers(0, NUM_BINS, (50, 3)).astype(np.uint8)

    counted = histogram(tokens, NUM_BINS)

    np.testing.assert_array_equal(counted.sum(1), [50, 50, 50])
    np.testing.assert_array_equal(counted[1], np.bincount(tokens[:, 1], minlength=NUM_BINS))


@pytest.mark.parametrize("global_share", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("pseudo_count", [1e-3, 1.0, 100.0])
def test_the_log_prior_is_a_law_that_gives_every_bin_a_chance(global_share, pseudo_count):
    prior = random_statistics().log_prior(global_share=global_share, pseudo_count=pseudo_count)

    # float32 logarithms: 1e-6 of the sum.
    np.testing.assert_allclose(np.exp(prior.astype(np.float64)).sum(-1), 1, rtol=1e-6)
    assert np.isfinite(prior).all()


def test_without_smoothing_the_prior_is_the_mixture_of_the_two_histograms():
    found = random_statistics()
    own = found.histogram / found.histogram.sum(-1, keepdims=True)
    everywhere = found.global_histogram / found.global_histogram.sum(-1, keepdims=True)

    prior = np.exp(found.log_prior(global_share=0.1, pseudo_count=1e-6))

    np.testing.assert_allclose(prior, 0.9 * own + 0.1 * everywhere, atol=1e-6)


def test_with_endless_smoothing_the_prior_is_uniform():
    prior = np.exp(random_statistics().log_prior(global_share=0.1, pseudo_count=1e9))

    np.testing.assert_allclose(prior, 1 / NUM_BINS, rtol=1e-5)


def test_a_share_of_one_leaves_nothing_of_the_type():
    prior = random_statistics().log_prior(global_share=1.0)

    np.testing.assert_array_equal(prior[0], prior[1])


def test_a_type_without_controls_borrows_the_mean_of_the_others_and_the_global_histogram():
    found = statistics([[0, 1], [2, 3], [3, 3]], [0, 1, 2], [True, True, False], num_types=3)

    for name in ("mean_log1p", "std_log1p", "detection"):
        values = getattr(found, name)
        np.testing.assert_allclose(values[2], values[:2].mean(0))
    prior = found.log_prior(global_share=0.1)
    np.testing.assert_allclose(prior[2], found.log_prior(global_share=1.0)[2], rtol=1e-5)


def test_cells_without_any_control_still_have_statistics():
    found = statistics([[0, 1]], [0], [False], num_types=1)

    np.testing.assert_array_equal(found.mean_log1p, [[0, 0]])
    np.testing.assert_allclose(np.exp(found.log_prior(global_share=0.1)).sum(-1), 1, rtol=1e-6)


def test_features_are_mean_spread_and_detection_gene_by_gene():
    found = random_statistics()

    features = found.features()

    np.testing.assert_allclose(features[..., 0], found.mean_log1p / 2)
    np.testing.assert_allclose(features[..., 1], found.std_log1p)
    np.testing.assert_allclose(features[..., 2], found.detection)


def test_control_cells_of_a_type_keep_their_rows_depths_values_and_batches():
    cells = ControlCells(
        cell_type=np.array([0, 0, 2]),
        row=np.array([7, 3, 5]),
        depth=np.array([1.0, 2.0, 3.0]),
        values=np.eye(3),
        batch=np.array([4, 6, 4]),
    )

    chosen = cells.of_type(0)

    np.testing.assert_array_equal(chosen.row, [7, 3])
    np.testing.assert_array_equal(chosen.depth, [1, 2])
    np.testing.assert_array_equal(chosen.values, np.eye(3)[:2])
    np.testing.assert_array_equal(chosen.batch, [4, 6])
    with pytest.raises(DataError, match="no control cell of cell type number 1"):
        cells.of_type(1)


def test_control_cells_are_found_by_their_row_in_the_file():
    number = np.zeros(3, np.int64)
    cells = ControlCells(number, np.array([7, 3, 5]), np.ones(3), np.eye(3), number)

    np.testing.assert_array_equal(cells.positions(np.array([5, 7, 7, 3])), [2, 0, 0, 1])
    for row in (4, 2, 8):
        with pytest.raises(ValueError, match=rf"Rows \[{row}\] of the training file"):
            cells.positions(np.array([3, row]))
