"""What is true of simulated cells, in closed form, and more cells drawn from the same truth.

The model is stated in `simulate`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int32, Int64
from numpy.random import Generator, SeedSequence, default_rng
from scipy import sparse

from sedd.data.blood import BloodParameters
from sedd.data.cells import Cells, Source
from sedd.data.digest import content_digest
from sedd.errors import UsageError

_CHUNK_VALUES = 2_000_000
_SIMULATED, _DRAWN, _MEASURED = 10, 11, 12


@dataclass(frozen=True, eq=False)
class MeanLog1p:
    """A Monte Carlo mean of log1p counts per 10,000 with its standard error."""

    mean_log1p: Float64[np.ndarray, " genes"]
    standard_error: Float64[np.ndarray, " genes"]


@dataclass(frozen=True, eq=False)
class Conditions:
    """How many cells of which type and perturbation (positions in the world's names)."""

    cell_type: Int64[np.ndarray, " conditions"]
    perturbation: Int64[np.ndarray, " conditions"]
    num_cells: Int64[np.ndarray, " conditions"]


@dataclass(frozen=True, eq=False)
class Truth:
    """The law of the cells of every condition; `parameters` names the axes, control comes first."""

    parameters: BloodParameters

    @property
    def log_fold_change(self) -> Float64[np.ndarray, "types perturbations genes"]:
        """Log R(d): the change of a gene's mean, exactly 0 for genes that are not touched.

        `mean_fraction` and counts per 10,000 change by the same, less one constant per condition.
        """
        world = self.parameters
        return np.log(_mean_response(world.effect, *self._heterogeneity))

    @property
    def log_compensation(self) -> Float64[np.ndarray, "types perturbations"]:
        """Log c_tp, by which all genes fall so that the whole stays as deep; 0 for control."""
        world = self.parameters
        response = _mean_response(world.effect, *self._heterogeneity)
        return _log_compensation(np.exp(world.log_fraction)[:, None], response)

    @property
    def expected_counts(self) -> Float64[np.ndarray, "types perturbations genes"]:
        """Mean count of each gene."""
        world = self.parameters
        mean, deviation = world.log_depth.T
        log_mean = (mean + np.square(deviation) / 2)[:, None] + self.log_compensation
        return np.exp(log_mean[..., None] + world.log_fraction[:, None] + self.log_fold_change)

    @property
    def mean_fraction(self) -> Float64[np.ndarray, "types perturbations genes"]:
        """Share of each gene in the expected counts of its condition; sums to 1 over genes."""
        counts = self.expected_counts
        return counts / counts.sum(axis=-1, keepdims=True)

    @property
    def null_perturbations(self) -> tuple[str, ...]:
        """Perturbations (control is none) that change no gene in any type."""
        names = self.parameters.perturbations[1:]
        works = np.asarray(self.parameters.effect[:, 1:].any(axis=(0, 2)))
        return tuple(name for name, changes in zip(names, works, strict=True) if not changes)

    def relative_covariance(
        self, cell_type: str, perturbation: str
    ) -> Float64[np.ndarray, "genes genes"]:
        """Covariance of the genes' Poisson rates in cells of one size, in units of their means.

        The covariance of these cells' counts is diag(m) + m m' * this, with m their mean. Off the
        diagonal it is the programs and the uneven response, on it the dispersion too.
        """
        world = self.parameters
        t, p = self._condition(cell_type, perturbation)
        effect = world.shared[p] + world.specific[t, p]
        responding, spread = float(world.responding[t]), float(world.spread[t])
        alone = _mean_response(effect, responding, spread)
        together = _mean_response(effect[:, None] + effect, responding, spread)
        scaled = world.loadings * world.program_scale[t]
        ratio = np.exp(scaled @ scaled.T) * together / np.outer(alone, alone)
        ratio[np.diag_indices_from(ratio)] *= 1 + world.dispersion[t]
        return ratio - 1

    def draw(self, cell_type: str, perturbation: str, num_cells: int, seed: int) -> Cells:
        """More cells of one condition, independent of the simulated ones and of other seeds."""
        t, p = self._condition(cell_type, perturbation)
        conditions = Conditions(np.array([t]), np.array([p]), np.array([num_cells]))
        origin = f"truth.draw({cell_type!r}, {perturbation!r}, {num_cells}, {seed})"
        return self._cells(conditions, (seed, _DRAWN), origin)

    def simulated(self, conditions: Conditions, seed: int, origin: str) -> Cells:
        """The cells of a simulation, conditions mixed in random order."""
        return self._cells(conditions, (seed, _SIMULATED), origin)

    def mean_log1p_cp10k(
        self, cell_type: str, perturbation: str, *, num_cells: int = 20_000, seed: int = 0
    ) -> MeanLog1p:
        """Mean over cells of log1p counts per 10,000, by Monte Carlo; the error comes with it."""
        t, p = self._condition(cell_type, perturbation)
        total = np.zeros(len(self.parameters.genes))
        squares = np.zeros_like(total)
        for counts in self._chunks(t, p, num_cells, (seed, _MEASURED)):
            depth = np.maximum(counts.sum(axis=1, keepdims=True), 1)
            values_log1p = np.log1p(counts * (1e4 / depth))
            total += values_log1p.sum(axis=0)
            squares += np.square(values_log1p).sum(axis=0)
        mean = total / num_cells
        variance = np.maximum(squares / num_cells - np.square(mean), 0.0)
        return MeanLog1p(mean, np.sqrt(variance / num_cells))

    @property
    def _heterogeneity(
        self,
    ) -> tuple[Float[np.ndarray, "types 1 1"], Float[np.ndarray, "types 1 1"]]:
        world = self.parameters
        return world.responding[:, None, None], world.spread[:, None, None]

    def _condition(self, cell_type: str, perturbation: str) -> tuple[int, int]:
        world = self.parameters
        for what, name, names in (
            ("cell type", cell_type, world.cell_types),
            ("perturbation", perturbation, world.perturbations),
        ):
            if name not in names:
                message = f"No {what} {name!r} was simulated. Choose one of: {', '.join(names)}."
                raise UsageError(message)
        return world.cell_types.index(cell_type), world.perturbations.index(perturbation)

    def _cells(self, conditions: Conditions, stream: tuple[int, int], origin: str) -> Cells:
        """Draws condition by condition in chunks, then puts the cells in random order."""
        world = self.parameters
        types, perturbations = conditions.cell_type.tolist(), conditions.perturbation.tolist()
        blocks = [
            sparse.csr_array(counts)
            for t, p, size in zip(types, perturbations, conditions.num_cells.tolist(), strict=True)
            for counts in self._chunks(t, p, size, stream)
        ]
        num_cells = int(conditions.num_cells.sum())
        order = _generator(stream, ()).permutation(num_cells)
        row = np.repeat(np.arange(len(types)), conditions.num_cells)[order]
        cell_type = np.array(world.cell_types, dtype=object)[conditions.cell_type][row]
        perturbation = np.array(world.perturbations, dtype=object)[conditions.perturbation][row]
        expression = sparse.vstack(blocks, format="csr")[order]
        depth = np.asarray(expression.sum(axis=1, dtype=np.float64))
        digest = content_digest(expression, world.genes, (perturbation, cell_type), depth)
        names = np.array([f"cell_{index:07d}" for index in range(num_cells)], dtype=object)
        source = Source(origin, digest)
        return Cells(
            expression, world.genes, perturbation, cell_type, depth, "counts", names, source
        )

    def _chunks(
        self, t: int, p: int, num_cells: int, stream: tuple[int, int]
    ) -> Iterator[Int32[np.ndarray, "cells genes"]]:
        """Dense counts, few enough cells at a time to stay near 16 MB."""
        if num_cells < 1:
            message = f"Cannot draw {num_cells} cells. Ask for at least one."
            raise UsageError(message)
        largest = max(_CHUNK_VALUES // len(self.parameters.genes), 1)
        for start in range(0, num_cells, largest):
            rng = _generator(stream, (t, p, start))
            size = min(largest, num_cells - start)
            yield _counts(self.parameters, t, p, size, rng)


def _counts(
    world: BloodParameters, t: int, p: int, num_cells: int, rng: Generator
) -> Int32[np.ndarray, "cells genes"]:
    """The model of `simulate`, line by line."""
    effect = world.shared[p] + world.specific[t, p]
    responding, spread = float(world.responding[t]), float(world.spread[t])
    response = _mean_response(effect, responding, spread)
    mean, deviation = world.log_depth[t]
    log_size = rng.normal(mean, deviation, num_cells)
    scaled = world.loadings * world.program_scale[t]
    programs = rng.standard_normal((num_cells, scaled.shape[1]))
    responds = rng.random(num_cells) < responding
    strength = responds * rng.normal(1.0, spread, num_cells)

    log_rate = programs @ scaled.T
    log_rate += strength[:, None] * effect
    log_rate += log_size[:, None]
    log_rate += world.log_fraction[t] - np.square(scaled).sum(axis=1) / 2
    log_rate += _log_compensation(np.exp(world.log_fraction[t]), response)
    rate = np.exp(log_rate, out=log_rate)
    shape = 1 / world.dispersion[t]
    rate *= rng.standard_gamma(shape, size=rate.shape) / shape
    return rng.poisson(rate).astype(np.int32)


def _mean_response(
    effect: Float[np.ndarray, "*axes"],
    responding: Float[np.ndarray, "#*axes"] | float,
    spread: Float[np.ndarray, "#*axes"] | float,
) -> Float64[np.ndarray, "*axes"]:
    """R(d), the mean over cells of exp(response strength * effect); exactly 1 at effect 0."""
    return 1 + responding * np.expm1(effect + np.square(spread * effect) / 2)


def _log_compensation(
    fraction: Float[np.ndarray, "#*conditions genes"],
    response: Float[np.ndarray, "*conditions genes"],
) -> Float64[np.ndarray, "*conditions"]:
    """Log of whole / (whole + gain), where the whole has the genes that are not simulated too."""
    gain = (fraction * (response - 1)).sum(axis=-1)
    return np.asarray(-np.log1p(gain / np.maximum(fraction.sum(axis=-1), 1.0)))


def _generator(stream: tuple[int, int], position: tuple[int, ...]) -> Generator:
    """Randomness is a position: equal for equal (seed, purpose, position), else independent."""
    seed, purpose = stream
    return default_rng(SeedSequence(seed, spawn_key=(purpose, *position)))
