"""A job of a quality study as an MLflow run."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.quality_results import JUDGED, is_judged, read_scores
from benchmarks.quality_study import job_from_json
from pipelines.tracking import driver_run

LABELS = ("method", "perturbation", "cell_type")
COSTS = (
    "cpu_seconds_training", "cpu_seconds_generating", "peak_rss_mb", "steps", "validation_nelbo",
)  # fmt: skip
ORIGINS = ("commit", "machine", "data_digest", "split_digest", "trained_model")


def track_job(folder: Path, tracking_uri: str | None) -> None:
    """Log configuration, scores of every method, costs and origin of a scored job.

    A folder has one run in a store: a later sitting that scores it anew, or asks the judges, goes
    on with that run, whose newest values count. A run that the environment names is not it: a study
    has many.
    """
    os.environ.pop("MLFLOW_RUN_ID", None)
    job = job_from_json((folder / "job.json").read_text(encoding="utf-8"))
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    scores = read_scores(folder)
    labels = {"study": job.study, "variant": job.variant, "fold": job.fold, "seed": str(job.seed)}
    origin = {name: str(facts[name]) for name in ORIGINS}
    with driver_run(
        "quality", experiment_dir=folder, experiment="quality", tracking_uri=tracking_uri
    ) as run:
        run.log_config(asdict(job.config), text=job.config.to_yaml())
        run.set_tags(labels | origin | {"scoring": scores["scoring"]})
        run.log_metrics(dict(_costs(facts)) | dict(_scores(scores)))
        run.log_artifacts(folder / "scores.json")
        for name in JUDGED if is_judged(folder) else ():
            run.log_artifacts(folder / name)


def _costs(facts: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name in COSTS:
        if facts[name] == facts[name]:
            yield f"cost/{name}", float(facts[name])


def _scores(content: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Every defined number, under its name and the labels it belongs to."""
    for record in (*content["records"], *content["separation"]):
        path = "/".join(record[label] for label in LABELS if label in record)
        for name, value in record.items():
            if name not in LABELS and value == value:
                yield f"quality/{name}/{path}", float(value)
