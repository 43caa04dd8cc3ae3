"""The notes that MLflow shows above a run: what was held out, how it did, how to repeat it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.repeat import Evaluated, repeat_commands, train_command

if TYPE_CHECKING:
    from pipelines.tracking import DriverRun
    from sedd.config import Config
    from sedd.data.cells import Cells
    from sedd.data.splits import Split

SHOWN = 8  # held-out conditions that are named


def training_note(config: "Config", split: "Split") -> str:
    """Markdown for a run that is being trained.

    Args:
        config: What is trained.
        split: What is held out.
    """
    return f"{held_out_line(split.held_out)}\n\n{_code(train_command(config))}"


def evaluation_note(table: str, conditions: Sequence[tuple[str, str]], evaluated: Evaluated) -> str:
    """Markdown for a run that was evaluated.

    Args:
        table: The summary of all methods, as Markdown.
        conditions: Cell type and perturbation of each condition that was scored.
        evaluated: What was asked.
    """
    parts = (held_out_line(conditions), table, _code(*repeat_commands(evaluated)))
    return "\n\n".join(parts)


def held_out_line(conditions: Sequence[tuple[str, str]]) -> str:
    """One line that names the held-out conditions, or the first of many."""
    if not conditions:
        return "Held out: nothing."
    named = ", ".join(f"{cell_type} × {label}" for cell_type, label in conditions[:SHOWN])
    more = len(conditions) - SHOWN
    return f"Held out: {named}{f' and {more} more' if more > 0 else ''}."


def log_held_out(tracked: "DriverRun", cells: "Cells", split: "Split") -> None:
    """Attach the held-out cells to a run; they have a digest of their own: of cells and split."""
    digest = hashlib.sha256(f"{cells.source.digest} {split.digest}".encode()).hexdigest()
    tracked.log_dataset(
        f"{Path(cells.source.path).name} held out",
        digest=digest[:36],
        source=cells.source.path,
        context="evaluation",
    )


def _code(*commands: str) -> str:
    return "\n".join(("```", *commands, "```"))
