"""The search file: what is tried, on which budget, in which order."""

import importlib.util
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from pipelines.tuning.space import Space, read_space
from sedd.config import Config, read_yaml
from sedd.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much a trial may train, and when the hopeless are stopped (ASHA, arXiv:1810.05934).

    The unit is fair to sizes: a step of a large batch or a large model is not one of a small one.
    """

    __pydantic_config__ = {"extra": "forbid"}

    unit: Literal["cells", "seconds"] = "cells"
    """`cells` seen in training, or `seconds` of training."""
    per_trial: float | None = None
    """Budget of a trial that is not stopped; null is all the cells of the configuration."""
    first_rung: float = 1 / 9
    """Share of the budget after which the first trials are compared."""
    reduction: float | None = 3.0
    """One in so many goes on at each rung, each so many times as far; null stops none."""

    def __post_init__(self) -> None:
        """Check what the types cannot say."""
        problems = []
        if self.per_trial is not None and not 0 < self.per_trial < math.inf:
            problems.append(f"budget.per_trial is {self.per_trial}, wanted more than 0.")
        if self.unit == "seconds" and self.per_trial is None:
            problems.append("budget.per_trial must say how many seconds a trial has.")
        if not 0 < self.first_rung <= 1:
            problems.append(f"budget.first_rung is {self.first_rung}, wanted a share of 0 to 1.")
        if self.reduction is not None and not 1 < self.reduction < math.inf:
            problems.append(f"budget.reduction is {self.reduction}, wanted more than 1, or null.")
        if problems:
            raise ValueError("\n  ".join(problems))


@dataclass(frozen=True, kw_only=True)
class Search:
    """What a search file says."""

    __pydantic_config__ = {"extra": "forbid"}

    space: dict[str, Any]
    """Distribution of each searched name: choice, uniform or loguniform."""
    num_trials: int = 8
    """How many points are tried."""
    searcher: Literal["random", "optuna"] = "random"
    """`random` draws the same points again from the same seed; `optuna` (TPE) learns on the way."""
    seed: int = 0
    """Seed of the points."""
    budget: Budget = Budget()
    """How much each may train."""
    gpus_per_trial: float = 1.0
    """With scaling.use_gpu: GPUs of a trial of one worker; .5 lets two share one."""

    def __post_init__(self) -> None:
        """Check what the types cannot say."""
        problems = []
        if self.num_trials < 1:
            problems.append(f"num_trials is {self.num_trials}, wanted 1 or more.")
        if self.seed < 0:
            problems.append(f"seed is {self.seed}, wanted 0 or more.")
        gpus = self.gpus_per_trial
        if not 0 < gpus <= 1:
            problems.append(f"gpus_per_trial is {gpus}, wanted more than 0 and up to 1.")
        if problems:
            raise ValueError("\n  ".join(problems))

    def read_space(self, base: Config, *, source: str) -> Space:
        """The space, checked against the configuration that it varies; ConfigError if it fails."""
        return read_space(self.space, base, source=source)


def read_search(path: Path, **given: Any) -> Search:
    """Read a search file; what is given on the command line stands above it.

    Raises:
        ConfigError: Lists every mistake.
    """
    content = {**read_yaml(path), **{k: v for k, v in given.items() if v not in (None, "")}}
    try:
        search = TypeAdapter(Search).validate_python(content)
    except ValidationError as error:
        lines = "\n".join(f"  {_explain(dict(item))}" for item in error.errors())
        raise ConfigError(f"{path} is no search:\n{lines}") from error
    if search.searcher == "optuna":
        require_optuna()
    return search


def require_optuna() -> None:
    """Raise ConfigError where the extra is not installed."""
    if importlib.util.find_spec("optuna") is None:
        message = "searcher optuna needs the extra: pip install '.[sweep]', or use random."
        raise ConfigError(message)


def in_cells(search: Search, config: Config, num_cells: int) -> Search:
    """The search with its budget spelled out, in cells where it was left open."""
    if search.budget.per_trial is not None:
        return search
    training = config.training
    cells = (
        training.max_steps * training.batch_size
        if training.max_steps is not None
        else training.num_epochs * num_cells
    )
    return replace(search, budget=replace(search.budget, per_trial=float(cells)))


def _explain(error: dict[str, Any]) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"{key}: no such key."
    message = error["msg"].removeprefix("Value error, ")
    return (
        message if error["type"] == "value_error" else f"{key}: {message}, got {error['input']!r}."
    )
