"""The rows of a batch are a function of seed and step, and come as often as promised."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chi2

from sedd.data.batches import BatchOrder, condition_weights


@given(
    num_cells=st.integers(1, 60),
    batch_size=st.integers(1, 70),
    seed=st.integers(0, 2**32),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_every_cell_comes_exactly_once_per_epoch(num_cells, batch_size, seed):
    order = BatchOrder(np.zeros(num_cells, np.int64), batch_size, seed)
    num_steps = -(-3 * num_cells // batch_size)

    rows = np.concatenate([order(step) for step in range(num_steps)])

    for epoch in range(3):
        seen = np.sort(rows[epoch * num_cells : (epoch + 1) * num_cells])
        np.testing.assert_array_equal(seen, np.arange(num_cells))


def test_epochs_and_seeds_shuffle_anew():
    first, second = (BatchOrder(np.zeros(50, np.int64), 50, seed) for seed in (0, 1))

    assert not np.array_equal(first(0), first(1))
    assert not np.array_equal(first(0), second(0))


@pytest.mark.parametrize("balance", [0.0, 0.5, 1.0])
def test_a_batch_is_the_same_whenever_it_is_asked_for(balance):
    group = np.random.default_rng(0).integers(0, 5, 100)
    steps = [7, 0, 3, 7, 1]

    straight = [BatchOrder(group, 16, 3, balance)(step) for step in range(8)]
    order = BatchOrder(group, 16, 3, balance)

    for step in steps:
        np.testing.assert_array_equal(order(step), straight[step])
    assert not np.array_equal(straight[0], straight[1])


@pytest.mark.parametrize("balance", [0.0, 0.3, 0.5, 0.9])
def test_conditions_come_in_proportion_to_their_size_to_the_power_of_balance(balance):
    sizes = np.array([400, 90, 10, 1])
    group = np.random.default_rng(0).permutation(np.repeat([5, 2, 9, 0], sizes))
    expected = dict(zip([5, 2, 9, 0], sizes**balance / (sizes**balance).sum(), strict=True))
    order, num_steps = BatchOrder(group, 64, 1, balance), 200

    batches = [group[order(step)] for step in range(num_steps)]

    observed = {number: sum((b == number).sum() for b in batches) for number in expected}
    total = 64 * num_steps
    statistic = sum((observed[n] - total * p) ** 2 / (total * p) for n, p in expected.items())
    # Stratified batches vary less than independent draws, so their quantile is a generous bound.
    assert statistic < chi2.ppf(0.999, df=3)
    # In a single batch a condition misses its share by less than the two slices it ends in.
    for number, share in expected.items():
        assert all(abs((b == number).sum() - 64 * share) < 2 for b in batches)


def test_cells_of_a_condition_come_alike():
    group = np.repeat([0, 1], [40, 10])
    order, num_steps = BatchOrder(group, 50, 2, 0.5), 400

    rows = np.concatenate([order(step) for step in range(num_steps)])

    for number, size in ((0, 40), (1, 10)):
        counts = np.bincount(rows, minlength=50)[group == number]
        statistic = ((counts - counts.mean()) ** 2 / counts.mean()).sum()
        assert statistic < chi2.ppf(0.999, df=size - 1)
        assert counts.min() > 0


def test_condition_weights_are_shares():
    weights = condition_weights(np.array([1, 4, 9]), 0.5)

    np.testing.assert_allclose(weights, [1 / 6, 2 / 6, 3 / 6])
