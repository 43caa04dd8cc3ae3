"""What training reads: the right cells, genes and statistics (`test_leaks`: and nothing else)."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from sedd.data.cells import Cells
from sedd.data.choices import DataConfig
from sedd.data.reference import Reference
from sedd.data.shards import fingerprint
from sedd.data.splits import Split, SplitConfig, make_split
from sedd.data.vocabulary import Parts
from sedd.errors import DataError, UsageError
from sedd.model.config import ModelConfig
from sedd.preparation import _of_wholes, prepare, shard_settings
from tests.tiny_training import TINY_MODEL, tiny_shards, without_b_cells
from tests.worlds import a_cell_type_without_controls, cells_of, tiny_cells


def nothing_held_out(cells: Cells) -> Split:
    return make_split(
        SplitConfig(),
        perturbation=cells.perturbation,
        cell_type=cells.cell_type,
        control_name="control",
    )


def test_validation_cells_are_tokenised_but_nothing_is_measured_on_them(tmp_path):
    cells = tiny_cells()
    split, config = without_b_cells(cells), DataConfig(num_genes=12)
    counts = cells.expression.toarray()
    counts[split.validation] = counts[split.validation][:, ::-1] * 3
    marked = cells_of(counts, cell_type=cells.cell_type, perturbation=cells.perturbation)

    before, after = (prepare(c, split, config, TINY_MODEL) for c in (cells, marked))

    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    before.reference.save(tmp_path / "a")
    after.reference.save(tmp_path / "b")
    for name in ("vocabulary.json", "reference.safetensors"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    np.testing.assert_array_equal(
        before.tokens[~before.validation], after.tokens[~after.validation]
    )
    assert (before.tokens[before.validation] != after.tokens[after.validation]).any()


def test_shards_hold_every_training_and_validation_cell_once_with_its_own_counts_and_labels():
    cells, split, shards = tiny_cells(), without_b_cells(tiny_cells()), tiny_shards()
    vocabulary = shards.reference.vocabulary

    expected = np.sort(np.concatenate([split.train, split.validation]))
    np.testing.assert_array_equal(shards.row, expected)
    np.testing.assert_array_equal(shards.row[shards.validation], split.validation)
    np.testing.assert_array_equal(shards.depth, cells.depth[expected])
    counts = cells.expression.toarray()[expected]
    np.testing.assert_array_equal(shards.tokens, shards.reference.tokenizer.encode(counts))
    for name in ("perturbation", "cell_type"):
        labels = np.array(getattr(vocabulary, name + "s"), dtype=object)[getattr(shards, name)]
        np.testing.assert_array_equal(labels, getattr(cells, name)[expected])


def test_control_statistics_and_cells_are_those_of_the_training_controls():
    cells, split = tiny_cells(), without_b_cells(tiny_cells())
    reference = tiny_shards().reference
    is_control = np.zeros(len(cells), bool)
    is_control[split.train] = cells.perturbation[split.train] == "control"
    counts, log1p = cells.expression.toarray(), cells.log1p_cp10k()

    for number, name in enumerate(reference.vocabulary.cell_types):
        rows = np.flatnonzero(is_control & (cells.cell_type == name))
        np.testing.assert_allclose(
            reference.controls.mean_log1p[number], log1p[rows].mean(0), rtol=1e-5
        )
        kept = reference.control_cells.of_type(number)
        np.testing.assert_array_equal(kept.row, rows)
        np.testing.assert_array_equal(kept.values, counts[rows])
        np.testing.assert_array_equal(kept.depth, cells.depth[rows])
    kept = reference.control_cells.row
    np.testing.assert_array_equal(reference.control_names, cells.names[kept])


def test_no_more_control_cells_are_kept_than_asked_for():
    cells = tiny_cells()
    split, config = without_b_cells(cells), DataConfig(control_cells_per_type=7)

    first, again, other = (
        prepare(cells, split, config, TINY_MODEL, seed=seed).reference.control_cells
        for seed in (0, 0, 1)
    )

    np.testing.assert_array_equal(np.bincount(first.cell_type), [7, 7, 7])
    np.testing.assert_array_equal(first.row, again.row)
    assert not np.array_equal(first.row, other.row)


def test_a_held_out_condition_starts_from_what_the_perturbation_did_to_other_types():
    """The perturbed B cells were held out; T cells and monocytes change as they do."""
    cells, reference = tiny_cells(), tiny_shards().reference
    log1p, is_b = cells.log1p_cp10k(), cells.cell_type == "B cell"

    for perturbation in ("raise", "lower"):
        before, after = (
            mean_log1p(reference, "B cell", name, depth=cells.depth[is_b])
            for name in ("control", perturbation)
        )
        truth = log1p[is_b & (cells.perturbation == perturbation)].mean(0)
        shift = truth - log1p[is_b & (cells.perturbation == "control")].mean(0)
        # Five sets of 40 cells err: here and there a count more or less at 100 counts a cell.
        assert np.corrcoef(after - before, shift)[0, 1] > 0.9
        assert np.square(after - before - shift).mean() < 0.15 * np.square(shift).mean()
    assert (reference.effects.reliability[1:] > 0.9).all()
    np.testing.assert_array_equal(reference.effects.tilt[:, 0], 0)


def mean_log1p(
    reference: Reference, cell_type: str, perturbation: str, *, depth: np.ndarray
) -> np.ndarray:
    """What an untrained model expects cells of this depth to show, log1p(counts per 10k)."""
    tokenizer, names = reference.tokenizer, reference.vocabulary
    number = names.cell_types.index(cell_type)
    tilt = reference.effects.tilt[number, names.perturbations.index(perturbation)]
    logits = reference.controls.log_prior(global_share=TINY_MODEL.global_share)[number]
    law = np.exp(logits + tilt[:, None] * reference.effects.direction)
    law /= law.sum(-1, keepdims=True)
    return law @ np.log1p(tokenizer.centers * 1e4 / depth[:, None]).mean(0)


def without_perturbation(cells: Cells, perturbation: str) -> Split:
    return make_split(
        SplitConfig(kind="unseen_perturbation", perturbations=(perturbation,)),
        perturbation=cells.perturbation,
        cell_type=cells.cell_type,
        control_name="control",
    )


def vectors_in(folder: Path, vectors: dict[str, list[float]]) -> DataConfig:
    torch.save({name: torch.tensor(v) for name, v in vectors.items()}, folder / "vectors.pt")
    return DataConfig(cond_labels_pt_path=str(folder / "vectors.pt"))


@pytest.mark.parametrize(("separator", "joined"), [("+", True), (None, False), ("_", False)])
def test_an_unseen_combination_starts_from_the_sum_of_its_parts(tmp_path, separator, joined):
    """By its vector alone, "lower+raise" would do what "raise" does."""
    cells = tiny_cells()
    named = cells.perturbation.copy()
    named[np.flatnonzero(named == "raise")[::2]] = "lower+raise"
    cells = replace(cells, perturbation=named)
    up, down = [1.0, 0.0, 2.0], [2.0, 0.0, 1.0]
    vectors = {"control": [0.0] * 3, "lower": down, "raise": up, "lower+raise": up}
    config = vectors_in(tmp_path, vectors)
    config = replace(config, combination_separator=separator)
    split = without_perturbation(cells, "lower+raise")

    reference = prepare(cells, split, config, TINY_MODEL).reference

    assert reference.vocabulary.perturbations == ("control", "lower", "lower+raise", "raise")
    assert reference.effects.shown.tolist() == [False, True, False, True]
    depth = cells.depth[(cells.cell_type == "T cell") & (cells.perturbation == "control")]
    before, lower, both, raised = (
        mean_log1p(reference, "T cell", name, depth=depth)
        for name in reference.vocabulary.perturbations
    )
    assert (raised - before)[:10].min() > 1
    assert (lower - before)[10:20].max() < -1
    if joined:
        summed = np.maximum(raised + lower - 2 * before, -before)
        # To the 100 quantiles of depth that stand for all cells.
        np.testing.assert_allclose(both - before, summed, atol=0.05)
    else:
        assert np.corrcoef(both - before, raised - before)[0, 1] > 0.95
        assert (both - before)[10:20].min() > -1


def named_again(cells: Cells, **names: str) -> Cells:
    """Every second cell of each perturbation gets another label."""
    labels = cells.perturbation.copy()
    for old, new in names.items():
        labels[np.flatnonzero(labels == old)[::2]] = new
    return replace(cells, perturbation=labels)


def test_a_combination_of_seen_parts_needs_no_vectors_and_no_cells():
    cells = named_again(tiny_cells(), **{"raise": "raise + lower"})

    reference = prepare(
        cells, without_perturbation(cells, "raise + lower"), DataConfig(), TINY_MODEL
    ).reference

    parts = reference.vocabulary.parts()
    assert parts.names == ("control", "lower", "raise")
    assert parts.of.tolist() == [[0, -1], [1, -1], [2, -1], [2, 1]]
    assert reference.effects.tilt[:, 3, :10].min() > 0.1
    assert reference.effects.tilt[:, 3, 10:20].max() < -0.1
    # That of the sum of its parts, which is longer than either, not the mean of theirs.
    lower, raised, both = reference.effects.reliability[1:]
    assert max(lower, raised) < both < 1


@pytest.mark.parametrize("separator", ["+", None])
def test_a_combination_with_a_part_that_no_cell_shows_is_refused(separator):
    """ "lower" is seen; "other" neither alone nor in a combination that is kept."""
    cells = named_again(tiny_cells(), lower="lower+other")
    config = DataConfig(combination_separator=separator)

    with pytest.raises(UsageError, match=r"shows 1 of the perturbations .*\['lower\+other'\]"):
        prepare(cells, without_perturbation(cells, "lower+other"), config, TINY_MODEL)


def test_a_part_that_is_seen_in_a_combination_alone_is_known():
    cells = named_again(tiny_cells(), lower="lower+other")
    cells = named_again(cells, **{"raise": "raise+other"})

    reference = prepare(
        cells, without_perturbation(cells, "raise+other"), DataConfig(), TINY_MODEL
    ).reference

    assert "other" in reference.vocabulary.parts().names


def test_vectors_describe_the_parts_and_combinations_need_none(tmp_path):
    cells = named_again(tiny_cells(), lower="lower+raise")
    config = vectors_in(tmp_path, {"lower": [1.0, 0.0], "raise": [0.0, 2.0]})

    reference = prepare(
        cells, without_perturbation(cells, "lower+raise"), config, TINY_MODEL
    ).reference

    np.testing.assert_array_equal(reference.perturbation_vectors, [[0, 0], [1, 0], [0, 2]])


def test_a_whole_has_the_sum_of_the_vectors_of_its_parts():
    vectors = np.array([[0.0, 0.0], [1.0, 3.0], [10.0, 5.0]])
    parts = Parts(("control", "a", "b"), np.array([[0, -1], [1, -1], [1, 2], [2, 2]]))

    np.testing.assert_array_equal(_of_wholes(vectors, parts), [[0, 0], [1, 3], [11, 8], [20, 10]])


def test_an_unseen_perturbation_starts_from_what_alike_ones_do(tmp_path):
    """ "raise" is held out, and its vector is that of "lower"."""
    cells, vector = tiny_cells(), [1.0, 0.0, 2.0]
    config = vectors_in(tmp_path, {"control": [0.0] * 3, "lower": vector, "raise": vector})

    reference = prepare(cells, without_perturbation(cells, "raise"), config, TINY_MODEL).reference

    _, lower, raised = reference.effects.tilt.swapaxes(0, 1)
    assert lower[:, 10:20].max() < -0.3
    assert raised[:, 10:20].max() < -0.3
    # Shares of the other genes grow a little when ten of them fall.
    assert abs(raised[:, :10].mean()) < 0.2


# Genes.


def test_a_list_of_genes_is_taken_as_it_stands(tmp_path):
    path = tmp_path / "genes.txt"
    path.write_text("GENE007\n\n  GENE003 \nGENE007\n")
    cells, config = tiny_cells(), DataConfig(gene_list=str(path), num_genes=5)

    shards = prepare(cells, without_b_cells(cells), config, TINY_MODEL)

    assert shards.reference.vocabulary.genes == ("GENE007", "GENE003")
    counts = cells.select(shards.row, ["GENE007", "GENE003"]).expression.toarray()
    np.testing.assert_array_equal(shards.tokens, shards.reference.tokenizer.encode(counts))


# Other kinds of cells.


def test_log1p_cells_are_prepared_in_their_own_space():
    counts = tiny_cells()
    values = counts.log1p_cp10k()
    cells = replace(counts, expression=sparse.csr_array(values), kind="log1p")

    shards = prepare(cells, without_b_cells(cells), DataConfig(num_genes=20), TINY_MODEL)

    reference = shards.reference
    kept = cells.select(shards.row, reference.vocabulary.genes).expression.toarray()
    train = ~shards.validation
    assert reference.tokenizer.kind == "log1p"
    restored = reference.tokenizer.expected(shards.tokens[train])
    np.testing.assert_allclose(restored.mean(0), kept[train].mean(0), rtol=1e-4)
    np.testing.assert_array_equal(shards.tokens == 0, kept == 0)


def test_a_type_without_controls_is_prepared_and_keeps_no_control_cell():
    cells = a_cell_type_without_controls()

    reference = prepare(cells, nothing_held_out(cells), DataConfig(), TINY_MODEL).reference

    assert reference.vocabulary.cell_types == ("B cell", "T cell")
    assert set(reference.control_cells.cell_type) == {1}
    np.testing.assert_allclose(reference.controls.mean_log1p[0], reference.controls.mean_log1p[1])


def test_given_vectors_are_stored_in_the_order_of_the_vocabulary(tmp_path):
    vectors = {"raise": torch.tensor([1.0, 0.0]), "lower": torch.tensor([0.0, 1.0])}
    types = {name: torch.full((3,), float(n)) for n, name in enumerate(("T cell", "monocyte"))}
    torch.save(vectors, tmp_path / "perturbations.pt")
    torch.save(types | {"B cell": torch.full((3,), 7.0)}, tmp_path / "types.pt")
    config = DataConfig(
        cond_labels_pt_path=str(tmp_path / "perturbations.pt"),
        celltype_labels_pt_path=str(tmp_path / "types.pt"),
    )
    cells = tiny_cells()

    reference = prepare(cells, without_b_cells(cells), config, TINY_MODEL).reference

    np.testing.assert_array_equal(reference.perturbation_vectors, [[0, 0], [0, 1], [1, 0]])
    np.testing.assert_array_equal(reference.cell_type_vectors[:, 0], [7, 0, 1])


def test_a_label_without_a_given_vector_is_named_before_training(tmp_path):
    torch.save({"raise": torch.zeros(2)}, tmp_path / "vectors.pt")
    config = DataConfig(num_genes=12, cond_labels_pt_path=str(tmp_path / "vectors.pt"))
    cells = tiny_cells()

    with pytest.raises(DataError, match=r"no vector for 1 of 3 labels, e\.g\. \['lower'\]\. Add"):
        prepare(cells, without_b_cells(cells), config, TINY_MODEL)


# The name of the shards.


def name_of(data: DataConfig, model: ModelConfig = TINY_MODEL, seed: int = 0) -> str:
    settings = shard_settings(data, model, seed=seed)
    return fingerprint(data_digest="data", split_digest="split", settings=settings)


def test_every_setting_that_changes_the_shards_changes_their_name(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_text("GENE001\n")
    second.write_text("GENE002\n")
    names = [
        name_of(DataConfig()),
        name_of(DataConfig(num_genes=7)),
        name_of(DataConfig(num_genes="all")),
        name_of(DataConfig(gene_list=str(first))),
        name_of(DataConfig(gene_list=str(second))),
        name_of(DataConfig(layer="counts")),
        name_of(DataConfig(depth_col="total")),
        name_of(DataConfig(input_kind="log1p")),
        name_of(DataConfig(exact_counts=5)),
        name_of(DataConfig(bin_ratio=1.5)),
        name_of(DataConfig(control_cells_per_type=9)),
        name_of(DataConfig(control_name="ctrl")),
        name_of(DataConfig(cond_labels_pt_path=str(first))),
        name_of(DataConfig(celltype_labels_pt_path=str(first))),
        name_of(DataConfig(), replace(TINY_MODEL, global_share=0.2)),
        name_of(DataConfig(), replace(TINY_MODEL, output_prior=False)),
        name_of(DataConfig(), replace(TINY_MODEL, ordinal_rank=3)),
        name_of(DataConfig(), replace(TINY_MODEL, token_encoder=8)),
        name_of(DataConfig(), seed=1),
    ]

    assert len(set(names)) == len(names)


def test_what_does_not_change_the_shards_does_not_change_their_name(tmp_path):
    first, copy = tmp_path / "first", tmp_path / "copy"
    first.write_text("GENE001\n")
    copy.write_text("GENE001\n")

    assert name_of(DataConfig(train_data_path="elsewhere")) == name_of(DataConfig())
    assert name_of(DataConfig(), ModelConfig(token_encoder=4, size="large")) == name_of(
        DataConfig()
    )
    assert name_of(DataConfig(gene_list=str(first))) == name_of(DataConfig(gene_list=str(copy)))


def test_an_unseen_perturbation_without_a_vector_is_refused_by_name(tmp_path):
    cells = tiny_cells()
    split = make_split(
        SplitConfig(kind="unseen_perturbation", perturbations=("raise",)),
        perturbation=cells.perturbation,
        cell_type=cells.cell_type,
        control_name="control",
    )
    vectors = {name: torch.randn(4) for name in set(cells.perturbation)}
    torch.save(vectors, tmp_path / "vectors.pt")
    given = DataConfig(num_genes=12, cond_labels_pt_path=str(tmp_path / "vectors.pt"))

    with pytest.raises(UsageError, match=r"'raise'.*--cond_labels_pt_path"):
        prepare(cells, split, DataConfig(num_genes=12), TINY_MODEL)
    assert "raise" in prepare(cells, split, given, TINY_MODEL).reference.vocabulary.perturbations
