"""Scores of what a job predicted: the model's two modes, and once per fold the baselines."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np

from benchmarks.quality_job import MODES, Predicted, read_predicted
from benchmarks.quality_results import scoring_digest
from benchmarks.quality_study import Job, job_from_json, load_job_cells
from benchmarks.quality_vectors import read_perturbations
from pipelines.experiment import split_cells
from pipelines.scoring import Truth, make_truth, paired, separate, units_of
from sedd.data.cells import Cells
from sedd.data.splits import Split
from sedd.data.tokens import Tokenizer
from sedd.evaluation.baselines import baseline_predictions
from sedd.evaluation.discrimination import Separation
from sedd.evaluation.metrics import limits, score
from sedd.evaluation.prediction import Prediction
from sedd.storage import write_text

Record = Mapping[str, object]
Condition = tuple[str, str]


def score_job(folder: Path, *, baselines: bool) -> None:
    """Write `scores.json` into the folder of a job: one record per condition and method."""
    job = job_from_json((folder / "job.json").read_text(encoding="utf-8"))
    truth = read_truth(job, folder, tokens=baselines)
    predictions = {mode: read_predicted(folder, mode, truth.cells.kind) for mode in MODES}
    records = []
    shifts: dict[Condition, dict[str, np.ndarray]] = {}
    for condition in job.conditions:
        real = truth.log1p[truth.held_out(*condition)]
        control = truth.controls(condition[0])
        made = [
            paired(truth, condition[0], prediction_of(mode, predictions[mode][condition], job))
            for mode in MODES
        ]
        if baselines:
            made += baseline_predictions(truth.training, *condition, real_log1p=real)
        bounds = asdict(limits(real, control))
        control_mean = control.mean(0, dtype=np.float64)
        shifts[condition] = {each.name: each.mean_log1p - control_mean for each in made}
        for prediction in made:
            scored = asdict(score(prediction, real, control))
            records.append(
                {"cell_type": condition[0], "perturbation": condition[1],
                 "num_real": len(real), "num_control": len(control),
                 "method": prediction.name, **scored, **bounds}
            )  # fmt: skip
    content = {
        "scoring": scoring_digest(),
        "records": records,
        "separation": [_separation_record(each) for each in separate(truth, shifts)],
    }
    write_text(folder / "scores.json", json.dumps(content))


def read_truth(job: Job, folder: Path, *, tokens: bool) -> Truth:
    """Real cells over the genes that a job predicted; with tokens, for the token tilt.

    Raises:
        ValueError: The job held out other cells than its configuration says now.
    """
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    cells = load_job_cells(job.config, job.only, job.merged).select(None, facts["genes"])
    split = split_cells(job.config, cells)
    if split.digest != facts["split_digest"]:
        raise ValueError(f"{folder} was predicted with another split than its configuration makes.")
    return make_truth(
        cells,
        split,
        job.config.data.control_name,
        read_perturbations(job.config.data, cells),
        _tokenizer(job, cells, split) if tokens else None,
    )


def _tokenizer(job: Job, cells: Cells, split: Split) -> Tokenizer:
    """The bins of the model, which no training has to be read for."""
    return Tokenizer.fit(
        cells.expression[split.train].toarray(),
        kind=cells.kind,
        exact=job.config.data.exact_counts,
        ratio=job.config.data.bin_ratio,
    )


def prediction_of(mode: str, made: Predicted, job: Job) -> Prediction:
    """Generated cells as the evaluation takes them."""
    units = units_of(len(made.depth), job.config.inference.shard_size)
    return Prediction.of_cells(mode, made.log1p, made.control_row, units)


def _separation_record(measured: Separation) -> Record:
    return {
        "cell_type": measured.cell_type,
        "method": measured.method,
        "num_candidates": measured.num_candidates,
        "discrimination_l1": measured.discrimination_l1,
        "discrimination_cosine": measured.discrimination_cosine,
        **asdict(measured.likeness),
        "collapsed": measured.likeness.collapsed,
    }
