"""Numbers as people read them."""

import math

from sedd.evaluation.uncertainty import Interval


def format_value(value: float | int) -> str:
    """Three significant digits, n/a for what is undefined, and whole numbers as they are."""
    if isinstance(value, int):
        return str(value)
    return "n/a" if math.isnan(value) else f"{value:#.3g}".rstrip(".")


def interval_text(interval: Interval | None) -> str:
    """Both bounds, or nothing where they are unknown."""
    if interval is None or math.isnan(interval.low):
        return ""
    return f"{format_value(interval.low)} to {format_value(interval.high)}"
