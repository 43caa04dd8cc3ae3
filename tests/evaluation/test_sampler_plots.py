"""The figure of steps shows the bounds, their knees and what was sampled."""

import pytest
from matplotlib.colors import to_hex

from sedd.diffusion.schedule import StepBound
from sedd.evaluation.sampler_plots import SCHEDULE_COLORS, sampler_figure

BOUNDS = (StepBound(1, 0.9, 0.9), StepBound(2, 0.8, 0.7), StepBound(4, 0.65, 0.62))


def test_both_bounds_run_over_the_steps_with_a_ring_at_the_knee():
    (ax,) = sampler_figure(BOUNDS, floor=0.6, knees={"even": 4, "measured": 2}).axes

    even, even_knee, measured, measured_knee, floor = ax.lines
    assert even.get_xydata().tolist() == [[1, 0.9], [2, 0.8], [4, 0.65]]
    assert measured.get_xydata().tolist() == [[1, 0.9], [2, 0.7], [4, 0.62]]
    assert even_knee.get_xydata().tolist() == [[4, 0.65]]
    assert measured_knee.get_xydata().tolist() == [[2, 0.7]]
    assert floor.get_ydata() == [0.6, 0.6]
    assert [to_hex(line.get_color()).upper() for line in (even, measured)] == [
        SCHEDULE_COLORS["even"],
        SCHEDULE_COLORS["measured"],
    ]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "2", "4"]


def test_a_knee_beyond_the_steps_shown_has_no_ring():
    (ax,) = sampler_figure(BOUNDS, floor=0.6, knees={"even": 128}).axes

    assert len(ax.lines) == 3


def test_what_was_sampled_stands_beside_the_bound():
    energy = {"even": {1: 3.0, 8: 1.0}, "measured": {1: 3.0, 8: 0.5}}

    bound, sampled = sampler_figure(BOUNDS, floor=0.6, knees={}, energy=energy).axes

    assert [line.get_ydata().tolist() for line in sampled.lines] == [[3.0, 1.0], [3.0, 0.5]]
    assert [text.get_text() for text in bound.get_legend().get_texts()] == [
        "even blocks",
        "measured blocks",
    ]
    assert [text.get_text() for text in sampled.get_xticklabels()] == ["1", "2", "4", "8"]


@pytest.mark.parametrize("energy", [None, {}])
def test_without_sampling_there_is_one_panel(energy):
    assert len(sampler_figure(BOUNDS, floor=0.6, knees={}, energy=energy).axes) == 1
