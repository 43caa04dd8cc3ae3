"""The tilted law has the wanted mean, and no law with that mean is nearer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sedd.data.tilt import LARGEST, tilt_to_mean

FUZZ = settings(max_examples=60, deadline=None, derandomize=True)


def laws(num_genes: int, num_bins: int, *, seed: int = 0, evenness: float = 0.5) -> np.ndarray:
    """Random laws; uneven ones have most of their mass in few bins. No bin is quite empty."""
    drawn = np.random.default_rng(seed).dirichlet(np.full(num_bins, evenness), num_genes)
    return 0.999 * drawn + 0.001 / num_bins


def tilted(law: np.ndarray, tilt: np.ndarray, direction: np.ndarray) -> np.ndarray:
    weight = law * np.exp(tilt[:, None].astype(np.float64) * direction)
    return weight / weight.sum(1, keepdims=True)


@given(
    st.integers(2, 40),
    st.floats(0.5, 12),
    st.floats(0.1, 5),
    st.floats(0.05, 3),
    st.integers(0, 2**32),
)
@FUZZ
def test_any_law_gets_any_mean_within_its_bins(num_bins, largest, scale, evenness, seed):
    direction = np.linspace(0, largest, num_bins)
    statistic = np.log1p(scale * np.expm1(direction))
    law = laws(50, num_bins, seed=seed, evenness=evenness)
    share = np.random.default_rng(seed).uniform(0.1, 0.9, 50)

    # Within reach: between the means under two tilts that are allowed.
    bounds = [tilted(law, np.full(50, end), direction) @ statistic for end in (-8.0, 8.0)]
    target = (1 - share) * bounds[0] + share * bounds[1]
    tilt = tilt_to_mean(target, law, direction=direction, statistic=statistic)

    np.testing.assert_allclose(tilted(law, tilt, direction) @ statistic, target, atol=1e-4)


def test_laws_of_two_far_modes_get_their_mean_too():
    """On these, Newton steps alone jump from one mode to the other and back for ever."""
    rng, num_genes = np.random.default_rng(0), 2000
    level = np.linspace(0, 10, 33)
    upper = 1 / (1 + np.exp(-rng.uniform(-6, 6, num_genes)))
    law = np.full((num_genes, 33), 1e-9)
    law[:, 0], law[:, -1] = 1 - upper, upper
    law /= law.sum(1, keepdims=True)
    target = rng.uniform(0.2, 9.3, num_genes)

    tilt = tilt_to_mean(target, law, direction=level, statistic=level)

    np.testing.assert_allclose(tilted(law, tilt, level) @ level, target, atol=1e-4)


def test_a_law_that_has_the_mean_already_is_not_tilted():
    level = np.log1p(np.arange(20.0))
    law = laws(30, 20)

    found = tilt_to_mean(law @ level, law, direction=level, statistic=level)

    np.testing.assert_array_equal(found, 0)


def test_a_two_bin_law_is_tilted_by_the_difference_of_log_odds():
    law, target = np.array([[0.8, 0.2], [0.5, 0.5]]), np.array([0.6, 0.1])
    level = np.array([0.0, 2.0])

    found = tilt_to_mean(2 * target, law, direction=level, statistic=level)

    log_odds = np.log(target / (1 - target)) - np.log(law[:, 1] / law[:, 0])
    np.testing.assert_allclose(found, log_odds / 2, atol=1e-5)


def test_no_law_with_the_wanted_mean_is_nearer_to_the_given_one():
    """Each tilted law against 200 others of equal mean: nudged across sum and mean, kept >= 0."""
    rng, level = np.random.default_rng(1), np.log1p(np.arange(12.0))
    law = laws(8, 12, evenness=2.0)
    target = law @ level + rng.uniform(-0.3, 0.3, 8)
    nearest = tilted(law, tilt_to_mean(target, law, direction=level, statistic=level), level)
    kept, _ = np.linalg.qr(np.stack([np.ones(12), level], 1))

    def divergence(found: np.ndarray, gene: int) -> float:
        return float((found * np.log(found / law[gene])).sum())

    for gene in range(8):
        least = divergence(nearest[gene], gene)
        for _ in range(200):
            nudge = rng.normal(size=12)
            nudge -= kept @ (kept.T @ nudge)
            most = (nearest[gene] / np.abs(nudge)).min()
            other = nearest[gene] + rng.uniform(0.01, 0.9) * most * nudge
            assert other @ level == pytest.approx(nearest[gene] @ level, abs=1e-12)
            assert divergence(other, gene) > least


@pytest.mark.parametrize("target", [-1.0, 99.0])
def test_what_no_bin_reaches_is_approached_with_a_bounded_tilt(target):
    level = np.log1p(np.arange(10.0))
    law = laws(5, 10)

    tilt = tilt_to_mean(np.full(5, target), law, direction=level, statistic=level)

    end = level[-1] if target > 0 else level[0]
    assert (np.abs(tilt) <= LARGEST).all()
    np.testing.assert_allclose(tilt, np.sign(target) * LARGEST, rtol=1e-6)
    np.testing.assert_allclose(tilted(law, tilt, level) @ level, end, atol=0.5)


def test_a_gene_of_a_single_bin_gets_a_bounded_tilt_and_disturbs_no_other():
    level = np.log1p(np.arange(6.0))
    law = np.vstack([np.eye(6)[:1], laws(1, 6)])

    tilt = tilt_to_mean(np.array([1.0, 1.0]), law, direction=level, statistic=level)

    assert np.abs(tilt[0]) <= LARGEST
    assert tilted(law, tilt, level)[1] @ level == pytest.approx(1.0, abs=1e-4)
