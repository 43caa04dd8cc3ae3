"""The figure of a response: how far each cell moves, by subpopulation, and where it stands.

Like `plots`, it returns a Figure and writes nothing.
"""

from typing import cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection, PolyCollection
from matplotlib.figure import Figure

from sedd.evaluation.plots import FAINT, INK
from sedd.evaluation.response import Response

PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7")
"""Of the subpopulations, by number (Okabe & Ito)."""


def response_figure(response: Response, *, seed: int = 0) -> Figure:
    """Effect of each generated cell by subpopulation, beside the controls coloured by effect.

    A control cell shows the mean effect of its twins; one without a twin is grey.
    """
    figure = Figure(figsize=(9.2, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    strips, plane = figure.subplots(1, 2, width_ratios=(1.1, 1))
    for ax in (strips, plane):
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(FAINT)
        ax.tick_params(color=FAINT, labelcolor=INK, labelsize=9)
    _draw_strips(strips, response, np.random.default_rng(seed))
    colored = _draw_plane(plane, response)
    figure.colorbar(colored, ax=plane, label="effect (length of the log1p change)", shrink=0.85)
    return figure


def _draw_strips(ax: Axes, response: Response, rng: np.random.Generator) -> None:
    for group in response.subpopulations:
        size = response.effect_size[response.subpopulation == group.number]
        color = PALETTE[group.number % len(PALETTE)]
        if len(size) > 1 and np.ptp(size) > 0:
            parts = ax.violinplot([size], [group.number], widths=0.8, showextrema=False)
            for body in cast("list[PolyCollection]", parts["bodies"]):
                body.set(facecolor=color, alpha=0.25, edgecolor="none")
        across = group.number + rng.uniform(-0.12, 0.12, len(size))
        ax.scatter(across, size, s=7, color=color, alpha=0.6, linewidth=0)
        if len(size):
            ends = [group.number - 0.3, group.number + 0.3]
            ax.plot(ends, [group.mean_effect] * 2, color=INK, linewidth=1.4)
    texts = [
        f"{group.number}: {group.num_cells} cells\n"
        + (f"{group.responder_share:.0%} respond" if group.num_cells else "none generated")
        for group in response.subpopulations
    ]
    ax.set_xticks(range(len(texts)), texts)
    ax.set(
        xlim=(-0.6, len(texts) - 0.4),
        ylim=(-0.03 * max(float(response.effect_size.max()), 1e-9), None),
    )
    ax.set_ylabel("effect (length of the log1p change)", color=INK)
    ax.set_title("generated cells by subpopulation", loc="left", fontsize=10)


def _draw_plane(ax: Axes, response: Response) -> PathCollection:
    number = len(response.plane)
    count = np.bincount(response.start, minlength=number)
    total = np.bincount(response.start, weights=response.effect_size, minlength=number)
    used = count > 0
    ax.scatter(*response.plane[~used].T, s=7, color=FAINT, alpha=0.6, linewidth=0)
    colored = ax.scatter(
        *response.plane[used].T, s=11, c=total[used] / count[used], cmap="viridis", linewidth=0
    )
    ax.set(xticks=[], yticks=[])
    ax.set_xlabel("PC 1 of the control cells", color=INK)
    ax.set_ylabel("PC 2", color=INK)
    ax.set_title("their control cells", loc="left", fontsize=10)
    return colored
