"""Variance in total and gene by gene, against closed forms."""

import numpy as np
import pytest

from sedd.evaluation.variance import variance_calibration, variance_ratio


def spread_cells(variances: np.ndarray, num_cells: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return 10 + rng.normal(size=(num_cells, len(variances))) * np.sqrt(variances)


def test_variance_ratio_is_the_ratio_of_total_unbiased_variances():
    real = np.array([[0.0, 5.0, 1.0], [2.0, 5.0, 5.0]])
    predicted = np.array([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0], [2.0, 1.0, 1.0]])

    assert variance_ratio(predicted, real) == pytest.approx(1 / (2 + 8))
    assert np.isnan(variance_ratio(predicted, np.ones((4, 3))))


def test_variances_of_the_same_law_are_calibrated():
    """Log variances of 4000 cells have a standard error of .022, far within 0.8 to 1.25."""
    variances = np.geomspace(0.1, 10, 50)

    found = variance_calibration(spread_cells(variances, 4000, 0), spread_cells(variances, 4000, 1))

    assert found.slope == pytest.approx(1, abs=0.02)
    assert found.correlation > 0.999
    assert found.share_within == 1


def test_the_slope_is_the_power_of_the_predicted_variance():
    real = spread_cells(np.geomspace(0.1, 10, 50), 4000, 0)
    scaled = real.mean(0) + (real - real.mean(0)) * real.std(0) ** -0.5

    found = variance_calibration(scaled, real)

    assert found.slope == pytest.approx(0.5)
    assert found.correlation == pytest.approx(1)


def test_a_constant_factor_moves_the_share_and_not_the_slope():
    real = spread_cells(np.geomspace(0.1, 10, 50), 100, 0)

    for factor, share in ((0.79, 0), (0.81, 1), (1.24, 1), (1.26, 0)):
        found = variance_calibration(real * np.sqrt(factor), real)
        assert found.slope == pytest.approx(1)
        assert found.share_within == share


def test_silent_genes_are_left_out_and_genes_without_predicted_variance_count_as_misses():
    real = spread_cells(np.geomspace(1, 10, 40), 100, 0)
    silent = np.zeros((100, 60))
    silent[:4] = 1.0  # expressed in 4 %, below the 5 % that count
    predicted = real.copy()
    predicted[:, :10] = 3.0

    found = variance_calibration(np.hstack([predicted, silent + 1]), np.hstack([real, silent]))

    assert found.share_within == 30 / 40
    assert found.slope == pytest.approx(1)
    constant = np.full((100, 5), 2.0)
    assert found == variance_calibration(
        np.hstack([predicted, constant]), np.hstack([real, constant])
    )


def test_calibration_is_undefined_without_cells_or_genes():
    cells = spread_cells(np.array([1.0, 2.0, 3.0]), 20, 0)

    assert np.isnan(variance_calibration(cells[:1], cells).share_within)
    assert np.isnan(variance_calibration(cells[:, :2], cells[:, :2]).share_within)
    alike = variance_calibration(np.tile(cells[:, :1], 3), np.tile(cells[:, :1], 3))
    assert np.isnan(alike.slope)
    assert alike.share_within == 1
