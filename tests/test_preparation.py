"""What training reads is made of training cells alone, over the genes that were asked for."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import sparse

from sedd.data.cells import Cells
from sedd.data.choices import DataConfig
from sedd.data.shards import Shards, fingerprint
from sedd.data.splits import Split, SplitConfig, make_split
from sedd.errors import DataError, UsageError
from sedd.model.config import ModelConfig
from sedd.model.embeddings import ordinal_basis
from sedd.preparation import choose_genes, prepare, shard_settings
from tests.tiny_training import TINY_MODEL, tiny_shards, without_b_cells
from tests.worlds import a_cell_type_without_controls, cells_of, tiny_cells

ROOT = Path(__file__).parents[1]


def with_counts(cells: Cells, rows: np.ndarray, gene: int, count: int) -> Cells:
    """The same cells, but `rows` show `count` of one gene; depths follow."""
    counts = cells.expression.toarray()
    counts[rows, gene] = count
    return cells_of(counts, cell_type=cells.cell_type, perturbation=cells.perturbation)


def files(shards: Shards, folder: Path) -> dict[str, bytes]:
    shards.save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def nothing_held_out(cells: Cells) -> Split:
    return make_split(
        SplitConfig(),
        perturbation=cells.perturbation,
        cell_type=cells.cell_type,
        control_name="control",
    )


def test_a_watermark_on_held_out_cells_reaches_nothing_that_training_reads(tmp_path):
    cells = tiny_cells()
    split, config = without_b_cells(cells), DataConfig(num_genes=12)
    rng = np.random.default_rng(0)
    # In the held-out cells alone: one gene far above all bins, others reshuffled, other depths.
    counts = cells.expression.toarray()
    counts[split.test] = rng.permuted(counts[split.test], axis=1)
    counts[split.test, 10] = rng.integers(0, 100_000, len(split.test))
    marked = cells_of(counts, cell_type=cells.cell_type, perturbation=cells.perturbation)
    assert marked.source.digest != cells.source.digest

    plain = files(prepare(cells, split, config, TINY_MODEL), tmp_path / "plain")
    found = files(prepare(marked, split, config, TINY_MODEL), tmp_path / "marked")

    assert found == plain


def test_the_same_watermark_on_training_cells_reaches_genes_bins_and_effects(tmp_path):
    cells = tiny_cells()
    split, config = without_b_cells(cells), DataConfig(num_genes=12)
    rows = split.train[cells.perturbation[split.train] == "raise"]
    marked = with_counts(cells, rows, 10, 50_000)

    before, after = (prepare(c, split, config, TINY_MODEL).reference for c in (cells, marked))

    assert "GENE010" in after.vocabulary.genes
    assert "GENE010" not in before.vocabulary.genes
    assert after.tokenizer.num_bins > before.tokenizer.num_bins


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


def test_the_effects_are_believed_and_point_the_way_the_world_was_made():
    reference = tiny_shards().reference
    vocabulary, effects = reference.vocabulary, reference.effects
    levels = reference.tokenizer.centers
    basis = ordinal_basis(levels, TINY_MODEL.ordinal_rank)
    prior = reference.controls.log_prior(global_share=0.1)[0]

    shifts = []
    for name in ("raise", "lower"):
        law = np.exp(prior + effects.tilt[vocabulary.perturbations.index(name)] @ basis)
        law = law / law.sum(-1, keepdims=True)
        shifts.append((law - np.exp(prior)) @ levels)

    assert (effects.reliability[1:] > 0.9).all()
    assert (effects.transfer[1:] > 0.3).all()
    # The perturbed B cells were held out. In the other types mean 1 becomes 6, and 6 becomes 1;
    # the type's own markers (20 to 25) were never seen high under a perturbation.
    raised, lowered = shifts
    assert (raised[:10] > 1.5).all()
    assert (lowered[10:20] < -1.5).all()
    assert (
        np.abs(np.concatenate([raised[10:20], raised[26:], lowered[:10], lowered[26:]])).max() < 1
    )


# Genes.


def test_the_most_variable_genes_are_those_that_differ_between_cells():
    rng = np.random.default_rng(0)
    mean = np.exp(rng.uniform(-0.5, 2, 400))
    switched = rng.permutation(400)[:25]
    factor = np.ones((300, 400))
    factor[:, switched] = rng.choice([0.1, 1.9], (300, 25))
    labels = np.array(["control", "drug"] * 150, dtype=object)
    cells = cells_of(
        rng.poisson(mean * factor), cell_type=np.full(300, "T", object), perturbation=labels
    )

    genes = choose_genes(cells, nothing_held_out(cells), DataConfig(num_genes=25))

    assert genes == sorted(genes)
    # Of 25 genes that are on or off, at most one of the faintest may be missed.
    assert len(set(genes) & {cells.genes[index] for index in switched}) >= 24


@pytest.mark.parametrize("num_genes", [1, 5, 12, 39])
def test_as_many_genes_are_chosen_as_were_asked_for_though_some_vary_alike(num_genes):
    cells = tiny_cells()

    genes = choose_genes(cells, without_b_cells(cells), DataConfig(num_genes=num_genes))

    assert len(set(genes)) == len(genes) == num_genes


def test_genes_are_chosen_on_training_cells_alone():
    cells = tiny_cells()
    split = without_b_cells(cells)
    config = DataConfig(num_genes=12)
    marked = with_counts(cells, split.test[::2], 10, 10_000)

    assert choose_genes(marked, split, config) == choose_genes(cells, split, config)
    assert "GENE010" in choose_genes(marked, nothing_held_out(cells), config)


def test_choosing_genes_leaves_the_number_of_threads_alone():
    # In a process of its own: numba takes all cores the first time it is used.
    command = [sys.executable, "-c", THREADS]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}

    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == ["1", "1"]


THREADS = """
import torch
from sedd.data.choices import DataConfig
from sedd.preparation import choose_genes
from tests.tiny_training import without_b_cells
from tests.worlds import tiny_cells
print(torch.get_num_threads())
choose_genes(tiny_cells(), without_b_cells(tiny_cells()), DataConfig(num_genes=12))
print(torch.get_num_threads())
"""


@pytest.mark.parametrize("num_genes", ["all", 40, 2000])
def test_all_genes_are_taken_when_asked_for_or_when_there_are_no_more(num_genes):
    cells = tiny_cells()

    genes = choose_genes(cells, without_b_cells(cells), DataConfig(num_genes=num_genes))

    assert tuple(genes) == cells.genes


def test_a_list_of_genes_is_taken_as_it_stands(tmp_path):
    path = tmp_path / "genes.txt"
    path.write_text("GENE007\n\n  GENE003 \nGENE007\n")
    cells, config = tiny_cells(), DataConfig(gene_list=str(path), num_genes=5)

    shards = prepare(cells, without_b_cells(cells), config, TINY_MODEL)

    assert shards.reference.vocabulary.genes == ("GENE007", "GENE003")
    counts = cells.select(shards.row, ["GENE007", "GENE003"]).expression.toarray()
    np.testing.assert_array_equal(shards.tokens, shards.reference.tokenizer.encode(counts))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("GENE007\nGene003\n", r"Unknown gene: 'Gene003' \(did you mean 'GENE003'"),
        ("\n \n", r"is empty; wanted one gene name per line"),
    ],
)
def test_a_list_with_an_unknown_gene_or_none_is_refused(tmp_path, text, wanted):
    path = tmp_path / "genes.txt"
    path.write_text(text)
    cells = tiny_cells()

    with pytest.raises(DataError, match=wanted) as caught:
        choose_genes(cells, without_b_cells(cells), DataConfig(gene_list=str(path)))

    assert str(path) in str(caught.value)


def test_a_missing_list_of_genes_is_named():
    cells = tiny_cells()

    with pytest.raises(UsageError, match=r"nowhere\.txt does not exist; wanted one gene name"):
        choose_genes(cells, without_b_cells(cells), DataConfig(gene_list="nowhere.txt"))


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
