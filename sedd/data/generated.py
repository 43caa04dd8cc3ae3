"""Generated cells read back from the h5ad that `generate` wrote, checked against what is asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Int

from sedd.data.cells import Cells, read_cells
from sedd.data.columns import Table, read_labels
from sedd.data.hdf5 import listing, open_h5ad
from sedd.data.matrix import Kind
from sedd.errors import DataError

GENERATE = "`python -m pipelines.generate --overwrite`"
LABELS = ("cell_type", "perturbation")


@dataclass(frozen=True, eq=False)
class GeneratedCondition:
    """The generated cells of one condition, over the genes that were asked for."""

    cells: Cells
    control_row: Int[np.ndarray, " cells"]
    """Row, in the training file, of the control cell that each one started from."""


def read_generated(
    path: Path, condition: tuple[str, str], *, genes: Sequence[str], kind: Kind
) -> GeneratedCondition:
    """The generated cells of a (cell type, perturbation).

    Raises:
        DataError: The file lacks these labels, has other genes, or was not written by `generate`.
    """
    cell_type, perturbation = condition
    with open_h5ad(path) as file:
        obs = Table.of(file, "obs", path)
        for name in (*LABELS, "control_row"):
            obs.require(name, fix=f"Generate again with {GENERATE}.")
        labels = [read_labels(obs, name, flag="`generate`") for name in LABELS]
        control_row = _control_rows(obs)
    chosen = (labels[0] == cell_type) & (labels[1] == perturbation)
    if not chosen.any():
        there = sorted({f"{t} × {p}" for t, p in zip(*labels, strict=True)})
        message = (
            f"{path} holds no cell of {cell_type} × {perturbation}, which was held out. It holds "
            f"{listing(there)}. Generate again with {GENERATE}, without --perturbations."
        )
        raise DataError(message)
    cells = read_cells(
        path,
        perturbation_col="perturbation",
        cell_type_col="cell_type",
        control_name=perturbation,
        depth_col="depth",
        kind=kind,
    )
    _require_genes(path, set(cells.genes), set(genes))
    return GeneratedCondition(cells.select(chosen, genes), control_row[chosen])


def _require_genes(path: Path, there: set[str], wanted: set[str]) -> None:
    if there == wanted:
        return
    missing, unknown = sorted(wanted - there), sorted(there - wanted)
    message = (
        f"{path} has other genes than the model: {len(missing)} are missing "
        f"({listing(missing, limit=3)}), {len(unknown)} are unknown ({listing(unknown, limit=3)}). "
        f"Generate again with {GENERATE}."
    )
    raise DataError(message)


def _control_rows(obs: Table) -> Int[np.ndarray, " cells"]:
    rows = obs.column("control_row").values
    if rows.dtype.kind not in "iu":
        message = (
            f"{obs.path}: obs['control_row'] holds no whole numbers (rows of the training file). "
            f"Generate again with {GENERATE}."
        )
        raise DataError(message)
    return rows.astype(np.int64)
