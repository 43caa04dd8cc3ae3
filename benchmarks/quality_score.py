"""Scores of what a job predicted: the model's two modes, and once per fold the baselines."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.quality_job import MODES, read_predicted
from benchmarks.quality_study import Job, job_from_json, load_job_cells
from benchmarks.quality_vectors import read_perturbations
from pipelines.experiment import split_cells
from pipelines.scoring import Truth
from sedd.data.cells import Cells
from sedd.data.splits import Split
from sedd.data.tokens import Tokenizer
from sedd.evaluation.baselines import Prediction, TokenCells, TrainingCells, baseline_predictions
from sedd.evaluation.discrimination import separation
from sedd.evaluation.metrics import limits, score
from sedd.storage import write_text

Record = Mapping[str, object]
Condition = tuple[str, str]


def score_job(folder: Path, *, baselines: bool) -> None:
    """Write `scores.json` into the folder of a job: one record per condition and method."""
    job = job_from_json((folder / "job.json").read_text(encoding="utf-8"))
    truth = read_truth(job, folder, tokens=baselines)
    predictions = {mode: read_predicted(folder, mode, truth.cells.kind) for mode in MODES}
    real, records = {}, []
    by_method: dict[str, dict[Condition, np.ndarray]] = {}
    for condition in job.conditions:
        real[condition] = truth.log1p[truth.held_out(*condition)]
        control = truth.controls(condition[0])
        made = [Prediction.of_cells(mode, predictions[mode][condition].log1p) for mode in MODES]
        if baselines:
            made += baseline_predictions(truth.training, *condition, real_log1p=real[condition])
        bounds = asdict(limits(real[condition], control))
        for prediction in made:
            scored = asdict(score(prediction, real[condition], control))
            by_method.setdefault(prediction.name, {})[condition] = (
                prediction.mean_log1p - control.mean(0, dtype=np.float64)
            )
            records.append(
                {"cell_type": condition[0], "perturbation": condition[1],
                 "num_real": len(real[condition]), "num_control": len(control),
                 "method": prediction.name, **scored, **bounds}
            )  # fmt: skip
    content = {"records": records, "separation": list(_separations(by_method, real, truth))}
    write_text(folder / "scores.json", json.dumps(content))


def read_truth(job: Job, folder: Path, *, tokens: bool) -> Truth:
    """Real cells over the genes that a job predicted; with tokens, for the token tilt.

    Raises:
        ValueError: The job held out other cells than its configuration says now.
    """
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    cells = load_job_cells(job.config, job.only).select(None, facts["genes"])
    split = split_cells(job.config, cells)
    if split.digest != facts["split_digest"]:
        raise ValueError(f"{folder} was predicted with another split than its configuration makes.")
    log1p = cells.log1p_cp10k()
    known = np.sort(np.concatenate([split.train, split.validation]))
    training = TrainingCells(
        log1p=log1p[known],
        cell_type=cells.cell_type[known],
        perturbation=cells.perturbation[known],
        control_name=job.config.data.control_name,
        perturbations=read_perturbations(job.config.data, cells),
        tokenized=_tokenized(job, cells, split) if tokens else None,
    )
    return Truth(cells, log1p, split, training)


def _tokenized(job: Job, cells: Cells, split: Split) -> TokenCells:
    """Tokens of the known cells, binned as the model bins them."""
    values = cells.expression.toarray()
    known = np.sort(np.concatenate([split.train, split.validation]))
    depth = cells.depth[known].astype(np.float32)
    tokenizer = Tokenizer.fit(
        values[split.train],
        kind="counts" if np.issubdtype(values.dtype, np.integer) else "log1p",
        exact=job.config.data.exact_counts,
        ratio=job.config.data.bin_ratio,
    )

    def decode(tokens: np.ndarray, rows: np.ndarray) -> np.ndarray:
        decoded = tokenizer.decode(tokens, np.random.default_rng(0)).astype(np.float32)
        if tokenizer.kind == "log1p":
            return decoded
        return np.log1p(decoded / depth[rows][:, None] * 1e4)

    return TokenCells(tokenizer.encode(values[known]), tokenizer.num_bins, decode)


def _separations(
    shifts: Mapping[str, Mapping[Condition, np.ndarray]],
    real: Mapping[Condition, np.ndarray],
    truth: Truth,
) -> Iterable[Record]:
    """Discrimination and collapse of each method, in cell types with several perturbations."""
    for method, found in shifts.items():
        for cell_type in sorted({condition[0] for condition in found}):
            names = [perturbation for of, perturbation in found if of == cell_type]
            if len(names) < 2:
                continue
            measured = separation(
                cell_type,
                method,
                {name: found[cell_type, name] for name in names},
                {name: real[cell_type, name] for name in names},
                truth.controls(cell_type),
                truth.cells.genes,
            )
            yield {
                "cell_type": cell_type,
                "method": method,
                "num_candidates": measured.num_candidates,
                "discrimination_l1": measured.discrimination_l1,
                "discrimination_cosine": measured.discrimination_cosine,
                **asdict(measured.likeness),
                "collapsed": measured.likeness.collapsed,
            }
