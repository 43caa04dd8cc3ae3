"""One trial, in the process that Ray Tune gives it: `train`'s own loop, watched by its journal.

A trial of one worker trains here; one of several starts the workers of Ray Train and waits for
them. Either writes the journal of its experiment directory, and Tune hears of each validation in
it. To stop a trial early is to put a file in its folder: the loop ends after a checkpoint, its
workers go and give their CPUs and GPUs back, and only then does this process end. (A trial that
is killed with workers of its own leaves their places to a cleaner of Ray's, which finds them only
where a dashboard runs.)
"""

import math
import shutil
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from ray import tune

from pipelines.command_line import find_mendable
from pipelines.experiment import load_config, only_writer
from pipelines.journal import FILE_NAME, JournalFollower, Point, read_journal
from pipelines.training_worker import Job, fit
from pipelines.tuning.search import Search
from pipelines.tuning.sweep import STOP_FILE, SweepFolder, affordable_steps, paced
from sedd.config import Config
from sedd.errors import ConfigError
from sedd.storage import write_text

POLL_S = 0.2
PACE_STEPS = 12
"""Steps that are timed where the budget is in seconds."""
HANDOVER_S = 60.0
"""How long a killed trial's process may still hold its folder."""


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """What every trial of a sweep is told beside its name."""

    sweep: str
    search: Search
    provenance: dict[str, str]
    threads: int


class TrialRun(tune.Trainable):
    """A trial of Ray Tune; a step of it is the training up to the next validation.

    Results: `nelbo` (best so far, nats per gene), `cells_seen`, `wall_s` (seconds of training over
    all attempts), `num_parameters`, `ended` ("", or how) and `reason`.
    """

    def setup(self, config: dict[str, Any], *, job: TrialJob) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]  (given by with_parameters)
        """Take the folder of the trial and start its training in a thread."""
        self._job, self._shards = job, config["shards"]
        self._folder = SweepFolder(Path(job.sweep)).folder(config["name"])
        self._held = ExitStack()
        self._held.enter_context(only_writer(self._folder, "train", patience_s=HANDOVER_S))
        self._stop_file.unlink(missing_ok=True)
        self._course = Course(self._folder / FILE_NAME)
        self._error: BaseException | None = None
        self._finished = False
        self._num_parameters = _num_parameters(load_config(self._folder), Path(self._shards))
        self._thread = threading.Thread(target=self._train, daemon=True)
        self._thread.start()

    def step(self) -> dict[str, Any]:
        """Wait for the next validation, or for the end.

        Raises:
            Exception: What ended the training, unless it would end it again; Tune tries again.
        """
        while True:
            alive = self._thread.is_alive()  # asked first: what it wrote last is read after
            if self._course.advance():
                return self._result("")
            if not alive:
                break
            time.sleep(POLL_S)
        if self._error is None:
            return self._result("finished" if self._finished else "stopped")
        mendable = find_mendable(self._error)
        if isinstance(mendable, ConfigError):  # it diverged, and would again
            return self._result("failed", reason=str(mendable))
        raise self._error

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the checkpoints of the experiment directory are the truth."""

    def load_checkpoint(self, checkpoint: Any) -> None:
        """Nothing: `setup` went on from the newest checkpoint that verifies."""

    def cleanup(self) -> None:
        """Let the training end after a checkpoint, and give the folder back."""
        if self._thread.is_alive():
            self._stop_file.touch()
            self._thread.join()
        self._stop_file.unlink(missing_ok=True)
        self._held.close()

    @property
    def _stop_file(self) -> Path:
        return self._folder / STOP_FILE

    def _result(self, ended: str, *, reason: str = "") -> dict[str, Any]:
        return {
            **self._course.numbers,
            "num_parameters": self._num_parameters,
            "ended": ended,
            "reason": reason,
            "done": bool(ended),
        }

    def _train(self) -> None:
        try:
            config = load_config(self._folder)
            if self._job.search.budget.unit == "seconds" and config.training.max_steps is None:
                config = self._with_pace(config)
            self._finished = self._fit(config)
        except BaseException as error:  # noqa: BLE001  (handed to the thread that waits)
            self._error = error

    def _fit(self, config: Config) -> bool:
        job = Job(
            config=config.to_yaml(),
            shards=self._shards,
            provenance={**self._job.provenance, "shards": Path(self._shards).name},
            threads=self._job.threads,
            stop_file=str(self._stop_file),
        )
        if config.scaling.num_workers > 1:
            from pipelines.train import fit_with_workers

            return fit_with_workers(config, job)
        import torch

        return fit(job, torch.device("cuda" if config.scaling.use_gpu else "cpu"))

    def _with_pace(self, config: Config) -> Config:
        """The configuration with as many steps as fit into the budget, by those timed here."""
        folder, every = self._folder / ".pace", PACE_STEPS // 2
        shutil.rmtree(folder, ignore_errors=True)
        training = replace(
            config.training,
            max_steps=PACE_STEPS,
            validate_every=every,
            checkpoint_every=PACE_STEPS,
        )
        self._fit(replace(config, experiment_dir=str(folder), training=training))
        seconds = _seconds(read_journal(folder / FILE_NAME), training.batch_size)
        shutil.rmtree(folder, ignore_errors=True)
        step = median(seconds[1:])
        steps = affordable_steps(
            self._job.search.budget,
            step,
            max(0.0, seconds[every - 1] - step),
            config.training.validate_every,
        )
        config = paced(config, steps, self._job.search)
        write_text(self._folder / "config.yaml", config.to_yaml())
        return config


class Course:
    """How far a trial is, by its journal."""

    def __init__(self, journal: Path) -> None:
        self._follower = JournalFollower(journal)
        self._waiting: list[Point] = []
        self._restart()

    @property
    def numbers(self) -> dict[str, float]:
        """Best NELBO so far, cells seen and seconds of training at the last validation read."""
        return {"nelbo": self._nelbo, "cells_seen": self._cells, "wall_s": self._wall_s}

    def advance(self) -> bool:
        """Read on to the next validation; False if there is none yet."""
        fresh = self._follower.poll()
        if self._follower.restarted:
            self._restart()
        self._waiting += fresh
        while self._waiting:
            point = self._waiting.pop(0)
            seen = int(point.metrics.get("train/cells_seen", self._cells))
            speed = point.metrics.get("speed/cells_per_s", 0.0)
            self._wall_s += (seen - self._cells) / speed if speed > 0 else 0.0
            self._cells = seen
            if "val/nelbo" in point.metrics:
                self._nelbo = min(self._nelbo, point.metrics["val/nelbo"])
                return True
        return False

    def _restart(self) -> None:
        self._waiting.clear()
        self._nelbo, self._cells, self._wall_s = math.inf, 0, 0.0


def _num_parameters(config: Config, shards: Path) -> int:
    from pipelines.experiment import load_shards
    from sedd.building import build_denoiser

    denoiser = build_denoiser(config.model, load_shards(shards).reference)
    return sum(parameter.numel() for parameter in denoiser.parameters())


def _seconds(points: list[Point], batch_size: int) -> list[float]:
    return [batch_size / point.metrics["speed/cells_per_s"] for point in points]
