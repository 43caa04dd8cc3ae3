"""`train`: an h5ad in, an experiment directory and an MLflow run out.

The driver reads and splits the cells, writes token shards, owns the MLflow run and starts Ray
Train. Workers iterate `sedd.training.train`; rank 0 writes the journal and the checkpoints. What
is on disk is the truth: a killed worker, driver or machine goes on from the newest checkpoint that
verifies, with `--resume auto`.
"""

import math
import shutil
import sys
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines import cluster, command_line
from pipelines.journal import FILE_NAME, Journal, read_journal, truncate_after
from sedd.config import FLAGS, Config, from_yaml
from sedd.errors import OutputExistsError, Preempted, UsageError

if TYPE_CHECKING:
    from sedd.checkpoint import TrainingState
    from sedd.data.cells import Cells
    from sedd.data.shards import Shards
    from sedd.data.splits import Split

DESCRIPTION = "Train a denoiser on the cells of an h5ad; writes an experiment directory."


def run(config: Config, *, tracking_uri: str | None = None) -> None:
    """Train as configured; returns when the result is complete on disk.

    Raises:
        OutputExistsError: The experiment holds a model already and nothing was said of resuming.
        Preempted: `training.max_seconds` ended; the same command with --resume auto goes on.
    """
    from pipelines.experiment import load_cells, only_writer, shards_for, split_cells
    from pipelines.tracking import driver_run, git_commit, mirror

    _require_equal_shares(config)
    folder = Path(config.experiment_dir)
    _require_fresh(config)
    cells = load_cells(config)
    split = split_cells(config, cells)
    with only_writer(folder, "train"):
        shards = shards_for(config, cells, split)
        _write_contract_files(config, cells, split, shards)
        with driver_run("train", experiment_dir=folder, tracking_uri=tracking_uri) as tracked:
            tracked.log_config(_nested(config), text=config.to_yaml())
            tracked.log_dataset(
                Path(cells.source.path).name,
                digest=cells.source.digest[:36],
                source=cells.source.path,
                context="training",
            )
            tracked.set_tags({
                "sedd.split": split.digest,
                "sedd.git_commit": git_commit() or "unknown",
                "sedd.held_out": ", ".join(f"{t} × {p}" for t, p in split.held_out[:20]),
            })  # fmt: skip
            provenance = {"data_digest": cells.source.digest, "split_digest": split.digest}
            with mirror(tracked.ref, folder / FILE_NAME):
                finished = _fit(config, shards, provenance)
            tracked.log_artifacts(folder / "config.yaml")
            tracked.log_artifacts(_draw_curves(folder), "figures")
        if not finished:
            message = (
                f"Stopped after {config.training.max_seconds:g} s with a checkpoint. Go on with "
                f"--resume auto --experiment_dir {folder}."
            )
            raise Preempted(message)
        print(f"trained: {folder}")  # noqa: T201


def _fit(config: Config, shards: Path, provenance: dict[str, str]) -> bool:
    """Run the workers; True if the run reached its last step."""
    from pipelines.watching import follow_journal

    folder = Path(config.experiment_dir)
    workers = config.scaling.num_workers
    with cluster.connect(
        num_workers=workers, use_gpu=config.scaling.use_gpu, log_to_driver=False
    ) as there:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer

        storage = folder / ".ray"
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={
                "config": config.to_yaml(),
                "shards": str(shards),
                "provenance": provenance,
                "threads": there.cpus_per_worker,
            },
            torch_config=TorchConfig(backend="nccl" if config.scaling.use_gpu else "gloo"),
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=config.scaling.use_gpu,
                resources_per_worker={"CPU": config.scaling.cpus_per_worker}
                | ({"GPU": 1} if config.scaling.use_gpu else {}),
            ),
            run_config=RunConfig(
                # A fresh name each time: our checkpoints are the truth, not Ray's snapshot.
                name=f"attempt-{uuid.uuid4().hex[:8]}",
                storage_path=str(storage),
                failure_config=FailureConfig(max_failures=2, controller_failure_limit=3),
            ),
        )
        with follow_journal(folder / FILE_NAME, total=_total_steps(config, shards)):
            result = trainer.fit()
        shutil.rmtree(storage, ignore_errors=True)
        return bool(result.return_value)


def train_worker(job: dict[str, Any]) -> bool:
    """One worker of Ray Train; True if the last step was reached, False if time ran out."""
    import ray.train
    import torch
    from ray.train.torch import get_device, prepare_model

    from pipelines.experiment import load_shards
    from sedd.building import build_contexts, token_batches, validation_batch
    from sedd.training import Workers, train

    started = time.monotonic()
    torch.set_num_threads(max(1, int(job["threads"])))
    context = ray.train.get_context()
    config = from_yaml(job["config"])
    shards = load_shards(Path(job["shards"]))
    state = _first_state(config, shards, get_device())
    batches = token_batches(shards, config.training)
    workers = Workers(
        rank=context.get_world_rank(),
        world_size=context.get_world_size(),
        parallel=prepare_model if context.get_world_size() > 1 else lambda module: module,
    )
    keeper = _Keeper(config, shards, job["provenance"]) if workers.rank == 0 else None
    max_steps = planned_steps(config, int((~shards.validation).sum()))
    reports = train(
        state,
        batches,
        config.training,
        build_contexts(config.model, shards.reference),
        max_steps=max_steps,
        validation=validation_batch(shards, batches, config.training),
        workers=workers,
    )
    finished = True
    for report in reports:
        out_of_time = _out_of_time(config, started, report.step, workers.world_size)
        if keeper is not None:
            keeper.keep(state, report, last=out_of_time or report.step == max_steps)
        if out_of_time and report.step < max_steps:
            finished = False
            break
    if keeper is not None:
        keeper.close(state)
    ray.train.report({"step": state.step})
    return finished


class _Keeper:
    """Rank 0's duty: journal and checkpoints."""

    def __init__(self, config: Config, shards: "Shards", provenance: dict[str, str]) -> None:
        self._config, self._provenance, self._shards = config, provenance, shards
        self._journal = Journal(Path(config.experiment_dir) / FILE_NAME)
        self._since, self._saved = time.monotonic(), -1

    def keep(self, state: "TrainingState", report: Any, *, last: bool) -> None:
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
        self._journal.append(report.step, metrics)
        due = report.step % self._config.training.checkpoint_every == 0
        if due or last or report.is_best:
            self._save(state, is_best=report.is_best)

    def close(self, state: "TrainingState") -> None:
        if self._saved != state.step:
            self._save(state, is_best=False)
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


def _first_state(config: Config, shards: "Shards", device: Any) -> "TrainingState":
    """The state to go on from: a checkpoint if there is one to resume, else a fresh one."""
    from sedd.building import build_denoiser
    from sedd.checkpoint import load_training, newest_valid
    from sedd.training import start

    journal = Path(config.experiment_dir) / FILE_NAME
    found = newest_valid(config.checkpoints)
    if found is None and config.resume not in (None, "auto"):
        found = Path(config.resume)
    if found is None:
        truncate_after(journal, 0)
        seed = config.training.seed
        denoiser, average = (
            build_denoiser(config.model, shards.reference, seed=seed).to(device) for _ in range(2)
        )
        return start(denoiser, average, config.training)
    state, _ = load_training(found, config.model, config.training, device=device)
    truncate_after(journal, state.step)
    return state


def _out_of_time(config: Config, started: float, step: int, world_size: int) -> bool:
    """Whether max_seconds are over; all workers must agree, so rank 0's clock decides."""
    limit = config.training.max_seconds
    if limit is None:
        return False
    over = time.monotonic() - started > limit
    if world_size == 1:
        return over
    if step % 5:
        return False
    import torch
    from torch import distributed

    flag = torch.tensor([float(over)])
    distributed.broadcast(flag, src=0)
    return bool(flag.item())


def planned_steps(config: Config, num_cells: int) -> int:
    """Length of the whole run in steps."""
    training = config.training
    return training.max_steps or math.ceil(training.num_epochs * num_cells / training.batch_size)


def _total_steps(config: Config, shards: Path) -> int:
    from pipelines.experiment import load_shards

    return planned_steps(config, int((~load_shards(shards).validation).sum()))


def _require_equal_shares(config: Config) -> None:
    batch, workers = config.training.batch_size, config.scaling.num_workers
    if batch % workers:
        valid = [n for n in range(1, batch + 1) if batch % n == 0]
        message = (
            f"training.batch_size {batch} cannot be shared equally by {workers} workers. "
            f"Use --num_workers {max(n for n in valid if n <= workers)}, or another --batch_size."
        )
        raise UsageError(message)


def _require_fresh(config: Config) -> None:
    """Refuse to train over a trained model; apply what --resume says."""
    from sedd.checkpoint import has_checkpoints

    if config.resume is None and has_checkpoints(config.checkpoints):
        message = (
            f"{config.experiment_dir} holds a trained model already. Go on with --resume auto, or "
            "choose another --experiment_dir."
        )
        raise OutputExistsError(message)
    if config.resume not in (None, "auto") and not Path(config.resume).is_dir():
        message = f"--resume {config.resume}: there is no such checkpoint folder."
        raise UsageError(message)


def _write_contract_files(config: Config, cells: "Cells", split: "Split", shards: Path) -> None:
    from sedd.storage import write_text

    folder = Path(config.experiment_dir)
    write_text(folder / "config.yaml", config.to_yaml())
    split.save(folder / "split.json", data_digest=cells.source.digest)
    shutil.copyfile(shards / "vocabulary.json", folder / "vocabulary.json")


def _draw_curves(folder: Path) -> Path:
    from sedd.evaluation.curves import training_figure

    path = folder / "training.png"
    points = read_journal(folder / FILE_NAME)
    series = {
        name: [(p.step, p.metrics[name]) for p in points if name in p.metrics]
        for name in ("train/loss", "val/nelbo")
    }
    training_figure(series).savefig(path, dpi=150)
    return path


def _nested(config: Config) -> dict[str, Any]:
    import yaml

    return yaml.safe_load(config.to_yaml())


@command_line.entry
def main(argv: Sequence[str]) -> int:
    """Parse, resolve, train."""
    parser = command_line.verb_parser("train", DESCRIPTION)
    command_line.add_config_flags(parser, FLAGS)
    config = command_line.read_config(parser.parse_args(argv), FLAGS)
    run(config.with_absolute_paths(Path.cwd()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
