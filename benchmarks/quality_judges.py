"""The field's judges on the jobs of a quality study, and the section of its page on them."""

import tempfile
from pathlib import Path

import pandas as pd

from benchmarks.markdown import counted, number, spoken, table
from benchmarks.quality_job import MODES, read_predicted
from benchmarks.quality_results import ASKED_BY, judging_digest
from benchmarks.quality_score import prediction_of, read_truth
from benchmarks.quality_study import job_from_json
from pipelines.judging import judge_predictions, write_judged
from sedd.evaluation.judge_runs import ALL
from sedd.evaluation.judge_tables import CAPTIONS, HEADLINES
from sedd.evaluation.judges import JUDGES
from sedd.evaluation.report import order_methods
from sedd.storage import write_text


def judge_job(folder: Path) -> None:
    """Ask every judge about every method of a predicted job; writes tables into its folder."""
    job = job_from_json((folder / "job.json").read_text(encoding="utf-8"))
    truth = read_truth(job, folder, tokens=True)
    found = {mode: read_predicted(folder, mode, truth.cells.kind) for mode in MODES}
    predictions = {
        condition: {mode: prediction_of(mode, found[mode][condition], job) for mode in MODES}
        for condition in job.conditions
    }
    with tempfile.TemporaryDirectory() as files:
        write_judged(folder, judge_predictions(JUDGES, truth, predictions, Path(files)))
    write_text(folder / ASKED_BY, judging_digest())


def judges_section(judged: pd.DataFrame, left_out: pd.DataFrame) -> str:
    """A table of each judge's headline metrics: means over folds and cell types.

    A metric that the judge gave for some of the types only says for how many.
    """
    first = judged.groupby("fold")["seed"].transform("first")
    aggregates = judged[(judged["perturbation"] == ALL) & (judged["seed"] == first)]
    parts = []
    for (judge, version), rows in aggregates.groupby(["judge", "version"]):
        means = rows.pivot_table(index="method", columns="metric", values="value")
        metrics = [name for name in HEADLINES[str(judge)] if name in means]
        lines = (
            [spoken(method), *(number(means.loc[method, name]) for name in metrics)]
            for method in order_methods(means.index)
        )
        types = rows[["fold", "cell_type"]].drop_duplicates()
        heads = [_head(rows[rows["metric"] == name], len(types)) for name in metrics]
        parts += [
            f"**{judge} {version}**, first seed of each fold, {counted(len(types), 'cell type')}. "
            + CAPTIONS[str(judge)],
            table(["method", *heads], lines),
        ]
        parts += _left_out(left_out[left_out["judge"] == judge] if len(left_out) else left_out)
    return "\n\n".join(parts)


def _head(rows: pd.DataFrame, num_types: int) -> str:
    """Name of a metric, with the number of types it is a mean over where that is not all."""
    given = len(rows[["fold", "cell_type"]].drop_duplicates())
    return f"{rows['metric'].iloc[0]}" + (f" ({given} of {num_types})" if given < num_types else "")


def _left_out(rows: pd.DataFrame) -> list[str]:
    """Which metrics were left out for whole cell types, by reason; those of the model's modes."""
    if rows.empty:
        return []
    chosen = rows[(rows["perturbation"] == ALL) & rows["method"].isin(MODES)]
    return [
        f"Left out: {', '.join(sorted(set(metrics)))} ({reason})."
        for reason, metrics in chosen.groupby("reason")["metric"]
    ]
