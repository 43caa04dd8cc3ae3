"""The course of a training run as a figure."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure


def training_figure(series: Mapping[str, Sequence[tuple[int, float]]]) -> Figure:
    """Loss of every step, its running mean, and the validation NELBO (nats per gene).

    Args:
        series: `train/loss` and `val/nelbo` as (step, value) pairs; either may be empty.
    """
    figure = Figure(figsize=(6, 3.2), layout="constrained")
    axes = figure.add_subplot()
    if series.get("train/loss"):
        step, loss = np.array(series["train/loss"], float).T
        axes.plot(step, loss, color="0.8", linewidth=0.6, label="loss of a step")
        width = max(1, len(loss) // 50)
        smooth = np.convolve(loss, np.ones(width) / width, "valid")
        axes.plot(step[width - 1 :], smooth, color="0.35", linewidth=1.2, label="running mean")
        low, high = np.quantile(loss, [0.005, 0.98])
        axes.set_ylim(low - 0.05 * (high - low), high)
    if series.get("val/nelbo"):
        step, nelbo = np.array(series["val/nelbo"], float).T
        axes.plot(step, nelbo, "o-", color="#0072B2", markersize=3, label="validation NELBO")
    axes.set(xlabel="step", ylabel="nats per gene")
    axes.spines[["top", "right"]].set_visible(False)
    if axes.lines:
        axes.legend(frameon=False, fontsize=8)
    return figure
