"""Genes are the given ones, all, or those that differ most between training cells."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sedd.data.cells import Cells
from sedd.data.choices import DataConfig
from sedd.data.genes import choose_genes
from sedd.data.splits import Split, SplitConfig, make_split
from sedd.errors import DataError, UsageError
from tests.tiny_training import without_b_cells
from tests.worlds import cells_of, tiny_cells

ROOT = Path(__file__).parents[2]


def with_counts(cells: Cells, rows: np.ndarray, gene: int, count: int) -> Cells:
    """The same cells, but `rows` show `count` of one gene; depths follow."""
    counts = cells.expression.toarray()
    counts[rows, gene] = count
    return cells_of(counts, cell_type=cells.cell_type, perturbation=cells.perturbation)


def nothing_held_out(cells: Cells) -> Split:
    return make_split(
        SplitConfig(),
        perturbation=cells.perturbation,
        cell_type=cells.cell_type,
        control_name="control",
    )


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
from sedd.data.genes import choose_genes
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
