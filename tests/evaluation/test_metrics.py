"""The metrics against closed forms, slow loops and laws."""

import itertools
import math

import numpy as np
import pytest

from sedd.evaluation.baselines import split_half_ceiling
from sedd.evaluation.differential import common_degs
from sedd.evaluation.energy import energy_distance, finite_control_floor
from sedd.evaluation.metrics import (
    correlation_structure,
    limits,
    mse_of_means,
    pearson_of_shift,
    score,
    shift_reliability,
    spearman_brown,
    zero_fraction_error,
)
from sedd.evaluation.prediction import Prediction
from sedd.evaluation.variance import variance_ratio


def correlated_cells(num_cells: int, seed: int, num_genes: int = 40) -> np.ndarray:
    """Gaussian cells with three programs of genes; the programs are those of every seed."""
    loadings = np.random.default_rng(7).normal(size=(3, num_genes))
    rng = np.random.default_rng(seed)
    programs = rng.normal(size=(num_cells, 3)) @ loadings
    return (programs + rng.normal(size=programs.shape)).astype(np.float32)


def test_energy_distance_of_two_point_masses_is_twice_their_distance():
    x = np.tile(np.float32([0, 0, 1]), (5, 1))
    y = np.tile(np.float32([3, 4, 1]), (7, 1))

    assert energy_distance(x, y) == pytest.approx(10, abs=1e-6)


def test_energy_distance_equals_a_loop_over_pairs_across_block_borders(monkeypatch):
    monkeypatch.setattr("sedd.evaluation.energy.BLOCK_CELLS", 4)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(11, 3)), rng.normal(1, 2, size=(9, 3))

    between = np.mean([np.linalg.norm(a - b) for a in x for b in y])
    within = [
        np.mean([np.linalg.norm(a - b) for a, b in itertools.permutations(cells, 2)])
        for cells in (x, y)
    ]

    assert energy_distance(x, y) == pytest.approx(2 * between - sum(within), abs=1e-12)


def test_energy_distance_of_two_samples_of_one_law_is_zero_on_average():
    """Ten cells a side: with the diagonal in the means the average would be 2 D / n = .45."""
    rng = np.random.default_rng(0)
    values = [
        energy_distance(rng.normal(size=(10, 3)), rng.normal(size=(10, 3))) for _ in range(500)
    ]

    standard_error = np.std(values) / np.sqrt(len(values))
    assert standard_error < 0.015
    assert abs(np.mean(values)) < 4 * standard_error


def test_energy_distance_of_shifted_gaussians_has_its_closed_form():
    """x ~ N(0, 1), y ~ N(m, 1): E|x - y| is the mean of a folded N(m, 2).

    The U-statistic is unbiased, so 40 repeats of 500 cells must agree within 4 standard errors.
    """
    m, variance = 1.5, 2.0
    folded = np.sqrt(2 * variance / np.pi) * np.exp(-(m**2) / (2 * variance))
    folded += m * math.erf(m / math.sqrt(2 * variance))
    expected = 2 * folded - 2 * np.sqrt(2 * variance / np.pi)
    rng = np.random.default_rng(0)

    values = [
        energy_distance(rng.normal(size=(500, 1)), rng.normal(m, size=(500, 1))) for _ in range(40)
    ]

    standard_error = np.std(values) / np.sqrt(len(values))
    assert standard_error < 0.02
    assert np.mean(values) == pytest.approx(float(expected), abs=4 * standard_error)


def test_energy_distance_far_from_the_origin_loses_no_digits():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(50, 4)), rng.normal(1, size=(60, 4))

    assert energy_distance(x + 1e6, y + 1e6) == pytest.approx(energy_distance(x, y), abs=1e-6)


def test_a_cap_on_cells_draws_a_subsample_that_the_seed_repeats():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 5)), rng.normal(1, size=(300, 5))

    capped = [energy_distance(x, y, max_cells=100, seed=seed) for seed in (0, 0, 1)]

    assert capped[0] == capped[1] != capped[2]
    assert energy_distance(x, y, max_cells=300) == energy_distance(x, y)
    # 100 cells a side in 5 dimensions: the spread over subsamples is about .06.
    assert capped[0] == pytest.approx(energy_distance(x, y), abs=0.25)


def evenly_spread_units(num_units: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Uniform numbers, ten in each unit, one in each tenth: even within, independent between."""
    tenths = np.stack([rng.permutation(10) for _ in range(num_units)])
    cells = ((tenths + rng.random(tenths.shape)) / 10).reshape(-1, 1)
    return cells, np.arange(len(cells)) // 10


def test_units_spread_evenly_are_no_nearer_to_the_truth_than_their_law():
    """Mean over 400 samples of 20 cells, half of whose pairs are even: -0.014 with all pairs."""
    rng = np.random.default_rng(0)
    plain, by_unit = [], []
    for _ in range(400):
        cells, units = evenly_spread_units(2, rng)
        real = rng.random((50, 1))
        plain.append(energy_distance(cells, real))
        by_unit.append(energy_distance(cells, real, x_units=units))

    error = np.std(by_unit) / 20
    assert abs(np.mean(by_unit)) < 3 * error
    assert np.mean(plain) < -3 * error


def test_only_pairs_of_different_units_count_and_all_of_them_where_there_is_one_unit():
    x, y = np.array([[0.0], [1.0], [5.0]]), np.array([[0.0], [2.0]])
    to_truth = np.abs(x - y.T).mean(1)

    found = [energy_distance(x, y, x_units=np.array(units)) for units in ([0, 0, 1], [3, 3, 3])]

    first, second = to_truth[0] + to_truth[2] - 5, to_truth[1] + to_truth[2] - 4
    assert found[0] == pytest.approx((first + second) / 2 - 2)
    assert found[1] == pytest.approx(2 * to_truth.mean() - (1 + 5 + 4) / 3 - 2)


def test_what_a_small_unit_happens_to_hold_cancels():
    """100 cells and 10, of a law 1 away in 50 dimensions: the same mean, 1.8 times the spread.

    Ten of 110 cells carry half of the weight, so that 1/110 = .0091, the sum of squared weights,
    becomes .0275: sqrt(3) of the spread, and a little for fewer pairs. The spread of 200 draws is
    itself known within 7%. With a cell's weights unlike in the two means, it was 26 times.
    """
    rng, uneven, plain = np.random.default_rng(0), [], []
    units = np.repeat([0, 1], [100, 10])
    for _ in range(200):
        # Cells differ in size, so that ten of them lie nearer or farther out than the rest.
        x = rng.normal(size=(110, 50)) * rng.lognormal(sigma=0.5, size=(110, 1))
        y = rng.normal(size=(110, 50)) * rng.lognormal(sigma=0.5, size=(110, 1)) + 1 / np.sqrt(50)
        uneven.append(energy_distance(x, y, x_units=units))
        plain.append(energy_distance(x, y))

    assert np.mean(uneven) == pytest.approx(np.mean(plain), abs=3 * np.std(uneven) / np.sqrt(200))
    assert np.std(uneven) < 2.2 * np.std(plain)


def test_cells_and_their_units_are_cut_down_together():
    rng = np.random.default_rng(0)
    cells, units = evenly_spread_units(30, rng)
    far = cells + 1e3 * units[:, None]

    found = energy_distance(far, np.zeros((40, 1)), x_units=units, max_cells=40, seed=1)
    kept = np.sort(np.random.default_rng(1).choice(300, 40, replace=False))
    expected = energy_distance(far[kept], np.zeros((40, 1)), x_units=units[kept])

    assert found == pytest.approx(expected)


def test_energy_distance_of_a_single_cell_is_undefined():
    assert np.isnan(energy_distance(np.zeros((1, 3)), np.ones((5, 3))))


def test_the_control_floor_is_what_copies_of_few_controls_keep_from_fresh_ones():
    """Bootstraps of n = 20 controls against fresh cells, over many sets of controls: D / n."""
    rng = np.random.default_rng(0)
    observed, floors = [], []
    for _ in range(300):
        controls = rng.normal(size=(20, 4))
        copies = controls[rng.integers(0, 20, 60)]
        observed.append(energy_distance(copies, rng.normal(size=(60, 4))))
        floors.append(finite_control_floor(controls))

    standard_error = np.std(np.subtract(observed, floors)) / np.sqrt(300)
    assert standard_error < 0.015
    assert np.mean(floors) > 0.1
    assert np.mean(observed) == pytest.approx(np.mean(floors), abs=4 * standard_error)


def test_a_cap_on_cells_leaves_the_control_floor_of_all_controls():
    controls = np.random.default_rng(0).normal(size=(400, 10))

    full, capped = (finite_control_floor(controls, max_cells=cap) for cap in (None, 100))

    assert capped == pytest.approx(full, rel=0.05)


def test_the_true_shift_has_pearson_one_at_any_scale_and_minus_one_reversed():
    rng = np.random.default_rng(0)
    control, shift = rng.random(50), rng.normal(size=50)

    for factor, expected in ((1.0, 1.0), (0.2, 1.0), (-3.0, -1.0)):
        predicted = control + factor * shift
        assert pearson_of_shift(predicted, control + shift, control) == pytest.approx(expected)


def test_pearson_is_that_of_shifts_and_not_of_means():
    control = np.array([5.0, 1.0, 0.0, 3.0])
    predicted_shift, real_shift = np.array([1, 2, 3, 4]), np.array([1, 4, 2, 5])

    expected = np.corrcoef(predicted_shift, real_shift)[0, 1]

    assert pearson_of_shift(
        control + predicted_shift, control + real_shift, control
    ) == pytest.approx(expected, abs=1e-12)


def test_pearson_of_no_predicted_shift_is_zero_and_of_no_real_shift_undefined():
    control = np.random.default_rng(0).random(20)
    shifted = control + np.arange(20)

    assert pearson_of_shift(control, shifted, control) == 0
    assert pearson_of_shift(control + 0.1, shifted, control) == 0
    assert np.isnan(pearson_of_shift(shifted, control, control))


def test_mse_is_the_mean_over_genes():
    assert mse_of_means(np.array([1.0, 2.0, 3.0]), np.array([1.0, 0.0, 0.0])) == 13 / 3


def test_zero_fraction_error_does_not_cancel_between_genes():
    predicted = np.float32([[0, 1], [0, 1], [0, 1], [1, 1]])
    real = np.float32([[0, 0], [1, 2]])

    assert zero_fraction_error(predicted, real) == (0.25 + 0.5) / 2


def test_a_resample_of_the_real_law_has_all_of_its_correlation_structure():
    """Over 20 pairs of samples; one has a spread of about .03."""
    values = [
        correlation_structure(correlated_cells(300, 100 + i), correlated_cells(300, i))
        for i in range(20)
    ]

    standard_error = np.std(values) / np.sqrt(20)
    assert standard_error < 0.02
    assert np.mean(values) == pytest.approx(1, abs=4 * standard_error)


def test_few_cells_do_not_attenuate_the_correlation_structure():
    """At 40 cells a plain regression slope on the noisy correlations would fall well below 1."""
    values, slopes = [], []
    for i in range(40):
        predicted, real = correlated_cells(40, 100 + i), correlated_cells(40, i)
        values.append(correlation_structure(predicted, real))
        pairs = np.triu_indices(40, 1)
        x, y = (np.corrcoef(cells.T)[pairs] for cells in (real, predicted))
        slopes.append(np.cov(x, y)[0, 1] / np.var(x))

    standard_error = np.std(values) / np.sqrt(40)
    assert standard_error < 0.03
    assert np.mean(values) == pytest.approx(1, abs=4 * standard_error)
    assert np.mean(slopes) < 0.95


def test_independent_genes_have_none_of_the_correlation_structure():
    real = correlated_cells(400, 0)
    shuffled = np.random.default_rng(1).permuted(real, axis=0)

    # Noise correlations of 1/20 over 780 pairs against true ones of about .5: a spread of .004.
    assert correlation_structure(shuffled, real) == pytest.approx(0, abs=0.02)


def test_halved_correlations_score_a_half():
    """Noise with the variance of each gene halves every correlation and nothing else."""
    predicted = correlated_cells(20000, 1)
    noise = np.random.default_rng(2).normal(size=predicted.shape) * predicted.std(0)

    assert correlation_structure(predicted + noise, correlated_cells(2000, 0)) == pytest.approx(
        0.5, abs=0.03
    )


def test_real_cells_without_correlations_leave_the_structure_undefined():
    undefined = [
        correlation_structure(
            correlated_cells(300, 0), np.random.default_rng(seed).normal(size=(300, 40))
        )
        for seed in range(20)
    ]

    assert np.isnan(undefined).all()


def test_a_gene_that_is_constant_in_the_prediction_counts_as_uncorrelated():
    real = correlated_cells(400, 0)
    some_constant, all_constant = real.copy(), np.full_like(real, 0.1)
    some_constant[:, :20] = 0.1

    assert correlation_structure(all_constant, real) == 0
    assert 0 < correlation_structure(some_constant, real) < 0.7


def test_genes_that_are_silent_in_the_real_cells_do_not_count_in_the_structure():
    predicted, real = correlated_cells(400, 1), correlated_cells(400, 0)
    silent, invented = np.zeros((400, 30), np.float32), correlated_cells(400, 2, num_genes=30)

    padded = correlation_structure(np.hstack([predicted, invented]), np.hstack([real, silent]))

    assert padded == pytest.approx(correlation_structure(predicted, real), abs=1e-12)


def test_spearman_brown_knows_that_halves_at_a_third_make_a_whole_at_a_half():
    assert spearman_brown(1 / 3) == pytest.approx(0.5)
    assert spearman_brown(1.0) == 1
    assert spearman_brown(-0.2) == 0


def test_shift_reliability_is_signal_over_signal_and_noise():
    """Shifts of variance 1 over genes, noise of variance 2/n from each of the two groups.

    n = 8 cells of variance 4 in each group: reliability 1 / (1 + 4/8 + 4/8) = .5. Over 3000 genes
    and 20 repeats the standard error is below .01.
    """
    values = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        control = rng.normal(0, 2, size=(8, 3000))
        real = rng.normal(size=3000) + rng.normal(0, 2, size=(8, 3000))
        values.append(shift_reliability(real, control, seed=seed))

    assert np.mean(values) == pytest.approx(0.5, abs=0.02)


def test_shared_controls_do_not_make_a_shift_of_noise_look_reliable():
    """Four controls, no effect: halves that shared them would agree above .9."""
    values = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        control, real = rng.normal(size=(4, 2000)), rng.normal(size=(200, 2000))
        values.append(shift_reliability(real, control, seed=seed))

    assert max(values) < 0.15


def test_score_uses_the_stated_mean_and_limits_come_from_real_cells_alone():
    rng = np.random.default_rng(0)
    control, real = rng.random((50, 240)), rng.random((60, 240)) + np.linspace(0, 1, 240)
    stated = Prediction("stated", control, real.mean(0))

    scores, known = score(stated, real, control), limits(real, control)

    assert scores.mse == 0
    assert scores.pearson == pytest.approx(1)
    assert scores.energy_distance == energy_distance(control, real)
    assert scores.zero_fraction_error == 0
    assert scores.variance_ratio == variance_ratio(control, real)
    assert scores.common_degs == common_degs(control, real, control) == 0
    assert known.shift_reliability == shift_reliability(real, control)
    assert known.control_floor == finite_control_floor(control)


def test_the_ceiling_is_scored_on_the_half_it_has_not_seen():
    rng = np.random.default_rng(0)
    control, real = rng.random((40, 10)), rng.random((41, 10))
    ceiling = split_half_ceiling(real)

    scores = score(ceiling, np.full_like(real, np.nan), control)

    assert ceiling.against_log1p is not None
    assert scores.mse == mse_of_means(ceiling.mean_log1p, ceiling.against_log1p.mean(0))
    assert scores.energy_distance == energy_distance(ceiling.cells_log1p, ceiling.against_log1p)


def test_a_condition_without_cells_is_refused_by_name():
    cells = np.ones((3, 2))
    nothing = cells[:0]

    with pytest.raises(ValueError, match="No real and no control cells to score"):
        score(Prediction.of_cells("model", cells), nothing, nothing)
