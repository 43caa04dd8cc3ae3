"""Units of generation over Ray actors; a unit's part file is its commit.

A part is written under a temporary name and renamed, and its name is the unit's key, so units that
are done are found again by any later run, and two writers of one unit write the same bytes.
"""

import os
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines import cluster
from pipelines.progress import progress
from sedd.errors import SeddError, StorageError
from sedd.inference import InferenceConfig
from sedd.model.config import ModelConfig

if TYPE_CHECKING:
    from sedd.generation import GeneratedCells, Unit


@dataclass(frozen=True, kw_only=True)
class Source:
    """Which trained model draws the cells."""

    checkpoint: Path
    model: ModelConfig
    digest: str


def run_units(
    source: Source,
    units: Sequence["Unit"],
    config: InferenceConfig,
    parts: Path,
    *,
    num_actors: int,
    gpus_per_actor: float = 0.0,
) -> None:
    """Draw every unit whose part is not there yet, spread over actors.

    Raises:
        StorageError: Some units failed; the parts that were written stay and are found again.
    """
    todo = [unit for unit in units if not part_path(parts, unit, source, config).is_file()]
    if not todo:
        return
    parts.mkdir(parents=True, exist_ok=True)
    num_actors = min(num_actors, len(todo))
    with cluster.connect(
        num_workers=num_actors, use_gpu=gpus_per_actor > 0, flag="--num_actors", log_to_driver=False
    ):
        import ray  # after `connect`: Ray reads its environment when it is imported

        actor = ray.remote(_Generator).options(
            num_cpus=1, num_gpus=gpus_per_actor, max_restarts=5, max_task_retries=3
        )
        actors = [actor.remote(source, config, str(parts)) for _ in range(num_actors)]
        with progress("generate", len(todo), unit="unit") as shown:
            done = cells = 0

            def finished(unit: "Unit") -> None:
                nonlocal done, cells
                done, cells = done + 1, cells + unit.num_cells
                shown.update(done, cells=cells)

            failures = list(_spread(actors, todo, finished))
    if failures:
        unit, reason = failures[0]
        message = (
            f"{len(failures)} of {len(todo)} units failed, first {unit.cell_type!r} × "
            f"{unit.perturbation!r} shard {unit.shard}: {reason}. The others are kept; the same "
            "command draws what is missing."
        )
        raise StorageError(message)


def part_path(parts: Path, unit: "Unit", source: Source, config: InferenceConfig) -> Path:
    """Where the cells of a unit are kept."""
    return parts / f"{unit.key(source.digest, config)[:40]}.npz"


def read_part(
    parts: Path, unit: "Unit", source: Source, config: InferenceConfig
) -> "GeneratedCells":
    """The cells of a finished unit."""
    import numpy as np

    from sedd.generation import GeneratedCells

    path = part_path(parts, unit, source, config)
    try:
        with np.load(path) as part:
            return GeneratedCells(unit, part["values"], part["depth"], part["control_row"])
    except Exception as error:  # numpy and zipfile raise many types for a damaged file
        message = f"{path} is damaged ({error}). Delete it and run the same command again."
        raise StorageError(message) from error


class _Generator:
    """Loads the model once, then draws units."""

    def __init__(self, source: Source, config: InferenceConfig, parts: str) -> None:
        import torch

        from sedd.checkpoint import load_trained

        torch.set_num_threads(1)
        trained = load_trained(source.checkpoint, source.model)
        if torch.cuda.is_available() and os.environ.get("CUDA_VISIBLE_DEVICES"):
            trained.denoiser.cuda()
        self._trained, self._source, self._config = trained, source, config
        self._parts = Path(parts)

    def draw(self, unit: "Unit") -> None:
        import numpy as np

        from sedd.generation import generate_unit

        final = part_path(self._parts, unit, self._source, self._config)
        if final.is_file():
            return
        cells = generate_unit(self._trained, unit, self._config)
        temporary = final.with_name(f".{final.stem}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with temporary.open("wb") as file:
                np.savez_compressed(
                    file, values=cells.values, depth=cells.depth, control_row=cells.control_row
                )
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(final)
        finally:
            temporary.unlink(missing_ok=True)


def _spread(
    actors: Sequence[Any], units: Sequence["Unit"], finished: Callable[["Unit"], None]
) -> Iterator[tuple["Unit", str]]:
    """Keep every actor busy with two units; yield the units that failed, with the reason."""
    import ray
    from ray.exceptions import RayActorError, RayTaskError

    waiting, flying = iter(units), {}

    def send(actor: Any) -> None:
        unit = next(waiting, None)
        if unit is not None:
            flying[actor.draw.remote(unit)] = (actor, unit)

    for actor in [actor for _ in range(2) for actor in actors]:
        send(actor)
    while flying:
        for reference in ray.wait(list(flying), num_returns=1)[0]:
            actor, unit = flying.pop(reference)
            try:
                ray.get(reference)
                finished(unit)
            except RayTaskError as error:
                if isinstance(error.cause, SeddError):
                    raise error.cause from error
                yield unit, repr(error.cause)
            except RayActorError as error:
                yield unit, str(error).splitlines()[0]
                continue  # this actor is gone for good; the others take the rest
            send(actor)
