"""What lets a reader judge a score: its interval, variance calibration, what was attainable."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields

import numpy as np
import pandas as pd
from jaxtyping import Float

from sedd.evaluation.metrics import Limits, Scores
from sedd.evaluation.prediction import Prediction
from sedd.evaluation.resampling import ScoreBootstrap
from sedd.evaluation.uncertainty import Interval, mean_interval
from sedd.evaluation.variance import VarianceCalibration, variance_calibration

MIN_RELIABILITY = 0.2
"""Below it the real shift is mostly noise, and a share of so little says nothing."""

NAN = float("nan")


@dataclass(frozen=True)
class Trust:
    """Intervals of a method's scores in one condition, by name, and its predicted variances."""

    intervals: Mapping[str, Interval]
    calibration: VarianceCalibration


def assess(
    prediction: Prediction,
    scores: Scores,
    real_log1p: Float[np.ndarray, "real genes"],
    bootstrap: ScoreBootstrap,
) -> Trust:
    """Intervals and variance calibration of a prediction whose `scores` are known."""
    against = prediction.against_log1p
    return Trust(
        bootstrap.intervals(prediction, scores),
        variance_calibration(prediction.cells_log1p, real_log1p if against is None else against),
    )


def share_of_attainable(pearson: float, limits: Limits | None) -> float:
    """Pearson of shift / reliability of the real shift; nan below `MIN_RELIABILITY`.

    The reliability is the Pearson that a second experiment of the same size would reach. A
    prediction with less noise than an experiment can exceed it (a perfect mean reaches its square
    root), and so can any that shares the control cells of the truth: read 1 as "as good as doing
    the experiment again", not as an upper bound.
    """
    if limits is None or not limits.shift_reliability >= MIN_RELIABILITY:
        return NAN
    return pearson / limits.shift_reliability


def attainable_shares(scores: Mapping[str, Scores], limits: Limits | None) -> dict[str, float]:
    """`share_of_attainable` of each method; empty where it is undefined."""
    shares = {name: share_of_attainable(each.pearson, limits) for name, each in scores.items()}
    return {name: share for name, share in shares.items() if not np.isnan(share)}


def trust_columns(
    scores: Scores | None, trust: Trust | None, limits: Limits | None
) -> dict[str, float]:
    """Columns of a table: share of the attainable, calibration, and each score's bounds."""
    calibration = trust.calibration if trust else VarianceCalibration(NAN, NAN, NAN)
    columns = {
        "pearson_of_attainable": share_of_attainable(scores.pearson, limits) if scores else NAN,
        **{f"variance_{name}": value for name, value in asdict(calibration).items()},
    }
    for score in (field.name for field in fields(Scores)):
        interval = trust.intervals.get(score) if trust else None
        columns[f"{score}_low"] = interval.low if interval else NAN
        columns[f"{score}_high"] = interval.high if interval else NAN
    return columns


def mean_intervals(rows: pd.DataFrame, metrics: Iterable[str]) -> dict[str, Mapping[str, Interval]]:
    """Interval over cell types of each method's mean, from a row per condition and method.

    Conditions of a type share its control cells, and are drawn together. A single type says nothing
    about others: then the interval is over its perturbations.
    """
    types = rows["cell_type"]
    label = types if types.nunique() > 1 else rows["perturbation"]
    return {
        str(method): {
            metric: mean_interval(
                {place: [float(value)] for place, value in of[metric].items()},
                clusters=dict(label[of.index].items()),
            )
            for metric in metrics
        }
        for method, of in rows.groupby("method")
    }
