"""An experiment directory: opening it for one writer, and finding what stands in it."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sedd.config import Config, from_yaml
from sedd.data.cells import Cells, read_cells
from sedd.data.shards import Shards, fingerprint
from sedd.data.splits import Split, make_split
from sedd.errors import OutputExistsError, UsageError
from sedd.preparation import prepare, shard_settings
from sedd.storage import write_text


@contextmanager
def only_writer(folder: Path, verb: str, *, patience_s: float = 0.0) -> Iterator[None]:
    """Hold the folder for one process; a second one is told who holds it.

    Args:
        folder: Made if it is not there.
        verb: What is done there; different verbs do not exclude each other.
        patience_s: How long another process, e.g. one that was told to end, may still hold it.

    Raises:
        OutputExistsError: Another process writes there.
    """
    import filelock

    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / f".{verb}.owner.json"
    lock = filelock.FileLock(folder / f".{verb}.lock", timeout=patience_s)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        held_by = owner.read_text() if owner.is_file() else "an unknown process"
        message = (
            f"{folder} is being written by {held_by}. Wait for it, or choose another "
            "--experiment_dir."
        )
        raise OutputExistsError(message) from error
    try:
        write_text(owner, json.dumps({"host": socket.gethostname(), "pid": os.getpid()}))
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def load_config(experiment_dir: Path) -> Config:
    """The configuration an experiment was trained with.

    Raises:
        UsageError: The folder is no experiment.
    """
    path = experiment_dir / "config.yaml"
    if not path.is_file():
        near = sorted(str(p.parent) for p in experiment_dir.parent.glob("*/config.yaml"))
        message = (
            f"{experiment_dir} holds no config.yaml, so it is not a trained experiment. "
            f"Experiments beside it: {', '.join(near) or 'none'}. Name one with --experiment_dir."
        )
        raise UsageError(message)
    return from_yaml(path.read_text(encoding="utf-8"), source=str(path))


def load_cells(config: Config) -> Cells:
    """The cells of `data.train_data_path`, checked.

    Raises:
        UsageError: No file was named.
        DataError: The file cannot be learned from.
    """
    data = config.data
    if data.train_data_path is None:
        message = (
            "No cells were named. Give an h5ad with --train_data_path, TRAIN_DATA_PATH or "
            "data.train_data_path."
        )
        raise UsageError(message)
    return read_cells(
        data.train_data_path,
        perturbation_col=data.gene,
        cell_type_col=data.cell_type_col,
        batch_col=data.batch_col,
        control_name=data.control_name,
        layer=data.layer,
        depth_col=data.depth_col,
        kind=data.input_kind,
    )


def split_cells(config: Config, cells: Cells) -> Split:
    """Roles of the cells, as the configuration asks."""
    return make_split(
        config.split,
        perturbation=cells.perturbation,
        cell_type=cells.cell_type,
        control_name=config.data.control_name,
    )


def shards_for(config: Config, cells: Cells, split: Split) -> Path:
    """Folder of the token shards for these cells, made if it is not there yet."""
    name = fingerprint(
        data_digest=cells.source.digest,
        split_digest=split.digest,
        settings=shard_settings(config.data, config.model, seed=config.training.seed),
    )
    root = Path(config.data.prepared_dir or Path(config.experiment_dir) / "prepared")
    folder = root / name
    if not folder.is_dir():
        shards = prepare(cells, split, config.data, config.model, seed=config.training.seed)
        shards.save(folder)
    return folder


def load_shards(folder: Path) -> Shards:
    """Token shards, verified."""
    return Shards.load(folder)
