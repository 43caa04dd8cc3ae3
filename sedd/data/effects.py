"""What a perturbation should do to a cell type, as far as all training cells together tell.

The expected shift of (cell type, perturbation):

    measured in some type                       kriging over the types (Cressie 1993)
    a combination whose parts were measured     the sum of what is expected of its parts
    described by a vector                       kriging over the perturbations of the type
    none of these                               none

For a training condition that is nearly what its own cells show. The network is told the mean over
the types alone (`sedd.building`) and has to learn how types differ; where a cell type was never
seen perturbed, its answer and the expected shift are two estimates of one thing (`sedd.laws`).

It becomes an exponential tilt of the control law that moves the mean so far.

`reliability` is 1 - SE^2 / shift^2 of the mean shift over the training types; near 1 where effects
are real, near 0 where they are noise. Generated effects are shrunk by it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Int

from sedd.data import kriging
from sedd.data.kriging import Kernel, Measured
from sedd.data.tilt import tilt_to_mean
from sedd.data.tokens import Tokenizer

MIN_CELLS = 30
"""Perturbed cells, and controls, that a type needs to have a say in what the perturbation does."""

SATURATION = 3.0
"""log1p expression at which a tilt acts half as strongly: an exponential tilt that grew on with the
count would blow up the tails, where the law is hardly known."""

Combinations = Mapping[int, tuple[int, ...]]
"""Numbers of the parts of each perturbation that is a combination of others."""


@dataclass(frozen=True)
class PerturbationEffects:
    """Effects of each perturbation, in vocabulary order.

    Attributes:
        tilt: Coefficient of `direction` in the log of the law.
        direction: What a tilt multiplies: x / (1 + x / `SATURATION`) of the log1p expression x
            that each bin stands for at the depths of the training cells.
        reliability: How much of the measured shift is not sampling noise.
        shown: Whether training cells show the perturbation itself.
    """

    tilt: Float[np.ndarray, "types perturbations genes"]
    direction: Float[np.ndarray, " bins"]
    reliability: Float[np.ndarray, " perturbations"]
    shown: Bool[np.ndarray, " perturbations"]


@dataclass(frozen=True, eq=False)
class Shifts:
    """Mean shifts (log1p units) of the conditions that training cells show.

    `measured` marks conditions with enough cells to have a say; the others hold zeros.
    """

    mean: Float[np.ndarray, "types perturbations genes"]
    error: Float[np.ndarray, "types perturbations genes"]
    """Squared standard error of `mean`."""
    measured: Bool[np.ndarray, "types perturbations"]

    @property
    def shown(self) -> Bool[np.ndarray, " perturbations"]:
        """Perturbations that are measured in some type."""
        return np.any(self.measured, axis=0)

    def between_types(self, distance: Float[np.ndarray, "types types"]) -> "_Between":
        """Kriging over the types."""
        bare = _Between(self.mean, self.error, self.measured, distance, Kernel())
        return bare.with_likeliest_kernel()

    def between_perturbations(
        self, vectors: Float[np.ndarray, "perturbations given"]
    ) -> "_Between":
        """Kriging over the perturbations, by their given vectors."""
        mean, error = self.mean.swapaxes(0, 1), self.error.swapaxes(0, 1)
        distance = kriging.correlation_distance(vectors)
        bare = _Between(mean, error, self.measured.T, distance, Kernel())
        return bare.with_likeliest_kernel()


@dataclass(frozen=True, eq=False)
class ControlLaw:
    """The law that effects tilt: the model's output prior, bins of each gene of each type.

    Attributes:
        probabilities: Rows sum to 1.
        level: log1p expression that each bin stands for at the depths of the type.
        direction: What a tilt multiplies.
    """

    probabilities: Float[np.ndarray, "types genes bins"]
    level: Float[np.ndarray, "types bins"]
    direction: Float[np.ndarray, " bins"]

    @classmethod
    def of(
        cls,
        log_prior: Float[np.ndarray, "types genes bins"],
        tokenizer: Tokenizer,
        *,
        depth: Float[np.ndarray, " cells"],
        cell_type: Int[np.ndarray, " cells"],
    ) -> "ControlLaw":
        """At the depths of the control cells of each type (of all cells, where it has none).

        Args:
            log_prior: Log of the model's output prior.
            tokenizer: What the bins hold.
            depth: Library size of each training cell.
            cell_type: Type of each control cell, -1 for perturbed ones.
        """
        law = np.exp(log_prior, dtype=np.float64)
        law /= law.sum(-1, keepdims=True)
        levels = []
        for number in range(len(law)):
            depths = depth[cell_type == number] if (cell_type == number).any() else depth
            levels.append(log1p_of_bins(tokenizer, depths))
        level = log1p_of_bins(tokenizer, depth)
        return cls(law, np.stack(levels), level / (1 + level / SATURATION))

    def tilts(
        self, shift: Float[np.ndarray, "types perturbations genes"]
    ) -> Float[np.ndarray, "types perturbations genes"]:
        """The tilt that moves the mean of each condition by its shift."""
        found = np.zeros(shift.shape, np.float32)
        for number, law in enumerate(self.probabilities):
            level = self.level[number]
            mean = law @ level
            for perturbation, moved in enumerate(shift[number]):
                if not moved.any():
                    continue
                target = np.clip(mean + moved, 1e-5, 0.95 * level[-1])
                found[number, perturbation] = tilt_to_mean(
                    target, law, direction=self.direction, statistic=level
                )
        return found


def measure_shifts(
    log1p: Float[np.ndarray, "cells genes"],
    *,
    cell_type: Int[np.ndarray, " cells"],
    perturbation: Int[np.ndarray, " cells"],
    num_types: int,
    num_perturbations: int,
) -> Shifts:
    """Mean shift from the control cells of the type, for every condition."""
    shape = (num_types, num_perturbations)
    mean = np.zeros((*shape, log1p.shape[1]), np.float32)
    error, cells = np.zeros_like(mean), np.zeros(shape, np.int64)
    for number in range(num_types):
        control = log1p[(cell_type == number) & (perturbation == 0)]
        if len(control) < 2:
            continue
        before, noise = control.mean(0), control.var(0, ddof=1) / len(control)
        for treatment in np.unique(perturbation[(cell_type == number) & (perturbation > 0)]):
            treated = log1p[(cell_type == number) & (perturbation == treatment)]
            if len(treated) < 2:
                continue
            cells[number, treatment] = min(len(treated), len(control))
            mean[number, treatment] = treated.mean(0) - before
            error[number, treatment] = treated.var(0, ddof=1) / len(treated) + noise
    enough = cells >= MIN_CELLS
    return Shifts(mean, error, np.where(enough.any(0), enough, cells > 0))


def expected_shifts(
    shifts: Shifts,
    type_distance: Float[np.ndarray, "types types"],
    *,
    combinations: Combinations | None = None,
    vectors: Float[np.ndarray, "perturbations given"] | None = None,
) -> Float[np.ndarray, "types perturbations genes"]:
    """Expected shift of every condition by the rules above; that of control is zero.

    Args:
        shifts: What training cells show.
        type_distance: How unlike the control cells of the types are.
        combinations: Parts of perturbations that combine others.
        vectors: Given vectors of the perturbations.
    """
    num_types, num_perturbations, num_genes = shifts.mean.shape
    between_types = shifts.between_types(type_distance)
    between = None if vectors is None else shifts.between_perturbations(vectors)
    known = {int(number) for number in np.flatnonzero(shifts.shown)}
    combinations = combinations or {}
    expected = np.zeros((num_types, num_perturbations, num_genes), np.float32)
    for number in range(num_types):
        for perturbation in range(1, num_perturbations):
            parts = combinations.get(perturbation, ())
            if perturbation not in known and parts and known.issuperset(parts):
                shift = sum(between_types.predict(number, part) for part in parts)
            elif perturbation not in known and between is not None:
                shift = between.predict(perturbation, number)
            else:
                shift = between_types.predict(number, perturbation)
            expected[number, perturbation] = shift
    return expected


def measure_reliability(
    shifts: Shifts, combinations: Combinations | None = None
) -> Float[np.ndarray, " perturbations"]:
    """1 - (expected squared error) / (squared length) of each mean shift over the types.

    The factor by which a measured mean is best shrunk towards zero (James and Stein 1961). A
    combination that no cell shows has that of the sum of its parts; other perturbations that no
    cell shows get the mean of the measured ones.
    """
    types = shifts.measured.sum(0)
    shown = shifts.measured[..., None]
    share = 1 / np.maximum(types, 1)[:, None]
    mean = share * (shifts.mean * shown).sum(0, dtype=np.float64)
    error = (share**2 * (shifts.error * shown).sum(0, dtype=np.float64)).sum(-1)
    known = types > 0
    reliability = np.where(known, _reliability(mean, error), np.nan)
    reliability[~known] = reliability[known].mean() if known.any() else 1.0
    for number, parts in (combinations or {}).items():
        if not known[number] and known[list(parts)].all():
            of = list(parts)
            whole = mean[of].sum(0, keepdims=True), error[of].sum(keepdims=True)
            (reliability[number],) = _reliability(*whole)
    reliability[0] = 1.0
    return reliability.astype(np.float32)


def _reliability(
    mean: Float[np.ndarray, "perturbations genes"], error: Float[np.ndarray, " perturbations"]
) -> Float[np.ndarray, " perturbations"]:
    return np.maximum(0, 1 - error / np.maximum((mean**2).sum(-1), 1e-12))


def log1p_of_bins(
    tokenizer: Tokenizer, depth: Float[np.ndarray, " cells"]
) -> Float[np.ndarray, " bins"]:
    """Mean over the depths of the log1p expression (counts per 10k) that each bin stands for."""
    if tokenizer.kind == "log1p":
        return tokenizer.centers.astype(np.float64)
    scale = 1e4 / np.quantile(depth, np.linspace(0.005, 0.995, 100))
    return np.log1p(tokenizer.centers * scale[:, None]).mean(0)


@dataclass(frozen=True, eq=False)
class _Between:
    """Kriging over places (types, or perturbations) of many sets of effects, with one kernel."""

    mean: Float[np.ndarray, "places sets genes"]
    error: Float[np.ndarray, "places sets genes"]
    measured: Bool[np.ndarray, "places sets"]
    distance: Float[np.ndarray, "places places"]
    kernel: Kernel

    def with_likeliest_kernel(self) -> "_Between":
        """The same with the kernel that makes the measured shifts of all sets likeliest."""
        sets = (self._at(np.flatnonzero(at), number) for number, at in enumerate(self.measured.T))
        return replace(self, kernel=kriging.likeliest_kernel(sets))

    def predict(self, place: int, number: int) -> Float[np.ndarray, " genes"]:
        """From the places that show the set; zero if there is none."""
        places = np.flatnonzero(self.measured[:, number])
        if len(places) == 0:
            return np.zeros(self.mean.shape[-1])
        return kriging.predict(self._at(places, number), self.distance[places, place], self.kernel)

    def _at(self, places: Int[np.ndarray, " some"], number: int) -> Measured:
        return Measured(
            self.mean[places, number].astype(np.float64),
            self.error[places, number].astype(np.float64),
            self.distance[np.ix_(places, places)],
        )
