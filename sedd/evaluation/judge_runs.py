"""The two judges themselves: files in, `Verdict` out, and nothing said in between.

Both run through their Python interface: their command lines do the same work, but start a Python
and compile their rank test anew for each prediction (about 15 s against 0.3 s), and cell-eval's
cannot be told that its input is log1p. What they log, print and draw is caught; what cell-eval logs
where a metric breaks becomes the reason why that metric is left out.
"""

import contextlib
import importlib
import io
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

CELL_EVAL = "cell-eval"
CELL_EVAL2 = "cell-eval2"
PERTURBATION = "perturbation"
"""Column of `obs` with the labels."""

ALL = "all"
"""Stands for every perturbation of a question."""

MIN_CORRELATED = 3
"""Fewer points than this always correlate at -1, 1 or not at all."""

NEIGHBOURS = 15
"""cell-eval clusters mean profiles on a graph of that many neighbours; with no more perturbations
than that, everything is a neighbour of everything and the clusters agree by construction."""

RANKS = (2, "it ranks a prediction among the real perturbations")
CORRELATES = (MIN_CORRELATED, "it correlates over perturbations")
CLUSTERS = (NEIGHBOURS + 2, "it clusters perturbations by their neighbours")
NEEDED_PERTURBATIONS: Mapping[str, Mapping[str, tuple[int, str]]] = {
    CELL_EVAL: {
        **{f"discrimination_score_{distance}": RANKS for distance in ("l1", "l2", "cosine")},
        "pearson_edistance": CORRELATES,
        "de_spearman_sig": CORRELATES,
        "clustering_agreement": CLUSTERS,
    },
    CELL_EVAL2: {"pds_cosine": RANKS},
}

ACROSS = ("pearson_edistance", "de_spearman_sig", "clustering_agreement")
"""Metrics of cell-eval that have one value for all perturbations together."""

OF_SIGNIFICANT = (
    *(f"{kind}_at_{k}" for kind in ("overlap", "precision") for k in ("N", 50, 100, 200, 500)),
    *("de_direction_match", "de_spearman_lfc_sig", "de_sig_genes_recall", "pr_auc", "roc_auc"),
)
"""Metrics of cell-eval about the genes that are significant in the real cells."""


@dataclass(frozen=True)
class LeftOut:
    """A metric that says nothing on these cells, and why; `perturbation` may be "all"."""

    metric: str
    perturbation: str
    reason: str


@dataclass(frozen=True)
class Verdict:
    """What one judge says of one prediction: only finite numbers that mean something.

    `per_perturbation[metric][perturbation]`; `aggregated[metric]` is the judge's own aggregate of
    those (the mean, or a ratio of sums), or a metric that exists only over all perturbations.
    """

    judge: str
    version: str
    per_perturbation: Mapping[str, Mapping[str, float]]
    aggregated: Mapping[str, float]
    left_out: tuple[LeftOut, ...]


@dataclass(frozen=True)
class Files:
    """A prediction and its truth on disk, as `judges.write_question` wrote them."""

    prediction: Path
    truth: Path
    control_name: str
    perturbations: tuple[str, ...]
    genes: tuple[str, ...]


def run_cell_eval(files: Files, version: str, num_threads: int) -> Verdict:
    """Every metric of cell-eval's profile `full` that says something on these cells."""
    left_out = _for_too_few(CELL_EVAL, files)
    with _quiet() as said, tempfile.TemporaryDirectory() as scratch:
        # By name, since neither package need be installed where this file is type-checked.
        cell_eval = importlib.import_module("cell_eval")
        evaluator = cell_eval.MetricsEvaluator(
            adata_pred=str(files.prediction),
            adata_real=str(files.truth),
            control_pert=files.control_name,
            pert_col=PERTURBATION,
            num_threads=num_threads,
            outdir=scratch,
            pdex_kwargs={"is_log1p": True},
        )
        skipped = [entry.metric for entry in left_out]
        frame, _ = evaluator.compute(profile="full", skip_metrics=skipped, write_csv=False)
        asked = [name for name in cell_eval.metrics_registry.list_metrics() if name not in skipped]
    asked.remove("de_nsig_counts")  # it comes as two columns
    rows = {str(row["perturbation"]): row for row in frame.to_dicts()}
    values = {
        metric: {name: row.get(metric) for name, row in rows.items()}
        for metric in dict.fromkeys([*asked, *frame.columns])
        if metric != "perturbation"
    }
    return _verdict_of_cell_eval(version, values, left_out, said)


def run_cell_eval2(files: Files, version: str, num_threads: int) -> Verdict:
    """The metrics of cell-eval2's preset `vcc2026`, six scored and their components.

    The rank test is pdex's and the device the CPU, wherever it runs: the numbers differ between
    engines. A label that is a gene of the panel names its target; all others (a cytokine, "A+B")
    are declared to have none, since the judge would otherwise refuse or guess.
    """
    left_out = _for_too_few(CELL_EVAL2, files)
    targets = {name: name if name in files.genes else None for name in files.perturbations}
    with _quiet():
        judge = importlib.import_module("cell_eval2")
        preset = judge.EvalConfig.from_preset("vcc2026")
        config = replace(
            preset,
            pert_col=PERTURBATION,
            control=files.control_name,
            device="cpu",
            de=replace(preset.de, backend="pdex"),
            num_threads=num_threads,
            gather_threads=num_threads,
            target_gene_map=targets,
        )
        frame = judge.compute_metrics(str(files.prediction), str(files.truth), config=config)
        catalog = importlib.import_module("cell_eval2.catalog").CATALOG
        asked = importlib.import_module("cell_eval2.run").metric_output_names(config)
        asked = [name for name in asked if name not in {entry.metric for entry in left_out}]
        ratios = [name for name in asked if catalog[name].derived is not None]
        given = {
            (metric, name): value
            for name, metric, value in frame.select("perturbation", "metric", "value").iter_rows()
        }
        values = {
            metric: {name: given.get((metric, name)) for name in files.perturbations}
            for metric in asked
            if metric not in ratios
        }
        per_perturbation, undefined = _finite(values)
        left_out += _merged(undefined, len(files.perturbations))
        frame = frame.filter(frame["metric"].is_in(list(values)))
        aggregated = _aggregates(judge.aggregate_metrics(frame, metrics=list(values)))
        aggregated = {metric: aggregated[metric] for metric in per_perturbation}
        for name in ratios:
            try:
                found = _aggregates(judge.aggregate_metrics(frame, metrics=[name]))
                aggregated[name] = found[name]
            except ValueError as error:
                left_out.append(LeftOut(name, ALL, _sentence(str(error))))
    return Verdict(CELL_EVAL2, version, per_perturbation, aggregated, tuple(left_out))


RUNS: Mapping[str, Callable[[Files, str, int], Verdict]] = {
    CELL_EVAL: run_cell_eval,
    CELL_EVAL2: run_cell_eval2,
}


def _for_too_few(judge: str, files: Files) -> list[LeftOut]:
    """Metrics over perturbations that too few perturbations make a constant."""
    num = len(files.perturbations)
    return [
        LeftOut(metric, ALL, f"{why}: needs {needed} perturbations, here {num}")
        for metric, (needed, why) in NEEDED_PERTURBATIONS[judge].items()
        if num < needed
    ]


def _verdict_of_cell_eval(
    version: str,
    values: Mapping[str, Mapping[str, float | None]],
    left_out: Sequence[LeftOut],
    said: Sequence[str],
) -> Verdict:
    """Drops what cell-eval fills with 0, 1 or NaN where the real cells say nothing."""
    counts = values["de_nsig_counts_real"]
    significant = {name: int(count or 0) for name, count in counts.items()}
    silent = {metric: _without_signal(metric, significant) for metric in values}
    dropped = [LeftOut(m, p, why) for m, reasons in silent.items() for p, why in reasons.items()]
    finite, undefined = _finite(
        {
            metric: {name: value for name, value in row.items() if name not in silent[metric]}
            for metric, row in values.items()
        },
        said,
    )
    per_perturbation = {metric: found for metric, found in finite.items() if metric not in ACROSS}
    aggregated = {metric: sum(v.values()) / len(v) for metric, v in per_perturbation.items()}
    aggregated |= {m: next(iter(finite[m].values())) for m in ACROSS if m in finite}
    everything = (*left_out, *_merged([*dropped, *undefined], len(significant)))
    return Verdict(CELL_EVAL, version, per_perturbation, aggregated, everything)


def _without_signal(metric: str, significant: Mapping[str, int]) -> dict[str, str]:
    """Perturbations on which a metric of significant genes has nothing to look at, and why."""
    if metric == "de_spearman_sig":
        num = sum(count > 0 for count in significant.values())
        why = f"it correlates over perturbations with significant real genes: there are {num}"
        return dict.fromkeys(significant, why) if num < MIN_CORRELATED else {}
    if metric not in OF_SIGNIFICANT:
        return {}
    # With fewer significant genes than k, the metric at k is the one at N again.
    k = metric.rpartition("_at_")[2]
    needed = int(k) if k.isdigit() else MIN_CORRELATED if metric == "de_spearman_lfc_sig" else 1
    return {
        name: f"the real cells have fewer than {needed} significant gene{'s' * (needed > 1)}"
        for name, count in significant.items()
        if count < needed
    }


def _finite(
    values: Mapping[str, Mapping[str, float | None]], said: Sequence[str] = ()
) -> tuple[dict[str, dict[str, float]], list[LeftOut]]:
    """The finite values by metric, and the others as left out, with what the judge said of them."""
    kept: dict[str, dict[str, float]] = {}
    undefined = []
    for metric, row in values.items():
        heard = next((_sentence(text) for text in said if f"'{metric}'" in text), "")
        why = heard or "the judge gives no number: nothing varies, or too little passes its gates"
        for name, value in row.items():
            if value is not None and math.isfinite(value):
                kept.setdefault(metric, {})[name] = float(value)
            else:
                undefined.append(LeftOut(metric, name, why))
    return kept, undefined


def _merged(entries: Iterable[LeftOut], num_perturbations: int) -> list[LeftOut]:
    """One entry, "all", for a metric that every perturbation lacks for the same reason."""
    groups: dict[tuple[str, str], list[LeftOut]] = {}
    for entry in entries:
        groups.setdefault((entry.metric, entry.reason), []).append(entry)
    merged: list[LeftOut] = []
    for (metric, reason), group in groups.items():
        whole = len(group) == num_perturbations
        merged += [LeftOut(metric, ALL, reason)] if whole else group
    return merged


def _aggregates(frame: Any) -> dict[str, float]:
    return dict(frame.select("metric", "mean").iter_rows())


def _sentence(text: str) -> str:
    """The first sentence, which says what; the rest tells the judge's developers why."""
    return text.split(". ")[0].strip().rstrip(".")


class _Heard(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@contextlib.contextmanager
def _quiet() -> Iterator[Sequence[str]]:
    """Keep a judge's bars, logs and warnings from the user; yields the errors that it logs."""
    heard = _Heard()
    loggers = [logging.getLogger(name) for name in ("cell_eval", "cell_eval2", "pdex")]
    before = [logger.propagate for logger in loggers]
    for logger in loggers:
        logger.addHandler(heard)
        logger.propagate = False
    try:
        with (
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")
            yield heard.messages
    finally:
        for logger, propagate in zip(loggers, before, strict=True):
            logger.removeHandler(heard)
            logger.propagate = propagate
