"""Tables of results as a quality study makes them, from a few numbers."""

import pandas as pd

from benchmarks.quality_results import Results

DEFAULTS = {
    "pearson": 0.5, "attainable": 0.6, "energy_distance": 1.0, "mse": 0.1, "common_degs": 0.5,
    "variance_ratio": 1.0, "zero_fraction_error": 0.01, "correlation_structure": 0.5,
    "num_real": 50, "num_control": 50, "shift_reliability": 0.9, "control_floor": 0.02,
}  # fmt: skip


def scores(**values: dict[str, list[dict[str, float]]]) -> pd.DataFrame:
    """Rows of methods by condition A, B, … (or "A × x"); several of one condition are seeds."""
    rows = []
    for method, conditions in values.items():
        for condition, seeds in conditions.items():
            cell_type, _, perturbation = condition.partition(" × ")
            labels = {"cell_type": cell_type, "perturbation": perturbation or "x"}
            labels |= {"condition": condition, "group": cell_type}
            rows += [
                {"variant": "full", "fold": condition, "seed": seed, "method": method}
                | labels | DEFAULTS | given
                for seed, given in enumerate(seeds)
            ]  # fmt: skip
    return pd.DataFrame(rows)


def results(separation: list[dict] | None = None, **values) -> Results:
    facts = {
        "variant": "full", "fold": "A", "seed": 0, "trained_model": "m", "data_digest": "d" * 64,
        "cpu_seconds_training": 90.0, "cpu_seconds_generating": 30.0, "commit": "abc",
        "peak_rss_mb": 7, "machine": "here", "genes": ["g1", "g2"], "validation_nelbo": 0.25,
        "scoring": "5" * 64,
    }  # fmt: skip
    empty = pd.DataFrame()
    found = pd.DataFrame(separation or [])
    return Results(scores(**values), found, empty, empty, pd.DataFrame([facts]))


def of_mode(metric: str, **values: float | list[float]) -> dict:
    """One row for each value of a condition."""
    return {
        condition: [{metric: value} for value in (given if isinstance(given, list) else [given])]
        for condition, given in values.items()
    }


def told_apart(method: str, **given) -> dict:
    """How a method told the perturbations of type A apart."""
    row = {
        "variant": "full", "fold": "A", "seed": 0, "cell_type": "A", "method": method,
        "discrimination_l1": 0.9, "discrimination_cosine": 0.9, "predicted": 0.1, "real": 0.1,
        "collapsed": False,
    }  # fmt: skip
    return row | given
