"""Figures of predicted against real cells; each function returns a Figure and writes nothing.

Colours follow the method through every figure (Okabe & Ito's colour-blind safe palette).
"""

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.decomposition import PCA

from sedd.evaluation.baselines import (
    ADDITIVE,
    CEILING,
    MEAN_OF_OTHERS,
    NO_CHANGE,
    RIDGE,
    TOKEN_TILT,
)
from sedd.evaluation.metrics import pearson_of_shift

COUNTERFACTUAL = "counterfactual"
POPULATION = "population"

INK, FAINT, REAL = "#333333", "#BBBBBB", "#009E73"
COLORS = {
    COUNTERFACTUAL: "#0072B2",
    POPULATION: "#56B4E9",
    ADDITIVE: "#E69F00",
    RIDGE: "#7E5CA5",
    TOKEN_TILT: "#D55E00",
    MEAN_OF_OTHERS: "#CC79A7",
    NO_CHANGE: "#999999",
    CEILING: REAL,
}
LABELS = {CEILING: "ceiling"}

LABEL_SIZE = 7.5
LABEL_GAPS = (3.0, 9.0, 18.0, 30.0, 45.0)
COMPASS = np.stack([np.cos(np.arange(16) * np.pi / 8), np.sin(np.arange(16) * np.pi / 8)], axis=1)


def method_label(method: str) -> str:
    """The method's name as people read it."""
    return LABELS.get(method, method.replace("_", " "))


def method_color(method: str) -> str:
    """The method's colour; that of the model for a method without its own."""
    return COLORS.get(method, COLORS[COUNTERFACTUAL])


def shift_figure(
    predicted_mean_log1p: Float[np.ndarray, " genes"],
    real_mean_log1p: Float[np.ndarray, " genes"],
    control_mean_log1p: Float[np.ndarray, " genes"],
    genes: Sequence[str],
    *,
    method: str,
    num_labelled: int = 15,
) -> Figure:
    """Predicted against real shift of each gene; the genes that really shift most are named."""
    real_shift = real_mean_log1p - control_mean_log1p
    predicted_shift = predicted_mean_log1p - control_mean_log1p
    pearson = pearson_of_shift(predicted_mean_log1p, real_mean_log1p, control_mean_log1p)
    figure, (ax,) = _figure(1, width=5.2, height=5.0)
    ends = np.array(
        [
            min(real_shift.min(), predicted_shift.min(), 0),
            max(real_shift.max(), predicted_shift.max(), 0),
        ]
    )
    ends = ends + np.array([-0.06, 0.06]) * max(ends[1] - ends[0], 1e-3)
    ax.plot(ends, ends, color=FAINT, linewidth=1, zorder=0)
    ax.scatter(
        real_shift, predicted_shift, s=12, color=method_color(method), alpha=0.6, linewidth=0
    )
    ax.set(xlim=ends, ylim=ends, aspect="equal")
    ax.set_xlabel("real shift (log1p CP10k)")
    ax.set_ylabel(f"shift by {method_label(method)}")
    ax.set_title(f"Pearson {pearson:.3f} over {len(genes)} genes", loc="left", fontsize=10)
    top = np.argsort(-np.abs(real_shift), kind="stable")[:num_labelled]
    points = np.stack([real_shift, predicted_shift], axis=1)
    _label_points(figure, ax, points, {gene: genes[gene] for gene in map(int, top)})
    return figure


def energy_figure(
    values: Mapping[str, Sequence[float]], *, control_floor: float | None = None
) -> Figure:
    """Mean energy distance of each method as a bar, in the order given, and a dot per condition.

    Undefined values are left out, and so is a method with no others.
    """
    values = {method: [v for v in given if not np.isnan(v)] for method, given in values.items()}
    values = {method: distances for method, distances in values.items() if distances}
    figure, (ax,) = _figure(1, width=7.0, height=0.9 + 0.42 * len(values))
    means = [float(np.mean(distances)) for distances in values.values()]
    widest = max((float(np.max(distances)) for distances in values.values()), default=1.0)
    for row, (method, distances) in enumerate(values.items()):
        ax.barh(row, means[row], height=0.62, color=method_color(method))
        if len(distances) > 1:
            ax.scatter(
                distances,
                np.full(len(distances), row),
                s=14,
                color=INK,
                edgecolor="white",
                zorder=3,
            )
        end = max(means[row], *distances, 0.0)
        ax.text(end + 0.015 * widest, row, f"{means[row]:#.3g}", va="center", fontsize=8.5)
    if control_floor is not None:
        ax.axvline(control_floor, color=INK, linewidth=1, linestyle=(0, (4, 3)))
        text = f"copies of the control cells: {control_floor:#.2g}"
        ax.text(control_floor, -0.62, f" {text}", fontsize=8, va="bottom", color=INK)
    ax.set_yticks(range(len(values)), [method_label(method) for method in values])
    ax.set(ylim=(len(values) - 0.5, -0.95), xlim=(min(0.0, *means), 1.12 * max(widest, 1e-9)))
    ax.tick_params(axis="y", length=0)
    dots = "; dots are conditions" if any(len(each) > 1 for each in values.values()) else ""
    ax.set_xlabel(f"energy distance to the real cells (0 is perfect{dots})")
    return figure


def cells_figure(
    real_log1p: Float[np.ndarray, "real genes"],
    control_log1p: Float[np.ndarray, "control genes"],
    generated_log1p: Mapping[str, Float[np.ndarray, "_ genes"]],
    *,
    max_cells: int = 600,
    seed: int = 0,
) -> Figure:
    """Real perturbed, control and generated cells on the first two components of the real cells."""
    rng = np.random.default_rng(seed)

    def some(cells_log1p: Float[np.ndarray, "_ genes"]) -> Float[np.ndarray, "_ genes"]:
        kept = min(len(cells_log1p), max_cells)
        return cells_log1p[rng.choice(len(cells_log1p), kept, replace=False)]

    real, control = some(real_log1p), some(control_log1p)
    pca = PCA(n_components=2, random_state=seed).fit(np.concatenate([real, control]))
    real_xy, control_xy = pca.transform(real), pca.transform(control)
    figure, axes = _figure(1 + len(generated_log1p), width=3.6, height=3.7)
    axes[0].set_title("real cells", loc="left", fontsize=10)
    for ax in axes:
        _cloud(ax, control_xy, FAINT, "control")
        _cloud(ax, real_xy, REAL, "real perturbed")
        ax.set_xlabel(f"PC 1 ({pca.explained_variance_ratio_[0]:.0%})")
        ax.set(xticks=[], yticks=[])
    for ax, (method, cells_log1p) in zip(axes[1:], generated_log1p.items(), strict=True):
        _cloud(ax, pca.transform(some(cells_log1p)), method_color(method), method_label(method))
        ax.set_title(f"and {method_label(method)}", loc="left", fontsize=10)
    handles = [axes[0].collections[i] for i in (0, 1)] + [ax.collections[2] for ax in axes[1:]]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=len(handles),
        frameon=False,
        fontsize=9,
        handletextpad=0.1,
        markerscale=1.8,
    )
    axes[0].set_ylabel(f"PC 2 ({pca.explained_variance_ratio_[1]:.0%})")
    return figure


def _figure(num_panels: int, *, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A Figure of its own (no pyplot, no global state) with a row of plain panels."""
    figure = Figure(figsize=(width * num_panels, height), layout="constrained")
    FigureCanvasAgg(figure)
    row = figure.subplots(1, num_panels, squeeze=False, sharex=True, sharey=True)[0]
    for ax in row:
        ax.spines[["top", "right"]].set_visible(False)
        ax.spines[["left", "bottom"]].set_color(FAINT)
        ax.tick_params(color=FAINT, labelcolor=INK, labelsize=9)
        ax.xaxis.label.set_color(INK)
        ax.yaxis.label.set_color(INK)
    return figure, list(row)


def _cloud(ax: Axes, xy: Float[np.ndarray, "_ 2"], color: str, label: str) -> None:
    ax.scatter(xy[:, 0], xy[:, 1], s=7, color=color, alpha=0.5, linewidth=0, label=label)


def _label_points(
    figure: Figure, ax: Axes, points: Float[np.ndarray, "points 2"], texts: Mapping[int, str]
) -> None:
    """Write each text near its point, at the nearest spot that covers the fewest other things."""
    figure.draw_without_rendering()
    to_points = 72 / figure.dpi
    places = ax.transData.transform(points) * to_points
    frame = np.array(ax.bbox.extents).reshape(2, 2) * to_points
    boxes: list[tuple[np.ndarray, np.ndarray]] = []
    for index, text in texts.items():
        half = LABEL_SIZE * np.array([0.31 * len(text) + 0.2, 0.62])

        def cost(offset: np.ndarray, index: int = index, half: np.ndarray = half) -> float:
            centre = places[index] + offset
            covered = np.all(np.abs(places - centre) < half + 2, axis=1).sum()
            crossed = sum(np.all(np.abs(other - centre) < half + size) for other, size in boxes)
            outside = np.any(centre - half < frame[0]) or np.any(centre + half > frame[1])
            return 30 * outside + 10 * crossed + covered + 0.05 * np.hypot(*offset)

        offsets = [direction * (radius + half) for radius in LABEL_GAPS for direction in COMPASS]
        offset = min(offsets, key=cost)
        boxes.append((places[index] + offset, half))
        ax.annotate(
            text,
            points[index],
            xytext=tuple(offset),
            textcoords="offset points",
            color=INK,
            fontsize=LABEL_SIZE,
            ha="center",
            va="center",
            arrowprops={"arrowstyle": "-", "color": FAINT, "linewidth": 0.6, "shrinkB": 2},
        )
