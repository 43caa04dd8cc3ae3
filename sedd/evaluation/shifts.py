"""Mean shifts that baselines may learn from, and a ridge regression of them on embeddings."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Shaped

PENALTIES = np.logspace(-3, 4, 15)
"""Ridge penalties tried, in units of the mean squared length of an embedding."""


@runtime_checkable
class LabelledExpression(Protocol):
    """Cells with labels; what `sedd.evaluation.baselines.TrainingCells` offers."""

    @property
    def log1p(self) -> Float[np.ndarray, "cells genes"]:
        """Expression."""
        ...

    @property
    def cell_type(self) -> Shaped[np.ndarray, " cells"]:
        """Type of each cell."""
        ...

    @property
    def perturbation(self) -> Shaped[np.ndarray, " cells"]:
        """Perturbation of each cell."""
        ...

    @property
    def control_name(self) -> str:
        """The label of unperturbed cells."""
        ...

    def rows(self, cell_type: str, perturbation: str) -> Int[np.ndarray, " rows"]:
        """Where the cells with both labels stand."""
        ...


@dataclass(frozen=True, eq=False)
class KnownShifts:
    """Shifts (log1p units) by the label that tells them apart: a type, or a perturbation."""

    labels: tuple[str, ...]
    shift: Float[np.ndarray, "labels genes"]


def shift_in_types(cells: LabelledExpression, perturbation: str, *, least: int) -> KnownShifts:
    """Shift of a perturbation in each cell type with `least` cells of both kinds."""
    types = sorted(set(cells.cell_type))
    return _known({name: _shift(cells, name, perturbation, least) for name in types})


def shift_of_others(
    cells: LabelledExpression, cell_type: str, perturbation: str, *, least: int
) -> KnownShifts:
    """Shifts of the other perturbations in the cell type itself."""
    names = sorted(set(cells.perturbation) - {cells.control_name, perturbation})
    return _known({name: _shift(cells, cell_type, name, least) for name in names})


def ridge_prediction(
    shift: Float[np.ndarray, "known genes"],
    embedding: Float[np.ndarray, "known given"],
    asked: Float[np.ndarray, " given"],
) -> Float[np.ndarray, " genes"]:
    """Shift at an embedding by ridge regression with an intercept (Hoerl and Kennard 1970).

    The penalty is the one with the least leave-one-out error, in closed form; of equally good ones
    the largest, since two known shifts say the same of all. With a single known shift the
    prediction is that shift.
    """
    centre, mean = embedding.mean(0), shift.mean(0, dtype=np.float64)
    x, y = (embedding - centre).astype(np.float64), shift - mean
    gram = x @ x.T
    scale = max(float(np.trace(gram)) / len(x), 1e-12)
    identity, weight = np.eye(len(x)), None
    least = np.inf
    for penalty in PENALTIES[::-1]:
        inverse = np.linalg.inv(gram + penalty * scale * identity)
        # Leave-one-out residuals of a linear smoother with hat matrix H + 1/n (the intercept).
        kept = penalty * scale * inverse - 1 / len(x)
        residual = (penalty * scale * inverse) @ y
        error = np.mean((residual / np.maximum(np.diag(kept), 1e-6)[:, None]) ** 2)
        if error < least * (1 - 1e-9):
            least, weight = error, inverse @ y
    assert weight is not None
    return mean + (asked - centre) @ x.T @ weight


def _shift(
    cells: LabelledExpression, cell_type: str, perturbation: str, least: int
) -> Float[np.ndarray, " genes"] | None:
    control = cells.rows(cell_type, cells.control_name)
    treated = cells.rows(cell_type, perturbation)
    if min(len(control), len(treated)) < least:
        return None
    after, before = (cells.log1p[rows].mean(0, dtype=np.float64) for rows in (treated, control))
    return after - before


def _known(found: dict[str, Float[np.ndarray, " genes"] | None]) -> KnownShifts:
    kept = {name: shift for name, shift in found.items() if shift is not None}
    shifts = np.stack(list(kept.values())) if kept else np.zeros((0, 0))
    return KnownShifts(tuple(kept), shifts)
