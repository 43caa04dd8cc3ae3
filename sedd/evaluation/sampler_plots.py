"""What the number of steps buys, as a figure."""

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sedd.diffusion.schedule import StepBound
from sedd.evaluation.plots import FAINT, INK

SCHEDULE_COLORS = {"even": "#E69F00", "measured": "#0072B2"}


def sampler_figure(
    bounds: Sequence[StepBound],
    *,
    floor: float,
    knees: Mapping[str, int],
    energy: Mapping[str, Mapping[int, float]] | None = None,
) -> Figure:
    """NELBO of each number of steps and, where cells were drawn for it, their energy distance.

    Args:
        bounds: From `step_bounds`.
        floor: NELBO of one gene at a time, nats per gene: what more steps lead to.
        knees: Number of steps at the knee of each block schedule, marked on its line.
        energy: Energy distance by block schedule and number of steps.
    """
    num_panels = 2 if energy else 1
    figure = Figure(figsize=(4.6 * num_panels, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, num_panels, squeeze=False)[0]
    steps = [bound.num_steps for bound in bounds]
    for schedule in SCHEDULE_COLORS:
        line = {bound.num_steps: getattr(bound, schedule) for bound in bounds}
        _line(axes[0], line, schedule)
        knee = knees.get(schedule)
        if knee in line:
            color = SCHEDULE_COLORS[schedule]
            axes[0].plot(knee, line[knee], "o", markersize=11, markerfacecolor="none", color=color)
    axes[0].axhline(floor, color=INK, linewidth=1, linestyle=(0, (4, 3)))
    axes[0].set_ylabel("NELBO (nats per gene)")
    axes[0].set_title("bound; ring: knee, dashes: gene by gene", loc="left", fontsize=10)
    if energy:
        for schedule, line in energy.items():
            _line(axes[1], line, schedule)
        axes[1].set_ylabel("energy distance to the real cells")
        axes[1].set_title("cells drawn for it", loc="left", fontsize=10)
        steps = sorted({*steps, *(number for line in energy.values() for number in line)})
    for ax in axes:
        _dress(ax, steps)
    return figure


def _line(ax: Axes, values: Mapping[int, float], schedule: str) -> None:
    ax.plot(
        list(values),
        list(values.values()),
        marker="o",
        markersize=4,
        color=SCHEDULE_COLORS[schedule],
        label=f"{schedule} blocks",
    )


def _dress(ax: Axes, steps: Sequence[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(steps, [str(number) for number in steps])
    ax.minorticks_off()
    ax.set_xlabel("steps (population cells: network evaluations)")
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(FAINT)
    ax.tick_params(color=FAINT, labelcolor=INK, labelsize=9)
    ax.legend(frameon=False, fontsize=8)
