"""Which points are tried, in which order: drawn from a seed, or proposed by Optuna."""

import json
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from pipelines.tuning.search import Search
from pipelines.tuning.space import MAX_DRAWS, Point, Space, apply, draws
from pipelines.tuning.sweep import Trial
from sedd.config import Config
from sedd.errors import ConfigError

if TYPE_CHECKING:
    import optuna


class Points(Protocol):
    """Proposes points, and hears what became of them."""

    def propose(self) -> Point | None:
        """The next point, different from all before; None when there are no more."""
        ...

    def learn(self, trial: Trial) -> None:
        """Hear of a trial that ended."""
        ...


def points_of(search: Search, space: Space, base: Config, trials: Sequence[Trial]) -> Points:
    """The points of a search after those that were tried."""
    if search.searcher == "optuna":
        return OptunaPoints(search, space, base, trials)
    return RandomPoints(search, space, base, trials)


class RandomPoints:
    """Distinct points drawn from the seed: the same sweep, whatever order its trials end in."""

    def __init__(self, search: Search, space: Space, base: Config, trials: Sequence[Trial]) -> None:
        drawn = draws(space, base, np.random.default_rng(search.seed))
        self._stream = _distinct(drawn, {_text(trial.point) for trial in trials})

    def propose(self) -> Point | None:
        """The next point of the seed; None when the space is used up."""
        return next(self._stream, None)

    def learn(self, trial: Trial) -> None:
        """Nothing: these points are drawn blindly."""


class OptunaPoints:
    """Optuna's tree-structured Parzen estimator (Bergstra 2011), kept off points it has had.

    What it proposes depends on the order in which trials ended.
    """

    def __init__(self, search: Search, space: Space, base: Config, trials: Sequence[Trial]) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        seed = search.seed + len(trials)  # one that goes on must not draw its first points again
        self._study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed))
        self._space, self._base = space, base
        self._asked: dict[str, optuna.trial.Trial] = {}
        self._blind = np.random.default_rng(seed)
        self._had = {_text(trial.point) for trial in trials}
        self._distributions = {d.name: _distribution(d.kind, d.values) for d in space.dimensions}
        for trial in trials:
            self.learn(trial)

    def propose(self) -> Point | None:
        """What Optuna asks for; a blind draw where it insists on points that cannot be used."""
        from optuna.trial import TrialState

        for _ in range(MAX_DRAWS):
            asked = self._study.ask(self._distributions)
            point = {name: asked.params[name] for name in self._space.names}
            if _text(point) not in self._had and _is_possible(point, self._base):
                self._had.add(_text(point))
                self._asked[_text(point)] = asked
                return point
            self._study.tell(asked, state=TrialState.FAIL)
        blind = _distinct(draws(self._space, self._base, self._blind), self._had)
        point = next(blind, None)
        if point is not None:
            self._had.add(_text(point))
        return point

    def learn(self, trial: Trial) -> None:
        """Tell Optuna the NELBO that a trial reached, also one that was stopped."""
        import optuna

        asked = self._asked.pop(_text(trial.point), None)
        if trial.state == "running" or trial.nelbo is None:
            if asked is not None:
                self._study.tell(asked, state=optuna.trial.TrialState.FAIL)
        elif asked is not None:
            self._study.tell(asked, trial.nelbo)
        else:
            self._study.add_trial(
                optuna.trial.create_trial(
                    params=dict(trial.point),
                    distributions=self._distributions,
                    value=trial.nelbo,
                )
            )


def _distinct(points: Iterator[Point], had: set[str]) -> Iterator[Point]:
    """Points that were not there before, until more than MAX_DRAWS in a row were."""
    seen, repeats = set(had), 0
    for point in points:
        if _text(point) in seen:
            repeats += 1
            if repeats > MAX_DRAWS + len(had):
                return
            continue
        repeats = 0
        seen.add(_text(point))
        yield point


def _is_possible(point: Point, base: Config) -> bool:
    try:
        apply(point, base)
    except ConfigError:
        return False
    return True


def _distribution(kind: str, values: Sequence[Any]) -> "optuna.distributions.BaseDistribution":
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if kind == "choice":
        return CategoricalDistribution(values)
    return FloatDistribution(values[0], values[1], log=kind == "loguniform")


def _text(point: Point) -> str:
    return json.dumps(dict(point), sort_keys=True)
