"""`validate`: what an h5ad holds, whether the model can learn from it, and what to fix."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines import command_line
from sedd.errors import UsageError
from sedd.flags import FLAGS

if TYPE_CHECKING:
    from sedd.data.survey import Survey

DESCRIPTION = "Check an h5ad: columns, cell types × perturbations, controls, counts or log."
MOST_COLUMNS = 8


def show(facts: "Survey") -> None:
    """Print the survey as tables, then its warnings."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    depth = facts.depth
    console.print(
        f"{facts.path}: {facts.num_cells:,} cells × {facts.num_genes:,} genes, {facts.kind} "
        f"({facts.gene_names} names), depth median {depth.median:,.0f} "
        f"(5–95 %: {depth.q05:,.0f}–{depth.q95:,.0f})",
        markup=False,
        soft_wrap=True,
    )
    table = Table("cell type", title="cells per cell type and perturbation", title_justify="left")
    shown = facts.perturbations[:MOST_COLUMNS]
    for name in shown:
        table.add_column(name, justify="right")
    left = len(facts.perturbations) - len(shown)
    if left:
        table.add_column(f"{left} more", justify="right")
    for cell_type, row in zip(facts.cell_types, facts.table, strict=True):
        cells = [f"{count:,}" for count in row[:MOST_COLUMNS]]
        table.add_row(cell_type, *cells, *([f"{sum(row[MOST_COLUMNS:]):,}"] if left else []))
    console.print(table)
    for warning in facts.warnings:
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)
    if not facts.warnings:
        console.print("Nothing to fix.")


@command_line.entry
def main(argv: Sequence[str]) -> int:
    """Parse, survey, print."""
    parser = command_line.verb_parser("validate", DESCRIPTION)
    command_line.add_config_flags(parser, FLAGS)
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    arguments = parser.parse_args(argv)
    data = command_line.read_config(arguments, FLAGS).data
    if data.train_data_path is None:
        message = "No cells were named. Give an h5ad with --train_data_path."
        raise UsageError(message)
    from sedd.data.survey import survey

    facts = survey(
        data.train_data_path,
        perturbation_col=data.gene,
        cell_type_col=data.cell_type_col,
        batch_col=data.batch_col,
        control_name=data.control_name,
        layer=data.layer,
        depth_col=data.depth_col,
    )
    if arguments.json:
        print(facts.as_json())
    else:
        show(facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
