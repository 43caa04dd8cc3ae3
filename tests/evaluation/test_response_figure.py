"""The figure of a response shows the numbers of the response, and nothing else."""

import numpy as np

from sedd.evaluation.response import Twins, measure_response
from sedd.evaluation.response_figure import response_figure
from tests.worlds import one_subpopulation_responds

GENES = tuple(f"GENE{index:03d}" for index in range(50))


def test_strips_hold_the_effects_of_each_subpopulation_and_name_its_responders():
    world = one_subpopulation_responds()
    start = np.arange(300)
    response = measure_response(Twins(world.perturbed_log1p, world.control_log1p, start), GENES)

    strips = response_figure(response).axes[0]

    points = [c.get_offsets() for c in strips.collections if len(c.get_offsets()) > 1]
    assert len(points) == 2
    for number, shown in enumerate(points):
        expected = response.effect_size[response.subpopulation == number]
        np.testing.assert_allclose(np.asarray(shown)[:, 1], expected)
        assert np.abs(np.asarray(shown)[:, 0] - number).max() < 0.2
    means = [line.get_ydata()[0] for line in strips.lines]
    np.testing.assert_allclose(means, [s.mean_effect for s in response.subpopulations])
    texts = [label.get_text() for label in strips.get_xticklabels()]
    assert texts == ["0: 200 cells\n100% respond", "1: 100 cells\n0% respond"]


def test_a_control_has_the_mean_effect_of_its_twins_and_is_grey_without_one():
    world = one_subpopulation_responds()
    start = np.array([3, 3, 8, 9])
    generated = world.control_log1p[start].copy()
    generated[:, 0] += [1, 2, 5, 0]
    response = measure_response(Twins(generated, world.control_log1p, start), GENES)

    plane = response_figure(response).axes[1]

    unused, used = plane.collections
    np.testing.assert_allclose(used.get_offsets(), response.plane[[3, 8, 9]])
    np.testing.assert_allclose(used.get_array(), [1.5, 5, 0], atol=1e-6)
    assert len(unused.get_offsets()) == 297


def test_a_subpopulation_without_cells_is_shown_as_empty():
    world = one_subpopulation_responds()
    start = np.flatnonzero(world.responder)[:5]
    twins = Twins(world.perturbed_log1p[start], world.control_log1p, start)

    strips = response_figure(measure_response(twins, GENES)).axes[0]

    texts = [label.get_text() for label in strips.get_xticklabels()]
    assert texts == ["0: 5 cells\n100% respond", "1: 0 cells\nnone generated"]
    assert len(strips.lines) == 1
