"""The training loop, as a generator of `StepReport`.

    for report in train(state, batches, config, contexts): ...

Ray Train, MLflow, progress bars and tests are bodies of that loop; the loop knows none of them.
Every draw is a function of (seed, step): a resumed run repeats the uninterrupted one, and the
noise of a cell depends on its place in the global batch, not on how many workers share it.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Generator, Tensor, nn

from sedd.diffusion.graph import AbsorbingGraph, stratified_mask_counts
from sedd.diffusion.loss import nelbo_per_gene
from sedd.errors import ConfigError
from sedd.model.inputs import Batch, Condition, Contexts
from sedd.model.transformer import Denoiser
from sedd.training_config import TrainingConfig


@runtime_checkable
class Batches(Protocol):
    """Batches by position: `batches(step)` is always the same global batch."""

    def __call__(self, step: int) -> Batch:
        """The global batch of a step."""
        ...


@dataclass(frozen=True)
class StepReport:
    """What one step did. `validation_nelbo` (nats per gene) only where it was measured."""

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    cells_seen: int
    validation_nelbo: float | None = None
    is_best: bool = False


@dataclass
class TrainingState:
    """All that a run needs to go on: weights, averaged weights, optimizer, counters."""

    denoiser: Denoiser
    average: Denoiser
    optimizer: torch.optim.AdamW
    step: int = 0
    best_nelbo: float = math.inf
    since_best: int = 0


@dataclass(frozen=True)
class Workers:
    """This worker's place among those that share each batch, and how weights are kept equal."""

    rank: int = 0
    world_size: int = 1
    parallel: Callable[[nn.Module], nn.Module] = field(default=lambda module: module)
    mean: Callable[[Tensor], Tensor] = field(default=lambda value: value)
    """Mean of a number over the workers: what is reported, and what early stopping goes by."""

    def share(self, num_cells: int) -> slice:
        """This worker's cells of a batch: equal contiguous shares."""
        first, end = self.rank * num_cells, (self.rank + 1) * num_cells
        return slice(first // self.world_size, end // self.world_size)


def start(denoiser: Denoiser, average: Denoiser, config: TrainingConfig) -> TrainingState:
    """A fresh state; `average` is a second denoiser of the same shape."""
    average.load_state_dict(denoiser.state_dict())
    average.requires_grad_(requires_grad=False).eval()
    return TrainingState(denoiser, average, _optimizer(denoiser, config))


def train(
    state: TrainingState,
    batches: Batches,
    config: TrainingConfig,
    contexts: Contexts,
    *,
    max_steps: int,
    validation: Batch | None = None,
    workers: Workers | None = None,
) -> Iterator[StepReport]:
    """Train until `max_steps` or until patience ends; `state` is up to date at each yield.

    Args:
        state: Where to start from; updated in place.
        batches: The clean global batch of each step.
        config: Rates and sizes.
        contexts: Control statistics of the cell types.
        max_steps: Length of the whole run, also for the learning-rate schedule.
        validation: Cells whose NELBO under the averaged weights chooses the best step.
        workers: Rank, number of workers and the wrapper that keeps their weights equal.

    Yields:
        One report per step.

    Raises:
        ConfigError: Training diverged; `state` is as it was before the step that did.
    """
    workers = workers or Workers()
    device = state.denoiser.basis.device
    graph = AbsorbingGraph(state.denoiser.sizes.num_bins)
    model = workers.parallel(state.denoiser)
    contexts = contexts.to(device)
    while state.step < max_steps and not _out_of_patience(state, config):
        learning_rate = config.learning_rate * _schedule(state.step, max_steps, config.warmup_steps)
        for group in state.optimizer.param_groups:
            group["lr"] = learning_rate
        model.train()
        noised, batch = _noised(batches(state.step), graph, config, state, workers)
        with autocast(device, config.precision):
            logits = model(noised, batch.condition, contexts)
        clean = batch.tokens.long()
        loss = nelbo_per_gene(logits, clean, graph.masked(noised)).mean()
        state.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(state.denoiser.parameters(), config.gradient_clip)
        _require_finite(loss, grad_norm, state, config)
        state.optimizer.step()
        state.step += 1
        _update_average(state, config.ema_decay)
        nelbo = _validate(state, config, contexts, validation, workers)
        yield StepReport(
            step=state.step,
            loss=float(workers.mean(loss.detach())),
            grad_norm=float(grad_norm),
            learning_rate=learning_rate,
            cells_seen=state.step * config.batch_size,
            validation_nelbo=nelbo,
            is_best=nelbo is not None and state.since_best == 0,
        )


def held_out_nelbo(
    denoiser: Denoiser,
    batch: Batch,
    contexts: Contexts,
    *,
    num_draws: int = 4,
    seed: int = 0,
    chunk: int = 128,
) -> Float[Tensor, " cells"]:
    """NELBO of each cell in nats per gene, averaged over stratified mask counts.

    The same cells, seed and number of draws see the same masks, so models can be compared.
    """
    device = denoiser.basis.device
    graph = AbsorbingGraph(denoiser.sizes.num_bins)
    contexts = contexts.to(device)
    total = torch.zeros(len(batch), dtype=torch.float64)
    was_training = denoiser.training
    denoiser.eval()
    for draw in range(num_draws):
        generator = Generator().manual_seed(_mix(seed, draw))
        clean = batch.tokens.long().cpu()
        counts = stratified_mask_counts(len(clean), clean.shape[1], generator=generator)
        noised = graph.mask_exactly(clean, counts, generator=generator)
        for first in range(0, len(clean), chunk):
            rows = slice(first, first + chunk)
            with torch.no_grad():
                part = noised[rows].to(device)
                logits = denoiser(part, batch.condition.select(rows).to(device), contexts)
                entropy = nelbo_per_gene(logits, clean[rows].to(device), graph.masked(part))
            total[rows] += entropy.double().cpu()
    denoiser.train(was_training)
    return (total / num_draws).float()


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Bfloat16 where asked for, or where `auto` finds hardware that has it."""
    native = device.type == "cuda" and torch.cuda.is_bf16_supported()
    enabled = precision == "bfloat16" or (precision == "auto" and native)
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


def _noised(
    batch: Batch,
    graph: AbsorbingGraph,
    config: TrainingConfig,
    state: TrainingState,
    workers: Workers,
) -> tuple[Int[Tensor, "batch genes"], Batch]:
    """Mask the global batch by (seed, step), hide labels, and take this worker's share."""
    device = state.denoiser.basis.device
    generator = Generator(device).manual_seed(_mix(config.seed, state.step))
    torch.manual_seed(_mix(config.seed, state.step, workers.rank))  # dropout
    batch = batch.to(device)
    num_cells, num_genes = batch.tokens.shape
    counts = stratified_mask_counts(num_cells, num_genes, generator=generator, device=device)
    everything = torch.rand(num_cells, generator=generator, device=device) < config.fully_masked
    counts = torch.where(everything, num_genes, counts)
    noised = graph.mask_exactly(batch.tokens.long(), counts, generator=generator)
    told = _hide(batch.condition, state.denoiser, generator)
    rows = workers.share(num_cells)
    return noised[rows], Batch(batch.tokens[rows], told.select(rows))


def _hide(condition: Condition, denoiser: Denoiser, generator: Generator) -> Condition:
    """Do not tell the model some of the cell-type labels, perturbations and batches."""
    config, sizes = denoiser.config, denoiser.sizes
    shape, device = condition.label.shape, condition.label.device
    hidden = torch.rand(shape, generator=generator, device=device) < config.cell_type_label_dropout
    condition = condition.with_hidden_labels(hidden, sizes.num_cell_types)
    if config.condition_dropout > 0:
        hidden = torch.rand(shape, generator=generator, device=device) < config.condition_dropout
        condition = condition.with_hidden_perturbations(hidden, sizes.num_perturbations)
    if sizes.num_batches:
        hidden = torch.rand(shape, generator=generator, device=device) < config.batch_dropout
        condition = condition.with_hidden_batches(hidden, sizes.num_batches)
    return condition


def _out_of_patience(state: TrainingState, config: TrainingConfig) -> bool:
    return config.patience is not None and state.since_best >= config.patience


def _require_finite(
    loss: Tensor, grad_norm: Tensor, state: TrainingState, config: TrainingConfig
) -> None:
    if math.isfinite(float(loss.detach())) and math.isfinite(float(grad_norm)):
        return
    message = (
        f"Training diverged at step {state.step + 1}: loss {float(loss.detach()):g}, gradient "
        f"norm {float(grad_norm):g}. Lower training.learning_rate (now {config.learning_rate:g}) "
        f"or training.gradient_clip (now {config.gradient_clip:g}), or set "
        "training.precision=float32. Earlier checkpoints are kept; --resume auto goes on from the "
        "newest."
    )
    raise ConfigError(message)


def _validate(
    state: TrainingState,
    config: TrainingConfig,
    contexts: Contexts,
    validation: Batch | None,
    workers: Workers,
) -> float | None:
    """NELBO under the averaged weights where it is due; the same number on every worker."""
    if validation is None or state.step % config.validate_every:
        return None
    mean = held_out_nelbo(state.average, validation, contexts).mean()
    nelbo = float(workers.mean(mean.to(state.average.basis.device)))
    state.since_best = 0 if nelbo < state.best_nelbo else state.since_best + 1
    state.best_nelbo = min(nelbo, state.best_nelbo)
    return nelbo


def _optimizer(denoiser: Denoiser, config: TrainingConfig) -> torch.optim.AdamW:
    decayed = [parameter for parameter in denoiser.parameters() if parameter.ndim > 1]
    plain = [parameter for parameter in denoiser.parameters() if parameter.ndim <= 1]
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    fused = next(denoiser.parameters()).is_cuda
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), fused=fused)


def _schedule(step: int, max_steps: int, warmup_steps: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    warmup = min(1.0, (step + 1) / max(1, warmup_steps))
    return warmup * 0.5 * (1 + math.cos(math.pi * step / max_steps))


@torch.no_grad()
def _update_average(state: TrainingState, decay: float) -> None:
    decay = min(decay, (1 + state.step) / (10 + state.step))
    pairs = zip(state.average.parameters(), state.denoiser.parameters(), strict=True)
    for averaged, current in pairs:
        averaged.lerp_(current, 1 - decay)


def _mix(*numbers: int) -> int:
    """One 63-bit seed from several numbers (splitmix64)."""
    state = 0
    for number in numbers:
        state = (state ^ number) + 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        state = (state ^ state >> 27) * 0x94D049BB133111EB & 0xFFFFFFFFFFFFFFFF
        state ^= state >> 31
    return state >> 1
