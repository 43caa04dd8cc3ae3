"""From a trained model and a condition to whole cells, as raw counts.

The unit of work is (cell type, perturbation, shard): its cells depend on the model's digest, the
sampler and the root seed, and on nothing else: not on the order of units, the batch they were
drawn in, or how many processes share them.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from jaxtyping import Float, Int, Num
from torch import Generator, Tensor

from sedd.checkpoint import Trained
from sedd.data.controls import ControlCells
from sedd.diffusion import sampling
from sedd.diffusion.graph import AbsorbingGraph
from sedd.diffusion.noise import LogLinearNoise
from sedd.errors import DataError
from sedd.inference import InferenceConfig
from sedd.model.inputs import Condition

NEARLY_CERTAIN = 0.99
"""Effects more reliable than this are left alone: shrinking costs a third network evaluation."""


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
            config.temperature, config.shrink_effects, config.shard_size,
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
    """Row, in the training file, of the control cell each cell took its depth (and, in
    counterfactual mode, its quantiles) from."""


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


def _start_from(controls: ControlCells, unit: Unit, config: InferenceConfig) -> ControlCells:
    """Control cells of this shard: each is used once before any is used twice."""
    rng = np.random.default_rng([config.seed, int(controls.cell_type[0])])
    first = unit.shard * config.shard_size
    positions = np.arange(first, first + unit.num_cells)
    rounds, within = np.divmod(positions, len(controls.row))
    orders = [rng.permutation(len(controls.row)) for _ in range(int(rounds.max(initial=0)) + 1)]
    chosen = np.array([orders[r][w] for r, w in zip(rounds, within, strict=True)], np.int64)
    return ControlCells(
        controls.cell_type[chosen],
        controls.row[chosen],
        controls.depth[chosen],
        controls.values[chosen],
    )


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
    )
    reliability = float(trained.reference.effects.reliability[perturbation])
    share = reliability if config.shrink_effects and reliability < NEARLY_CERTAIN else 1.0
    contexts = trained.contexts.to(device)
    unperturbed = partial(_logits, trained, asked.as_control(), contexts)
    perturbed = partial(_shrunk_logits, trained, asked, contexts, share)
    graph = AbsorbingGraph(denoiser.sizes.num_bins)
    generator = Generator(device).manual_seed(seed)
    shape = (len(controls.row), denoiser.sizes.num_genes)
    blocks = sampling.even_blocks(shape[1], config.num_steps)
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


def _logits(
    trained: Trained,
    condition: Condition,
    contexts: object,
    tokens: Tensor,
    genes: Tensor | None,
) -> Tensor:
    return trained.denoiser(tokens, condition, contexts, genes)


def _shrunk_logits(
    trained: Trained,
    condition: Condition,
    contexts: object,
    share: float,
    tokens: Tensor,
    genes: Tensor | None,
) -> Tensor:
    """Logits between "control" (share 0) and the perturbation (share 1)."""
    perturbed = trained.denoiser(tokens, condition, contexts, genes)
    if share == 1 or not condition.perturbation.any():
        return perturbed
    control = trained.denoiser(tokens, condition.as_control(), contexts, genes)
    return torch.lerp(control, perturbed, share)
