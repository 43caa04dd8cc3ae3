"""Blood cells with known truth: any number of them, nothing to download, a model to be judged by.

Cell i of type t under perturbation p has counts x_ig of gene g:

    size           N_i  ~ LogNormal(m_t, s_t)
    gene programs  z_ik ~ Normal(0, 1),  a_ig = sum_k scale_tk loading_gk z_ik
    response       r_i  = b_i (1 + spread_t e_i),  b_i ~ Bernoulli(responding_t), e_i ~ Normal(0, 1)
    gene noise     u_ig ~ Gamma of mean 1 and variance dispersion_tg
    counts         x_ig ~ Poisson(c_tp N_i f_tg u_ig exp(a_ig - Var(a_ig) / 2 + r_i d_tpg))

Given programs and response, counts are negative binomial. f_tg is the control level of a gene, its
share of all RNA; d_tpg = shared_pg + specific_tpg is its log effect in a responding cell, 0 in all
types for genes that the perturbation does not touch, and 0 throughout in control. Means are exact:

    E[x_ig] = c_tp E[N_i] f_tg R(d_tpg)
    R(d)    = 1 - responding_t + responding_t exp(d + spread_t^2 d^2 / 2)

c_tp = 1 / (1 + sum_g f_tg (R(d_tpg) - 1)) is there because sequencing shares out a fixed number of
reads: what responding genes gain, all others lose in proportion, the genes not simulated too.

Levels, dispersions, loadings, depths and the response to interferon beta were measured on the cells
of Kang et al. 2018 (Nature Biotechnology 36, 89-94; GEO GSE96583), see `blood`. A simulated cell's
depth is its total over the simulated genes, as in a file that holds no others.
"""

from dataclasses import dataclass, replace

import numpy as np

from sedd.data.blood import CONTROL, BloodParameters, blood_parameters
from sedd.data.cells import Cells
from sedd.data.truth import Conditions, Truth
from sedd.errors import UsageError

_FEWEST_COUNTS = 100.0
"""The median control cell of every type expects at least so many, or cells cut to a few genes would
often have no count at all."""


@dataclass(frozen=True, eq=False)
class Simulation:
    """Cells, and the truth they were drawn from."""

    cells: Cells
    truth: Truth


def simulate(
    *,
    seed: int = 0,
    num_cells: int = 4000,
    num_genes: int = 512,
    num_cell_types: int = 6,
    num_perturbations: int = 1,
    effect_size: float = 1.0,
    type_dependence: float = 1.0,
) -> Simulation:
    """Cells of every type under control and every perturbation, in random order.

    The first 600 genes (most variable first), the first 7 cell types and the first perturbation
    are the measured ones; `blood` draws those beyond. Equal arguments give equal cells, and within
    the measured ones the truth does not depend on the seed. Types have their real shares, control
    has the share 1 / (1 + sqrt(num_perturbations)), every condition at least one cell.

    Args:
        seed: decides the cells, and what is drawn beyond the measured.
        num_cells: at least one per condition.
        num_genes: beyond the measured they are named SIM00001, ...
        num_cell_types: beyond the measured they are named "sim type 8", ...
        num_perturbations: control not counted; "IFNb" first, then "sim_002", ... of which every
            fourth does nothing.
        effect_size: factor on all log effects; at 0 nothing responds.
        type_dependence: factor on the type-dependent part of the log effects; at 0 all types
            respond alike.
    """
    _check_sizes(seed, num_cells, num_genes, num_cell_types, num_perturbations)
    world = blood_parameters(
        seed=seed,
        num_genes=num_genes,
        num_cell_types=num_cell_types,
        num_perturbations=num_perturbations,
    )
    world = replace(
        _deep_enough(world),
        shared=effect_size * world.shared,
        specific=effect_size * type_dependence * world.specific,
    )
    origin = (
        f"simulate(seed={seed}, num_cells={num_cells}, num_genes={num_genes}, "
        f"num_cell_types={num_cell_types}, num_perturbations={num_perturbations}, "
        f"effect_size={effect_size}, type_dependence={type_dependence})"
    )
    truth = Truth(world)
    return Simulation(truth.simulated(_allocate(world, num_cells), seed, origin), truth)


def _check_sizes(
    seed: int, num_cells: int, num_genes: int, num_cell_types: int, num_perturbations: int
) -> None:
    if seed < 0:
        message = f"seed={seed} is negative. Choose 0 or more."
        raise UsageError(message)
    if min(num_genes, num_cell_types, num_perturbations) < 1:
        message = (
            f"A simulation needs at least 1 gene, 1 cell type and 1 perturbation, got "
            f"num_genes={num_genes}, num_cell_types={num_cell_types}, "
            f"num_perturbations={num_perturbations}."
        )
        raise UsageError(message)
    fewest = num_cell_types * (num_perturbations + 1)
    if num_cells < fewest:
        message = (
            f"num_cells={num_cells} is too few for one cell of each of {num_cell_types} cell types "
            f"under {CONTROL} and {num_perturbations} perturbations. Ask for {fewest} or more."
        )
        raise UsageError(message)


def _deep_enough(world: BloodParameters) -> BloodParameters:
    """Larger cells, by one factor for all types, where the chosen genes are few."""
    median = np.exp(world.log_depth[:, 0]) * np.exp(world.log_fraction).sum(axis=1)
    raised = world.log_depth.copy()
    raised[:, 0] += np.log(max(_FEWEST_COUNTS / median.min(), 1.0))
    return replace(world, log_depth=raised)


def _allocate(world: BloodParameters, num_cells: int) -> Conditions:
    """One cell for each condition, the others in proportion, the largest remainders first."""
    num_perturbations = len(world.perturbations) - 1
    weight = np.full(num_perturbations + 1, 1 / (num_perturbations + np.sqrt(num_perturbations)))
    weight[0] = 1 / (1 + np.sqrt(num_perturbations))
    share = np.outer(world.share, weight).ravel()
    wanted = np.maximum(share * num_cells - 1, 0)
    wanted *= (num_cells - len(share)) / max(wanted.sum(), 1e-9)
    given = np.floor(wanted).astype(np.int64)
    short = num_cells - len(share) - int(given.sum())
    given[np.argsort(given - wanted, kind="stable")[:short]] += 1
    cell_type, perturbation = np.divmod(np.arange(len(share)), num_perturbations + 1)
    return Conditions(cell_type, perturbation, given + 1)
