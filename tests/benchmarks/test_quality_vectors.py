"""A gene embedding becomes one vector per perturbation, for training and for ridge alike."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import quality_job
from benchmarks.quality_results import read_results
from benchmarks.quality_score import score_job
from benchmarks.quality_study import Job, plan, read_study
from benchmarks.quality_table import to_markdown
from benchmarks.quality_vectors import read_perturbations, with_readable_vectors
from sedd.data.cells import Cells, write_h5ad
from sedd.data.vectors import read_vectors
from sedd.errors import DataError
from tests.worlds import tiny_cells

STUDY = """
name: tiny
question: What does a perturbation do that no cell shows?
folds: perturbations
held_out: [[raise]]
seeds: [0]
config:
  data: {train_data_path: cells.h5ad, num_genes: 40, cond_labels_pt_path: genes.npz}
  model: {hidden_dim: 16, num_layers: 1, num_heads: 2, token_encoder: 4}
  training: {max_steps: 3, batch_size: 16}
  inference: {num_steps: 2}
variants:
  full: {}
"""
EMBEDDING = {"other": [9.0, 9.0], "raise": [1.0, -1.0], "lower": [0.5, 2.0]}


@pytest.fixture
def planned(tmp_path) -> Job:
    """The job that holds out `raise`, before its embedding is converted."""
    write_h5ad(tiny_cells(), tmp_path / "cells.h5ad")
    (tmp_path / "study.yaml").write_text(STUDY)
    write_embedding(tmp_path / "genes.npz", EMBEDDING)
    (job,) = plan(read_study(tmp_path / "study.yaml"), tiny_cells(), tmp_path)
    return job


def write_embedding(path: Path, rows: dict[str, list[float]]) -> None:
    np.savez(path, genes=list(rows), embedding=np.array(list(rows.values()), np.float16))


def relabelled(**names: str) -> Cells:
    """The tiny cells under other labels."""
    cells = tiny_cells()
    labels = [names.get(name, name) for name in cells.perturbation]
    return replace(cells, perturbation=np.array(labels, dtype=object))


def test_every_perturbation_gets_the_row_of_its_gene(planned, tmp_path):
    job = with_readable_vectors(planned, tiny_cells(), tmp_path / "vectors")

    path = Path(job.config.data.cond_labels_pt_path)
    rows = read_vectors(path, ["lower", "raise", "control"], zero="control")
    np.testing.assert_array_equal(rows, [[0.5, 2], [1, -1], [0, 0]])
    assert path.is_relative_to(tmp_path / "vectors")
    assert replace(job, config=planned.config) == planned


def test_a_training_perturbation_without_a_row_gets_the_mean_of_the_others(planned, tmp_path):
    cells = relabelled(lower="unnamed")
    write_embedding(tmp_path / "genes.npz", EMBEDDING | {"extra": [3.0, 3.0]})
    halves = np.flatnonzero(cells.perturbation == "unnamed")[::2]
    cells.perturbation[halves] = "extra"

    job = with_readable_vectors(planned, cells, tmp_path / "vectors")

    rows = read_vectors(Path(job.config.data.cond_labels_pt_path), ["unnamed", "extra", "raise"])
    np.testing.assert_array_equal(rows, [[2, 1], [3, 3], [1, -1]])


def test_combinations_are_described_by_their_parts(planned, tmp_path):
    cells = relabelled(lower="raise+lower")

    job = with_readable_vectors(planned, cells, tmp_path / "vectors")

    found = read_perturbations(job.config.data, cells)
    assert found.parts["raise+lower"] == ("raise", "lower")
    assert found.vectors is not None
    np.testing.assert_array_equal(found.vectors["raise+lower"], [1.5, 1])
    np.testing.assert_array_equal(found.vectors["control"], [0, 0])


@pytest.mark.parametrize("held_out", ["lower", "raise+lower"])
def test_a_held_out_perturbation_without_a_row_is_refused(planned, held_out, tmp_path):
    write_embedding(tmp_path / "genes.npz", {"raise": [1.0, -1.0]})
    split = replace(planned.config.split, perturbations=(held_out,))
    job = replace(planned, config=replace(planned.config, split=split))

    with pytest.raises(DataError, match=r"genes\.npz has no row for \['lower'\].*Hold out others"):
        with_readable_vectors(job, relabelled(lower=held_out), tmp_path / "vectors")


def test_an_embedding_of_none_of_the_perturbations_is_refused(planned, tmp_path):
    write_embedding(tmp_path / "genes.npz", {"other": [1.0, -1.0]})
    split = replace(planned.config.split, kind="none", perturbations=())
    job = replace(planned, config=replace(planned.config, split=split))

    with pytest.raises(DataError, match=r"genes\.npz has no row for any perturbation"):
        with_readable_vectors(job, tiny_cells(), tmp_path / "vectors")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"genes": ["raise"]}, "KeyError.*embedding"),
        ({"genes": ["raise"], "embedding": np.zeros((2, 3))}, "ValueError"),
        ({"genes": np.array(["raise"], object), "embedding": np.zeros((1, 3))}, "ValueError"),
    ],
)
def test_what_is_no_embedding_is_refused(planned, tmp_path, content, reason):
    np.savez(tmp_path / "genes.npz", **content)

    with pytest.raises(DataError, match=rf"genes\.npz is no embedding of genes \({reason}.*wanted"):
        with_readable_vectors(planned, tiny_cells(), tmp_path / "vectors")


def test_a_file_that_training_reads_is_left_alone(planned, tmp_path):
    for given in ("vectors.pt", None):
        data = replace(planned.config.data, cond_labels_pt_path=given)
        job = replace(planned, config=replace(planned.config, data=data))

        assert with_readable_vectors(job, tiny_cells(), tmp_path / "vectors") == job
    assert not (tmp_path / "vectors").exists()


def test_the_conversion_is_made_once_for_the_same_rows_and_anew_for_others(planned, tmp_path):
    folder = tmp_path / "vectors"
    first = with_readable_vectors(planned, tiny_cells(), folder)
    path = Path(first.config.data.cond_labels_pt_path)
    time, key = path.stat().st_mtime_ns, first.key("data")
    again = with_readable_vectors(planned, tiny_cells(), folder)
    elsewhere = with_readable_vectors(planned, tiny_cells(), tmp_path / "elsewhere")
    write_embedding(tmp_path / "genes.npz", EMBEDDING | {"raise": [2.0, 2.0]})
    other = with_readable_vectors(planned, tiny_cells(), folder)

    assert again == first
    assert path.stat().st_mtime_ns == time
    assert elsewhere.key("data") == key
    assert other.key("data") != key
    assert path.is_file()


def test_an_unseen_perturbation_is_scored_beside_ridge_on_the_vectors(planned, tmp_path):
    job = with_readable_vectors(planned, tiny_cells(), tmp_path / "vectors")
    quality_job.predict(job, tmp_path / "job", tmp_path / "trained")

    score_job(tmp_path / "job", baselines=True)

    records = json.loads((tmp_path / "job" / "scores.json").read_text())["records"]
    assert [record["method"] for record in records] == [
        "counterfactual", "population", "no_change", "mean_of_others", "ridge",
        "split_half_ceiling",
    ] * 3  # fmt: skip
    page = to_markdown(
        read_study(tmp_path / "study.yaml"), read_results([tmp_path / "job"]), command="?"
    )
    rows = [line.split(" | ")[:3] for line in page.splitlines()]
    compared = [row for row in rows if row[0].removeprefix("| ") in quality_job.MODES]
    assert [row for row in compared if row[1] in ("ridge", "mean of others", "no change")] == [
        [f"| {mode}", rival, "3"]
        for mode in quality_job.MODES
        for rival in ("ridge", "mean of others", "no change")
    ]
