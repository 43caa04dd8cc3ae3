"""Kriging against conditioned joint normals, its limits, and simulated fields."""

import numpy as np
import pytest

from sedd.data.kriging import (
    CANDIDATES,
    MOST_PLACES,
    SMALLEST_AMPLITUDE,
    SMALLEST_ERROR,
    Kernel,
    Measured,
    correlation_distance,
    likeliest_kernel,
    log_likelihood,
    predict,
)

REACHES = sorted({kernel.reach for kernel in CANDIDATES})


def distances(num_places: int, seed: int = 0, *, size: float = 2.0) -> np.ndarray:
    """Between random points of a square."""
    points = np.random.default_rng(seed).uniform(0, size, (num_places, 2))
    return np.linalg.norm(points[:, None] - points, axis=-1)


def measured_at(distance: np.ndarray, *, num_genes: int = 5, seed: int = 1) -> Measured:
    """Arbitrary shifts and errors."""
    rng = np.random.default_rng(seed)
    shape = (len(distance), num_genes)
    return Measured(rng.normal(size=shape), rng.uniform(0.01, 0.5, shape), distance)


def simulated(
    kernel: Kernel, distance: np.ndarray, *, error: float = 0.05, num_genes: int = 1000, seed=2
) -> Measured:
    """Shifts of unit amplitude, one field for each gene, seen with errors."""
    rng = np.random.default_rng(seed)
    own = kernel.idiosyncrasy + error
    covariance = kernel.covariance(distance) + own * np.eye(len(distance))
    shift = np.linalg.cholesky(covariance) @ rng.normal(size=(len(distance), num_genes))
    return Measured(shift, np.full(shift.shape, error), distance)


# Prediction.


@pytest.mark.parametrize("kernel", [Kernel(0.5), Kernel(1.0, 0.5, 0.2), Kernel(3.0, 0.2, 0.05)])
def test_the_prediction_is_the_conditional_mean_of_a_joint_normal(kernel):
    """By the joint precision matrix: E[x_0 | others] = -P_00^-1 P_0k x_k."""
    distance = distances(7)
    known = measured_at(distance[1:, 1:])

    found = predict(known, distance[1:, 0], kernel)

    for gene in range(5):
        shift, error = known.shift[:, gene], known.error[:, gene]
        amplitude = max(np.mean(shift**2 - error), SMALLEST_AMPLITUDE)
        joint = np.empty((7, 7))
        for i in range(7):
            for j in range(7):
                alike = np.exp(-distance[i, j] / kernel.reach)
                joint[i, j] = amplitude * (kernel.constant + (1 - kernel.constant) * alike)
        for i in range(1, 7):
            joint[i, i] += error[i - 1] + kernel.idiosyncrasy * amplitude + SMALLEST_ERROR
        precision = np.linalg.inv(joint)
        expected = -precision[0, 1:] @ shift / precision[0, 0]
        assert found[gene] == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_without_error_the_shift_of_a_place_is_what_was_measured_there():
    distance = distances(6)
    known = measured_at(distance)
    exact = Measured(known.shift, np.zeros_like(known.error), distance)

    for place in range(6):
        found = predict(exact, distance[place], Kernel(1.0))
        # The nugget of .001 keeps a little back.
        np.testing.assert_allclose(found, known.shift[place], atol=0.03)
        assert np.abs(found - known.shift[place]).mean() < 0.005


def test_with_infinite_reach_and_equal_errors_it_is_the_shrunk_mean():
    shift, error = measured_at(distances(6)).shift, 0.1
    known = Measured(shift, np.full_like(shift, error), distances(6))

    found = predict(known, distances(7)[0, 1:], Kernel(np.inf))

    amplitude = np.maximum((shift**2).mean(0) - error, SMALLEST_AMPLITUDE)
    shrunk = amplitude / (amplitude + (error + SMALLEST_ERROR) / 6)
    np.testing.assert_allclose(found, shrunk * shift.mean(0), rtol=1e-8)


def test_far_places_tell_nothing_but_what_all_places_share():
    """Six places far from each other too: weights A c / (6 A c + A (1 - c) + own error)."""
    far, shift = np.full(6, 80.0), measured_at(distances(6)).shift
    known = Measured(shift, np.full_like(shift, 0.1), 80 * (1 - np.eye(6)))

    np.testing.assert_allclose(predict(known, far, Kernel(1.0)), 0, atol=1e-20)

    shared = 0.5 * known.amplitude()
    weight = shared / (6 * shared + shared + 0.1 + SMALLEST_ERROR)
    found = predict(known, far, Kernel(1.0, constant=0.5))
    np.testing.assert_allclose(found, weight * shift.sum(0), rtol=1e-9)


def test_of_two_equally_near_places_the_noisier_weighs_less():
    """Far from each other: weights A c / (A + own error), with c the common covariance."""
    distance = np.array([[0.0, 80.0], [80.0, 0.0]])
    shift, error = np.array([[2.0, 0.0], [0.0, 2.0]]), np.array([[0.1, 0.1], [1.0, 1.0]])

    quiet, noisy = predict(Measured(shift, error, distance), np.array([0.5, 0.5]), Kernel(1.0))

    amplitude = (4 - 1.1) / 2
    for found, own in ((quiet, 0.1), (noisy, 1.0)):
        weight = amplitude * np.exp(-0.5) / (amplitude + own + SMALLEST_ERROR)
        assert found == pytest.approx(2 * weight, rel=1e-9)
    assert quiet > 1.3 * noisy


def test_shifts_within_their_errors_are_hardly_believed():
    rng = np.random.default_rng(3)
    error = 0.04
    noise = rng.normal(0, np.sqrt(error), (6, 500))
    known = Measured(noise, np.full(noise.shape, error), distances(6))

    found = predict(known, distances(6)[0], Kernel(1.0))

    # Genes whose six squares are large by chance keep a little: 1/10 of the variance.
    assert (found**2).mean() < 0.1 * (noise[0] ** 2).mean()


def test_idiosyncrasy_shrinks_what_other_places_tell():
    distance = distances(6)
    known = measured_at(distance[1:, 1:], num_genes=200)
    own = [
        np.abs(predict(known, distance[1:, 0], Kernel(2.0, 0.0, share))).mean()
        for share in (0.0, 0.2, 1.0, 1e9)
    ]

    assert own[0] > own[1] > own[2] > own[3]
    assert own[3] < 1e-6


def test_of_more_places_than_the_most_the_nearest_are_used():
    num_places = MOST_PLACES + 9
    distance = distances(num_places + 1, size=5.0)
    known = measured_at(distance[1:, 1:])
    to_known = distance[1:, 0]
    near = np.sort(np.argsort(to_known)[:MOST_PLACES])

    found = predict(known, to_known, Kernel(1.0))

    far = np.setdiff1d(np.arange(num_places), near)
    moved = known.shift.copy()
    moved[far] = 1e6
    changed = predict(Measured(moved, known.error, known.distance), to_known, Kernel(1.0))
    np.testing.assert_array_equal(changed, found)
    moved = known.shift.copy()
    moved[near[0]] += 1
    changed = predict(Measured(moved, known.error, known.distance), to_known, Kernel(1.0))
    assert (changed != found).all()
    np.testing.assert_array_equal(predict(known.at(near), to_known[near], Kernel(1.0)), found)


def test_the_order_of_the_places_does_not_matter():
    distance, order = distances(7), np.array([3, 0, 5, 1, 4, 2])
    known = measured_at(distance[1:, 1:])

    found = predict(known.at(order), distance[1:, 0][order], Kernel(1.0, 0.5))

    np.testing.assert_allclose(found, predict(known, distance[1:, 0], Kernel(1.0, 0.5)), rtol=1e-9)


def test_on_a_simulated_field_it_errs_less_than_the_mean_and_as_much_as_theory_says():
    """Kriging variance A (1 - k K^-1 k) over 3000 genes; amplitudes are estimated from 15 places,
    which costs some percent more.
    """
    kernel, distance = Kernel(1.0), distances(16)
    field = simulated(kernel, distance, error=0.02, num_genes=3000)

    found = predict(field.at(np.arange(1, 16)), distance[1:, 0], kernel)

    truth = field.shift[0]
    known = kernel.covariance(distance[1:, :1])[:, 0]
    inverse = np.linalg.inv(kernel.covariance(distance[1:, 1:]) + 0.02 * np.eye(15))
    expected = 1 - known @ inverse @ known + 0.02
    assert ((found - truth) ** 2).mean() == pytest.approx(expected, rel=0.1)
    assert ((field.shift[1:].mean(0) - truth) ** 2).mean() > 1.5 * expected


# The kernel.


def test_log_likelihood_is_the_density_of_a_normal():
    """Along the principal axes of its covariance, where it is a product."""
    known, kernel = measured_at(distances(4)), Kernel(1.0, 0.5, 0.2)

    found = log_likelihood(known, kernel)

    logs = []
    for gene, covariance in enumerate(known.covariance(kernel)):
        variance, axes = np.linalg.eigh(covariance)
        along = axes.T @ known.shift[:, gene]
        logs.append(-0.5 * np.sum(np.log(variance) + along**2 / variance))
    assert found == pytest.approx(np.mean(logs), rel=1e-10)


@pytest.mark.parametrize("reach", REACHES)
def test_the_likeliest_kernel_reaches_as_far_as_the_field_it_came_from(reach):
    """Or to the neighbouring candidate: amplitudes estimated gene by gene take up a part of what
    many alike places have in common.
    """
    sets = [
        simulated(Kernel(reach), distances(12, seed), num_genes=300, seed=seed) for seed in range(3)
    ]

    found = likeliest_kernel(sets)

    assert abs(REACHES.index(found.reach) - REACHES.index(reach)) <= 1


def test_independent_effects_have_the_kernel_that_shares_least():
    rng = np.random.default_rng(5)
    shift = rng.normal(size=(12, 500))
    known = Measured(shift, np.full(shift.shape, 0.05), distances(12))

    found = likeliest_kernel([known])

    assert found == Kernel(min(REACHES), 0.0, max(k.idiosyncrasy for k in CANDIDATES))


def test_effects_that_all_places_share_have_a_kernel_that_does():
    rng = np.random.default_rng(6)
    shift = rng.normal(size=(1, 500)) + rng.normal(0, 0.1, (12, 500))
    known = Measured(shift, np.full(shift.shape, 0.01), distances(12))

    found = likeliest_kernel([known])

    assert found.covariance(np.array([[1.0]])).item() > 0.8


def test_a_single_place_says_nothing_of_the_kernel():
    alone = measured_at(distances(1))
    pairs = simulated(Kernel(5.0), distances(12))

    assert likeliest_kernel([]) == likeliest_kernel([alone]) == Kernel()
    assert likeliest_kernel([alone, pairs]) == likeliest_kernel([pairs]) != Kernel()


# Distances.


def test_correlation_distance_is_one_minus_pearson():
    rows = np.random.default_rng(7).normal(3, 1, (6, 40))

    found = correlation_distance(rows)

    np.testing.assert_allclose(found, 1 - np.corrcoef(rows), atol=1e-12)
    np.testing.assert_array_equal(found, found.T)
    np.testing.assert_array_equal(found.diagonal(), 0)
    np.testing.assert_allclose(correlation_distance(5 * rows - 2), found, atol=1e-12)


def test_opposite_rows_are_at_two_and_a_constant_row_at_one_from_all():
    rows = np.array([[1, 2, 3], [3, 2, 1], [4, 4, 4], [0, 0, 0], [2, 4, 6]], np.float32)

    found = correlation_distance(rows)

    expected = [
        [0, 2, 1, 1, 0],
        [2, 0, 1, 1, 2],
        [1, 1, 0, 1, 1],
        [1, 1, 1, 0, 1],
        [0, 2, 1, 1, 0],
    ]
    np.testing.assert_allclose(found, expected, atol=1e-12)
    assert (found >= 0).all()
