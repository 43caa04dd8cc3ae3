"""What the judges said, as tables: one long file, a summary for people, flat names for tracking."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from sedd.evaluation.baselines import CEILING
from sedd.evaluation.judge_runs import ALL, CELL_EVAL, CELL_EVAL2, LeftOut, Verdict
from sedd.evaluation.report import ReportTable, format_value, order_methods

LOWER, HIGHER = -1, 1
HEADLINES: Mapping[str, Mapping[str, int]] = {
    CELL_EVAL: {
        "pearson_delta": HIGHER,
        "mae": LOWER,
        "discrimination_score_l1": HIGHER,
        "overlap_at_N": HIGHER,
        "precision_at_N": HIGHER,
        "de_direction_match": HIGHER,
        "de_spearman_lfc_sig": HIGHER,
        "de_sig_genes_recall": HIGHER,
        "roc_auc": HIGHER,
    },
    CELL_EVAL2: {
        "pds_cosine": HIGHER,
        "expr_mse_unbiased_capped_norm": LOWER,
        "de_wilcoxon_direction_fidelity_yield_raw": HIGHER,
        "de_wilcoxon_direction_reach_raw": HIGHER,
        "de_wilcoxon_sig_jaccard": HIGHER,
        "de_wilcoxon_lfc_nmae": LOWER,
    },
}
"""Columns of the summary and which way is better; for cell-eval2, the six that are scored."""

CAPTIONS: Mapping[str, str] = {
    CELL_EVAL: (
        "Means over cell types of its own aggregates, on log1p of counts per 10,000 of the whole "
        "library, with real controls on both sides. mae: lower is better; the others: higher."
    ),
    CELL_EVAL2: (
        "Preset vcc2026 on whole counts, real controls on both sides; means over cell types. "
        "expr_mse_unbiased_capped_norm (1 would be predicting the mean of the controls without "
        "noise; copies of the controls have more) and de_wilcoxon_lfc_nmae: lower is better; the "
        "others: higher. Its significances take cells for independent, which generated cells of a "
        "unit are not."
    ),
}


@dataclass(frozen=True)
class Judged:
    """A verdict on what one method predicted for one cell type."""

    method: str
    cell_type: str
    verdict: Verdict


def verdict_table(judged: Sequence[Judged]) -> pd.DataFrame:
    """One row per number; `perturbation` is "all" for aggregates."""
    columns = ["judge", "version", "method", "cell_type", "perturbation", "metric", "value"]
    rows = [
        (v.judge, v.version, entry.method, entry.cell_type, perturbation, metric, value)
        for entry in judged
        for v in (entry.verdict,)
        for metric, perturbation, value in (
            *((m, ALL, value) for m, value in v.aggregated.items()),
            *((m, p, value) for m, row in v.per_perturbation.items() for p, value in row.items()),
        )
    ]
    return pd.DataFrame(rows, columns=columns)


def left_out_table(judged: Sequence[Judged]) -> pd.DataFrame:
    """One row per metric that was left out, with the reason."""
    columns = ["judge", "method", "cell_type", "perturbation", "metric", "reason"]
    rows = [
        (entry.verdict.judge, entry.method, entry.cell_type, out.perturbation, out.metric, why)
        for entry in judged
        for out in entry.verdict.left_out
        for why in (out.reason,)
    ]
    return pd.DataFrame(rows, columns=columns)


def judge_summary(judged: Sequence[Judged], judge: str) -> pd.DataFrame:
    """Methods by headline metrics: means over cell types of the judge's aggregates.

    A metric that says nothing for any method has no column; `cell_types` counts what was judged.
    """
    entries = [entry for entry in judged if entry.verdict.judge == judge]
    methods = order_methods(entry.method for entry in entries)
    rows = {
        method: [e.verdict.aggregated for e in entries if e.method == method] for method in methods
    }
    table = pd.DataFrame(
        {
            metric: [
                _mean(row[metric] for row in rows[method] if metric in row) for method in methods
            ]
            for metric in HEADLINES[judge]
        },
        index=pd.Index(methods),
    ).dropna(axis="columns", how="all")
    return table.assign(cell_types=[len(rows[method]) for method in methods])


def judge_report(judged: Sequence[Judged]) -> tuple[ReportTable, ...]:
    """A table for each judge, the best values marked, with what was left out beneath."""
    return tuple(
        ReportTable(
            title=f"The judge {judge} {version}",
            caption=CAPTIONS[judge],
            table=(table := judge_summary(judged, judge)),
            best=_best(table, HEADLINES[judge]),
            notes=_notes(judged, judge),
        )
        for judge, version in dict.fromkeys((e.verdict.judge, e.verdict.version) for e in judged)
    )


def judge_metrics(judged: Sequence[Judged]) -> dict[str, float]:
    """`judge/JUDGE/METHOD/METRIC`: means over cell types of every aggregate."""
    values: dict[str, list[float]] = {}
    for entry in judged:
        for metric, value in entry.verdict.aggregated.items():
            name = f"judge/{entry.verdict.judge}/{entry.method}/{metric}"
            values.setdefault(name, []).append(value)
    return {name: _mean(found) for name, found in values.items()}


def _best(table: pd.DataFrame, headlines: Mapping[str, int]) -> dict[str, frozenset[str]]:
    """Who has the best printed value of each column, the ceiling not competing."""
    best = {}
    for metric in table.columns.intersection(list(headlines)):
        competing = table[metric].drop(CEILING, errors="ignore").dropna()
        if len(competing):
            first = competing.iloc[int((competing * headlines[str(metric)]).argmax())]
            same = competing.map(format_value) == format_value(float(first))
            best[str(metric)] = frozenset(map(str, competing.index[same]))
    return best


def _notes(judged: Sequence[Judged], judge: str) -> tuple[str, ...]:
    """What was left out for whole cell types; single perturbations are in the file only."""
    found: dict[LeftOut, list[Judged]] = {}
    for entry in judged:
        for out in entry.verdict.left_out if entry.verdict.judge == judge else ():
            if out.perturbation == ALL:
                found.setdefault(out, []).append(entry)
    everyone = {entry.method for entry in judged}
    notes = []
    for out, entries in found.items():
        types = ", ".join(dict.fromkeys(entry.cell_type for entry in entries))
        methods = dict.fromkeys(entry.method for entry in entries)
        of = "" if set(methods) == everyone else f" for {', '.join(methods)}"
        notes.append(f"Left out{of} ({types}): {out.metric}, {out.reason}.")
    return tuple(notes)


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return float(np.mean(found)) if found else float("nan")
