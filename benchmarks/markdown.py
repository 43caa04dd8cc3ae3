"""Numbers and tables of the result pages."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from sedd.evaluation.uncertainty import Interval


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of texts."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def interval(found: Interval, pattern: str) -> str:
    """An estimate with its bounds, if it has any."""
    if np.isnan(found.estimate):
        return "n/a"
    text = pattern.format(found.estimate)
    if np.isnan(found.low) or found.low == found.high:
        return text
    return f"{text} [{pattern.format(found.low)}, {pattern.format(found.high)}]"


def spread(values: pd.Series, pattern: str) -> str:
    """Mean over seeds, with the standard deviation where there are several."""
    values = values.astype(float).dropna()
    if values.empty:
        return "n/a"
    text = pattern.format(values.mean())
    return text if len(values) < 2 else f"{text} ± {pattern.format(values.std())}"


def spoken(name: object) -> str:
    """A label of the code as words."""
    return str(name).replace("_", " ")
