"""What one worker of Ray Train does: iterate the library's loop, and on rank 0 write it down.

A worker that starts, for the first time or after a crash, goes on from the newest checkpoint that
verifies; everything it draws is a function of (seed, step), so the result is the same.
"""

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.cost import peak_memory
from pipelines.journal import FILE_NAME, Journal, truncate_after
from sedd.config import Config, from_yaml

if TYPE_CHECKING:
    import torch

    from sedd.data.shards import Shards
    from sedd.model.inputs import Batch
    from sedd.training import StepReport, TrainingState, Workers


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a worker is told: plain data that may travel to other processes."""

    config: str
    """The resolved configuration as YAML."""
    shards: str
    """Folder of the token shards."""
    provenance: dict[str, str]
    """Digests of cells and split, kept in every checkpoint."""
    threads: int
    """Threads for each worker."""
    stop_file: str | None = None
    """Where this file appears, training ends after a checkpoint, as when time is over."""


def train_worker(job: dict[str, Any]) -> bool:
    """One worker of Ray Train; True if the last step was reached, False if it was stopped."""
    import ray.train
    from ray.train.torch import get_device, prepare_model

    from sedd.training import Workers

    context = ray.train.get_context()
    several = context.get_world_size() > 1
    workers = Workers(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        **({"parallel": prepare_model, "mean": _mean} if several else {}),
    )
    finished = fit(Job(**job), get_device(), workers)
    ray.train.report({"finished": int(finished)})
    return finished


def fit(job: Job, device: "torch.device", workers: "Workers | None" = None) -> bool:
    """Train from the newest checkpoint on; rank 0 writes journal and checkpoints.

    Args:
        job: What to train on what.
        device: Where.
        workers: Those that share each batch; this process alone if not given.

    Returns:
        True if the last step was reached, False if time ran out or the stop file appeared.
    """
    import torch

    from pipelines.experiment import load_shards
    from sedd.building import build_contexts, token_batches, validation_batch
    from sedd.training import Workers, train

    stop = _Stop(time.monotonic(), job.stop_file)
    torch.set_num_threads(max(1, min(job.threads, os.cpu_count() or 1)))
    config = from_yaml(job.config)
    shards = load_shards(Path(job.shards))
    workers = workers or Workers()
    state = _first_state(config, shards, device, workers.rank)
    batches = token_batches(shards, config.training)
    keeper = _Keeper(config, shards, job.provenance) if workers.rank == 0 else None
    max_steps = planned_steps(config, int((~shards.validation).sum()))
    validation = validation_batch(shards, batches, config.training)
    reports = train(
        state,
        batches,
        config.training,
        build_contexts(config.model, shards.reference),
        max_steps=max_steps,
        validation=validation,
        workers=workers,
    )
    finished = True
    try:
        for report in reports:
            stopped = stop.due(config, report.step, device, workers.world_size)
            if keeper is not None:
                keeper.keep(state, report, last=stopped or report.step == max_steps)
            if stopped and report.step < max_steps:
                finished = False
                break
        if keeper is not None:
            keeper.finish(state)
            if finished and validation is not None:
                _measure_profile(config, validation, device)
    finally:
        if keeper is not None:
            keeper.close()
    return finished


def _measure_profile(config: Config, validation: "Batch", device: "torch.device") -> None:
    """Put the information profile of the checkpoint that generates into its folder."""
    from sedd.checkpoint import best_or_newest, load_trained, save_profile
    from sedd.generation import profile_of

    checkpoint = best_or_newest(config.checkpoints)
    trained = load_trained(checkpoint, config.model)
    trained.denoiser.to(device)
    save_profile(checkpoint, profile_of(trained, validation))


def _mean(value: "torch.Tensor") -> "torch.Tensor":
    """Mean of a number over all workers, the same bits on each."""
    from torch import distributed

    total = value.clone()
    distributed.all_reduce(total)
    return total / distributed.get_world_size()


class _Keeper:
    """Rank 0's duty: journal and checkpoints."""

    def __init__(self, config: Config, shards: "Shards", provenance: dict[str, str]) -> None:
        self._config, self._provenance, self._shards = config, provenance, shards
        self._journal = Journal(Path(config.experiment_dir) / FILE_NAME)
        self._since, self._saved = time.monotonic(), -1

    def keep(self, state: "TrainingState", report: "StepReport", *, last: bool) -> None:
        seconds = max(time.monotonic() - self._since, 1e-9)
        self._since = time.monotonic()
        cells_per_s = self._config.training.batch_size / seconds
        metrics = {
            "train/loss": report.loss,
            "train/grad_norm": report.grad_norm,
            "train/learning_rate": report.learning_rate,
            "train/cells_seen": report.cells_seen,
            "speed/cells_per_s": cells_per_s,
            "speed/tokens_per_s": cells_per_s * self._shards.tokens.shape[1],
        }
        if report.validation_nelbo is not None:
            metrics["val/nelbo"] = report.validation_nelbo
            metrics |= peak_memory(state.average.basis.device)
        self._journal.append(report.step, metrics)
        due = report.step % self._config.training.checkpoint_every == 0
        if due or last or report.is_best:
            self._save(state, is_best=report.is_best)

    def finish(self, state: "TrainingState") -> None:
        if self._saved != state.step:
            self._save(state, is_best=False)

    def close(self) -> None:
        self._journal.close()

    def _save(self, state: "TrainingState", *, is_best: bool) -> None:
        from sedd.checkpoint import save_checkpoint

        self._journal.flush()  # a checkpoint never knows of a step that the journal has lost
        save_checkpoint(
            self._config.checkpoints,
            state,
            self._shards.reference,
            config_yaml=self._config.to_yaml(),
            provenance=self._provenance,
            is_best=is_best,
        )
        self._saved = state.step


def _first_state(config: Config, shards: "Shards", device: Any, rank: int) -> "TrainingState":
    """The state to go on from: a checkpoint if there is one to resume, else a fresh one.

    Only rank 0 touches a file; the others just read.
    """
    from sedd.building import build_denoiser
    from sedd.checkpoint import load_training, newest_valid
    from sedd.training import start

    journal = Path(config.experiment_dir) / FILE_NAME
    found = newest_valid(config.checkpoints, set_aside=False)
    if found is None:
        if rank == 0:
            truncate_after(journal, 0)
        seed = config.training.seed
        denoiser, average = (
            build_denoiser(config.model, shards.reference, seed=seed).to(device) for _ in range(2)
        )
        return start(denoiser, average, config.training)
    state, _ = load_training(found, config.model, config.training, device=device)
    if rank == 0:
        truncate_after(journal, state.step)
    return state


@dataclass(frozen=True)
class _Stop:
    """Whether training shall end before its last step."""

    started: float
    stop_file: str | None

    def due(self, config: Config, step: int, device: "torch.device", world_size: int) -> bool:
        """Whether time is over or the stop file is there; all workers agree, rank 0 decides."""
        limit = config.training.max_seconds
        if limit is None and self.stop_file is None:
            return False
        over = limit is not None and time.monotonic() - self.started > limit
        over = over or (self.stop_file is not None and os.path.exists(self.stop_file))  # noqa: PTH110  (asked at every step)
        if world_size == 1:
            return over
        if step % 5:
            return False
        import torch
        from torch import distributed

        flag = torch.tensor([float(over)], device=device)
        distributed.broadcast(flag, src=0)
        return bool(flag.item())


def planned_steps(config: Config, num_cells: int) -> int:
    """Length of the whole run in steps."""
    training = config.training
    return training.max_steps or math.ceil(training.num_epochs * num_cells / training.batch_size)
