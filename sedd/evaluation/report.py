"""Tables and the HTML page of an evaluation, from the scores of its conditions."""

import base64
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import jinja2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from sedd.evaluation.baselines import BASELINES, CEILING, CONTROL_HISTOGRAM
from sedd.evaluation.metrics import Limits, Scores
from sedd.evaluation.plots import method_color, method_label
from sedd.evaluation.trust import Trust, attainable_shares, mean_intervals, trust_columns
from sedd.evaluation.uncertainty import Interval
from sedd.evaluation.wording import format_value, interval_text
from sedd.storage import write_text

TEMPLATE = Path(__file__).with_name("report.html.j2")


@dataclass(frozen=True)
class Metric:
    """A column; the smaller the `loss` of a value, the better the value."""

    key: str
    title: str
    loss: Callable[[float], float] = float


METRICS = (
    Metric("pearson", "Pearson", lambda value: -value),
    Metric("mse", "MSE"),
    Metric("energy_distance", "Energy", abs),
    Metric("zero_fraction_error", "Zeros"),
    Metric("variance_ratio", "Variance", lambda value: abs(np.log(value)) if value > 0 else np.inf),
    Metric("common_degs", "DEGs", lambda value: -value),
    Metric("correlation_structure", "Correlation", lambda value: abs(value - 1)),
    Metric("nelbo", "NELBO"),
)
SCORES = tuple(metric.key for metric in METRICS if metric.key != "nelbo")


@dataclass(frozen=True)
class ConditionResult:
    """Everything known about one (cell type, perturbation), by method name.

    `shifts` is what a method says about the mean: its mean log1p minus that of the controls.
    """

    cell_type: str
    perturbation: str
    num_real: int
    num_control: int
    num_generated: int
    scores: Mapping[str, Scores]
    limits: Limits | None = None
    nelbo: Mapping[str, float] = field(default_factory=dict)
    trust: Mapping[str, Trust] = field(default_factory=dict)
    shifts: Mapping[str, np.ndarray] = field(default_factory=dict, compare=False)


@dataclass(frozen=True)
class ReportFigure:
    """A figure of the report with a title and a sentence on what it shows."""

    title: str
    caption: str
    figure: Figure


@dataclass(frozen=True, eq=False)
class ReportTable:
    """A further table of the report, one row per method, with the best methods of each column."""

    title: str
    caption: str
    table: pd.DataFrame
    best: Mapping[str, frozenset[str]]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Provenance:
    """What was evaluated and how to do it again."""

    data_digest: str
    split_hash: str
    model_digest: str
    seed: int
    command: str
    versions: Mapping[str, str]


def order_methods(methods: Iterable[str]) -> tuple[str, ...]:
    """Without repeats: model modes as they come, then baselines, then the ceiling."""
    last = (*BASELINES, CONTROL_HISTOGRAM, CEILING)
    known = dict.fromkeys(methods)
    return (
        *(name for name in known if name not in last),
        *(name for name in last if name in known),
    )


def per_condition_table(results: Sequence[ConditionResult]) -> pd.DataFrame:
    """One row per condition and method: scores, NELBO, the condition's limits, intervals."""
    if len(results) == 0:
        msg = "There are no evaluated conditions to tabulate. Score at least one (`metrics.score`)."
        raise ValueError(msg)
    return pd.DataFrame(
        [
            {
                "cell_type": result.cell_type,
                "perturbation": result.perturbation,
                "method": method,
                **_values(result, method),
                "num_real": result.num_real,
                "num_control": result.num_control,
                "num_generated": result.num_generated,
                **asdict(result.limits or Limits(float("nan"), float("nan"))),
                **trust_columns(result.scores.get(method), result.trust.get(method), result.limits),
            }
            for result in results
            for method in order_methods([*result.scores, *result.nelbo])
        ]
    )


def write_per_condition_csv(path: Path, results: Sequence[ConditionResult]) -> None:
    """Write `per_condition_table`; what is undefined is an empty field."""
    write_text(path, per_condition_table(results).to_csv(index=False))


def summary_table(results: Sequence[ConditionResult]) -> pd.DataFrame:
    """One row per method (model, baselines, ceiling): means over the conditions that define them.

    The column `conditions` counts the conditions a method was scored in: rows with different
    numbers were not asked the same questions. The column `nelbo` is there if any result has one.
    """
    rows = per_condition_table(results)
    columns = [*SCORES, *(["nelbo"] if any(result.nelbo for result in results) else [])]
    means = rows.groupby("method")[columns].mean()
    table = means.assign(conditions=rows.groupby("method")["cell_type"].count())
    return table.reindex(list(order_methods(rows["method"])))


def mean_losses(results: Sequence[ConditionResult]) -> pd.DataFrame:
    """The summary by which methods are compared: means over conditions of each metric's loss.

    A method that is 0.5 too low in one condition and 0.5 too high in another has a mean that looks
    perfect; its mean loss does not.
    """
    rows = per_condition_table(results)
    for metric in METRICS:
        rows[metric.key] = rows[metric.key].map(metric.loss, na_action="ignore")
    return rows.groupby("method")[[metric.key for metric in METRICS]].mean()


def best_methods(results: Sequence[ConditionResult]) -> Mapping[str, frozenset[str]]:
    """For each metric, who has the smallest printed mean loss, the ceiling not competing."""
    losses = mean_losses(results).drop(CEILING, errors="ignore")
    best: dict[str, frozenset[str]] = {}
    for key in losses.columns:
        competing = losses[key].dropna()
        printed = competing.map(format_value)
        winners = competing.index[printed == format_value(float(competing.min()))]
        best[str(key)] = frozenset(map(str, winners))
    return best


def verdicts(results: Sequence[ConditionResult]) -> tuple[str, ...]:
    """For each model mode, on what it beats every baseline and on what it does not."""
    losses = mean_losses(results)
    rivals = losses.index.intersection([*BASELINES, CONTROL_HISTOGRAM])
    sentences = []
    for method in order_methods(losses.index.drop(rivals).drop(CEILING, errors="ignore")):
        ahead = (losses.loc[method] - losses.loc[rivals].min()).dropna() < 0
        won, lost = (
            ", ".join(_title(str(key)) for key in ahead.index[mask]) or "nothing"
            for mask in (ahead, ~ahead)
        )
        sentences.append(
            f"{method_label(method)}: ahead of every baseline on {won}; not on {lost}."
        )
    return tuple(sentences)


def to_markdown(results: Sequence[ConditionResult], *, bold: bool = True) -> str:
    """The summary as an aligned Markdown table, fit for a terminal as well; best values bold."""
    table = summary_table(results)
    rows = [("method", *map(_title, table.columns))]
    for row in _rows(table, best_methods(results)):
        texts = (f"**{text}**" if bold and best else text for text, best in row.cells)
        rows.append((row.label, *texts))
    first, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    lines = [
        "| " + " | ".join([row[0].ljust(first), *map(str.rjust, row[1:], widths)]) + " |"
        for row in rows
    ]
    rule = "|".join(["-" * (first + 2), *("-" * (width + 1) + ":" for width in widths)])
    return "\n".join([lines[0], f"|{rule}|", *lines[1:]])


def write_html_report(
    path: Path,
    results: Sequence[ConditionResult],
    *,
    provenance: Provenance,
    figures: Sequence[ReportFigure] = (),
    tables: Sequence[ReportTable] = (),
    title: str = "Predicted against real cells",
) -> None:
    """Write one self-contained HTML file: tables, figures, how to read them, provenance."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    summary = summary_table(results)
    header = [column for column in summary.columns if column != "conditions"]
    conditions = [
        (
            result,
            _rows(
                summary_table([result]).reindex(columns=header),
                best_methods([result]),
                {method: trust.intervals for method, trust in result.trust.items()},
            ),
            attainable_shares(result.scores, result.limits),
        )
        for result in results
    ]
    page = template.render(
        title=title,
        header=[*map(_title, summary.columns)],
        rows=_rows(
            summary, best_methods(results), mean_intervals(per_condition_table(results), SCORES)
        ),
        verdicts=verdicts(results),
        conditions=conditions,
        has_nelbo="nelbo" in summary,
        figures=[(figure, _data_uri(figure.figure)) for figure in figures],
        tables=[(table, _rows(table.table, table.best)) for table in tables],
        provenance=provenance,
        format_value=format_value,
        method_label=method_label,
    )
    write_text(path, page)


@dataclass(frozen=True)
class _Row:
    label: str
    kind: str
    color: str
    cells: tuple[tuple[str, bool], ...]
    intervals: tuple[str, ...]


def _rows(
    table: pd.DataFrame,
    best: Mapping[str, frozenset[str]],
    intervals: Mapping[str, Mapping[str, Interval]] | None = None,
) -> tuple[_Row, ...]:
    kinds = dict.fromkeys((*BASELINES, CONTROL_HISTOGRAM), "baseline") | {CEILING: "ceiling"}
    texts = {str(column): [*map(format_value, table[column].tolist())] for column in table}
    return tuple(
        _Row(
            label=method_label(method),
            kind=kinds.get(method, "model"),
            color=method_color(method),
            cells=tuple((texts[key][i], method in best.get(key, ())) for key in texts),
            intervals=tuple(
                interval_text((intervals or {}).get(method, {}).get(key)) for key in texts
            ),
        )
        for i, method in enumerate(map(str, table.index))
    )


def _values(result: ConditionResult, method: str) -> dict[str, float]:
    nelbo = {"nelbo": result.nelbo[method]} if method in result.nelbo else {}
    scores = asdict(result.scores[method]) if method in result.scores else {}
    return {metric.key: {**scores, **nelbo}.get(metric.key, float("nan")) for metric in METRICS}


def _title(column: str) -> str:
    return next((metric.title for metric in METRICS if metric.key == column), column)


def _data_uri(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
