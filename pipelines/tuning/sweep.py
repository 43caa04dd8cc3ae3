"""A sweep on disk: what is searched, its trials, and how far each came."""

import dataclasses
import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter

from pipelines.tuning.search import Budget, Search
from pipelines.tuning.space import Point, apply
from sedd.config import Config
from sedd.errors import OutputExistsError, StorageError, UsageError
from sedd.storage import write_text

FILE_NAME = "sweep.json"
TRIAL_FILE = "trial.json"
STOP_FILE = ".stop"
State = Literal["running", "finished", "stopped", "failed", "broken"]
FREE = (
    "search.num_trials", "search.gpus_per_trial", "config.scaling", "config.inference",
    "config.experiment_dir", "config.checkpoint_dir", "config.resume",
    "config.data.train_data_path", "config.data.prepared_dir",
)  # fmt: skip
"""What may differ between the command that began a sweep and the one that goes on."""

UNPACED: dict[str, Any] = {"max_seconds": None, "patience": None}
"""The budget ends a trial, and nothing else does."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One point, and what is known of it."""

    name: str
    """Name of its folder, e.g. trial_003."""
    point: Point
    state: State = "running"
    """`stopped` is early, because others were better. `failed` would fail again (it diverged);
    `broken` may not (its process died, a disk was full), and the same command tries once more."""
    reason: str = ""
    """Why it was stopped, failed or broke."""
    nelbo: float | None = None
    """Best validation NELBO in nats per gene, under the averaged weights."""
    cells_seen: int = 0
    """At its last validation; what a stopped trial trains until it hears of it is not counted."""
    wall_s: float = 0.0
    """Seconds of training until then, over all attempts."""
    num_parameters: int = 0


@dataclass(frozen=True)
class SweepFolder:
    """The folder of a sweep; trials are experiment directories in it."""

    path: Path

    def folder(self, name: str) -> Path:
        """The experiment directory of a trial."""
        return self.path / "trials" / name

    def refit_folder(self, name: str) -> Path:
        """The experiment directory in which the point of a trial is fitted again."""
        return self.path / "refits" / name

    def trials(self) -> list[Trial]:
        """All trials there are, in the order they began.

        Raises:
            StorageError: A record is damaged.
        """
        return [_read_trial(path) for path in sorted(self.path.glob(f"trials/*/{TRIAL_FILE}"))]

    def trial(self, name: str) -> Trial:
        """One trial; StorageError if its record is damaged."""
        return _read_trial(self.folder(name) / TRIAL_FILE)

    def new_trial(self, point: Point) -> Trial:
        """Record a new trial under the first free name; leftovers without a record go."""
        taken = {trial.name for trial in self.trials()}
        name = next(name for n in count() if (name := f"trial_{n:03d}") not in taken)
        shutil.rmtree(self.folder(name), ignore_errors=True)
        trial = Trial(name=name, point=point)
        self.save(trial)
        return trial

    def save(self, trial: Trial) -> None:
        """Write the record of a trial, in one move."""
        folder = self.folder(trial.name)
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(dataclasses.asdict(trial), indent=1, ensure_ascii=False)
        write_text(folder / TRIAL_FILE, text)

    def require_same(self, wanted: Mapping[str, Any]) -> None:
        """Refuse to go on with a sweep of something else.

        Raises:
            OutputExistsError: The folder is that of an experiment.
            UsageError: Names what differs, by dotted names.
            StorageError: The record is damaged.
        """
        path = self.path / FILE_NAME
        if not path.exists():
            self._require_no_experiment()
            return
        try:
            there = dict(_leaves(json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, AttributeError) as error:
            message = f"{path} is damaged ({error}); restore it, or sweep in another folder."
            raise StorageError(message) from error
        asked = dict(_leaves(json.loads(json.dumps(wanted))))
        told = [
            f"{name}: there {there.get(name)!r}, now {asked.get(name)!r}"
            for name in sorted(there.keys() | asked.keys())
            if there.get(name) != asked.get(name) and not name.startswith(FREE)
        ]
        if told:
            lines = "\n  ".join(told)
            message = (
                f"{self.path} holds a sweep of something else:\n  {lines}\nGo on with what it was "
                "begun with, or choose another --experiment_dir."
            )
            raise UsageError(message)

    def _require_no_experiment(self) -> None:
        if (self.path / "config.yaml").exists():
            message = (
                f"{self.path} holds an experiment that `train` wrote, so no sweep can be kept "
                "there. Choose another --experiment_dir."
            )
            raise OutputExistsError(message)

    def remember(self, record: Mapping[str, Any]) -> None:
        """Write what is searched; trials made for it may be gone on with."""
        self.path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(record, indent=1, ensure_ascii=False)
        write_text(self.path / FILE_NAME, text)

    def point_best_at(self, refit: Path) -> None:
        """Make `best` a link to the experiment of the winner."""
        link, fresh = self.path / "best", self.path / ".best.tmp"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(os.path.relpath(refit, self.path), target_is_directory=True)
        fresh.replace(link)


def record_of(search: Search, config: Config, **digests: str) -> dict[str, Any]:
    """What must be equal for trials to be compared, and the rest of what was asked."""
    return {
        "search": dataclasses.asdict(search),
        "config": dataclasses.asdict(config),
        **digests,
    }


def trial_config(point: Point, base: Config, search: Search, folder: Path) -> Config:
    """The configuration of a trial with a budget in cells; one in seconds is paced when it runs."""
    config = replace(
        apply(point, base), experiment_dir=str(folder), checkpoint_dir=None, resume="auto"
    )
    if search.budget.unit == "seconds":
        return replace(config, training=replace(config.training, **UNPACED, max_steps=None))
    steps = float(search.budget.per_trial or 0) / config.training.batch_size
    return paced(config, steps, search)


def refit_config(point: Point, base: Config, folder: Path) -> Config:
    """The configuration with a point, trained as long as it says: as many cells if in steps."""
    config = replace(
        apply(point, base), experiment_dir=str(folder), checkpoint_dir=None, resume="auto"
    )
    training = config.training
    if training.max_steps is not None and training.batch_size != base.training.batch_size:
        steps = math.ceil(training.max_steps * base.training.batch_size / training.batch_size)
        config = replace(config, training=replace(training, max_steps=steps))
    return config


def paced(config: Config, steps: float, search: Search) -> Config:
    """The configuration with about so many steps, measured as often as the rungs need it.

    Steps are rounded to whole intervals between measurements, so that the last is at the end.
    """
    often = steps * search.budget.first_rung
    every = max(1, math.floor(min(config.training.validate_every, often)))
    pace = {
        "max_steps": every * max(1, round(steps / every)),
        "validate_every": every,
        "checkpoint_every": every,
    }
    return replace(config, training=replace(config.training, **UNPACED, **pace))


def with_pace_of(config: Config, earlier: Config) -> Config:
    """The configuration with the number of steps that an earlier attempt was paced to."""
    names = ("max_steps", "validate_every", "checkpoint_every")
    pace = {name: getattr(earlier.training, name) for name in names}
    return replace(config, training=replace(config.training, **pace))


def affordable_steps(
    budget: Budget, step_s: float, measuring_s: float, validate_every: int
) -> float:
    """Steps that fit into a budget in seconds together with their validations.

    Args:
        budget: In seconds.
        step_s: Seconds of a step.
        measuring_s: Seconds of a validation.
        validate_every: Steps between validations, unless the rungs need them more often.
    """
    seconds = float(budget.per_trial or 0)
    steps = seconds / (step_s + measuring_s / validate_every)
    if steps * budget.first_rung < validate_every:
        steps = (seconds - measuring_s / budget.first_rung) / step_s
    return max(1.0, steps)


def winner(trials: list[Trial]) -> Trial | None:
    """The best by validation NELBO: of those that used their budget, else of all that have one."""
    measured = [t for t in trials if t.nelbo is not None and math.isfinite(t.nelbo)]
    done = [t for t in measured if t.state == "finished"]
    return min(done or measured, key=lambda t: (float(t.nelbo or 0), t.name), default=None)


def _read_trial(path: Path) -> Trial:
    try:
        trial = TypeAdapter(Trial).validate_json(path.read_bytes())
        if trial.name != path.parent.name:
            raise ValueError(f"it is the record of {trial.name}")
        return trial
    except (OSError, ValueError) as error:
        message = (
            f"{path} is damaged ({error}). Remove the folder of this trial to run it again: "
            f"{path.parent}."
        )
        raise StorageError(message) from error


def _leaves(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{name}.")
        else:
            yield name, value
