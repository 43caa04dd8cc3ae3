"""Scores of what a job predicted: the model's two modes, and once per fold the baselines."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np

from benchmarks.quality_job import MODES, read_predicted
from benchmarks.quality_study import Job, job_from_json, load_job_cells
from benchmarks.quality_vectors import read_perturbations
from pipelines.experiment import split_cells
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
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    cells = load_job_cells(job.config, job.only).select(None, facts["genes"])
    split = split_cells(job.config, cells)
    if split.digest != facts["split_digest"]:
        raise ValueError(f"{folder} was predicted with another split than its configuration makes.")
    log1p = cells.log1p_cp10k()
    training = _training_cells(job, cells, log1p, split)
    if baselines:
        values = cells.expression.toarray()
        training = _with_tokens(training, values, cells.depth, split, job)
    predictions = {mode: read_predicted(folder, mode, cells.kind) for mode in MODES}
    real, records = {}, []
    by_method: dict[str, dict[Condition, np.ndarray]] = {}
    for condition in job.conditions:
        rows = split.test
        rows = rows[(cells.cell_type[rows] == condition[0])]
        rows = rows[cells.perturbation[rows] == condition[1]]
        real[condition] = log1p[rows]
        control = training.log1p[training.rows(condition[0], training.control_name)]
        made = [Prediction.of_cells(mode, predictions[mode][condition].log1p) for mode in MODES]
        if baselines:
            made += baseline_predictions(training, *condition, real_log1p=real[condition])
        bounds = asdict(limits(real[condition], control))
        for prediction in made:
            scored = asdict(score(prediction, real[condition], control))
            by_method.setdefault(prediction.name, {})[condition] = (
                prediction.mean_log1p - control.mean(0, dtype=np.float64)
            )
            records.append(
                {"cell_type": condition[0], "perturbation": condition[1], "num_real": len(rows),
                 "num_control": len(control), "method": prediction.name, **scored, **bounds}
            )  # fmt: skip
    content = {
        "records": records,
        "separation": list(_separations(by_method, real, training, cells.genes)),
    }
    write_text(folder / "scores.json", json.dumps(content))


def _training_cells(job: Job, cells: Cells, log1p: np.ndarray, split: Split) -> TrainingCells:
    known = np.sort(np.concatenate([split.train, split.validation]))
    return TrainingCells(
        log1p=log1p[known],
        cell_type=cells.cell_type[known],
        perturbation=cells.perturbation[known],
        control_name=job.config.data.control_name,
        perturbations=read_perturbations(job.config.data, cells),
    )


def _with_tokens(
    training: TrainingCells, values: np.ndarray, depth: np.ndarray, split: Split, job: Job
) -> TrainingCells:
    """The same with tokens, binned as the model bins them, for the token tilt."""
    known = np.sort(np.concatenate([split.train, split.validation]))
    data = job.config.data
    tokenizer = Tokenizer.fit(
        values[split.train],
        kind="counts" if np.issubdtype(values.dtype, np.integer) else "log1p",
        exact=data.exact_counts,
        ratio=data.bin_ratio,
    )

    def decode(tokens: np.ndarray, rows: np.ndarray) -> np.ndarray:
        decoded = tokenizer.decode(tokens, np.random.default_rng(0)).astype(np.float32)
        if tokenizer.kind == "log1p":
            return decoded
        return np.log1p(decoded / depth[known][rows][:, None].astype(np.float32) * 1e4)

    tokens = TokenCells(tokenizer.encode(values[known]), tokenizer.num_bins, decode)
    return replace(training, tokenized=tokens)


def _separations(
    shifts: Mapping[str, Mapping[Condition, np.ndarray]],
    real: Mapping[Condition, np.ndarray],
    training: TrainingCells,
    genes: tuple[str, ...],
) -> Iterable[Record]:
    """Discrimination and collapse of each method, in cell types with several perturbations."""
    for method, found in shifts.items():
        for cell_type in sorted({condition[0] for condition in found}):
            names = [perturbation for of, perturbation in found if of == cell_type]
            if len(names) < 2:
                continue
            control = training.log1p[training.rows(cell_type, training.control_name)]
            measured = separation(
                cell_type,
                method,
                {name: found[cell_type, name] for name in names},
                {name: real[cell_type, name] for name in names},
                control,
                genes,
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
