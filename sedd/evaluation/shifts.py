"""Mean shifts that baselines may learn from, and what they make of them: sums, means, ridge."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int, Shaped

from sedd.data.vocabulary import Vocabulary

PENALTIES = np.logspace(-3, 4, 15)
"""Ridge penalties tried, in units of the mean squared length of an embedding."""


@dataclass(frozen=True, eq=False)
class Perturbations:
    """What the labels of perturbations mean.

    Attributes:
        parts: The perturbations that each label joins: itself alone, unless it is a combination.
        vectors: Given vector of each label, or None where none are given.
    """

    parts: Mapping[str, tuple[str, ...]]
    vectors: Mapping[str, Float[np.ndarray, " given"]] | None = None

    @classmethod
    def of(
        cls, vocabulary: Vocabulary, vectors: Float[np.ndarray, "parts given"] | None = None
    ) -> "Perturbations":
        """As the model reads the labels.

        Args:
            vocabulary: Every label, and what joins the names in a combination.
            vectors: Given vectors of `vocabulary.parts().names`; a combination has the sum of those
                of its parts.
        """
        parts = vocabulary.parts()
        labels = zip(vocabulary.perturbations, parts.of, strict=True)
        numbers = {label: row[row >= 0] for label, row in labels}
        named = {label: tuple(parts.names[part] for part in row) for label, row in numbers.items()}
        if vectors is None:
            return cls(named)
        return cls(named, {label: vectors[row].sum(0) for label, row in numbers.items()})


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

    @property
    def perturbations(self) -> Perturbations | None:
        """What the labels mean; None where each stands for itself."""
        ...

    def rows(self, cell_type: str, perturbation: str) -> Int[np.ndarray, " rows"]:
        """Where the cells with both labels stand."""
        ...


@dataclass(frozen=True, eq=False)
class KnownShifts:
    """Shifts (log1p units) by the label that tells them apart: a type, or a perturbation."""

    labels: tuple[str, ...]
    shift: Float[np.ndarray, "labels genes"]


def additive_shift(
    cells: LabelledExpression, cell_type: str, perturbation: str, *, least: int
) -> Float[np.ndarray, " genes"] | None:
    """Mean shift of the perturbation in the other types, each type weighing the same.

    Where no other type shows it: the sum of the shifts that its parts have in the type itself. None
    where a part is not shown there either, or where the label is no combination. Only conditions
    with `least` control and perturbed cells count.
    """
    known = shift_in_other_types(cells, cell_type, perturbation, least=least)
    if known.labels:
        return known.shift.mean(0)
    told = cells.perturbations
    parts = (perturbation,) if told is None else told.parts[perturbation]
    known = shift_of_others(cells, cell_type, perturbation, least=least)
    if not set(parts) <= set(known.labels):
        return None
    return known.shift[[known.labels.index(part) for part in parts]].sum(0)


def ridge_shift(
    cells: LabelledExpression, cell_type: str, perturbation: str, *, least: int
) -> Float[np.ndarray, " genes"] | None:
    """Shift by ridge regression over other types or, where none shows it, other perturbations.

    The shifts of the perturbation in the other types are regressed on the mean expression of their
    control cells. Where no other type shows it, those of the type's other perturbations are
    regressed on the given vectors; None without any. Only conditions with `least` control and
    perturbed cells count.
    """
    known = shift_in_other_types(cells, cell_type, perturbation, least=least)
    if known.labels:
        means = np.stack([_control_mean(cells, label) for label in known.labels])
        return ridge_prediction(known.shift, means, _control_mean(cells, cell_type))
    vectors = None if cells.perturbations is None else cells.perturbations.vectors
    if vectors is None:
        return None
    known = shift_of_others(cells, cell_type, perturbation, least=least)
    if not known.labels:
        return None
    given = np.stack([vectors[label] for label in known.labels])
    return ridge_prediction(known.shift, given, vectors[perturbation])


def shift_in_other_types(
    cells: LabelledExpression, cell_type: str, perturbation: str, *, least: int
) -> KnownShifts:
    """Shift of a perturbation in each other cell type with `least` cells of both kinds."""
    types = sorted(set(cells.cell_type) - {cell_type})
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


def _control_mean(cells: LabelledExpression, cell_type: str) -> Float[np.ndarray, " genes"]:
    return cells.log1p[cells.rows(cell_type, cells.control_name)].mean(0, dtype=np.float64)


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
