"""From a trained model and a condition to whole cells, as raw counts.

The unit of work is (cell type, perturbation, shard): its cells depend on the model's digest, the
sampler and the root seed, and on nothing else: not on the order of units, the batch they were
drawn in, or how many processes share them.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Num, Shaped
from torch import Generator, Tensor

from sedd.checkpoint import Trained
from sedd.data.controls import ControlCells
from sedd.data.reference import Reference
from sedd.diffusion import sampling
from sedd.diffusion.graph import AbsorbingGraph
from sedd.diffusion.noise import LogLinearNoise
from sedd.diffusion.schedule import InformationProfile, measure_profile, measured_blocks
from sedd.errors import DataError, UsageError
from sedd.inference import InferenceConfig
from sedd.laws import control_law, perturbed_law
from sedd.model.inputs import Batch, Condition


@dataclass(frozen=True)
class Unit:
    """One indivisible piece of generation."""

    cell_type: str
    perturbation: str
    shard: int
    num_cells: int

    def key(self, model_digest: str, config: InferenceConfig) -> str:
        """Hash of all that fixes the unit's cells."""
        fixed = (
            model_digest, config.seed, config.mode, config.sampler, config.num_steps,
            config.block_schedule, config.temperature, config.shrink_effects, config.guidance,
            config.effect_anchor, config.shard_size,
            self.cell_type, self.perturbation, self.shard, self.num_cells,
        )  # fmt: skip
        return hashlib.sha256(repr(fixed).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class GeneratedCells:
    """Cells of one unit; counts, or log1p values for models of log1p data."""

    unit: Unit
    values: Num[np.ndarray, "cells genes"]
    depth: Float[np.ndarray, " cells"]
    control_row: Int[np.ndarray, " cells"]
    """Row, in the training file, of the control cell each cell took its depth, its batch (and, in
    counterfactual mode, its quantiles) from."""

    def log1p_cp10k(self) -> Float32[np.ndarray, "cells genes"]:
        """log1p of counts per 10,000 of the depth, as `Cells.log1p_cp10k`; log1p values as is."""
        return log1p_cp10k(self.values, self.depth)


def control_names(reference: Reference, cells: GeneratedCells) -> Shaped[np.ndarray, " cells"]:
    """Name, in the training file, of the control cell each counterfactual cell is the twin of."""
    return reference.control_names[reference.control_cells.positions(cells.control_row)]


def batch_labels(reference: Reference, cells: GeneratedCells) -> Shaped[np.ndarray, " cells"]:
    """Batch of each cell: that of the control cell it started from.

    Only for models that were told batches (`Vocabulary.batches`).
    """
    at = reference.control_cells.positions(cells.control_row)
    names = np.array(reference.vocabulary.batches, dtype=object)
    return names[reference.control_cells.batch[at]]


def effect_size(reference: Reference, cells: GeneratedCells) -> Float[np.ndarray, " cells"]:
    """How far each counterfactual cell moved from its control cell.

    The Euclidean length, over the genes, of the change in log1p of counts per 10,000; 0 for a cell
    that is its control cell.
    """
    at = reference.control_cells.positions(cells.control_row)
    control = log1p_cp10k(reference.control_cells.values[at], reference.control_cells.depth[at])
    return np.linalg.norm((cells.log1p_cp10k() - control).astype(np.float64), axis=1)


def log1p_cp10k(
    values: Num[np.ndarray, "cells genes"], depth: Float[np.ndarray, " cells"]
) -> Float32[np.ndarray, "cells genes"]:
    """log1p of counts per 10,000 of each cell's depth; values that are no counts stay."""
    if not np.issubdtype(values.dtype, np.integer):
        return values.astype(np.float32)
    return np.log1p(values * (1e4 / depth)[:, None]).astype(np.float32)


def plan_units(
    cell_types: Iterable[str], perturbations: Iterable[str], config: InferenceConfig
) -> list[Unit]:
    """Every condition in shards of at most `shard_size` cells, in a fixed order."""
    units, total = [], config.num_samples_per_condition
    perturbations = list(perturbations)
    for cell_type in cell_types:
        for perturbation in perturbations:
            for shard, first in enumerate(range(0, total, config.shard_size)):
                size = min(config.shard_size, total - first)
                units.append(Unit(cell_type, perturbation, shard, size))
    return units


@torch.no_grad()
def generate_unit(trained: Trained, unit: Unit, config: InferenceConfig) -> GeneratedCells:
    """Draw the cells of one unit.

    Raises:
        UsageError: A label the model does not know.
        DataError: The cell type has no control cell to take depths from.
    """
    vocabulary = trained.reference.vocabulary
    (cell_type,) = vocabulary.cell_type_ids([unit.cell_type])
    (perturbation,) = vocabulary.perturbation_ids([unit.perturbation])
    seed = int(unit.key(trained.digest, config)[:15], 16)
    rng = np.random.default_rng(seed)
    if cell_type not in trained.reference.control_cells.cell_type:
        message = (
            f"The training data hold no control cell of {unit.cell_type!r}, so there is nothing to "
            f"start from. Add {vocabulary.control_name!r} cells of that type and train again, or "
            "name other types with --cell_types."
        )
        raise DataError(message)
    controls = _start_from(trained.reference.control_cells.of_type(int(cell_type)), unit, config)
    tokens = _sample(trained, controls, int(perturbation), config, seed)
    values = trained.reference.tokenizer.decode(tokens, rng)
    if config.mode == "counterfactual":
        unchanged = tokens == trained.reference.tokenizer.encode(controls.values)
        values = np.where(unchanged, controls.values, values)
    return GeneratedCells(unit, values, controls.depth, controls.row)


def profile_of(trained: Trained, cells: Batch, *, seed: int = 0) -> InformationProfile:
    """How much each number of visible genes tells of the others, on cells kept back."""
    device = trained.denoiser.basis.device
    contexts = trained.contexts.to(device)

    def denoise(tokens: Int[Tensor, "batch genes"], rows: slice) -> Float[Tensor, "batch _ bins"]:
        condition = cells.condition.select(rows).to(device)
        return trained.denoiser(tokens.to(device), condition, contexts)

    clean = cells.tokens.long().cpu()
    graph = AbsorbingGraph(trained.denoiser.sizes.num_bins)
    return measure_profile(denoise, clean, graph, generator=Generator().manual_seed(seed))


def blocks_for(trained: Trained, config: InferenceConfig) -> list[int]:
    """Sizes of the blocks of genes that are revealed one after another.

    Raises:
        UsageError: `block_schedule` is "measured" and the model has no information profile.
    """
    if config.block_schedule == "even":
        return sampling.even_blocks(trained.denoiser.sizes.num_genes, config.num_steps)
    if trained.profile is None:
        message = (
            "inference.block_schedule is 'measured', but the checkpoint has no information "
            "profile. It is measured on validation cells when training ends: finish the run with "
            "`python -m pipelines.train --resume auto` (if split.validation_fraction is 0, train "
            "again with e.g. 0.05), or use --set inference.block_schedule=even."
        )
        raise UsageError(message)
    return measured_blocks(trained.profile, config.num_steps)


def _start_from(controls: ControlCells, unit: Unit, config: InferenceConfig) -> ControlCells:
    """Control cells of this shard: each is used once before any is used twice."""
    rng = np.random.default_rng([config.seed, int(controls.cell_type[0])])
    first = unit.shard * config.shard_size
    positions = np.arange(first, first + unit.num_cells)
    rounds, within = np.divmod(positions, len(controls.row))
    orders = [rng.permutation(len(controls.row)) for _ in range(int(rounds.max(initial=0)) + 1)]
    chosen = np.array([orders[r][w] for r, w in zip(rounds, within, strict=True)], np.int64)
    return controls.select(chosen)


def _sample(
    trained: Trained, controls: ControlCells, perturbation: int, config: InferenceConfig, seed: int
) -> Int[np.ndarray, "cells genes"]:
    denoiser = trained.denoiser
    device = denoiser.basis.device
    asked = Condition(
        perturbation=torch.full((len(controls.row),), perturbation, device=device),
        cell_type=torch.from_numpy(controls.cell_type).to(device),
        label=torch.from_numpy(controls.cell_type).to(device),
        log_depth=torch.from_numpy(np.log(controls.depth).astype(np.float32)).to(device),
        batch=torch.from_numpy(controls.batch).to(device),
    )
    perturbed = perturbed_law(trained, asked, config)
    unperturbed = control_law(trained, asked)
    graph = AbsorbingGraph(denoiser.sizes.num_bins)
    generator = Generator(device).manual_seed(seed)
    shape = (len(controls.row), denoiser.sizes.num_genes)
    blocks = blocks_for(trained, config)
    chosen = {"generator": generator, "temperature": config.temperature}
    if config.mode == "counterfactual":
        own = torch.from_numpy(trained.reference.tokenizer.encode(controls.values)).long()
        tokens = sampling.sample_counterfactual(
            unperturbed, perturbed, own.to(device), graph, blocks=blocks, **chosen
        )
    elif config.sampler == "blocks":
        tokens = sampling.sample_blocks(perturbed, shape, graph, blocks=blocks, **chosen)
    else:
        reveal = {"euler": sampling.euler, "tweedie": sampling.tweedie}[config.sampler]
        tokens = sampling.sample_by_time(
            perturbed, shape, graph,
            reveal=reveal(LogLinearNoise()), num_steps=config.num_steps, **chosen,
        )  # fmt: skip
    return tokens.cpu().numpy()
