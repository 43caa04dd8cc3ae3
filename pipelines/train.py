"""`train`: an h5ad in, an experiment directory and an MLflow run out.

The driver reads and splits the cells, writes token shards, owns the MLflow run and starts Ray
Train. Workers iterate `sedd.training.train`; rank 0 writes the journal and the checkpoints. What
is on disk is the truth: a killed worker, driver or machine goes on from the newest checkpoint that
verifies, with `--resume auto`.
"""

import shlex
import shutil
import sys
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines import cluster, command_line
from pipelines.journal import FILE_NAME, read_journal
from sedd.config import Config
from sedd.errors import OutputExistsError, Preempted, StorageError, UsageError
from sedd.flags import FLAGS

if TYPE_CHECKING:
    from pipelines.tracking import RunRef
    from pipelines.training_worker import Job
    from sedd.data.cells import Cells
    from sedd.data.splits import Split

DESCRIPTION = "Train a denoiser on the cells of an h5ad; writes an experiment directory."


def run(
    config: Config,
    *,
    tracking_uri: str | None = None,
    parent: "RunRef | None" = None,
    name: str | None = None,
) -> None:
    """Train as configured; returns when the result is complete on disk.

    Args:
        config: What to train on what.
        tracking_uri: The MLflow store; MLFLOW_TRACKING_URI or ./mlflow.db if not given.
        parent: The MLflow run under which this one is shown.
        name: Name of the MLflow run; the folder's if not given.

    Raises:
        OutputExistsError: The experiment holds a model already and nothing was said of resuming.
        Preempted: `training.max_seconds` ended; the same command with --resume auto goes on.
    """
    from pipelines.cost import training_cost
    from pipelines.experiment import load_cells, only_writer, shards_for, split_cells
    from pipelines.notes import training_note
    from pipelines.tracking import driver_run, git_commit, mirror

    require_equal_shares(config.training.batch_size, config.scaling.num_workers)
    folder = Path(config.experiment_dir)
    _require_fresh(config)
    cells = load_cells(config)
    split = split_cells(config, cells)
    _warn_of_types_without_controls(cells, config.data.control_name)
    with only_writer(folder, "train"):
        shards = shards_for(config, cells, split)
        provenance = {
            "data_digest": cells.source.digest,
            "split_digest": split.digest,
            "shards": shards.name,
        }
        _require_fresh(config)
        _rewind(config, provenance)
        write_contract_files(config, cells, split, shards)
        with driver_run(
            "train",
            experiment_dir=folder,
            name=name,
            tracking_uri=tracking_uri,
            parent=parent,
        ) as tracked:
            tracked.log_config(plain_config(config), text=config.to_yaml())
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
            tracked.describe(training_note(config, split))
            with mirror(tracked.ref, folder / FILE_NAME):
                finished = _fit(config, shards, provenance)
            points = read_journal(folder / FILE_NAME)
            tracked.log_metrics(training_cost(config, shards, points), step=points[-1].step)
            if not finished:
                message = (
                    f"Stopped after {config.training.max_seconds:g} s with a checkpoint. Go on "
                    f"with --resume auto --experiment_dir {shlex.quote(str(folder))}."
                )
                raise Preempted(message)
            tracked.log_artifacts(folder / "config.yaml")
            tracked.log_artifacts(folder / "split.json")
            tracked.log_artifacts(_draw_curves(folder), "figures")
        print(f"trained: {folder}")


def _fit(config: Config, shards: Path, provenance: dict[str, str]) -> bool:
    """Run the workers; True if the run reached its last step."""
    from pipelines.training_worker import Job
    from pipelines.watching import follow_journal

    journal = Path(config.experiment_dir) / FILE_NAME
    with cluster.connect(
        num_workers=config.scaling.num_workers,
        use_gpu=config.scaling.use_gpu,
        log_to_driver=False,
    ) as there:
        job = Job(
            config=config.to_yaml(),
            shards=str(shards),
            provenance=provenance,
            threads=there.cpus_per_worker,
        )
        with follow_journal(journal, total=_total_steps(config, shards)):
            return fit_with_workers(config, job)


def fit_with_workers(config: Config, job: "Job") -> bool:
    """Start the workers of Ray Train in a Ray that is up; True if they reached the last step."""
    # Ray reads its environment when it is imported, so only after `connect`.
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    from pipelines.training_worker import train_worker

    scaling, storage = config.scaling, Path(config.experiment_dir) / ".ray"
    trainer = TorchTrainer(
        train_worker,
        train_loop_config=asdict(job),
        torch_config=TorchConfig(backend="nccl" if scaling.use_gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=scaling.num_workers,
            use_gpu=scaling.use_gpu,
            resources_per_worker={"CPU": scaling.cpus_per_worker}
            | ({"GPU": 1} if scaling.use_gpu else {}),
        ),
        run_config=RunConfig(
            # A fresh name each time: our checkpoints are the truth, not Ray's snapshot.
            name=f"attempt-{uuid.uuid4().hex[:8]}",
            storage_path=str(storage),
            failure_config=FailureConfig(max_failures=2, controller_failure_limit=3),
        ),
    )
    result = trainer.fit()
    shutil.rmtree(storage, ignore_errors=True)
    return bool(result.return_value)


def _total_steps(config: Config, shards: Path) -> int:
    from pipelines.experiment import load_shards
    from pipelines.training_worker import planned_steps

    return planned_steps(config, int((~load_shards(shards).validation).sum()))


def require_equal_shares(batch: int, workers: int) -> None:
    """Refuse a batch that workers cannot share equally; UsageError names what they can."""
    if batch % workers:
        valid = [n for n in range(1, batch + 1) if batch % n == 0]
        message = (
            f"training.batch_size {batch} cannot be shared equally by {workers} workers. "
            f"Use --num_workers {max(n for n in valid if n <= workers)}, or another --batch_size."
        )
        raise UsageError(message)


def _warn_of_types_without_controls(cells: "Cells", control_name: str) -> None:
    """Say which cell types can be trained on, but not be generated."""
    from sedd.data.hdf5 import listing

    known = set(cells.cell_type)
    without = sorted(known - set(cells.cell_type[cells.perturbation == control_name]))
    if without:
        command_line.warn(
            f"{len(without)} of {len(known)} cell types have no {control_name!r} cell: "
            f"{listing(without)}. They are trained on, but cells can only be generated for types "
            "with controls: leave the others out of the file, or name the types to generate with "
            "--cell_types."
        )


def _require_fresh(config: Config) -> None:
    """Refuse to train over a trained model or a sweep; apply what --resume says."""
    from sedd.checkpoint import has_checkpoints

    if (Path(config.experiment_dir) / "sweep.json").exists():
        message = f"{config.experiment_dir} holds a sweep. Choose another --experiment_dir."
        raise OutputExistsError(message)
    if config.resume is None and has_checkpoints(config.checkpoints):
        message = (
            f"{config.experiment_dir} holds a trained model already. Go on with --resume auto, or "
            "choose another --experiment_dir."
        )
        raise OutputExistsError(message)
    if config.resume not in (None, "auto") and not Path(config.resume).is_dir():
        message = f"--resume {config.resume}: there is no such checkpoint folder."
        raise UsageError(message)


def _rewind(config: Config, provenance: dict[str, str]) -> None:
    """Make the checkpoint to resume the newest one; workers always go on from the newest.

    Raises:
        UsageError: It was trained on other cells or another split.
    """
    from sedd.checkpoint import has_checkpoints, newest_valid, rewind_to, verified_counters

    given = None if config.resume in (None, "auto") else Path(config.resume)
    found = given or newest_valid(config.checkpoints)
    if found is None and has_checkpoints(config.checkpoints):
        message = (
            f"No checkpoint in {config.checkpoints} is whole, so there is nothing to resume. Name "
            "one elsewhere with --resume PATH, or start afresh in another --experiment_dir."
        )
        raise StorageError(message)
    if found is None:
        return
    saved = verified_counters(found, config.model)
    changed = [name for name, digest in provenance.items() if saved.get(name) != digest]
    if changed:
        message = (
            f"{found} was trained on other cells, another split or other settings of the data "
            f"({', '.join(changed)} differ). Resume with what its config.yaml says, or start "
            "afresh in another --experiment_dir."
        )
        raise UsageError(message)
    if given is not None:
        rewind_to(config.checkpoints, given)


def write_contract_files(config: Config, cells: "Cells", split: "Split", shards: Path) -> None:
    """Write config.yaml, split.json and vocabulary.json, by which an experiment is known."""
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


def plain_config(config: Config) -> dict[str, Any]:
    """The configuration as plain values for MLflow, without the folder."""
    import yaml

    values = yaml.safe_load(config.to_yaml())
    del values["experiment_dir"]  # a tag: it tells runs apart, but not why they differ
    return values


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
