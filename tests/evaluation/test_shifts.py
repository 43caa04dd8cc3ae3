"""Ridge against brute force, and shifts that only enough cells may tell."""

import numpy as np
import pytest

from sedd.data.vocabulary import Vocabulary
from sedd.evaluation.baselines import TrainingCells
from sedd.evaluation.shifts import (
    PENALTIES,
    Perturbations,
    additive_shift,
    ridge_prediction,
    ridge_shift,
    shift_in_other_types,
    shift_of_others,
)


def fit(shift: np.ndarray, embedding: np.ndarray, absolute: float):
    """Ridge with an intercept that is not penalised, by its normal equations."""
    x = np.column_stack([np.ones(len(embedding)), embedding])
    penalty = absolute * np.eye(x.shape[1])
    penalty[0, 0] = 0
    weight = np.linalg.solve(x.T @ x + penalty, x.T @ shift)
    return lambda asked: np.concatenate([[1.0], asked]) @ weight


def scale(embedding: np.ndarray) -> float:
    """Mean squared length of the centred embeddings."""
    return float(((embedding - embedding.mean(0)) ** 2).sum(1).mean())


def by_refits(shift: np.ndarray, embedding: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The penalty with the least squared error over refits without one known shift each."""
    errors = []
    for penalty in PENALTIES:
        absolute = penalty * scale(embedding)
        missed = []
        for left_out in range(len(shift)):
            kept = np.arange(len(shift)) != left_out
            predict = fit(shift[kept], embedding[kept], absolute)
            missed.append(shift[left_out] - predict(embedding[left_out]))
        errors.append(np.mean(np.square(missed)))
    return fit(shift, embedding, PENALTIES[np.argmin(errors)] * scale(embedding))(asked)


@pytest.mark.parametrize("noise", [0.0, 0.3, 3.0, 30.0])
@pytest.mark.parametrize(("num_known", "num_given"), [(4, 2), (6, 9), (12, 3)])
def test_the_prediction_is_that_of_the_penalty_with_the_least_leave_one_out_error(
    noise, num_known, num_given
):
    rng = np.random.default_rng(num_known)
    embedding = rng.normal(2, 1, (num_known, num_given))
    shift = embedding @ rng.normal(size=(num_given, 5)) + noise * rng.normal(size=(num_known, 5))
    asked = rng.normal(2, 1, num_given)

    found = ridge_prediction(shift, embedding, asked)

    np.testing.assert_allclose(found, by_refits(shift, embedding, asked), rtol=0, atol=1e-8)


def test_the_noise_chooses_the_penalty():
    """That the test above tells penalties apart: with noise alone a large one is best."""
    rng = np.random.default_rng(0)
    embedding, weight = rng.normal(size=(12, 3)), rng.normal(size=(3, 5))
    noise, asked = 3 * rng.normal(size=(12, 5)), np.ones(3)
    chosen = {}
    for name, shift in (("linear", embedding @ weight), ("noise", noise)):
        best = ridge_prediction(shift, embedding, asked)
        fits = [fit(shift, embedding, p * scale(embedding))(asked) for p in PENALTIES]
        chosen[name] = int(np.argmin([np.abs(best - each).max() for each in fits]))

    assert chosen["linear"] == 0
    assert chosen["noise"] > 6


def test_a_linear_law_is_recovered():
    rng = np.random.default_rng(0)
    embedding, weight, offset = (
        rng.normal(size=(20, 4)),
        rng.normal(size=(4, 7)),
        rng.normal(size=7),
    )
    asked = rng.normal(size=4)

    found = ridge_prediction(embedding @ weight + offset, embedding, asked)

    # The smallest penalty is a thousandth of the mean squared length, over 20 shifts.
    np.testing.assert_allclose(found, asked @ weight + offset, atol=2e-3)


@pytest.mark.parametrize("num_known", [1, 2, 5])
def test_embeddings_that_are_all_alike_give_the_mean(num_known):
    shift = np.random.default_rng(0).normal(size=(num_known, 3))

    found = ridge_prediction(shift, np.full((num_known, 2), 4.0), np.array([4.0, 4.0]))

    np.testing.assert_allclose(found, shift.mean(0), atol=1e-12)


def test_a_single_known_shift_is_the_prediction_wherever_it_is_asked():
    shift = np.array([[1.0, -2.0]])

    found = ridge_prediction(shift, np.array([[3.0, 1.0]]), np.array([-50.0, 7.0]))

    np.testing.assert_allclose(found, shift[0], atol=1e-12)


def test_two_known_shifts_cannot_choose_a_penalty_so_the_largest_is_taken():
    """Each predicts the other the same whatever the penalty: what rounding says must not count."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        shift, embedding, asked = (
            rng.normal(size=(2, 3)),
            rng.normal(size=(2, 4)),
            rng.normal(size=4),
        )

        found = ridge_prediction(shift, embedding, asked)

        largest = fit(shift, embedding, PENALTIES[-1] * scale(embedding))(asked)
        np.testing.assert_allclose(found, largest, atol=1e-9)


# What is known.


def cells() -> TrainingCells:
    """Two genes; the values are 1 under control, and 1 + the number after the label elsewhere."""
    sizes = {
        ("B", "control", 0): 5, ("B", "x", 1): 5, ("B", "y", 2): 5,
        ("T", "control", 0): 5, ("T", "x", 3): 4, ("T", "z", 4): 6,
        ("NK", "control", 0): 4, ("NK", "x", 5): 9,
    }  # fmt: skip
    return TrainingCells(
        np.concatenate([np.tile([1.0 + by, 1.0 - by], (n, 1)) for (_, _, by), n in sizes.items()]),
        np.concatenate([np.full(n, kind, object) for (kind, _, _), n in sizes.items()]),
        np.concatenate([np.full(n, name, object) for (_, name, _), n in sizes.items()]),
        "control",
    )


def test_types_with_too_few_cells_of_either_kind_have_no_say():
    known = shift_in_other_types(cells(), "NK", "x", least=5)
    more = shift_in_other_types(cells(), "NK", "x", least=4)
    elsewhere = shift_in_other_types(cells(), "elsewhere", "x", least=4)

    assert known.labels == ("B",)
    np.testing.assert_array_equal(known.shift, [[1, -1]])
    assert more.labels == ("B", "T")
    np.testing.assert_array_equal(more.shift, [[1, -1], [3, -3]])
    assert elsewhere.labels == ("B", "NK", "T")


def test_the_other_perturbations_of_a_type_are_neither_control_nor_the_one_asked_for():
    known = shift_of_others(cells(), "B", "x", least=5)
    of_t = shift_of_others(cells(), "T", "y", least=4)

    assert (known.labels, of_t.labels) == (("y",), ("x", "z"))
    np.testing.assert_array_equal(known.shift, [[2, -2]])
    np.testing.assert_array_equal(of_t.shift, [[3, -3], [4, -4]])
    assert shift_of_others(cells(), "NK", "x", least=1).labels == ()


def test_shifts_add_over_types_first_and_are_unknown_where_nothing_is_shown():
    np.testing.assert_array_equal(additive_shift(cells(), "NK", "x", least=4), [2, -2])
    # z is shown by T alone, and y by B alone.
    assert additive_shift(cells(), "T", "z", least=4) is None
    assert ridge_shift(cells(), "T", "z", least=4) is None
    np.testing.assert_array_equal(additive_shift(cells(), "T", "y", least=5), [2, -2])
    assert additive_shift(cells(), "T", "y", least=6) is None


# What labels mean.


def vocabulary(*perturbations: str, separator: str | None = "+") -> Vocabulary:
    return Vocabulary.of(
        genes=[],
        perturbations=perturbations,
        cell_types=["T"],
        control_name="control",
        separator=separator,
    )


def test_a_combination_has_the_sum_of_the_vectors_of_its_parts():
    labels = vocabulary("A", "A+B", "C+control", "Ca2+")
    assert labels.parts().names == ("control", "A", "B", "C", "Ca2+")
    vectors = np.array([[0.0, 0], [1, 0], [0, 10], [5, 5], [7, 7]])

    found = Perturbations.of(labels, vectors)

    assert found.parts == {
        "control": ("control",), "A": ("A",), "A+B": ("A", "B"), "C+control": ("C",),
        "Ca2+": ("Ca2+",),
    }  # fmt: skip
    assert found.vectors is not None
    assert {label: tuple(vector) for label, vector in found.vectors.items()} == {
        "control": (0, 0), "A": (1, 0), "A+B": (1, 10), "C+control": (5, 5), "Ca2+": (7, 7),
    }  # fmt: skip


def test_without_a_separator_every_label_stands_for_itself():
    found = Perturbations.of(vocabulary("A", "A+B", separator=None))

    assert found.parts == {"control": ("control",), "A": ("A",), "A+B": ("A+B",)}
    assert found.vectors is None
