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
    text = number(found.estimate, pattern)
    if np.isnan(found.low) or found.low == found.high:
        return text
    return f"{text} [{pattern.format(found.low)}, {pattern.format(found.high)}]"


def spread(values: pd.Series, pattern: str) -> str:
    """Mean over seeds, with the standard deviation where there are several."""
    values = values.astype(float).dropna()
    text = number(values.mean(), pattern)
    return text if len(values) < 2 else f"{text} ± {pattern.format(values.std())}"


def number(value: float, pattern: str = "{:.3f}") -> str:
    """A number, or that there is none."""
    return "n/a" if np.isnan(value) else pattern.format(value)


def counted(count: int, noun: str) -> str:
    """A number of things: 1 training, 2 trainings."""
    return f"{count} {noun}" + "s" * (count != 1)


def spoken(name: object) -> str:
    """A label of the code as words."""
    return str(name).replace("_", " ")
