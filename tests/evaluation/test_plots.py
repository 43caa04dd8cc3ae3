"""Figures: what they show, in which colours, without touching global state."""

import sys

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text

from sedd.evaluation.baselines import BASELINES, CEILING, NO_CHANGE
from sedd.evaluation.plots import (
    COLORS,
    COUNTERFACTUAL,
    POPULATION,
    cells_figure,
    energy_figure,
    method_color,
    method_label,
    shift_figure,
)


@pytest.fixture
def shifts() -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Means of prediction, real cells and controls for 30 genes; gene i shifts by i - 10."""
    control = np.random.default_rng(0).random(30)
    real = control + np.arange(30) - 10
    return control + 0.5 * (np.arange(30) - 10), real, control, [f"gene{i}" for i in range(30)]


def test_every_method_has_a_colour_of_its_own():
    methods = (COUNTERFACTUAL, POPULATION, *BASELINES, CEILING)

    assert len({method_color(method) for method in methods}) == len(methods)
    assert set(methods) == set(COLORS)
    assert method_color("another model") == method_color(COUNTERFACTUAL)
    assert [method_label(name) for name in (NO_CHANGE, CEILING)] == ["no change", "ceiling"]


def test_the_shift_figure_plots_shifts_and_names_the_genes_that_really_shift_most(shifts):
    predicted, real, control, genes = shifts

    (ax,) = shift_figure(
        predicted, real, control, genes, method=COUNTERFACTUAL, num_labelled=4
    ).axes

    np.testing.assert_allclose(
        ax.collections[0].get_offsets(), np.stack([real - control, predicted - control], axis=1)
    )
    assert {text.get_text() for text in ax.texts} == {"gene29", "gene28", "gene27", "gene26"}
    assert "Pearson 1.000 over 30 genes" in ax.get_title(loc="left")


def test_gene_labels_stay_inside_the_axes_and_apart_from_each_other(shifts):
    predicted, real, control, genes = shifts

    figure = shift_figure(predicted, real, control, genes, method=COUNTERFACTUAL)

    (ax,) = figure.axes
    figure.draw_without_rendering()
    # An annotation counts its leader line in; the letters alone are what must not collide.
    boxes = [Text.get_window_extent(text) for text in ax.texts]
    assert len(boxes) == 15
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[i + 1 :])
    assert all(ax.bbox.padded(2).contains(*corner) for box in boxes for corner in box.corners())


def test_a_long_label_of_the_outermost_gene_turns_inwards(shifts):
    predicted, real, control, genes = shifts
    genes[29] = "a-gene-with-quite-a-name"

    figure = shift_figure(predicted, real, control, genes, method=COUNTERFACTUAL, num_labelled=1)

    (ax,) = figure.axes
    figure.draw_without_rendering()
    corners = Text.get_window_extent(ax.texts[0]).corners()
    assert all(ax.bbox.contains(*corner) for corner in corners)


def test_energy_bars_are_means_in_the_given_order_with_a_dot_per_condition():
    (ax,) = energy_figure(
        {COUNTERFACTUAL: [1.0, 3.0], NO_CHANGE: [8.0], CEILING: [-0.01]}, control_floor=0.5
    ).axes

    assert [bar.get_width() for bar in ax.patches] == [2.0, 8.0, -0.01]
    assert [to_hex(bar.get_facecolor()).upper() for bar in ax.patches] == [
        COLORS[method] for method in (COUNTERFACTUAL, NO_CHANGE, CEILING)
    ]
    assert [label.get_text() for label in ax.get_yticklabels()] == [
        "counterfactual",
        "no change",
        "ceiling",
    ]
    assert [dots.get_offsets().tolist() for dots in ax.collections] == [[[1, 0], [3, 0]]]
    assert list(ax.lines[0].get_xdata()) == [0.5, 0.5]
    assert ax.yaxis_inverted()


def test_undefined_energy_distances_are_left_out():
    (ax,) = energy_figure({COUNTERFACTUAL: [2.0, np.nan], NO_CHANGE: [np.nan]}).axes

    assert [bar.get_width() for bar in ax.patches] == [2.0]


def test_the_axes_of_the_cells_figure_come_from_real_cells_alone():
    """Control and perturbed cells differ along gene 0; generated cells do not turn the axes."""
    rng = np.random.default_rng(0)
    control = rng.normal(0, 0.1, size=(50, 5)).astype(np.float32)
    real = control + np.float32([10, 0, 0, 0, 0])
    wild = rng.normal(0, 50, size=(40, 5)).astype(np.float32)

    figures = [
        cells_figure(real, control, generated)
        for generated in ({COUNTERFACTUAL: real}, {COUNTERFACTUAL: real, POPULATION: wild})
    ]

    clouds = [[cloud.get_offsets() for cloud in figure.axes[0].collections] for figure in figures]
    np.testing.assert_array_equal(clouds[0], clouds[1])
    control_x, real_x = (cloud[:, 0] for cloud in clouds[0])
    assert abs(real_x.mean() - control_x.mean()) == pytest.approx(10, abs=0.1)
    assert [len(figure.axes) for figure in figures] == [2, 3]
    assert len(figures[1].axes[2].collections[2].get_offsets()) == 40


def test_large_groups_of_cells_are_drawn_as_a_seeded_sample():
    cells = np.random.default_rng(0).random((200, 5))

    first, again, other = (
        cells_figure(cells, cells + 1, {COUNTERFACTUAL: cells}, max_cells=30, seed=seed)
        .axes[0]
        .collections[0]
        .get_offsets()
        for seed in (0, 0, 1)
    )

    assert len(first) == 30
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_figures_are_made_without_pyplot(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)

    assert isinstance(energy_figure({NO_CHANGE: [1.0]}), Figure)
    assert isinstance(cells_figure(np.eye(5), np.eye(5) + 1, {}), Figure)
