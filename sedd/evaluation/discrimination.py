"""Are predictions of different perturbations of one cell type different, and in the right way?

A shift is mean perturbed minus mean control log1p expression, `[genes]`. Real shifts are measured
against the same real controls as the predicted ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from sedd.evaluation.metrics import ROUNDING, halvings, mean_expression

Distance = Literal["l1", "cosine"]

MIN_PERTURBATIONS = 3
MIN_HALF_PEARSON = 0.1
"""Perturbations whose real halves agree less than this have no say in the collapse alarm."""

COLLAPSE_SHARE = 0.25
"""How far on the way from the likeness of the real shifts to 1 the alarm goes off."""

Control = Float[np.ndarray, "control genes"]
Shifts = Float[np.ndarray, "perturbations genes"]
Pairs = Float[np.ndarray, "perturbations perturbations"]


@dataclass(frozen=True)
class Likeness:
    """Mean Pearson between the shifts of two perturbations; the real one freed of its noise.

    Over the `num_perturbations` that are reproducible; nan with fewer than `MIN_PERTURBATIONS`.
    """

    predicted: float
    real: float
    num_perturbations: int

    @property
    def collapsed(self) -> bool:
        """Whether predictions went `COLLAPSE_SHARE` of the way from the real likeness to 1."""
        return bool(self.predicted > self.real + COLLAPSE_SHARE * (1 - self.real))


@dataclass(frozen=True)
class Separation:
    """How well one method tells the perturbations of one cell type apart.

    `num_predicted` perturbations were predicted, and each had to be found among `num_candidates`
    real shifts.
    """

    cell_type: str
    method: str
    num_predicted: int
    num_candidates: int
    discrimination_l1: float
    discrimination_cosine: float
    likeness: Likeness


def separation(
    cell_type: str,
    method: str,
    predicted_shifts: Mapping[str, Float[np.ndarray, " genes"]],
    real_log1p: Mapping[str, Float[np.ndarray, "_cells genes"]],
    control_log1p: Control,
    genes: Sequence[str],
    parts: Mapping[str, Sequence[str]],
) -> Separation:
    """Discrimination and likeness of a method's shifts, by perturbation label.

    `real_log1p` holds the real cells of every candidate, the predicted perturbations among them;
    `parts` the perturbations that a label joins, each of which may be the name of a gene.
    """
    names, candidates = list(predicted_shifts), list(real_log1p)
    predicted = np.stack([predicted_shifts[name] for name in names])
    control_mean = mean_expression(control_log1p)
    real = np.stack([mean_expression(real_log1p[name]) - control_mean for name in candidates])
    truth = np.array([candidates.index(name) for name in names])
    targets = target_genes([parts[name] for name in names], genes)
    ranks: dict[Distance, float] = {
        distance: float(np.mean(discrimination(predicted, real, truth, targets, distance=distance)))
        for distance in ("l1", "cosine")
    }
    return Separation(
        cell_type,
        method,
        len(names),
        len(candidates),
        ranks["l1"],
        ranks["cosine"],
        likeness(predicted, [real_log1p[name] for name in names], control_log1p),
    )


def discrimination(
    predicted_shifts: Float[np.ndarray, "predicted genes"],
    real_shifts: Float[np.ndarray, "real genes"],
    truth: Int[np.ndarray, " predicted"],
    targets: Bool[np.ndarray, "predicted genes"],
    *,
    distance: Distance = "l1",
) -> Float[np.ndarray, " predicted"]:
    """Perturbation discrimination score (PDS): the place of the true real shift among all of them.

    Real shifts are ordered by their distance to the predicted one, without the perturbation's own
    `targets`, whose change is no discovery. 1 - (closer + ties / 2) / (n - 1), so 1 is best, 0 is
    worst and chance is .5, as in cell-eval2 (cell-eval 0.8 divides by n and breaks ties by order).
    The cosine distance of a shift of zero is 1. nan with a single real shift.

    Args:
        predicted_shifts: One row for each prediction.
        real_shifts: The candidates.
        truth: Row of `real_shifts` that each prediction should be nearest to.
        targets: Genes to leave out for each prediction.
        distance: "l1" (mean absolute difference, which size matters to) or "cosine" (direction).
    """
    if len(real_shifts) < 2:
        return np.full(len(predicted_shifts), np.nan)
    measure = DISTANCES[distance]
    places = np.empty(len(predicted_shifts))
    for row, (shift, true, target) in enumerate(zip(predicted_shifts, truth, targets, strict=True)):
        distances = measure(shift[~target], real_shifts[:, ~target])
        own = distances[true]
        places[row] = (distances < own).sum() + ((distances == own).sum() - 1) / 2
    return 1 - places / (len(real_shifts) - 1)


def target_genes(
    parts: Sequence[Sequence[str]], genes: Sequence[str]
) -> Bool[np.ndarray, "perturbations genes"]:
    """Genes that the parts of each perturbation name."""
    names = np.asarray(genes)
    return np.stack([np.isin(names, list(of_one)) for of_one in parts])


def likeness(
    predicted_shifts: Shifts,
    real_log1p: Sequence[Float[np.ndarray, "_cells genes"]],
    control_log1p: Control,
    *,
    seed: int = 0,
) -> Likeness:
    """How alike the predicted shifts are, and how alike the real ones are without their noise.

    Each halving of the cells gives every perturbation two shifts that share neither perturbed nor
    control cells. Real likeness is the mean over pairs of the Pearson r between the first shift of
    one and the second of another, divided by the mean of sqrt(w w'), where w is the r between a
    perturbation's own two shifts: noise attenuates both alike. Only perturbations with a w of
    `MIN_HALF_PEARSON` count, on both sides: of noise nobody knows how alike it should be.
    Predictions are taken as they are, so few generated cells can only hide a collapse. A method
    that predicts no shift at all for one of them is undefined.
    """
    agreement = _agreement_of_halves(real_log1p, control_log1p, seed)
    own = agreement.diagonal()
    kept = np.flatnonzero(own >= MIN_HALF_PEARSON)
    if len(kept) < MIN_PERTURBATIONS:
        return Likeness(float("nan"), float("nan"), len(kept))
    attenuation = np.sqrt(np.outer(own[kept], own[kept]))
    real = _mean_of_pairs(agreement[np.ix_(kept, kept)]) / _mean_of_pairs(attenuation)
    unit = _unit(predicted_shifts[kept])
    return Likeness(_mean_of_pairs(unit @ unit.T), real, len(kept))


def _agreement_of_halves(
    real_log1p: Sequence[Float[np.ndarray, "_cells genes"]], control_log1p: Control, seed: int
) -> Pairs:
    """Mean over halvings of Pearson r between first shifts (rows) and second shifts (columns)."""
    if min(len(control_log1p), *map(len, real_log1p)) < 2:
        return np.full((len(real_log1p), len(real_log1p)), np.nan)
    groups = [control_log1p, *real_log1p]
    halved = zip(*(halvings(len(cells), seed + i) for i, cells in enumerate(groups)), strict=True)
    agreements = []
    for halving in halved:
        first, second = (
            _unit(means[1:] - means[0])
            for means in (
                np.stack(
                    [
                        mean_expression(cells[rows[side]])
                        for cells, rows in zip(groups, halving, strict=True)
                    ]
                )
                for side in (0, 1)
            )
        )
        agreements.append(first @ second.T)
    return np.mean(agreements, axis=0)


def _unit(shifts: Shifts) -> Shifts:
    """Shifts centred over genes and of length 1; nan where a shift is the same for all genes."""
    centred = shifts - shifts.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1, keepdims=True)
    return np.divide(centred, norms, out=np.full_like(centred, np.nan), where=norms > ROUNDING)


def _mean_of_pairs(values: Pairs) -> float:
    return float(values[~np.eye(len(values), dtype=bool)].mean())


def _l1(
    shift: Float[np.ndarray, " kept"], real_shifts: Float[np.ndarray, "real kept"]
) -> Float[np.ndarray, " real"]:
    return np.abs(real_shifts - shift).mean(axis=1)


def _cosine(
    shift: Float[np.ndarray, " kept"], real_shifts: Float[np.ndarray, "real kept"]
) -> Float[np.ndarray, " real"]:
    lengths = np.linalg.norm(real_shifts, axis=1) * np.linalg.norm(shift)
    products = real_shifts @ shift
    cosine = np.divide(products, lengths, out=np.zeros_like(lengths), where=lengths > ROUNDING)
    return 1 - cosine


DISTANCES: Mapping[Distance, Callable[..., Float[np.ndarray, " real"]]] = {
    "l1": _l1,
    "cosine": _cosine,
}
