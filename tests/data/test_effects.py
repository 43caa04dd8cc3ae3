"""Effects that are real are found and believed; effects that are noise are not."""

import numpy as np
import pytest

from sedd.data.effects import MIN_CELLS, PerturbationEffects, fit_tilt, measure_effects
from sedd.model.embeddings import ordinal_basis

NUM_TYPES, NUM_GENES, NUM_BINS = 3, 30, 6
BASIS = ordinal_basis(np.arange(NUM_BINS, dtype=np.float32), 2)


def law(logits: np.ndarray) -> np.ndarray:
    weight = np.exp(logits - logits.max(-1, keepdims=True))
    return weight / weight.sum(-1, keepdims=True)


def control_law(seed: int = 0) -> np.ndarray:
    """A law over the bins for each type and gene."""
    rng = np.random.default_rng(seed)
    return law(rng.normal(0, 0.7, (NUM_TYPES, NUM_GENES, NUM_BINS)))


def draw(probabilities: np.ndarray, num_cells: int, rng: np.random.Generator) -> np.ndarray:
    """Tokens, cells x genes, of independent genes."""
    uniform = rng.random((num_cells, len(probabilities), 1))
    return (uniform > probabilities.cumsum(-1)[:, :-1]).sum(-1).astype(np.uint8)


def measured(theta: np.ndarray, *, sizes=(400,) * NUM_TYPES, seed: int = 1) -> PerturbationEffects:
    """Effects in a world where every type's control law is tilted by `theta` (types genes rank)."""
    rng = np.random.default_rng(seed)
    control = control_law()
    tilted = law(np.log(control) + theta @ BASIS)
    arms = [(control, 0, (400,) * NUM_TYPES), (tilted, 1, sizes)]
    parts = [
        (draw(laws[t], sizes[t], rng), t, number)
        for laws, number, sizes in arms
        for t in range(NUM_TYPES)
    ]
    tokens = np.concatenate([part for part, _, _ in parts])
    repeats = [len(part) for part, _, _ in parts]
    return measure_effects(
        tokens,
        np.log1p(tokens.astype(np.float32)),
        cell_type=np.repeat([t for _, t, _ in parts], repeats),
        perturbation=np.repeat([number for _, _, number in parts], repeats),
        log_prior=np.log(control).astype(np.float32),
        basis=BASIS,
        num_perturbations=2,
    )


def shared_tilt(scale: float, seed: int = 2) -> np.ndarray:
    tilt = np.random.default_rng(seed).normal(0, scale, (1, NUM_GENES, len(BASIS)))
    return np.repeat(tilt, NUM_TYPES, axis=0)


def test_the_fit_finds_the_tilt_that_made_the_counts():
    theta = shared_tilt(0.5)
    counts = 1e6 * law(np.log(control_law()) + theta @ BASIS)

    found = fit_tilt(counts, np.log(control_law()), BASIS)

    # Counts are expected ones, so what is left is the pull of the prior: 1 / (1e6 x information).
    np.testing.assert_allclose(found, theta[0], atol=1e-4)


def test_the_fit_is_within_its_standard_error_of_the_true_tilt():
    rng, control, cells = np.random.default_rng(3), control_law(), 500
    theta = shared_tilt(0.5)
    tilted = law(np.log(control) + theta @ BASIS)
    counts = np.stack([rng.multinomial(cells, tilted[t]) for t in range(NUM_TYPES)])

    found = fit_tilt(counts.astype(np.float64), np.log(control), BASIS)

    mean = tilted @ BASIS.T
    second = np.einsum("tgb,kb,lb->tgkl", tilted, BASIS, BASIS)
    information = cells * (second - mean[..., :, None] * mean[..., None, :]).sum(0)
    z = (found - theta[0]) / np.sqrt(np.linalg.inv(information).diagonal(axis1=1, axis2=2))
    # 60 coefficients: mean square of standard normal errors is 1 +- 0.18; at most 4 sigma each.
    assert 0.4 < (z**2).mean() < 1.6
    assert np.abs(z).max() < 4


def test_the_fit_converges_on_strong_tilts_and_on_genes_that_show_one_bin_only():
    control = control_law()
    counts = np.zeros_like(control)
    counts[:, :, -1] = 100

    found = fit_tilt(counts, np.log(control), BASIS)

    at_optimum = fit_tilt(counts, np.log(control), BASIS, num_iterations=60)
    np.testing.assert_allclose(found, at_optimum, atol=1e-3)


def test_no_perturbed_cell_means_no_tilt():
    control = control_law()

    np.testing.assert_array_equal(fit_tilt(np.zeros_like(control), np.log(control), BASIS), 0)


def test_a_shared_effect_transfers_whole_and_is_believed():
    theta = shared_tilt(0.6)

    effects = measured(theta)

    assert effects.transfer[1] >= 0.9
    assert effects.reliability[1] > 0.9
    correlation = np.corrcoef(effects.tilt[1].ravel(), theta[0].ravel())[0, 1]
    # Signal 0.6 against a standard error of about 1 / sqrt(3 x 400 x 1) = 0.03.
    assert correlation > 0.99


def test_an_effect_of_pure_noise_is_neither_transferred_nor_believed():
    worlds = [measured(shared_tilt(0.0), seed=seed) for seed in range(10, 16)]

    # SE^2 / shift^2 averages over 30 genes: 1 +- sqrt(2 / 30) in each type, cut at 0 above 1, so
    # about 0.1 remains on average.
    assert np.mean([effects.reliability[1] for effects in worlds]) < 0.2
    assert np.mean([effects.transfer[1] for effects in worlds]) < 0.15
    # What does not transfer is not kept.
    untransferred = [effects.tilt[1] for effects in worlds if effects.transfer[1] == 0]
    assert len(untransferred) > 0
    np.testing.assert_array_equal(untransferred, np.zeros_like(untransferred))


def test_effects_that_differ_between_types_are_real_but_do_not_transfer():
    theta = np.random.default_rng(4).normal(0, 0.6, (NUM_TYPES, NUM_GENES, len(BASIS)))

    effects = measured(theta)

    assert effects.reliability[1] > 0.9
    assert effects.transfer[1] < 0.5


def test_a_type_with_fewer_cells_than_the_least_has_no_say():
    theta = shared_tilt(0.6)
    odd = theta.copy()
    odd[2] *= -1

    with_few = measured(odd, sizes=(400, 400, MIN_CELLS - 1))
    with_enough = measured(odd, sizes=(400, 400, MIN_CELLS))

    assert with_few.transfer[1] >= 0.9
    assert with_enough.transfer[1] < 0.8
    distance = np.abs(with_few.tilt[1] - theta[0]).mean()
    assert distance < 0.1 < np.abs(with_enough.tilt[1] - theta[0]).mean()


def test_if_no_type_has_enough_cells_all_have_a_say():
    effects = measured(shared_tilt(1.0), sizes=(20, 20, 20))

    assert effects.transfer[1] > 0.5


def test_one_training_type_transfers_as_far_as_it_can_be_believed():
    effects = measured(shared_tilt(0.6), sizes=(400, 0, 0))

    assert effects.transfer[1] == effects.reliability[1]
    assert effects.reliability[1] > 0.9


def test_a_perturbation_without_training_cells_has_no_tilt():
    effects = measured(shared_tilt(0.6), sizes=(0, 0, 0))

    np.testing.assert_array_equal(effects.tilt, 0)
    np.testing.assert_array_equal(effects.transfer, 0)


def test_control_has_no_effect():
    effects = measured(shared_tilt(0.6))

    np.testing.assert_array_equal(effects.tilt[0], 0)
    assert effects.transfer[0] == 0


@pytest.mark.parametrize("rank", [1, 5])
def test_the_tilt_has_one_number_per_function_of_the_basis(rank):
    basis = ordinal_basis(np.arange(NUM_BINS, dtype=np.float32), rank)

    found = fit_tilt(100 * control_law(), np.log(control_law()), basis)

    # The counts are the control law itself: nothing is to be tilted.
    np.testing.assert_allclose(found, np.zeros((NUM_GENES, len(basis))), atol=1e-6)
