"""What a sweep may try: values of the configuration by dotted name, each with its distribution."""

import dataclasses
import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sedd.config import Config, from_dict
from sedd.errors import ConfigError

Point = Mapping[str, Any]
"""A value for each searched name."""

KINDS = ("choice", "uniform", "loguniform")
MAX_DRAWS = 200
"""Points that are drawn before a space counts as impossible."""
INCOMPARABLE = {
    "data": "it changes what is measured",
    "split": "it changes what is measured",
    "inference": "it has no part in training",
    "scaling": "it says where training runs, not what is trained",
    "training.seed": "a lucky seed is no better setting",
    "training.validation_cells": "it changes what is measured",
    "training.validate_every": "the budget decides how often is measured",
    "training.num_epochs": "the budget decides how long a trial is",
    "training.max_steps": "the budget decides how long a trial is",
    "training.max_seconds": "the budget decides how long a trial is",
    "training.patience": "the budget decides how long a trial is",
    "training.checkpoint_every": "it does not change the model",
}
"""Sections and names that no search may change: their validation NELBO could not be compared."""


@dataclass(frozen=True)
class Dimension:
    """One searched name: a choice between values, or a range."""

    name: str
    kind: Literal["choice", "uniform", "loguniform"]
    values: tuple[Any, ...]
    """The choices, or the two ends of the range."""

    def draw(self, random: np.random.Generator) -> Any:
        """A value of the distribution."""
        if self.kind == "choice":
            return self.values[int(random.integers(len(self.values)))]
        low, high = self.values
        if self.kind == "uniform":
            return float(random.uniform(low, high))
        return math.exp(random.uniform(math.log(low), math.log(high)))


@dataclass(frozen=True)
class Space:
    """All dimensions of a search, over one configuration."""

    dimensions: tuple[Dimension, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The searched names."""
        return tuple(each.name for each in self.dimensions)

    @property
    def size(self) -> int | None:
        """How many different points there are; None where a range makes them countless."""
        if any(each.kind != "choice" for each in self.dimensions):
            return None
        return math.prod(len(each.values) for each in self.dimensions)

    def draw(self, random: np.random.Generator) -> Point:
        """A point; it may be one that the configuration forbids."""
        return {each.name: each.draw(random) for each in self.dimensions}


def read_space(content: Any, base: Config, *, source: str) -> Space:
    """The space that a search file describes, checked against the configuration it varies.

    Args:
        content: `{"model.hidden_dim": {"choice": [64, 128]}, ...}`.
        base: The configuration whose values are replaced.
        source: The file, for messages.

    Raises:
        ConfigError: Lists every mistake: unknown names with the nearest, names that no search may
            change, ranges that are none, values that fit nothing.
    """
    if not isinstance(content, Mapping) or not content:
        message = (
            f"{source}: `space` holds {content!r}, wanted names with their distributions, e.g. "
            "model.hidden_dim: {choice: [64, 128]}."
        )
        raise ConfigError(message)
    problems: list[str] = []
    dimensions: list[Dimension] = []
    for name, text in content.items():
        try:
            dimensions.append(_dimension(str(name), text))
        except ConfigError as error:
            problems.append(str(error))
    if problems:
        raise ConfigError(f"{source} is no search:\n  " + "\n  ".join(problems))
    space = Space(tuple(dimensions))
    _require_possible(space, base, source)
    return space


def apply(point: Point, base: Config) -> Config:
    """The configuration with the values of a point.

    Raises:
        ConfigError: The point is impossible, e.g. a width that its heads do not divide.
    """
    content = dataclasses.asdict(base)
    for name, value in point.items():
        section, key = name.split(".")
        content[section][key] = value
    return from_dict(content, source=f"the configuration with {told(point)}")


def told(point: Point) -> str:
    """A point in one line: `hidden_dim 128, learning_rate 0.00077`."""
    return ", ".join(
        f"{name.rpartition('.')[2]} {value:.3g}"
        if isinstance(value, float)
        else f"{name.rpartition('.')[2]} {value}"
        for name, value in point.items()
    )


def draws(
    space: Space, base: Config, random: np.random.Generator, fixed: Point | None = None
) -> Iterator[Point]:
    """Possible points, one after another; at most MAX_DRAWS are looked at for each.

    Raises:
        ConfigError: None of MAX_DRAWS points was possible.
    """
    while True:
        reason: ConfigError | None = None
        for _ in range(MAX_DRAWS):
            point = {**space.draw(random), **(fixed or {})}
            try:
                apply(point, base)
            except ConfigError as error:
                reason = error
                continue
            yield point
            break
        else:
            raise ConfigError(f"none of {MAX_DRAWS} points is possible; the last: {reason}")


def _dimension(name: str, text: Any) -> Dimension:
    field = _known_field(name)
    if not isinstance(text, Mapping) or len(text) != 1 or next(iter(text)) not in KINDS:
        raise ConfigError(
            f"{name}: {text!r} is no distribution; wanted one of {{choice: [a, b]}}, "
            "{uniform: [low, high]}, {loguniform: [low, high]}."
        )
    ((kind, values),) = text.items()
    if not isinstance(values, list) or not values:
        raise ConfigError(f"{name}: {kind} has {values!r}, wanted a list.")
    if kind == "choice":
        distinct = tuple(dict.fromkeys(_hashable(name, value) for value in values))
        return Dimension(name, "choice", distinct)
    if "float" not in str(field.type):
        raise ConfigError(f"{name} is no fraction; name its values: {{choice: [...]}}.")
    return Dimension(name, kind, _range(name, kind, values))


def _hashable(name: str, value: Any) -> Any:
    if isinstance(value, list | dict):
        raise ConfigError(f"{name}: the choice {value!r} is no plain value.")
    return value


def _range(name: str, kind: str, values: list[Any]) -> tuple[float, float]:
    try:
        low, high = (float(value) for value in values)  # YAML reads 3e-4 as text
    except (TypeError, ValueError):
        raise ConfigError(f"{name}: {kind} has {values!r}, wanted two numbers.") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"{name}: {kind} has {values!r}, wanted low < high.")
    if kind == "loguniform" and low <= 0:
        raise ConfigError(f"{name}: loguniform from {low:g}, wanted more than 0.")
    return low, high


def _known_field(name: str) -> dataclasses.Field[Any]:
    """The field of the configuration that a dotted name means, if a search may change it."""
    fields = {
        f"{section.name}.{field.name}": field
        for section in dataclasses.fields(Config)
        if isinstance(section.type, type) and dataclasses.is_dataclass(section.type)
        for field in dataclasses.fields(section.type)
    }
    if name not in fields:
        by_key = {each.partition(".")[2]: each for each in fields}
        near = difflib.get_close_matches(name, fields, n=1) or [
            by_key[key] for key in difflib.get_close_matches(name.rpartition(".")[2], by_key, n=1)
        ]
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ConfigError(f"{name}: no such value of the configuration.{hint}")
    for forbidden, why in INCOMPARABLE.items():
        if name == forbidden or name.startswith(f"{forbidden}."):
            raise ConfigError(
                f"{name} cannot be searched: {why}. Set it once for all trials with --set."
            )
    return fields[name]


def _require_possible(space: Space, base: Config, source: str) -> None:
    """Every choice, and both ends of every range, must fit at least some points."""
    problems = []
    numbers = ("hidden_dim", "num_layers", "num_heads")
    given = {name for name in numbers if getattr(base.model, name) is not None}
    given |= {name for name in numbers if f"model.{name}" in space.names}
    if "model.size" in space.names and given == set(numbers):
        message = "model.size stands for width, layers and heads, and all three are given."
        raise ConfigError(f"{source}: {message}")
    random = np.random.default_rng(0)
    try:
        next(draws(space, base, random))
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from error
    for each in space.dimensions:
        for value in each.values:
            try:
                next(draws(space, base, random, {each.name: value}))
            except ConfigError as error:
                problems.append(f"{each.name} = {value!r}: {error}")
    if problems:
        raise ConfigError(
            f"{source} holds values that no trial can have:\n  " + "\n  ".join(problems)
        )
