"""One job of a quality study: train without the held-out cells, generate, keep the cells.

Predicting and scoring are two steps with a folder in between, so that a new score needs no new
training, and the scorer is the only one that ever reads held-out cells.
"""

import json
import platform
import resource
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from scipy import sparse

from benchmarks.quality_study import ROOT, Job, job_to_json, load_job_cells
from pipelines.experiment import split_cells
from sedd.building import (
    build_contexts,
    build_denoiser,
    token_batches,
    validation_batch,
)
from sedd.checkpoint import (
    Trained,
    best_or_newest,
    has_checkpoints,
    load_trained,
    save_checkpoint,
)
from sedd.config import Config
from sedd.data.shards import Shards
from sedd.generation import GeneratedCells, generate_unit, plan_units
from sedd.preparation import prepare
from sedd.storage import whole_folder, write_text
from sedd.training import start, train

MODES = ("counterfactual", "population")

TRAINING = "training.json"
"""What a training cost and reached, beside its checkpoint."""


@dataclass(frozen=True)
class Predicted:
    """Generated cells of one condition and mode, over the genes of the model."""

    values: sparse.csr_array
    depth: np.ndarray
    log1p: np.ndarray
    control_row: np.ndarray


def predict(job: Job, folder: Path, models: Path) -> None:
    """Generate every condition in both modes and write it all to `folder`, or nothing.

    Args:
        job: What to predict.
        folder: Where to.
        models: Folder of the trained models; jobs that differ in `inference` alone share one.
    """
    torch.set_num_threads(1)
    cells = load_job_cells(job.config, job.only, job.merged)
    split = split_cells(job.config, cells)
    root = models / job.training_key(cells.source.digest)
    if not has_checkpoints(root):
        fit(
            job.config,
            prepare(cells, split, job.config.data, job.config.model, seed=job.seed),
            root,
        )
    trained = load_trained(best_or_newest(root), job.config.model)
    before = time.process_time()
    with whole_folder(folder) as unfinished:
        for mode in MODES:
            _write_cells(unfinished / f"{mode}.npz", job, trained, mode)
        facts = {
            "trained_model": root.name,
            **json.loads((root / TRAINING).read_text(encoding="utf-8")),
            "cpu_seconds_generating": round(time.process_time() - before, 1),
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
            "genes": list(trained.reference.vocabulary.genes),
            "split_digest": split.digest,
            "data_digest": cells.source.digest,
            "commit": _commit(),
            "machine": f"{platform.machine()}, Python {platform.python_version()}, "
            f"torch {torch.__version__}, one thread",
        }
        (unfinished / "facts.json").write_text(json.dumps(facts), encoding="utf-8")
        (unfinished / "job.json").write_text(job_to_json(job), encoding="utf-8")


def fit(config: Config, shards: Shards, root: Path) -> None:
    """Train on prepared shards; leaves a checkpoint in `root`, and what it cost."""
    before = time.process_time()
    training = config.training
    denoiser, average = (
        build_denoiser(config.model, shards.reference, seed=training.seed) for _ in range(2)
    )
    contexts = build_contexts(config.model, shards.reference)
    batches = token_batches(shards, training)
    validation = validation_batch(shards, batches, training)
    state, nelbo = start(denoiser, average, training), float("nan")
    steps = training.max_steps
    if steps is None:
        steps = int(training.num_epochs * len(batches.rows) / training.batch_size)
    for report in train(state, batches, training, contexts, max_steps=steps, validation=validation):
        nelbo = nelbo if report.validation_nelbo is None else report.validation_nelbo
    cost = {
        "cpu_seconds_training": round(time.process_time() - before, 1),
        "validation_nelbo": nelbo,
        "steps": state.step,
    }
    root.mkdir(parents=True, exist_ok=True)
    write_text(root / TRAINING, json.dumps(cost))
    save_checkpoint(root, state, shards.reference, config_yaml=config.to_yaml(), provenance={})


def read_predicted(folder: Path, mode: str, kind: str) -> Mapping[tuple[str, str], Predicted]:
    """The generated cells of a mode, by condition."""
    with np.load(folder / f"{mode}.npz", allow_pickle=False) as file:
        conditions = json.loads(str(file["conditions"]))
        shape = tuple(file["shape"])
        values = sparse.csr_array((file["data"], file["indices"], file["indptr"]), shape=shape)
        depth, control_row, number = file["depth"], file["control_row"], file["condition"]
    found = {}
    for index, (cell_type, perturbation) in enumerate(conditions):
        rows = np.flatnonzero(number == index)
        dense = values[rows].toarray().astype(np.float32)
        if kind == "counts":
            dense = np.log1p(dense / depth[rows, None].astype(np.float32) * 1e4)
        found[cell_type, perturbation] = Predicted(
            values[rows], depth[rows], dense, control_row[rows]
        )
    return found


def _write_cells(path: Path, job: Job, trained: Trained, mode: str) -> None:
    parts = list(_generate(job, trained, mode))
    values = sparse.vstack([sparse.csr_array(part.values) for _, part in parts], format="csr")
    np.savez_compressed(
        path,
        conditions=np.array(json.dumps(job.conditions)),
        condition=np.concatenate([np.full(len(part.depth), index) for index, part in parts]),
        data=values.data,
        indices=values.indices,
        indptr=values.indptr,
        shape=np.array(values.shape),
        depth=np.concatenate([part.depth for _, part in parts]),
        control_row=np.concatenate([part.control_row for _, part in parts]),
    )


def _generate(job: Job, trained: Trained, mode: str) -> Iterator[tuple[int, GeneratedCells]]:
    """Cells of each condition, at most as many as there are control cells to start from."""
    kept = trained.reference.control_cells.cell_type
    for index, (cell_type, perturbation) in enumerate(job.conditions):
        (number,) = trained.reference.vocabulary.cell_type_ids([cell_type])
        wanted = min(job.cells_per_condition, int((kept == number).sum()))
        inference = replace(
            job.config.inference, mode=mode, sampler="blocks", num_samples_per_condition=wanted
        )
        for unit in plan_units([cell_type], [perturbation], inference):
            yield index, generate_unit(trained, unit, inference)


def _commit() -> str:
    asked = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or "unknown"
