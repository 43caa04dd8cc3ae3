"""What the number of steps buys: bounds by the information profile and, if asked, by sampling."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np

from sedd.inference import BlockSchedule

if TYPE_CHECKING:
    from pipelines.scoring import Truth
    from sedd.checkpoint import Trained
    from sedd.diffusion.schedule import StepBound
    from sedd.evaluation.report import ReportFigure
    from sedd.inference import InferenceConfig

MAX_CONDITIONS = 4
"""Conditions that are sampled for the sweep: it costs two schedules x 127 evaluations per cell."""

Condition = tuple[str, str]
Setting = tuple[str, int]
"""Block schedule and number of steps."""
Swept = Mapping[Setting, Mapping[Condition, np.ndarray]]
"""log1p cells of some conditions for each setting."""


@dataclass(frozen=True, eq=False)
class SamplerReport:
    """For the page, for MLflow and for the reader; empty for a model without a profile."""

    figures: list["ReportFigure"] = field(default_factory=list)
    metrics: Mapping[str, float] = field(default_factory=dict)
    sentence: str = ""


def draw_sweep(
    trained: "Trained", conditions: Sequence[Condition], config: "InferenceConfig"
) -> Swept:
    """Population cells of the first conditions, for each number of steps and block schedule.

    Raises:
        UsageError: The model has no information profile.
    """
    from sedd.diffusion.schedule import STEPS

    schedules: tuple[BlockSchedule, ...] = get_args(BlockSchedule)
    swept = {}
    for schedule in schedules[::-1]:  # the one that may be refused comes before any cost
        for steps in [steps for steps in STEPS if steps <= trained.denoiser.sizes.num_genes]:
            chosen = replace(
                config, mode="population", sampler="blocks",
                block_schedule=schedule, num_steps=steps,
            )  # fmt: skip
            swept[schedule, steps] = {
                condition: _draw(trained, condition, chosen)
                for condition in conditions[:MAX_CONDITIONS]
            }
    return swept


def report_sampler(
    path: Path, trained: "Trained", truth: "Truth", swept: Swept, config: "InferenceConfig"
) -> SamplerReport:
    """Write the table of all settings to `path`; figure, knee and a sentence on it."""
    from sedd.diffusion.schedule import equal_blocks, knee, measured_blocks, step_bounds
    from sedd.evaluation.report import ReportFigure
    from sedd.evaluation.sampler_plots import sampler_figure

    profile = trained.profile
    if profile is None:
        return SamplerReport()
    bounds = step_bounds(profile)
    scores = {name: _score(truth, cells, config.shard_size) for name, cells in swept.items()}
    _write_table(path, bounds, scores)
    knees = {"even": knee(profile, equal_blocks), "measured": knee(profile, measured_blocks)}
    energy = {
        schedule: {steps: scores[name, steps][0] for name, steps in sorted(scores)
                   if name == schedule}
        for schedule in knees if scores
    }  # fmt: skip
    figure = sampler_figure(
        bounds, floor=profile.nelbo([1] * profile.num_genes), knees=knees, energy=energy
    )
    sentence = (
        f"Steps: from {knees['measured']} on with measured blocks, {knees['even']} with even ones, "
        "more gain less than 5 % of what steps can; "
        f"inference.num_steps is {config.num_steps} ({config.block_schedule})."
    )
    caption = "What more steps per cell buy, by the information profile"
    caption += " and for cells drawn in population mode. " if scores else ". "
    metrics = {f"eval/knee_{schedule}": float(number) for schedule, number in knees.items()}
    return SamplerReport(
        [ReportFigure("Number of steps", caption + sentence, figure)], metrics, sentence
    )


def _draw(trained: "Trained", condition: Condition, config: "InferenceConfig") -> np.ndarray:
    from sedd.generation import generate_unit, plan_units

    units = plan_units([condition[0]], [condition[1]], config)
    return np.concatenate([generate_unit(trained, unit, config).log1p_cp10k() for unit in units])


def _score(
    truth: "Truth", cells: Mapping[Condition, np.ndarray], shard_size: int
) -> tuple[float, float]:
    """Mean energy distance and correlation structure over the conditions."""
    from pipelines.scoring import units_of
    from sedd.evaluation.energy import energy_distance
    from sedd.evaluation.metrics import MAX_CELLS, correlation_structure

    scores = []
    for condition, log1p in cells.items():
        real = truth.log1p[truth.held_out(*condition)]
        units = units_of(len(log1p), shard_size)
        distance = energy_distance(log1p, real, x_units=units, max_cells=MAX_CELLS)
        scores.append((distance, correlation_structure(log1p, real)))
    distance, correlation = np.mean(scores, axis=0)
    return float(distance), float(correlation)


def _write_table(
    path: Path, bounds: Sequence["StepBound"], scores: Mapping[Setting, tuple[float, float]]
) -> None:
    from sedd.storage import write_text

    lines = ["block_schedule,num_steps,nelbo,energy_distance,correlation_structure"]
    for schedule in get_args(BlockSchedule):
        for bound in bounds:
            values = [getattr(bound, schedule), *scores.get((schedule, bound.num_steps), ())]
            texts = [f"{value:.6g}" for value in values] + [""] * (3 - len(values))
            lines.append(",".join([schedule, str(bound.num_steps), *texts]))
    write_text(path, "\n".join(lines) + "\n")
