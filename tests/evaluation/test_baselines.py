"""The baselines in worlds where each of them is exactly right, and on real cells."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sedd.data.vocabulary import Vocabulary
from sedd.errors import DataError
from sedd.evaluation.baselines import (
    ADDITIVE,
    CEILING,
    MEAN_OF_OTHERS,
    MIN_CELLS,
    NO_CHANGE,
    RIDGE,
    TOKEN_TILT,
    TokenCells,
    TrainingCells,
    baseline_predictions,
    shifted,
    split_half_ceiling,
    tilted_histogram,
    token_histogram,
    token_tilt,
)
from sedd.evaluation.metrics import score
from sedd.evaluation.prediction import Prediction
from sedd.evaluation.shifts import Perturbations

TYPES = ("B", "T", "NK")


def additive_world(cells: int = 40, num_genes: int = 6) -> TrainingCells:
    """Perturbed cells of each type are its control cells plus one shift."""
    rng = np.random.default_rng(0)
    shift = rng.normal(size=num_genes)
    controls = [rng.gamma(2, size=(cells, num_genes)) + 3 * i for i in range(len(TYPES))]
    conditions = np.repeat(np.array(["control", "IFNb"], dtype=object), cells)
    return TrainingCells(
        np.concatenate([group for control in controls for group in (control, control + shift)]),
        cell_type=np.repeat(np.array(TYPES, dtype=object), 2 * cells),
        perturbation=np.tile(conditions, len(TYPES)),
        control_name="control",
    )


def by_name(predictions: tuple[Prediction, ...]) -> dict[str, Prediction]:
    return {prediction.name: prediction for prediction in predictions}


def with_tokens(training: TrainingCells) -> TrainingCells:
    """Tokens are the whole part of the expression; the row tells apart who asked for decoding."""
    tokenized = TokenCells(
        np.maximum(training.log1p, 0).astype(np.uint8),
        num_bins=64,
        decode=lambda tokens, rows: tokens + 0.001 * rows[:, None],
    )
    return replace(training, tokenized=tokenized)


def test_the_additive_mean_is_exact_where_shifts_add():
    training = additive_world()
    held_out = training.rows("T", "IFNb")

    predicted = by_name(baseline_predictions(training, "T", "IFNb"))[ADDITIVE]

    np.testing.assert_allclose(predicted.mean_log1p, training.log1p[held_out].mean(0), atol=1e-12)


def test_shifted_cells_are_clipped_at_zero_and_their_mean_is_not():
    control = np.array([[0.0, 2.0], [2.0, 2.0]])

    predicted = shifted(RIDGE, control, np.array([-1.0, 2.0]))

    assert predicted.name == RIDGE
    np.testing.assert_array_equal(predicted.cells_log1p, [[0, 4], [1, 4]])
    np.testing.assert_array_equal(predicted.mean_log1p, [0, 4])


def test_twins_of_some_of_the_controls_state_the_effect_and_not_who_was_chosen():
    control = np.array([[0.0, 2.0], [4.0, 2.0], [8.0, 2.0]])
    chosen = np.array([2, 2, 0])
    twins = Prediction.of_cells("twins", control[chosen] + [1, 0.5], chosen)

    stated = twins.as_twins(control[chosen], control)

    np.testing.assert_allclose(twins.mean_log1p - control.mean(0), [1 + 16 / 3 - 4, 0.5])
    np.testing.assert_allclose(stated.mean_log1p - control.mean(0), [1, 0.5])
    assert stated.cells_log1p is twins.cells_log1p


def test_each_type_weighs_the_same_in_the_additive_shift_however_many_cells_it_has():
    many, few = 5 * MIN_CELLS, MIN_CELLS
    sizes = {("A", "control"): 10, ("B", "control"): many, ("B", "x"): many}
    sizes |= {("C", "control"): few, ("C", "x"): few}
    values = {("B", "x"): 1.0, ("C", "x"): 3.0}
    training = TrainingCells(
        np.concatenate([np.full((n, 1), values.get(key, 0.0)) for key, n in sizes.items()]),
        np.concatenate([np.full(n, key[0], dtype=object) for key, n in sizes.items()]),
        np.concatenate([np.full(n, key[1], dtype=object) for key, n in sizes.items()]),
        "control",
    )

    predictions = by_name(baseline_predictions(training, "A", "x"))

    assert predictions[ADDITIVE].mean_log1p == 2
    assert predictions[MEAN_OF_OTHERS].mean_log1p == (many * 1 + few * 3) / (many + few)


def test_a_type_with_few_cells_has_no_say_in_the_additive_shift():
    training = additive_world(cells=MIN_CELLS)
    training.log1p[training.rows("NK", "IFNb")] += 100
    fewer = training.cell_type.copy()
    fewer[training.rows("NK", "control")[0]] = "unknown"

    heard, unheard = (
        by_name(baseline_predictions(cells, "T", "IFNb"))[ADDITIVE].mean_log1p
        for cells in (training, replace(training, cell_type=fewer))
    )

    np.testing.assert_allclose(heard - unheard, 50)


def test_no_baseline_but_the_ceiling_sees_the_held_out_cells():
    training = with_tokens(additive_world())
    held_out = training.rows("T", "IFNb")
    seen = baseline_predictions(training, "T", "IFNb", real_log1p=training.log1p[held_out])
    assert training.tokenized is not None

    training.log1p[held_out] = np.nan
    training.tokenized.tokens[held_out] = 63
    unseen = baseline_predictions(training, "T", "IFNb")

    assert [prediction.name for prediction in seen] == [
        NO_CHANGE,
        MEAN_OF_OTHERS,
        ADDITIVE,
        RIDGE,
        TOKEN_TILT,
        CEILING,
    ]
    assert [prediction.name for prediction in unseen] == [
        NO_CHANGE,
        MEAN_OF_OTHERS,
        ADDITIVE,
        RIDGE,
        TOKEN_TILT,
    ]
    for with_held_out, without in zip(seen, unseen, strict=False):
        np.testing.assert_array_equal(with_held_out.cells_log1p, without.cells_log1p)
        np.testing.assert_array_equal(with_held_out.mean_log1p, without.mean_log1p)


def test_no_change_is_the_control_cells_and_mean_of_others_the_pooled_perturbed_ones():
    training = additive_world()

    predictions = by_name(baseline_predictions(training, "T", "IFNb"))

    others = np.concatenate([training.rows("B", "IFNb"), training.rows("NK", "IFNb")])
    control = training.log1p[training.rows("T", "control")]
    np.testing.assert_array_equal(predictions[NO_CHANGE].cells_log1p, control)
    np.testing.assert_array_equal(predictions[MEAN_OF_OTHERS].cells_log1p, training.log1p[others])


def test_a_perturbation_that_no_other_type_has_leaves_no_change_and_the_ceiling():
    training = additive_world()
    only_t = training.perturbation.copy()
    only_t[training.rows("T", "IFNb")] = "new"

    predictions = baseline_predictions(
        replace(training, perturbation=only_t),
        "T",
        "new",
        real_log1p=training.log1p[:10],
    )

    assert [prediction.name for prediction in predictions] == [NO_CHANGE, CEILING]


# Other perturbations of the type, where no other type shows the one that is asked for.


def singles(**shifts: tuple[float, float]) -> TrainingCells:
    """T cells at (5, 5) under control, moved by the shift of each other label; two genes."""
    rows = {"control": (0.0, 0.0)} | shifts
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.3, (len(rows), MIN_CELLS, 2))
    noise -= noise.mean(1, keepdims=True)
    cells = 5 + np.array(list(rows.values()))[:, None] + noise
    names = np.repeat(np.array(list(rows), dtype=object), MIN_CELLS)
    types = np.full(len(names), "T", dtype=object)
    return TrainingCells(cells.reshape(-1, 2), types, names, "control")


def told(
    training: TrainingCells, *asked: str, separator: str | None = "+", vectors=None
) -> TrainingCells:
    """The same cells with what their labels, and those that are asked for, mean."""
    vocabulary = Vocabulary.of(
        genes=[],
        perturbations=[*training.perturbation, *asked],
        cell_types=training.cell_type,
        control_name="control",
        separator=separator,
    )
    if vectors is not None:
        nothing = np.zeros(len(next(iter(vectors.values()))))
        vectors = np.stack([vectors.get(name, nothing) for name in vocabulary.parts().names])
    return replace(training, perturbations=Perturbations.of(vocabulary, vectors))


THREE = {"A": (1.0, 0.0), "B": (0.0, 2.0), "C": (-1.0, -4.0)}


@pytest.mark.parametrize(
    ("perturbation", "shift"),
    [
        ("A+B", (1.0, 2.0)),
        ("B + A", (1.0, 2.0)),
        ("A+A", (2.0, 0.0)),
        ("A+control", (1.0, 0.0)),
        ("A+B+C", (0.0, -2.0)),
    ],
)
def test_additive_adds_the_parts_of_a_combination(perturbation, shift):
    training = told(singles(**THREE), perturbation)

    predictions = by_name(baseline_predictions(training, "T", perturbation))

    assert list(predictions) == [NO_CHANGE, MEAN_OF_OTHERS, ADDITIVE]
    np.testing.assert_allclose(predictions[ADDITIVE].mean_log1p, 5 + np.array(shift), atol=1e-12)


@pytest.mark.parametrize("perturbation", ["D", "A+D", "Ca2+", "A_B"])
def test_where_nothing_is_to_be_added_the_mean_of_the_others_stands_alone(perturbation):
    """D was never seen, and the other two are no combinations."""
    training = singles(**THREE)
    without_meanings = baseline_predictions(training, "T", perturbation)

    predictions = by_name(baseline_predictions(told(training, perturbation), "T", perturbation))

    assert list(predictions) == list(by_name(without_meanings)) == [NO_CHANGE, MEAN_OF_OTHERS]
    np.testing.assert_allclose(predictions[MEAN_OF_OTHERS].mean_log1p, [5, 5 - 2 / 3], atol=1e-12)


@pytest.mark.parametrize(
    ("separator", "label", "other"), [("_", "A_B", "A+B"), (None, None, "A+B"), ("+", "A+B", "A_B")]
)
def test_the_separator_alone_says_what_a_combination_is(separator, label, other):
    training = told(singles(**THREE), "A_B", "A+B", separator=separator)

    assert ADDITIVE not in by_name(baseline_predictions(training, "T", other))
    if label is not None:
        predicted = by_name(baseline_predictions(training, "T", label))[ADDITIVE]
        np.testing.assert_allclose(predicted.mean_log1p, [6, 7], atol=1e-12)


def test_cells_of_a_combination_in_other_types_beat_the_sum_of_its_parts():
    own, other = singles(**THREE), singles(**{"A+B": (0.5, -0.5)})
    both = TrainingCells(
        np.concatenate([own.log1p, other.log1p + 2]),
        np.concatenate([own.cell_type, np.full(len(other.log1p), "B", dtype=object)]),
        np.concatenate([own.perturbation, other.perturbation]),
        "control",
    )

    predicted = by_name(baseline_predictions(told(both), "T", "A+B"))[ADDITIVE]

    np.testing.assert_allclose(predicted.mean_log1p, [5.5, 4.5], atol=1e-12)


def test_mean_of_others_is_then_the_pooled_cells_of_the_types_other_perturbations():
    training = singles(A=(1.0, 0.0), B=(0.0, 2.0), new=(9.0, 9.0))
    of_b_cells = replace(training, cell_type=np.full(len(training.log1p), "B", dtype=object))
    both = TrainingCells(
        np.concatenate([training.log1p, of_b_cells.log1p + 7]),
        np.concatenate([training.cell_type, of_b_cells.cell_type]),
        np.concatenate([training.perturbation, np.where(
            of_b_cells.perturbation == "new", "other", of_b_cells.perturbation)]),
        "control",
    )  # fmt: skip

    predicted = by_name(baseline_predictions(both, "T", "new"))[MEAN_OF_OTHERS]

    rows = np.concatenate([training.rows("T", "A"), training.rows("T", "B")])
    np.testing.assert_array_equal(predicted.cells_log1p, training.log1p[rows])


def test_cells_of_the_held_out_combination_have_no_say():
    parts = {"A": (1.0, 0.0), "B": (0.0, 2.0)}
    seen, unseen = told(singles(**{"A+B": (9.0, 9.0)}, **parts)), told(singles(**parts), "A+B")

    for one, other in zip(
        baseline_predictions(seen, "T", "A+B"),
        baseline_predictions(unseen, "T", "A+B"),
        strict=True,
    ):
        np.testing.assert_allclose(one.mean_log1p, other.mean_log1p, atol=1e-9)


def test_a_part_with_few_cells_has_no_say():
    training = told(singles(A=(1.0, 0.0), B=(0.0, 2.0)), "A+B")
    fewer = training.perturbation.copy()
    fewer[training.rows("T", "B")[0]] = "unknown"

    heard, unheard = (
        by_name(baseline_predictions(cells, "T", "A+B"))
        for cells in (training, replace(training, perturbation=fewer))
    )

    assert set(heard) - set(unheard) == {ADDITIVE}


# Ridge.


def graded_world(num_types: int = 6) -> TrainingCells:
    """The shift of gene 0 is a tenth of gene 2's control mean; that of gene 1 is always 1."""
    rng = np.random.default_rng(1)
    parts, types, names = [], [], []
    for number in range(num_types):
        control = rng.normal(0, 0.1, (MIN_CELLS, 3))
        control += np.array([5.0, 5.0, 2.0 * number]) - control.mean(0)
        parts += [control, control + np.array([0.2 * number, 1.0, 0.0])]
        types += [f"type {number}"] * 2 * MIN_CELLS
        names += ["control"] * MIN_CELLS + ["x"] * MIN_CELLS
    return TrainingCells(
        np.concatenate(parts), np.array(types, object), np.array(names, object), "control"
    )


def test_ridge_learns_how_the_shift_depends_on_the_type_where_additive_takes_the_mean():
    predictions = by_name(baseline_predictions(graded_world(), "type 4", "x"))

    np.testing.assert_allclose(predictions[ADDITIVE].mean_log1p, [5 + 0.44, 6, 8], atol=1e-9)
    np.testing.assert_allclose(predictions[RIDGE].mean_log1p, [5 + 0.8, 6, 8], atol=5e-3)


def test_ridge_does_not_see_the_held_out_shift():
    training = graded_world()
    held_out = training.rows("type 2", "x")
    before = by_name(baseline_predictions(training, "type 2", "x"))[RIDGE]

    training.log1p[held_out] = np.nan
    after = by_name(baseline_predictions(training, "type 2", "x"))[RIDGE]

    np.testing.assert_array_equal(after.mean_log1p, before.mean_log1p)


def linear_singles(asked: str) -> tuple[TrainingCells, np.ndarray]:
    """T cells under twelve perturbations whose shifts are linear in their vectors; that of D."""
    rng = np.random.default_rng(3)
    weight = rng.normal(size=(3, 2))
    vectors = {f"P{number}": rng.normal(size=3) for number in range(12)} | {"D": rng.normal(size=3)}
    shifts = {name: tuple(vectors[name] @ weight + 1) for name in vectors if name != "D"}
    training = told(singles(**shifts), asked, vectors=vectors)
    return training, vectors["D"] @ weight + 1


def test_ridge_knows_an_unseen_perturbation_by_its_vector():
    training, shift = linear_singles("D")

    predictions = by_name(baseline_predictions(training, "T", "D"))

    assert list(predictions) == [NO_CHANGE, MEAN_OF_OTHERS, RIDGE]
    np.testing.assert_allclose(predictions[RIDGE].mean_log1p, 5 + shift, atol=5e-3)
    assert np.abs(predictions[MEAN_OF_OTHERS].mean_log1p - 5 - shift).max() > 0.5


def test_ridge_of_a_combination_is_at_the_sum_of_the_vectors_of_its_parts():
    training, shift = linear_singles("P1+D")
    assert training.perturbations is not None
    assert training.perturbations.vectors is not None
    own = training.log1p[training.rows("T", "P1")].mean(0) - 5

    predictions = by_name(baseline_predictions(training, "T", "P1+D"))

    assert ADDITIVE not in predictions
    # The shift is the vector's map plus 1, and the parts' two maps make 1 too many.
    np.testing.assert_allclose(predictions[RIDGE].mean_log1p, 5 + own + shift - 1, atol=1e-2)


def test_ridge_on_vectors_does_not_see_the_held_out_cells():
    training, _ = linear_singles("D")
    before = by_name(baseline_predictions(training, "T", "P4"))[RIDGE].mean_log1p

    training.log1p[training.rows("T", "P4")] = np.nan

    after = by_name(baseline_predictions(training, "T", "P4"))[RIDGE].mean_log1p
    np.testing.assert_array_equal(after, before)


def test_other_types_that_show_the_perturbation_are_asked_before_its_vector():
    training = graded_world()
    vectors = {"x": np.array([1.0, 2.0])}

    plain, given = (
        by_name(baseline_predictions(cells, "type 4", "x"))[RIDGE]
        for cells in (training, told(training, vectors=vectors))
    )

    np.testing.assert_array_equal(given.mean_log1p, plain.mean_log1p)


def test_three_real_cells_make_no_ceiling():
    training = additive_world()

    predictions = baseline_predictions(training, "T", "IFNb", real_log1p=training.log1p[:3])

    assert CEILING not in by_name(predictions)


def test_a_type_without_controls_is_refused_with_the_fix():
    training = additive_world()

    with pytest.raises(DataError, match=r"'Plasma' has no training cell labelled 'control'"):
        baseline_predictions(training, "Plasma", "IFNb")


def test_the_halves_of_the_ceiling_are_disjoint_and_repeat_with_the_seed():
    real = np.arange(22.0).reshape(11, 2)

    ceiling, again, other = (split_half_ceiling(real, seed=seed) for seed in (0, 0, 1))

    assert ceiling.against_log1p is not None
    halves = np.concatenate([ceiling.cells_log1p, ceiling.against_log1p])
    np.testing.assert_array_equal(halves[np.argsort(halves[:, 0])], real)
    np.testing.assert_array_equal(ceiling.cells_log1p, again.cells_log1p)
    assert not np.array_equal(ceiling.cells_log1p, other.cells_log1p)


def test_token_histograms_count_cells():
    tokens = np.array([[0, 2], [1, 2], [0, 0]], dtype=np.uint8)

    np.testing.assert_array_equal(token_histogram(tokens, 3), [[2, 1, 0], [1, 0, 2]])


def tilted_world() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Control laws of three types, a tilt they share, and each type's law under it."""
    rng = np.random.default_rng(0)
    control = rng.dirichlet(np.ones(5), size=(3, 4))
    tilt = rng.normal(size=(4, 5))
    perturbed = control * np.exp(tilt)
    return control, tilt, perturbed / perturbed.sum(-1, keepdims=True)


def test_the_token_tilt_is_exact_where_types_share_an_exponential_tilt():
    control, _, perturbed = tilted_world()
    # So many cells that the pseudo-counts weigh nothing; in unequal numbers per type and kind.
    cells = 1e9 * np.array([1, 7, 3])[:, None, None]

    predicted = tilted_histogram(
        cells[0] * control[0], cells[1:] * control[1:], 1e9 * perturbed[1:]
    )

    np.testing.assert_allclose(predicted, perturbed[0], atol=1e-6)


def test_sampled_token_tilts_have_its_law_with_genes_independent():
    control, _, perturbed = tilted_world()
    num_cells = 40_000

    predicted = token_tilt(
        1e9 * control[0],
        1e9 * control[1:],
        1e9 * perturbed[1:],
        lambda tokens: tokens.astype(np.float32),
        num_cells=num_cells,
    )

    tokens = predicted.cells_log1p.astype(np.uint8)
    frequencies = token_histogram(tokens, 5) / num_cells
    # 4.5 standard errors of a frequency of one half.
    np.testing.assert_allclose(frequencies, perturbed[0], atol=4.5 * 0.5 / np.sqrt(num_cells))
    correlations = np.corrcoef(tokens.T) - np.eye(4)
    assert np.abs(correlations).max() < 4.5 / np.sqrt(num_cells)


def test_bins_that_are_empty_in_the_other_types_are_not_tilted():
    """Ten times as many perturbed as control cells must not favour or punish an unused bin."""
    control = np.array([[500.0, 0.0, 500.0]])
    others_control = np.array([[[50.0, 50.0, 0.0]]])
    others_perturbed = np.array([[[500.0, 500.0, 0.0]]])

    predicted = tilted_histogram(control, others_control, others_perturbed)

    np.testing.assert_allclose(predicted, [[0.5, 0.0, 0.5]], atol=3 / 1000)


def test_a_single_cell_in_a_rare_bin_can_tilt_it_by_no_more_than_two():
    """One of 100 control cells and none of 100 perturbed ones: a ratio of (0 + 1) / (1 + 1)."""
    control = np.array([[500_000.0, 500_000.0]])

    predicted = tilted_histogram(control, np.array([[[99.0, 1.0]]]), np.array([[[100.0, 0.0]]]))

    assert predicted[0, 1] / predicted[0, 0] == pytest.approx(0.5 * 100 / 101, rel=1e-4)


def test_a_gene_silent_in_these_controls_can_be_switched_on():
    silent = np.array([[200.0, 0.0]])

    predicted = tilted_histogram(silent, np.array([[[300.0, 0.0]]]), np.array([[[30.0, 270.0]]]))

    assert predicted[0, 1] > 0.5


def test_bins_of_probability_zero_are_never_drawn():
    only_middle = np.array([[0.0, 1e12, 0.0]])

    predicted = token_tilt(
        only_middle,
        only_middle[None],
        only_middle[None],
        lambda tokens: tokens.astype(np.float32),
        num_cells=5000,
    )

    np.testing.assert_array_equal(predicted.cells_log1p, 1)


def test_the_token_tilt_makes_one_cell_per_control_cell_at_its_own_depth():
    training = additive_world()

    predicted = by_name(baseline_predictions(with_tokens(training), "T", "IFNb"))[TOKEN_TILT]

    rows = training.rows("T", "control")
    thousandths = np.round((predicted.cells_log1p % 1) * 1000).astype(int)
    np.testing.assert_array_equal(thousandths, np.repeat(rows[:, None], 6, axis=1))


@pytest.mark.real_cells
@pytest.mark.parametrize(
    ("num_genes", "pearson", "energy_distance"),
    [(512, 0.915, 3.08), (1176, 0.859, 4.49)],
)
def test_additive_on_held_out_monocytes_of_kang_2018(
    real_cells_folder: Path, num_genes: int, pearson: float, energy_distance: float
):
    """Deterministic but for the cap on cells, which does not bind here: bands are for rounding."""
    import anndata

    cells = anndata.read_h5ad(real_cells_folder / "kang_pbmc_1176g.h5ad")
    counts = cells.X.toarray()
    log1p = np.log1p(counts / counts.sum(1, keepdims=True) * 1e4).astype(np.float32)
    cell_type, perturbation = (
        cells.obs[column].to_numpy(dtype=object) for column in ("cell_type", "perturbation")
    )
    held_out = (cell_type == "CD14+ Monocytes") & (perturbation == "IFNb")
    log1p = log1p[:, np.argsort(-log1p[~held_out].var(0))[:num_genes]]
    training = TrainingCells(
        log1p[~held_out], cell_type[~held_out], perturbation[~held_out], "control"
    )
    real, control = log1p[held_out], training.log1p[training.rows("CD14+ Monocytes", "control")]

    predictions = by_name(
        baseline_predictions(training, "CD14+ Monocytes", "IFNb", real_log1p=real)
    )
    scores = {name: score(prediction, real, control) for name, prediction in predictions.items()}

    assert scores[ADDITIVE].pearson == pytest.approx(pearson, abs=0.005)
    assert scores[ADDITIVE].energy_distance == pytest.approx(energy_distance, abs=0.1)
    assert scores[NO_CHANGE].energy_distance > 11
    assert scores[CEILING].pearson > 0.99
    assert abs(scores[CEILING].energy_distance) < 0.1
    assert scores[CEILING].correlation_structure == pytest.approx(1, abs=0.2)
