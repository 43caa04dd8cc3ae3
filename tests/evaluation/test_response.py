"""Who responds, by how much and in which genes, where that is known."""

from dataclasses import replace

import numpy as np
import pytest

from sedd.evaluation.response import Twins, find_subpopulations, measure_response, response_table
from tests.worlds import OneSubpopulationResponds, one_subpopulation_responds

GENES = tuple(f"GENE{index:03d}" for index in range(50))


def twins_of(world: OneSubpopulationResponds) -> Twins:
    return Twins(world.perturbed_log1p, world.control_log1p, np.arange(300))


def test_the_subpopulation_that_responds_is_found_with_its_size_and_the_other_does_not_move():
    world = one_subpopulation_responds()
    change = (world.perturbed_log1p - world.control_log1p)[world.responder]
    length = np.linalg.norm(change, axis=1)

    response = measure_response(twins_of(world), GENES)

    np.testing.assert_array_equal(response.subpopulation == 0, world.responder)
    responders, others = response.subpopulations
    assert (responders.num_controls, responders.num_cells) == (200, 200)
    assert (others.num_controls, others.num_cells) == (100, 100)
    assert responders.mean_effect == pytest.approx(length.mean(), rel=1e-5)
    assert responders.effect_spread == pytest.approx(length.std(), rel=1e-5)
    # The others add nothing to the mean change, so its direction is that of the responders.
    assert responders.mean_projection == pytest.approx(np.linalg.norm(change.mean(0)), rel=1e-4)
    assert responders.responder_share > 0.95
    assert (others.mean_effect, others.effect_spread, others.responder_share) == (0, 0, 0)


def test_the_genes_that_differ_are_those_that_only_one_subpopulation_changes():
    world = one_subpopulation_responds()
    change = world.perturbed_log1p - world.control_log1p

    contrasts = measure_response(twins_of(world), GENES, num_contrasts=50).contrasts

    assert {contrast.gene for contrast in contrasts} == set(GENES[:10])
    differences = [contrast.difference for contrast in contrasts]
    assert differences == sorted(differences, reverse=True)
    for contrast in contrasts:
        gene = GENES.index(contrast.gene)
        mine = change[world.responder, gene].astype(np.float64)
        assert contrast.mean_change == pytest.approx((mine.mean(), 0), abs=1e-6)
        assert contrast.difference == pytest.approx(mine.mean(), abs=1e-6)
        assert contrast.standard_error == pytest.approx(mine.std(ddof=1) / 200**0.5, rel=1e-4)
    assert len(measure_response(twins_of(world), GENES, num_contrasts=3).contrasts) == 3


def test_an_identity_has_no_effect_no_responder_and_no_gene():
    control = one_subpopulation_responds().control_log1p

    response = measure_response(Twins(control, control, np.arange(300)), GENES)

    assert not response.effect_size.any()
    assert not response.projection.any()
    assert not response.responds.any()
    assert response.contrasts == ()
    assert [s.num_controls for s in response.subpopulations] == [200, 100]


def test_another_control_cell_of_the_subpopulation_responds_as_rarely_as_the_null_says():
    """The null is 5 % of pairs; 20 worlds of 300 pairs, whose direction is fitted to noise."""
    shares = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        control = rng.normal(size=(300, 50))
        twins = Twins(control[rng.permutation(300)], control, np.arange(300))
        shares.append(measure_response(twins, GENES).responds.mean())

    assert 0.03 < np.mean(shares) < 0.08


def test_the_threshold_is_natural_variation_within_and_not_between_subpopulations():
    """Clusters 20 apart along the change: pairs within one differ by N(0, 2), 95 % below 2.33."""
    control = np.random.default_rng(0).normal(size=(2000, 2))
    control[:1000, 0] += 20
    generated = control + np.array([3, 0])

    response = measure_response(Twins(generated, control, np.arange(2000)), ("a", "b"))

    assert len(response.subpopulations) == 2
    assert response.threshold == pytest.approx(1.645 * 2**0.5, rel=0.05)
    assert response.responds.all()


def test_differences_that_noise_makes_are_not_named():
    rng = np.random.default_rng(0)
    control = one_subpopulation_responds().control_log1p
    generated = (control + rng.normal(size=control.shape)).astype(np.float32)

    response = measure_response(Twins(generated, control, np.arange(300)), GENES)

    assert len(response.subpopulations) == 2
    assert response.contrasts == ()


def test_effects_belong_to_the_control_each_cell_started_from():
    world = one_subpopulation_responds()
    start = np.random.default_rng(0).permutation(300)[:120]
    twins = Twins(world.perturbed_log1p[start], world.control_log1p, start)

    response = measure_response(twins, GENES)

    length = np.linalg.norm(world.perturbed_log1p - world.control_log1p, axis=1)[start]
    np.testing.assert_allclose(response.effect_size, length, rtol=1e-5)
    np.testing.assert_array_equal(response.subpopulation == 0, world.responder[start])
    # Controls that nobody started from still say what the subpopulations are.
    assert [s.num_controls for s in response.subpopulations] == [200, 100]
    assert sum(s.num_cells for s in response.subpopulations) == 120


def test_a_subpopulation_that_no_cell_started_from_has_no_effect_to_report():
    world = one_subpopulation_responds()
    start = np.flatnonzero(world.responder)
    twins = Twins(world.perturbed_log1p[start], world.control_log1p, start)

    _, others = measure_response(twins, GENES).subpopulations

    assert others.num_cells == 0
    assert np.isnan([others.mean_effect, others.mean_projection, others.responder_share]).all()


def test_a_step_against_the_mean_change_is_negative():
    control = np.zeros((30, 2))
    change = np.tile([3.0, 4.0], (30, 1))
    change[0] = [-3.0, -4.0]

    response = measure_response(Twins(change, control, np.arange(30)), ("a", "b"))

    np.testing.assert_allclose(response.effect_size, 5)
    np.testing.assert_allclose(response.projection, [-5, *[5] * 29])
    assert response.subpopulations[0].responder_share == pytest.approx(29 / 30)


@pytest.mark.parametrize("sizes", [(150, 100, 50), (100, 30), (40, 40, 40, 40)])
def test_planted_clusters_are_found_and_numbered_by_size(sizes):
    rng = np.random.default_rng(0)
    planted = np.repeat(np.arange(len(sizes)), sizes)
    centres = 8 * np.eye(10)[planted]

    found = find_subpopulations(centres + rng.normal(size=centres.shape))

    assert len(np.unique(found)) == len(sizes)
    if len(set(sizes)) == len(sizes):
        np.testing.assert_array_equal(found, planted)


def test_one_cloud_and_few_cells_are_one_population():
    rng = np.random.default_rng(0)

    assert not find_subpopulations(rng.normal(size=(300, 10))).any()
    # A library size or another gradient makes no clusters.
    assert not find_subpopulations(rng.normal(size=(300, 10)) * np.linspace(2, 1, 10)).any()
    assert not find_subpopulations(np.repeat([[0.0], [9.0]], 9, axis=0)).any()
    assert not find_subpopulations(np.repeat([[0.0], [9.0]], [40, 9], axis=0)).any()


def test_equal_seeds_give_equal_responses():
    twins = twins_of(one_subpopulation_responds())

    first, again = measure_response(twins, GENES), measure_response(twins, GENES)

    assert first.threshold == again.threshold
    assert first.subpopulations == again.subpopulations


def test_the_table_has_a_row_for_each_generated_cell_under_the_name_of_its_control():
    world = one_subpopulation_responds()
    start = np.array([5, 7, 5])
    twins = Twins(world.perturbed_log1p[start], world.control_log1p, start)
    names = np.array([f"cell_{index}" for index in range(300)], dtype=object)
    response = measure_response(twins, GENES)

    table = response_table("T cells", "IFNb", names, response)

    assert table["control_cell"].tolist() == ["cell_5", "cell_7", "cell_5"]
    assert set(table["cell_type"]) == {"T cells"}
    assert set(table["perturbation"]) == {"IFNb"}
    np.testing.assert_array_equal(table["effect_size"], response.effect_size)
    np.testing.assert_array_equal(table["projection"], response.projection)
    np.testing.assert_array_equal(table["subpopulation"], response.subpopulation)
    np.testing.assert_array_equal(table["responds"], response.projection > response.threshold)


def test_a_single_pair_is_enough_and_none_is_refused():
    one = Twins(np.ones((1, 4)), np.zeros((1, 4)), np.array([0]))

    response = measure_response(one, GENES[:4])

    assert response.effect_size.tolist() == [2]
    assert response.subpopulations[0].num_cells == 1
    nobody = replace(one, generated_log1p=np.ones((0, 4)), start=np.array([], np.int64))
    with pytest.raises(ValueError, match="0 generated and 1 control cells"):
        measure_response(nobody, GENES[:4])
