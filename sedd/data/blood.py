"""Parameters of simulated blood cells: the measured table, and how it grows beyond itself.

`pbmc_parameters.json` holds summary parameters of real cells (Kang et al. 2018, Nature
Biotechnology 36, 89-94; counts: GEO GSE96583), written by `benchmarks/measure_pbmc_parameters.py`.
More genes, cell types and perturbations than it has are drawn from the distribution of those it
has. `simulate` states the model these are parameters of.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from numpy.random import Generator, SeedSequence, default_rng

CONTROL = "control"
MEASURED_PERTURBATION = "IFNb"
NULL_EVERY = 4
"""Of the perturbations beyond the measured one every fourth (the 4th, 8th, ...) does nothing."""

_TABLE = Path(__file__).with_name("pbmc_parameters.json")
_LARGEST_LOG_FRACTION = np.log(0.03)
_STRATUM = 40


@dataclass(frozen=True, eq=False)
class BloodParameters:
    """A world of cells. Axes: types, perturbations (the first is control), genes, programs."""

    genes: tuple[str, ...]
    cell_types: tuple[str, ...]
    perturbations: tuple[str, ...]
    share: Float[np.ndarray, " types"]
    """Share of each type among all cells, sum 1."""

    log_depth: Float[np.ndarray, "types 2"]
    """Mean and standard deviation of the log of a cell's size."""

    log_fraction: Float[np.ndarray, "types genes"]
    """Log of a gene's expected count per unit of size in control cells."""

    dispersion: Float[np.ndarray, "types genes"]
    """Variance of the gamma factor (mean 1) that each count has beside the programs."""

    loadings: Float[np.ndarray, "genes programs"]
    program_scale: Float[np.ndarray, "types programs"]
    shared: Float[np.ndarray, "perturbations genes"]
    """Log effect in a responding cell, the part all types have in common."""

    specific: Float[np.ndarray, "types perturbations genes"]
    """The part of the log effect that depends on the type."""

    responding: Float[np.ndarray, " types"]
    """Probability that a cell responds at all."""

    spread: Float[np.ndarray, " types"]
    """Standard deviation over responding cells of the strength of response, whose mean is 1."""

    @property
    def effect(self) -> Float[np.ndarray, "types perturbations genes"]:
        """Mean log effect in a responding cell."""
        return self.shared + self.specific


def blood_parameters(
    *, seed: int, num_genes: int, num_cell_types: int, num_perturbations: int
) -> BloodParameters:
    """The world of these sizes; what the table holds comes first, the seed decides the rest.

    A larger world of the same seed begins with the smaller one: with its genes, then its types.
    """
    table = json.loads(_TABLE.read_text())
    world = _measured(table)
    missing = num_genes - len(world.genes)
    if missing > 0:
        world = _with_genes(world, table["other_genes"], missing, _stream(seed, 1))
    world = _first_genes(world, num_genes)
    for number in range(len(world.cell_types) + 1, num_cell_types + 1):
        world = _with_cell_type(world, number, _stream(seed, 2, number))
    world = _first_cell_types(world, num_cell_types)
    draws = [
        _drawn_response(world, number, _stream(seed, 3, number))
        for number in range(2, num_perturbations + 1)
    ]
    drawn = tuple(f"sim_{number:03d}" for number in range(2, num_perturbations + 1))
    return replace(
        world,
        perturbations=(CONTROL, MEASURED_PERTURBATION, *drawn),
        shared=np.stack([*world.shared, *(shared for shared, _ in draws)]),
        specific=np.stack(
            [*world.specific.swapaxes(0, 1), *(specific for _, specific in draws)], axis=1
        ),
    )


def _measured(table: dict[str, Any]) -> BloodParameters:
    types, genes = table["cell_types"], table["genes"]

    def of_genes(key: str) -> Float[np.ndarray, "..."]:
        return np.array([row[key] for row in genes.values()], dtype=np.float64)

    def of_types(key: str) -> Float[np.ndarray, "..."]:
        return np.array([row[key] for row in types.values()], dtype=np.float64)

    shared, specific = of_genes("shared"), of_genes("specific").T
    return BloodParameters(
        genes=tuple(genes),
        cell_types=tuple(types),
        perturbations=(CONTROL, MEASURED_PERTURBATION),
        share=of_types("share") / of_types("share").sum(),
        log_depth=of_types("log_depth"),
        log_fraction=of_genes("log_fraction").T,
        dispersion=of_genes("dispersion").T,
        loadings=of_genes("loadings"),
        program_scale=of_types("program_scale"),
        shared=np.stack([np.zeros_like(shared), shared]),
        specific=np.stack([np.zeros_like(specific), specific], axis=1),
        responding=of_types("responding"),
        spread=of_types("spread"),
    )


def _first_genes(world: BloodParameters, number: int) -> BloodParameters:
    return replace(
        world,
        genes=world.genes[:number],
        log_fraction=world.log_fraction[:, :number],
        dispersion=world.dispersion[:, :number],
        loadings=world.loadings[:number],
        shared=world.shared[:, :number],
        specific=world.specific[:, :, :number],
    )


def _first_cell_types(world: BloodParameters, number: int) -> BloodParameters:
    return replace(
        world,
        cell_types=world.cell_types[:number],
        share=world.share[:number] / world.share[:number].sum(),
        log_depth=world.log_depth[:number],
        log_fraction=world.log_fraction[:number],
        dispersion=world.dispersion[:number],
        program_scale=world.program_scale[:number],
        specific=world.specific[:number],
        responding=world.responding[:number],
        spread=world.spread[:number],
    )


def _with_genes(
    world: BloodParameters, others: dict[str, Any], number: int, rng: Generator
) -> BloodParameters:
    """Adds genes as rare as those outside the table; each takes the rest from one inside it.

    Two streams, one row a gene in each, so that more genes leave the first ones as they are.
    """
    for_normal, for_uniform = rng.spawn(2)
    normal = for_normal.standard_normal((number, len(world.cell_types)))
    uniform = for_uniform.random((number, 4))
    level = np.interp(uniform[:, 0], others["probability"], others["log_fraction"])
    donor = _pick(uniform[:, 1], np.arange(len(world.genes)))
    responsive = np.flatnonzero(world.effect.any(axis=(0, 1)))
    touched = uniform[:, 2] < others["touched"]
    responder = _pick(uniform[:, 3], responsive)
    log_fraction = level + others["type_deviation"] * normal.T
    return replace(
        world,
        genes=(*world.genes, *(f"SIM{index:05d}" for index in range(1, number + 1))),
        log_fraction=np.concatenate([world.log_fraction, log_fraction], axis=1),
        dispersion=np.concatenate([world.dispersion, world.dispersion[:, donor]], axis=1),
        loadings=np.concatenate([world.loadings, world.loadings[donor]]),
        shared=np.concatenate([world.shared, world.shared[:, responder] * touched], axis=1),
        specific=np.concatenate(
            [world.specific, world.specific[:, :, responder] * touched], axis=2
        ),
    )


def _pick(
    uniform: Float[np.ndarray, " draws"], choices: Int[np.ndarray, " choices"]
) -> Int[np.ndarray, " draws"]:
    return choices[(uniform * len(choices)).astype(np.int64)]


def _with_cell_type(world: BloodParameters, number: int, rng: Generator) -> BloodParameters:
    """Adds a type between two of the measured ones, moved a little off their line.

    The type-dependent response keeps its size: the mixture is scaled to unit sum of squares.
    """
    first, second = rng.choice(7, size=2, replace=False)
    weight = rng.uniform(0.2, 0.8)

    def between(rows: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
        return (weight * rows[first] + (1 - weight) * rows[second])[None]

    moved = 0.3 * rng.standard_normal(len(world.genes))
    specific = between(world.specific) / np.hypot(weight, 1 - weight)
    return replace(
        world,
        cell_types=(*world.cell_types, f"sim type {number}"),
        share=np.concatenate([world.share, between(world.share)]),
        log_depth=np.concatenate([world.log_depth, between(world.log_depth)]),
        log_fraction=np.concatenate([world.log_fraction, between(world.log_fraction) + moved]),
        dispersion=np.concatenate([world.dispersion, between(world.dispersion)]),
        program_scale=np.concatenate([world.program_scale, between(world.program_scale)]),
        specific=np.concatenate([world.specific, specific]),
        responding=np.concatenate([world.responding, between(world.responding)]),
        spread=np.concatenate([world.spread, between(world.spread)]),
    )


def _drawn_response(
    world: BloodParameters, number: int, rng: Generator
) -> tuple[Float[np.ndarray, " genes"], Float[np.ndarray, "types genes"]]:
    """The measured response handed to other genes of like abundance, weaker or stronger.

    Every `NULL_EVERY`-th touches no gene, so that a model can be caught inventing effects.
    """
    if number % NULL_EVERY == 0:
        return np.zeros_like(world.shared[1]), np.zeros_like(world.specific[:, 1])
    order = np.argsort(world.log_fraction.mean(axis=0), kind="stable")
    source = np.empty_like(order)
    for start in range(0, len(order), _STRATUM):
        stratum = order[start : start + _STRATUM]
        source[stratum] = rng.permutation(stratum)
    strength = np.exp(rng.normal(-0.35, 0.35))
    ceiling = np.maximum(_LARGEST_LOG_FRACTION - world.log_fraction.max(axis=0), 0.0)
    shared = np.minimum(strength * world.shared[1, source], ceiling)
    return shared, strength * world.specific[:, 1, source]


def _stream(seed: int, *position: int) -> Generator:
    return default_rng(SeedSequence(seed, spawn_key=position))
