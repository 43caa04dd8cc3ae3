"""Whether perturbations are told apart, in worlds where it is known how alike they are."""

import numpy as np
import pytest

from sedd.evaluation.discrimination import (
    discrimination,
    likeness,
    separation,
    target_genes,
)

NO_TARGETS = np.zeros((4, 3), dtype=bool)
REAL = np.array([[1.0, 0, 0], [0, 2, 0], [0, 0, 3], [1, 1, 0]])
EVERY = np.arange(4)


def alike_shifts(num: int, likeness: float, seed: int, num_genes: int = 3000) -> np.ndarray:
    """Shifts of which any two have this correlation over genes in expectation."""
    rng = np.random.default_rng(seed)
    shared, own = rng.normal(size=num_genes), rng.normal(size=(num, num_genes))
    return np.sqrt(likeness) * shared + np.sqrt(1 - likeness) * own


def noisy_cells(shifts: np.ndarray, num_cells: int, seed: int) -> list[np.ndarray]:
    """Cells of each perturbation with standard normal noise around its shift."""
    rng = np.random.default_rng(seed)
    return [shift + rng.normal(size=(num_cells, len(shift))) for shift in shifts]


def test_a_prediction_on_its_true_shift_scores_one_and_on_the_furthest_zero():
    for distance in ("l1", "cosine"):
        np.testing.assert_array_equal(
            discrimination(REAL, REAL, EVERY, NO_TARGETS, distance=distance), np.ones(4)
        )
    # From (1, 0, 0), l1 distances are 0, 3, 4, 1.
    (score,) = discrimination(REAL[:1], REAL, np.array([2]), NO_TARGETS[:1])
    assert score == 0


def test_the_score_is_one_minus_the_share_of_closer_shifts_and_half_of_the_ties():
    predicted = np.array([[0.0, 0, 0]])
    real = np.array([[1.0, 0, 0], [0, 2, 0], [0, 0, 2], [3, 0, 0]])

    scores = [discrimination(predicted, real, np.array([i]), NO_TARGETS[:1])[0] for i in range(4)]

    assert scores == pytest.approx([1, 1 - 1.5 / 3, 1 - 1.5 / 3, 0])


def test_one_answer_to_every_question_is_chance_in_both_distances():
    for shift in (np.zeros(3), np.array([0.3, -1.0, 2.0])):
        same = np.tile(shift, (4, 1))
        for distance in ("l1", "cosine"):
            scores = discrimination(same, REAL, EVERY, NO_TARGETS, distance=distance)
            assert scores.mean() == pytest.approx(0.5)


def test_cosine_sees_direction_and_l1_size():
    predicted, truth, targets = 0.1 * REAL[1:3], np.array([1, 2]), NO_TARGETS[:2]

    assert discrimination(predicted, REAL, truth, targets, distance="cosine").tolist() == [1, 1]
    assert discrimination(predicted, REAL, truth, targets, distance="l1").max() < 1


def test_the_targets_of_a_perturbation_do_not_count():
    """Gene A falls under A, which the prediction knows; otherwise it is nearer to B's shift."""
    predicted, real = np.array([[-9.0, 0, 1]]), np.array([[-9.0, 0, 0], [0, 0, 1]])
    targets = target_genes([["A"]], ["A", "B", "C"])

    for distance in ("l1", "cosine"):
        known, dropped = (
            discrimination(predicted, real, np.array([0]), columns, distance=distance)
            for columns in (np.zeros_like(targets), targets)
        )
        assert (known.tolist(), dropped.tolist()) == ([1], [0])


def test_a_label_of_two_genes_has_two_targets():
    found = target_genes([["A", "C"], ["control"], ["B"]], ["A", "B", "C"])

    np.testing.assert_array_equal(
        found, [[True, False, True], [False, False, False], [False, True, False]]
    )


def test_a_single_perturbation_cannot_be_told_apart():
    assert np.isnan(discrimination(REAL[:1], REAL[:1], np.array([0]), NO_TARGETS[:1])).all()


@pytest.mark.parametrize("alike", [0.0, 0.5, 0.9])
def test_real_likeness_is_free_of_the_noise_of_cells_and_of_shared_controls(alike: float):
    """Ten cells of variance 1 attenuate r to .45 of it; ten shared controls add about .5."""
    shifts = alike_shifts(8, alike, 0)
    expression = np.random.default_rng(3).exponential(2, size=3000)
    control = np.random.default_rng(2).normal(size=(10, 3000)) + expression

    found = likeness(shifts, noisy_cells(shifts + expression, 10, 1), control)

    # 3000 genes: a standard error of about .02 / sqrt(28 pairs) and that of the shared part.
    assert found.real == pytest.approx(alike, abs=0.05)
    assert found.predicted == pytest.approx(alike, abs=0.05)
    assert found.num_perturbations == 8
    assert not found.collapsed


def test_the_alarm_goes_off_when_predictions_are_more_alike_than_real_shifts():
    real = alike_shifts(6, 0.3, 0)
    cells, control = noisy_cells(real, 40, 1), np.random.default_rng(2).normal(size=(40, 3000))

    collapsed = {
        alike: likeness(alike_shifts(6, alike, 3), cells, control).collapsed
        for alike in (0.0, 0.3, 0.4, 0.55, 1.0)
    }

    # A quarter of the way from .3 to 1 is .475.
    assert collapsed == {0.0: False, 0.3: False, 0.4: False, 0.55: True, 1.0: True}


def test_the_alarm_is_silent_where_too_few_perturbations_are_reproducible():
    """Two real effects and four of pure noise; nobody knows how alike noise should be."""
    shifts = alike_shifts(6, 0.0, 0)
    shifts[2:] = 0
    control = np.random.default_rng(2).normal(size=(40, 3000))

    found = likeness(np.ones((6, 1)) * shifts[0], noisy_cells(shifts, 40, 1), control)

    assert found.num_perturbations == 2
    assert np.isnan(found.real)
    assert not found.collapsed


def test_predictions_of_no_shift_are_no_collapse():
    shifts = alike_shifts(4, 0.2, 0)
    control = np.random.default_rng(2).normal(size=(40, 3000))

    found = likeness(np.zeros_like(shifts), noisy_cells(shifts, 40, 1), control)

    assert np.isnan(found.predicted)
    assert not found.collapsed


def test_separation_matches_predictions_to_real_cells_by_label():
    shifts = alike_shifts(4, 0.2, 0)
    control = np.random.default_rng(2).normal(size=(40, 3000))
    names = ["A", "B", "C", "D"]
    real = dict(zip(names, noisy_cells(shifts, 40, 1), strict=True))
    genes = [f"g{i}" for i in range(3000)]
    alone = {name: [name] for name in names}

    right = separation(
        "T", "model", dict(zip(names, shifts, strict=True)), real, control, genes, alone
    )
    turned = separation(
        "T", "model", dict(zip(names[1:], shifts[:3], strict=True)), real, control, genes, alone
    )

    assert (right.discrimination_l1, right.discrimination_cosine) == (1, 1)
    assert turned.discrimination_cosine < 0.7
    assert (turned.num_predicted, turned.num_candidates) == (3, 4)
