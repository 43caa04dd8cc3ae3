"""The table of a quality study, from the scores in its folders."""

import datetime
import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.quality_job import MODES
from benchmarks.quality_study import Study
from sedd.evaluation.baselines import (
    ADDITIVE,
    BASELINES,
    CEILING,
    MEAN_OF_OTHERS,
    NO_CHANGE,
    RIDGE,
)
from sedd.evaluation.uncertainty import Interval, mean_interval, paired_difference

METRICS = {
    "pearson": "Pearson of shift",
    "attainable": "of attainable",
    "energy_distance": "energy distance",
    "mse": "MSE of means",
    "common_degs": "common DEGs (100)",
    "variance_ratio": "variance ratio",
    "zero_fraction_error": "zero-fraction error",
    "correlation_structure": "correlation structure",
}
FORMATS = {"mse": "{:.4f}", "zero_fraction_error": "{:.4f}", "variance_ratio": "{:.2f}"}


@dataclass(frozen=True)
class Results:
    """All scores of a study: one row per variant, fold, seed, condition and method."""

    scores: pd.DataFrame
    separation: pd.DataFrame
    facts: pd.DataFrame


def read_results(folders: Sequence[Path]) -> Results:
    """Read what the jobs wrote."""
    scores, separations, facts = [], [], []
    for folder in folders:
        job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        seed = int(job["config"].split("training:")[1].split("seed: ")[1].split("\n")[0])
        where = {"variant": job["variant"], "fold": job["fold"], "seed": seed}
        content = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
        scores += [where | record for record in content["records"]]
        separations += [where | record for record in content["separation"]]
        facts.append(where | json.loads((folder / "facts.json").read_text(encoding="utf-8")))
    table = pd.DataFrame(scores)
    reliability = table["shift_reliability"]
    table["attainable"] = np.where(reliability >= 0.2, table["pearson"] / reliability, np.nan)
    table["condition"] = table["cell_type"] + " × " + table["perturbation"]
    return Results(table, pd.DataFrame(separations), pd.DataFrame(facts))


def to_markdown(study: Study, results: Results, *, command: str) -> str:
    """The dated page of a study."""
    first = next(iter(study.variants))
    main = results.scores[results.scores["variant"] == first]
    parts = [
        f"# {study.name}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        study.question,
        _head(study, results, command),
        "## All methods",
        "Mean over conditions of the mean over seeds, with a 95 % interval over conditions "
        "(`sedd.evaluation.uncertainty`). `of attainable` divides by the reliability of the real "
        "shift (split halves, Spearman-Brown).",
        _method_table(main),
        _differences(main),
        "## Every condition",
        _condition_table(main),
    ]
    if len(results.separation):
        own = results.separation[results.separation["variant"] == first]
        parts += ["## Telling perturbations apart", _separation_table(own)]
    if len(study.variants) > 1:
        parts += ["## Variants", _variant_table(study, results.scores)]
    return "\n\n".join(parts) + "\n"


def _head(study: Study, results: Results, command: str) -> str:
    facts = results.facts
    trained = facts.drop_duplicates("trained_model")
    training, generating = trained["cpu_seconds_training"], facts["cpu_seconds_generating"]
    minutes = (training.sum() + generating.sum()) / 60
    data = ", ".join(sorted(set(facts["data_digest"].str[:12])))
    commits = ", ".join(sorted(set(facts["commit"])))
    genes = ", ".join(sorted({str(len(names)) for names in facts["genes"]}))
    return (
        f"`{command}`. Data {data}; {genes} genes; seeds {sorted(set(facts['seed']))}; "
        f"{len(trained)} trainings, {minutes:.0f} CPU minutes in all "
        f"(training {training.median():.0f} s and generating {generating.median():.0f} s in the "
        f"median, at most "
        f"{facts['peak_rss_mb'].max()} MB). Commit {commits}; {facts['machine'].iloc[0]}."
    )


def _by_condition(rows: pd.DataFrame, metric: str) -> dict[Hashable, list[float]]:
    return {
        str(name): group[metric].astype(float).tolist() for name, group in rows.groupby("condition")
    }


def _methods(rows: pd.DataFrame) -> list[str]:
    present = set(rows["method"])
    return [name for name in (*MODES, *BASELINES, CEILING) if name in present]


def _method_table(rows: pd.DataFrame) -> str:
    lines = [_row(["method", *METRICS.values()]), _row(["---"] * (len(METRICS) + 1))]
    for method in _methods(rows):
        chosen = rows[rows["method"] == method]
        cells = [
            _interval(mean_interval(_by_condition(chosen, metric)), FORMATS.get(metric, "{:.3f}"))
            for metric in METRICS
        ]
        lines.append(_row([method.replace("_", " "), *cells]))
    return "\n".join(lines)


def _differences(rows: pd.DataFrame) -> str:
    """Model minus no change and minus additive (ridge and mean where nothing is to be added)."""
    additive = ADDITIVE in set(rows["method"])
    rivals = (ADDITIVE, NO_CHANGE) if additive else (RIDGE, MEAN_OF_OTHERS, NO_CHANGE)
    lines = ["Paired differences (model - baseline):", ""]
    for mode in MODES:
        mine = rows[rows["method"] == mode]
        for baseline in rivals:
            other = rows[rows["method"] == baseline]
            if other.empty:
                continue
            found = [
                f"{METRICS[metric]} "
                + _interval(
                    paired_difference(_by_condition(mine, metric), _by_condition(other, metric)),
                    "{:+.3f}",
                )
                for metric in ("pearson", "energy_distance", "common_degs")
            ]
            lines.append(f"- {mode} - {baseline.replace('_', ' ')}: " + "; ".join(found))
    return "\n".join(lines)


def _condition_table(rows: pd.DataFrame) -> str:
    shown = ("pearson", "energy_distance", "common_degs", "correlation_structure")
    head = ["condition", "cells (control, real)", "reliability", "method"]
    lines = [_row([*head, *(METRICS[m] for m in shown)]), _row(["---"] * (len(head) + len(shown)))]
    for name, group in rows.groupby("condition"):
        first = group.iloc[0]
        for method in _methods(group):
            chosen = group[group["method"] == method]
            values = [_spread(chosen[metric], FORMATS.get(metric, "{:.3f}")) for metric in shown]
            lines.append(
                _row(
                    [
                        str(name),
                        f"{first['num_control']}, {first['num_real']}",
                        f"{first['shift_reliability']:.3f}",
                        method.replace("_", " "),
                        *values,
                    ]
                )
            )
    return "\n".join(lines)


def _separation_table(rows: pd.DataFrame) -> str:
    lines = [
        _row(["cell type", "method", "PDS (l1)", "PDS (cosine)", "likeness", "real", "collapsed"]),
        _row(["---"] * 7),
    ]
    for (cell_type, method), group in rows.groupby(["cell_type", "method"]):
        lines.append(
            _row(
                [
                    str(cell_type),
                    str(method).replace("_", " "),
                    _spread(group["discrimination_l1"], "{:.3f}"),
                    _spread(group["discrimination_cosine"], "{:.3f}"),
                    _spread(group["predicted"], "{:.2f}"),
                    _spread(group["real"], "{:.2f}"),
                    "yes" if group["collapsed"].any() else "no",
                ]
            )
        )
    return "\n".join(lines)


def _variant_table(study: Study, scores: pd.DataFrame) -> str:
    """What each variant changes, over the folds and seeds that it shares with the first."""
    shown = ("pearson", "energy_distance", "common_degs", "variance_ratio", "correlation_structure")
    lines = [
        _row(["variant", "mode", *(METRICS[m] for m in shown), "Pearson against the first"]),
        _row(["---"] * (len(shown) + 3)),
    ]
    first = next(iter(study.variants))
    for variant in study.variants:
        for mode in MODES:
            rows = scores[(scores["variant"] == variant) & (scores["method"] == mode)]
            if rows.empty:
                continue
            base = scores[(scores["variant"] == first) & (scores["method"] == mode)]
            difference = paired_difference(
                _by_condition(rows, "pearson"), _by_condition(base, "pearson")
            )
            values = [
                f"{mean_interval(_by_condition(rows, metric)).estimate:.3f}" for metric in shown
            ]
            versus = "" if variant == first else _interval(difference, "{:+.3f}")
            lines.append(_row([variant, mode, *values, versus]))
    return "\n".join(lines)


def _interval(interval: Interval, pattern: str) -> str:
    if np.isnan(interval.estimate):
        return "n/a"
    text = pattern.format(interval.estimate)
    if np.isnan(interval.low) or interval.low == interval.high:
        return text
    return f"{text} [{pattern.format(interval.low)}, {pattern.format(interval.high)}]"


def _spread(values: pd.Series, pattern: str) -> str:
    """Mean over seeds, with the standard deviation where there are several."""
    values = values.astype(float).dropna()
    if values.empty:
        return "n/a"
    text = pattern.format(values.mean())
    return text if len(values) < 2 else f"{text} ± {pattern.format(values.std())}"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"
