"""The model card: what a model is for, what it was scored on, and where it is known to fail.

Everything that can be computed is: failures are the conditions whose scores miss `CHECKS`, not
what somebody remembered to write down.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import numpy as np

from sedd.evaluation.baselines import BASELINES, CEILING, CONTROL_HISTOGRAM
from sedd.evaluation.discrimination import Separation
from sedd.evaluation.metrics import Scores
from sedd.evaluation.plots import method_label
from sedd.evaluation.report import METRICS, ConditionResult, Metric, Provenance, order_methods
from sedd.evaluation.report import to_markdown as summary_markdown
from sedd.evaluation.trust import share_of_attainable
from sedd.evaluation.wording import format_value, interval_text
from sedd.storage import write_text

TEMPLATE = Path(__file__).with_name("model_card.md.j2")
POOR_RELIABILITY = 0.5


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What the results do not say about themselves; None or empty is "not recorded"."""

    name: str
    data_file: str
    num_cells: int
    num_genes: int
    cell_types: tuple[str, ...]
    perturbations: tuple[str, ...]
    control_name: str
    split_kind: str
    held_out: tuple[tuple[str, str], ...]
    num_parameters: int
    training_step: int
    training_seed: int
    training_seconds: float | None
    mode: str
    num_steps: int
    commands: tuple[str, ...]
    provenance: Provenance


@dataclass(frozen=True)
class Check:
    """What every score of a model is asked; `fails` takes the value."""

    title: str
    metric: str
    fails: Callable[[float], bool]


CHECKS = (
    Check("Variance ratio outside 0.9 to 1.15", "variance_ratio", lambda v: not 0.9 <= v <= 1.15),
    Check("Zero-fraction error above 0.02", "zero_fraction_error", lambda v: v > 0.02),
    Check("Fewer than 60 of the top 100 genes in common", "common_degs", lambda v: v < 0.6),
    Check("Gene–gene correlations below 0.8", "correlation_structure", lambda v: v < 0.8),
)


@dataclass(frozen=True)
class Failure:
    """A check with the conditions that miss it; without cases it was passed everywhere."""

    title: str
    cases: tuple[str, ...]


def write_model_card(
    path: Path,
    results: Sequence[ConditionResult],
    facts: CardFacts,
    separations: Sequence[Separation] = (),
) -> None:
    """Write the card as Markdown."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"plain": plain, "code": code, "value": format_value}
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(
        facts=facts,
        results=results,
        separations=separations,
        summary=summary_markdown(results, bold=False),
        failures=known_failures(results, separations),
        titles={metric.key: metric.title for metric in METRICS if metric.key != "nelbo"},
        order_methods=order_methods,
        method_label=method_label,
        cell=_score_text,
        share=share_of_attainable,
    )
    write_text(path, page)


def known_failures(
    results: Sequence[ConditionResult], separations: Sequence[Separation] = ()
) -> tuple[Failure, ...]:
    """What the scores of the model's own modes say against it, check by check.

    A baseline counts as better where its loss is smaller, whether or not the intervals overlap;
    the case says which. Undefined values fail nothing.
    """
    metrics = {metric.key: metric for metric in METRICS}
    unreliable = [
        f"{_condition(result)} (reliability {format_value(result.limits.shift_reliability)})"
        for result in results
        if result.limits is not None and result.limits.shift_reliability < POOR_RELIABILITY
    ]
    collapsed = [
        f"{each.cell_type}, {method_label(each.method)} (likeness "
        f"{format_value(each.likeness.predicted)}, real {format_value(each.likeness.real)})"
        for each in separations
        if _is_model(each.method) and each.likeness.collapsed
    ]
    return (
        *(
            Failure(
                f"A baseline is better on {metrics[key].title}",
                tuple(_beaten(results, metrics[key])),
            )
            for key in ("pearson", "energy_distance", "common_degs")
        ),
        *(
            Failure(
                check.title,
                tuple(
                    f"{_condition(result)}, {method_label(method)} ({format_value(value)})"
                    for result, method, scores in _model_scores(results)
                    for value in (getattr(scores, check.metric),)
                    if not np.isnan(value) and check.fails(value)
                ),
            )
            for check in CHECKS
        ),
        Failure("The real shift is hardly reproducible, so scores mean little", tuple(unreliable)),
        Failure("Predictions of different perturbations are too alike", tuple(collapsed)),
    )


def plain(text: str) -> str:
    """Text that Markdown and HTML show as it is, on one line."""
    one_line = " ".join(str(text).split())
    escaped = one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\`*_\[\]|#~])", r"\\\1", escaped)


def code(text: str) -> str:
    """Text as a code span, which nothing in it can end."""
    return "`" + " ".join(str(text).split()).replace("`", "'").replace("|", "¦") + "`"


def _beaten(results: Sequence[ConditionResult], metric: Metric) -> Iterator[str]:
    """Where a baseline's loss is smaller than that of a mode of the model."""
    for result, method, scores in _model_scores(results):
        value = getattr(scores, metric.key)
        rivals: Mapping[str, float] = {
            name: getattr(result.scores[name], metric.key)
            for name in BASELINES
            if name in result.scores and not np.isnan(getattr(result.scores[name], metric.key))
        }
        if not rivals or np.isnan(value):
            continue
        best = min(rivals, key=lambda name: metric.loss(rivals[name]))
        if metric.loss(rivals[best]) < metric.loss(value):
            yield (
                f"{_condition(result)}, {method_label(method)} ({format_value(value)} against "
                f"{format_value(rivals[best])} by {method_label(best)}"
                f"{_overlap(result, method, best, metric.key)})"
            )


def _overlap(result: ConditionResult, method: str, rival: str, metric: str) -> str:
    intervals = [
        result.trust[name].intervals[metric] for name in (method, rival) if name in result.trust
    ]
    if len(intervals) < 2 or any(np.isnan(interval.low) for interval in intervals):
        return ""
    one, other = intervals
    overlap = one.low <= other.high and other.low <= one.high
    return ", intervals overlap" if overlap else ", intervals apart"


def _model_scores(
    results: Sequence[ConditionResult],
) -> Iterator[tuple[ConditionResult, str, Scores]]:
    for result in results:
        for method, scores in result.scores.items():
            if _is_model(method):
                yield result, method, scores


def _is_model(method: str) -> bool:
    return method not in (*BASELINES, CONTROL_HISTOGRAM, CEILING)


def _condition(result: ConditionResult) -> str:
    return f"{result.cell_type} × {result.perturbation}"


def _score_text(result: ConditionResult, method: str, metric: str) -> str:
    """A score with its interval, for a table."""
    trust = result.trust.get(method)
    interval = interval_text(trust.intervals.get(metric) if trust else None)
    text = format_value(getattr(result.scores[method], metric))
    return f"{text} ({interval})" if interval else text
