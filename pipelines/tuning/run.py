"""Ray Tune at work on a sweep: the driver's side of all trials.

The sweep's own files are the truth. Tune is started afresh each time, is handed the trials that
are not finished and then new points, and its scheduler is told how the finished ones went.
"""

import math
import shutil
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from pipelines.experiment import only_writer
from pipelines.journal import FILE_NAME
from pipelines.tuning.points import Points
from pipelines.tuning.room import Room
from pipelines.tuning.search import Search
from pipelines.tuning.space import Point
from pipelines.tuning.sweep import State, SweepFolder, Trial
from pipelines.tuning.trial import HANDOVER_S, Course, TrialJob, TrialRun
from sedd.errors import OutputExistsError

METRIC, TIME = "nelbo", {"cells": "cells_seen", "seconds": "wall_s"}
ROUNDING, LAST_RUNG = 0.9, 0.99
"""Validations fall a little before a rung where steps were rounded; the end is no rung."""
MAX_FAILURES = 2
"""How often a trial whose process died is started again; it goes on from its checkpoint."""


class Watcher:
    """What a driver does when trials begin and end; this one does nothing."""

    def begin(self, trial: Trial) -> None:
        """A trial starts, for the first time or again."""

    def end(self, trial: Trial) -> None:
        """A trial ended; its record is written after this."""


def run_trials(
    sweep: SweepFolder,
    search: Search,
    points: Points,
    room: Room,
    provenance: dict[str, str],
    *,
    prepare: Callable[[str, Point], str],
    watcher: Watcher,
) -> bool:
    """Run what is left of a sweep; returns when every trial has ended.

    Args:
        sweep: Where trials are, some of which may have ended or begun before.
        search: How many there shall be, on which budget.
        points: Proposes new ones.
        room: How many run at once.
        provenance: Digests of cells and split, kept in every checkpoint.
        prepare: Makes the experiment directory of a new or unfinished trial; returns its shards.
        watcher: Hears of beginnings and ends.

    Returns:
        Whether there was anything left.
    """
    trials = sweep.trials()
    unfinished = [trial for trial in trials if trial.state in ("running", "broken")]
    left = max(0, search.num_trials - len(trials)) + len(unfinished)
    if not left:
        return False
    storage = sweep.path / ".ray"
    job = TrialJob(
        sweep=str(sweep.path), search=search, provenance=provenance, threads=room.threads
    )
    book = _Book(sweep, points, watcher)
    feeder = _Feeder(sweep, points, unfinished, prepare)
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(TrialRun, job=job),
            tune.PlacementGroupFactory([room.bundle]),
        ),
        tune_config=tune.TuneConfig(
            search_alg=feeder,
            scheduler=_scheduler(sweep, search, trials),
            num_samples=left,
            max_concurrent_trials=room.at_once,
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=f"attempt-{uuid.uuid4().hex[:8]}",
            storage_path=str(storage),
            callbacks=[book],
            stop=_StopOnError(book),
            failure_config=tune.FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            verbose=0,
        ),
    )
    try:
        tuner.fit()
        if book.error is not None:
            raise book.error
        _await_release(sweep)
    finally:
        shutil.rmtree(storage, ignore_errors=True)
    return True


class _Feeder(Searcher):
    """Hands Tune the unfinished trials, then new ones; the configuration is the trial's name."""

    def __init__(
        self,
        sweep: SweepFolder,
        points: Points,
        unfinished: Sequence[Trial],
        prepare: Callable[[str, Point], str],
    ) -> None:
        super().__init__(metric=METRIC, mode="min")
        self._sweep, self._points, self._prepare = sweep, points, prepare
        self._unfinished = list(unfinished)

    def suggest(self, trial_id: str) -> Any:
        """The next trial."""
        del trial_id
        if self._unfinished:
            trial = self._unfinished.pop(0)
        else:
            point = self._points.propose()
            if point is None:
                return Searcher.FINISHED
            trial = self._sweep.new_trial(point)
        return {"name": trial.name, "shards": self._prepare(trial.name, trial.point)}

    def on_trial_complete(self, trial_id: str, *_: Any, **__: Any) -> None:
        """Nothing: the book tells the points."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's files are the truth."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: see `save`."""

    def __getstate__(self) -> dict[str, Any]:
        """Nothing that Tune would pickle."""
        return {}


class _Book(tune.Callback):
    """Writes down how trials end, and tells the watcher and the points."""

    def __init__(self, sweep: SweepFolder, points: Points, watcher: Watcher) -> None:
        self._sweep, self._points, self._watcher = sweep, points, watcher
        self.error: Exception | None = None
        """What went wrong here: Tune would take it for the trial's own failure."""

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial has its process."""
        self._watcher.begin(self._sweep.trial(trial.config["name"]))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial ended: by itself, or because the scheduler stopped it."""
        result = trial.last_result or {}
        state = result.get("ended") or "stopped"
        reason = result.get("reason") or (
            f"others were better after as much training ({result.get('cells_seen', 0):.0f} cells)"
            if state == "stopped"
            else ""
        )
        self._end(trial, state, reason)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A trial whose process died again and again."""
        self._end(trial, "broken", _last_line(trial))

    def __getstate__(self) -> dict[str, Any]:
        """Nothing that Tune would pickle."""
        return {}

    def _end(self, trial: Any, state: State, reason: str) -> None:
        try:
            self._note_end(trial, state, reason)
        except Exception as error:  # noqa: BLE001  (raised where the sweep ends)
            self.error = self.error or error

    def _note_end(self, trial: Any, state: State, reason: str) -> None:
        result = trial.last_result or {}
        nelbo = result.get(METRIC, math.inf)
        ended = replace(
            self._sweep.trial(trial.config["name"]),
            state=state,
            reason=reason,
            nelbo=nelbo if math.isfinite(nelbo) else None,
            cells_seen=int(result.get("cells_seen", 0)),
            wall_s=float(result.get("wall_s", 0.0)),
            num_parameters=int(result.get("num_parameters", 0)),
        )
        # The record comes last: killed before it, the trial is taken up once more and ends again.
        self._watcher.end(ended)
        self._points.learn(ended)
        self._sweep.save(ended)


class _StopOnError(tune.Stopper):
    """Ends the sweep when the driver itself failed."""

    def __init__(self, book: _Book) -> None:
        self._book = book

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Never one trial alone."""
        return False

    def stop_all(self) -> bool:
        """Whether there is an error to raise."""
        return self._book.error is not None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing that Tune would pickle."""
        return {}


def _await_release(sweep: SweepFolder) -> None:
    """Wait for the processes of stopped trials: they still write a checkpoint."""
    for trial in sweep.trials():
        with (
            suppress(OutputExistsError),
            only_writer(sweep.folder(trial.name), "train", patience_s=HANDOVER_S),
        ):
            pass


def _scheduler(sweep: SweepFolder, search: Search, trials: Sequence[Trial]) -> TrialScheduler:
    """ASHA on the budget's unit, told how the trials went that ended before."""
    budget = search.budget
    if budget.reduction is None or budget.first_rung >= LAST_RUNG:
        return FIFOScheduler()
    per_trial = float(budget.per_trial or 0)
    asha = AsyncHyperBandScheduler(
        time_attr=TIME[budget.unit],
        metric=METRIC,
        mode="min",
        grace_period=ROUNDING * per_trial * budget.first_rung,  # type: ignore[arg-type]
        max_t=ROUNDING * LAST_RUNG * per_trial,  # type: ignore[arg-type]
        reduction_factor=budget.reduction,
        stop_last_trials=False,
    )
    for trial in trials:
        if trial.state in ("finished", "stopped"):
            _replay(asha, trial, Course(sweep.folder(trial.name) / FILE_NAME))
    return asha


def _replay(asha: AsyncHyperBandScheduler, trial: Trial, course: Course) -> None:
    stand_in: Any = SimpleNamespace(trial_id=trial.name)
    nobody: Any = None
    asha.on_trial_add(nobody, stand_in)
    numbers: Mapping[str, float] = {}
    while course.advance() and course.numbers["cells_seen"] <= trial.cells_seen:
        numbers = course.numbers
        asha.on_trial_result(nobody, stand_in, dict(numbers))
    asha.on_trial_complete(nobody, stand_in, dict(numbers))


def _name(trial: Any) -> str:
    return trial.config["name"]


def _last_line(trial: Any) -> str:
    error = trial.get_error() if hasattr(trial, "get_error") else None
    lines = str(error or "its process died").strip().splitlines()
    return lines[-1][:300] if lines else "its process died"
