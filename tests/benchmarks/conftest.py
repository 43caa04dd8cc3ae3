"""A tiny study, run as its command does, and one of its jobs predicted."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from benchmarks import quality, quality_job
from benchmarks.quality_study import plan, read_study
from sedd.data.cells import write_h5ad
from tests.worlds import tiny_cells

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

TINY_STUDY = """
name: tiny
question: Does a second run find what the first one did?
folds: cell_types
seeds: [0]
cells_per_condition: 40
config:
  data: {train_data_path: cells.h5ad, num_genes: 20}
  model: {hidden_dim: 16, num_layers: 1, num_heads: 2, token_encoder: 4}
  training: {max_steps: 3, batch_size: 16}
  inference: {num_steps: 2}
variants:
  full: {}
"""


@pytest.fixture
def run_study(tmp_path, tracking_uri, monkeypatch):
    """A function that runs the study of two cell types as its command does."""
    cells = tiny_cells()
    kept = np.flatnonzero((cells.cell_type != "monocyte") & (cells.perturbation != "lower"))
    write_h5ad(cells.select(kept), tmp_path / "cells.h5ad")
    (tmp_path / "study.yaml").write_text(TINY_STUDY)
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    monkeypatch.setattr(quality, "ROOT", tmp_path)
    command = [tmp_path / "study.yaml", "--data_dir", tmp_path, "--work_dir", tmp_path / "work"]
    command += ["--processes", 1, "--tracking_uri", tracking_uri]
    return lambda *more: quality.main([str(word) for word in (*command, *more)])


@pytest.fixture
def predicted(tmp_path) -> Path:
    """The folder of a job that was predicted and not yet scored."""
    write_h5ad(tiny_cells(), tmp_path / "cells.h5ad")
    study_of_all_genes = TINY_STUDY.replace("num_genes: 20", "num_genes: 40")
    (tmp_path / "study.yaml").write_text(study_of_all_genes)
    (job, *_) = plan(read_study(tmp_path / "study.yaml"), tiny_cells(), tmp_path)
    quality_job.predict(job, tmp_path / "job", tmp_path / "trained")
    return tmp_path / "job"


@pytest.fixture
def client(tracking_uri) -> "MlflowClient":
    """Of the store of this test."""
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=tracking_uri)


@pytest.fixture
def runs(client) -> Callable[[], list["Run"]]:
    """A function that finds the MLflow runs of studies."""
    return lambda: client.search_runs([client.get_experiment_by_name("quality").experiment_id])
