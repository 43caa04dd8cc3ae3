"""The dated page of a quality study, from the scores in its folders."""

import datetime
from collections.abc import Sequence

import pandas as pd

from benchmarks.markdown import counted, interval, number, spoken, spread, table
from benchmarks.quality_job import MODES
from benchmarks.quality_judges import judges_section
from benchmarks.quality_results import Results, difference_of, mean_of
from benchmarks.quality_study import Published, Study, source_digest
from benchmarks.quality_targets import TARGETS
from sedd.evaluation.baselines import (
    ADDITIVE,
    BASELINES,
    CEILING,
    MEAN_OF_OTHERS,
    RIDGE,
    TOKEN_TILT,
)

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
OF_CONDITIONS = (
    "pearson", "energy_distance", "common_degs", "variance_ratio", "correlation_structure",
)  # fmt: skip
OF_DIFFERENCES = ("pearson", "energy_distance", "common_degs")
NEEDS = {
    ADDITIVE: "another type that shows the perturbation, or the parts of a combination alone",
    RIDGE: "another type that shows the perturbation, or given vectors",
    TOKEN_TILT: "another type that shows the perturbation",
    MEAN_OF_OTHERS: "other perturbed cells",
    CEILING: "four real cells",
}
"""What a method that may be absent cannot do without (`baselines.baseline_predictions`)."""


def to_markdown(study: Study, results: Results, *, command: str) -> str:
    """The dated page of a study."""
    main = results.of_variant(next(iter(study.variants)))
    parts = [
        f"# {study.name}, {datetime.datetime.now(datetime.UTC):%Y-%m-%d}",
        study.question,
        _head(results, command),
    ]
    if study.caution is not None:
        parts.append(f"**Not independent:** {study.caution}")
    if study.targets:
        parts += ["## Targets", _target_table(study.targets, main)]
    parts += [
        "## All methods",
        f"Mean over conditions of the mean over seeds, {_sureness(main.scores)} `of attainable` "
        "divides by the reliability of the real shift (split halves, Spearman-Brown).",
        _method_table(main.scores),
        *_absent(main.scores),
        "Paired differences, model minus baseline, over the conditions that both have:",
        _difference_table(main.scores),
    ]
    if study.published is not None:
        parts += ["## Published figures", _published(study.published, main.scores)]
    if len(main.judged):
        parts += ["## The field's judges", judges_section(main.judged, main.left_out)]
    if len(main.separation):
        parts += ["## Telling perturbations apart", _separation_table(main.separation)]
    if len(study.variants) > 1:
        parts += ["## Variants", _variant_table(study, results)]
    parts += ["## Every condition", _condition_table(main.scores)]
    return "\n\n".join(parts) + "\n"


def _head(results: Results, command: str) -> str:
    facts = results.facts
    trained = facts.drop_duplicates("trained_model")
    training, generating = trained["cpu_seconds_training"], facts["cpu_seconds_generating"]
    minutes = (training.sum() + generating.sum()) / 60
    data = ", ".join(sorted(set(facts["data_digest"].str[:12])))
    commits = ", ".join(sorted(set(facts["commit"])))
    scoring = ", ".join(sorted(set(facts["scoring"].str[:12])))
    genes = ", ".join(sorted({str(len(names)) for names in facts["genes"]}))
    return (
        f"`{command}`. Data {data}; {genes} genes; seeds {sorted(set(facts['seed']))}; "
        f"{counted(len(trained), 'training')}, {minutes:.0f} CPU minutes in all "
        f"(training {training.median():.0f} s and generating {generating.median():.0f} s in the "
        f"median, at most "
        f"{facts['peak_rss_mb'].max()} MB). Commit {commits}; sources of the prediction "
        f"{source_digest()[:12]}, of the scores {scoring}; "
        f"{facts['machine'].iloc[0]}."
    )


def _sureness(rows: pd.DataFrame) -> str:
    """What the intervals are over, and so what they speak for."""
    groups, conditions = rows["group"].nunique(), rows["condition"].nunique()
    by_type = (rows["group"] == rows["cell_type"]).all()
    unit, other = ("cell type", "perturbation") if by_type else ("perturbation", "cell type")
    if groups < 2:
        return f"without intervals, since {counted(groups, unit)} says nothing about others."
    text = f"with a 95 % interval over {counted(groups, unit)} (`sedd.evaluation.uncertainty`)"
    if groups == conditions:
        return f"{text}."
    shared = (
        "its control cells and a model that never saw it perturbed" if by_type else "its effect"
    )
    return (
        f"{text}: of the {conditions} conditions, those of one {unit} are drawn together, since "
        f"they share {shared}. It speaks for other {unit}s and takes the {other}s as they are."
    )


def _target_table(names: Sequence[str], results: Results) -> str:
    lines = []
    for name in names:
        target = TARGETS[name]
        found = [target.found(results, mode) for mode in MODES]
        lines.append(
            [target.wanted, *(f"{'met' if f.met else 'MISSED'}: {f.value}" for f in found)]
        )
    return table(["target", *MODES], lines)


def _methods(rows: pd.DataFrame) -> list[str]:
    present = set(rows["method"])
    return [name for name in (*MODES, *BASELINES, CEILING) if name in present]


def _mean(rows: pd.DataFrame, metric: str) -> str:
    pattern = FORMATS.get(metric, "{:.3f}")
    return interval(mean_of(rows, metric), pattern)


def _method_table(rows: pd.DataFrame) -> str:
    lines = (
        [spoken(method), *(_mean(rows[rows["method"] == method], metric) for metric in METRICS)]
        for method in _methods(rows)
    )
    return table(["method", *METRICS.values()], lines)


def _absent(rows: pd.DataFrame) -> list[str]:
    """A line on what could not be scored, and why."""
    missing = [name for name in NEEDS if name not in set(rows["method"])]
    text = "; ".join(f"{spoken(name)} (needs {NEEDS[name]})" for name in missing)
    return [f"Left out: {text}."] if missing else []


def _difference_table(rows: pd.DataFrame) -> str:
    """Each mode against every baseline that was scored."""
    lines = []
    for mode in MODES:
        mine = rows[rows["method"] == mode]
        for baseline in (name for name in _methods(rows) if name in BASELINES):
            other = rows[rows["method"] == baseline]
            shared = len(set(mine["condition"]) & set(other["condition"]))
            found = (
                interval(difference_of(mine, other, metric), "{:+.3f}") for metric in OF_DIFFERENCES
            )
            lines.append([spoken(mode), spoken(baseline), str(shared), *found])
    head = ["model", "baseline", "conditions", *(METRICS[metric] for metric in OF_DIFFERENCES)]
    return table(head, lines)


def _published(published: Published, rows: pd.DataFrame) -> str:
    """Our means, and beneath them what others printed."""
    ours = (
        [f"{spoken(method)} (ours)"]
        + [_mean(rows[rows["method"] == method], metric) for metric in published.metrics]
        for method in _methods(rows)
    )
    theirs = (
        [method, *(f"{value:.3f}" for value in values)]
        for method, values in published.methods.items()
    )
    head = ["method", *(METRICS[metric] for metric in published.metrics)]
    return f"{published.source}\n\n{table(head, [*ours, *theirs])}"


def _separation_table(rows: pd.DataFrame) -> str:
    head = ["cell type", "method", "PDS (l1)", "PDS (cosine)", "likeness", "real", "collapsed"]
    lines = (
        [
            str(cell_type),
            spoken(method),
            spread(group["discrimination_l1"], "{:.3f}"),
            spread(group["discrimination_cosine"], "{:.3f}"),
            spread(group["predicted"], "{:.2f}"),
            spread(group["real"], "{:.2f}"),
            _collapsed(group),
        ]
        for (cell_type, method), group in rows.groupby(["cell_type", "method"])
    )
    return table(head, lines)


def _collapsed(rows: pd.DataFrame) -> str:
    """Whether the alarm rang in any seed whose likeness is defined."""
    defined = rows[rows[["predicted", "real"]].notna().all(axis=1)]
    if defined.empty:
        return "n/a"
    return "yes" if defined["collapsed"].any() else "no"


def _variant_table(study: Study, results: Results) -> str:
    """What each variant changes, over the folds that it shares with the first, and its training."""
    first = next(iter(study.variants))
    scores, lines = results.scores, []
    for variant in study.variants:
        facts = results.facts[results.facts["variant"] == variant]
        training = [
            number(facts["validation_nelbo"].mean(), "{:.4f}"),
            number(facts["cpu_seconds_training"].mean(), "{:.0f}"),
        ]
        for mode in MODES:
            rows = scores[(scores["variant"] == variant) & (scores["method"] == mode)]
            if rows.empty:
                continue
            base = scores[(scores["variant"] == first) & (scores["method"] == mode)]
            values = [number(mean_of(rows, metric).estimate) for metric in OF_CONDITIONS]
            versus = [
                interval(difference_of(rows, base, metric), "{:+.3f}")
                for metric in ("pearson", "energy_distance")
            ]
            versus = ["", ""] if variant == first else versus
            lines.append([variant, mode, *values, *versus, *training])
    head = ["variant", "mode", *(METRICS[metric] for metric in OF_CONDITIONS)]
    head += ["Pearson against the first", "energy against the first"]
    return table([*head, "validation NELBO", "training (CPU s)"], lines)


def _condition_table(rows: pd.DataFrame) -> str:
    lines = []
    for name, group in rows.groupby("condition"):
        first = group.iloc[0]
        cells = f"{first['num_control']}, {first['num_real']}"
        for method in _methods(group):
            chosen = group[group["method"] == method]
            values = [spread(chosen[m], FORMATS.get(m, "{:.3f}")) for m in OF_CONDITIONS]
            reliability = f"{first['shift_reliability']:.3f}"
            lines.append([str(name), cells, reliability, spoken(method), *values])
    head = ["condition", "cells (control, real)", "reliability", "method"]
    return table([*head, *(METRICS[metric] for metric in OF_CONDITIONS)], lines)
