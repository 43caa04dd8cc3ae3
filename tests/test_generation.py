"""A unit's cells depend on what is asked and on nothing else, and start from real controls."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import sparse

from sedd.building import build_contexts, build_denoiser
from sedd.checkpoint import Trained
from sedd.data.choices import DataConfig
from sedd.data.splits import SplitConfig, make_split
from sedd.diffusion.schedule import InformationProfile
from sedd.errors import DataError, UsageError
from sedd.generation import (
    GeneratedCells,
    Unit,
    blocks_for,
    generate_unit,
    plan_units,
    profile_of,
)
from sedd.inference import InferenceConfig
from sedd.preparation import prepare
from sedd.training import held_out_nelbo
from tests.tiny_training import TINY_MODEL, tiny_run, tiny_shards, without_b_cells
from tests.worlds import a_cell_type_without_controls, tiny_cells

COUNTERFACTUAL = InferenceConfig(num_samples_per_condition=60, shard_size=20, num_steps=4)
POPULATION = replace(COUNTERFACTUAL, mode="population")
WAYS = [
    COUNTERFACTUAL,
    POPULATION,
    replace(POPULATION, sampler="euler"),
    replace(POPULATION, sampler="tweedie"),
]


def name_of(config: InferenceConfig) -> str:
    return f"{config.mode}-{config.sampler}"


@pytest.fixture(scope="module")
def trained() -> Trained:
    run = tiny_run()
    run.steps()
    return Trained(run.state.average.eval(), run.contexts, tiny_shards().reference, "digest", 12)


def untrained(reference) -> Trained:
    """A model that says what its reference says."""
    denoiser = build_denoiser(TINY_MODEL, reference).eval()
    contexts = build_contexts(TINY_MODEL, reference)
    return Trained(denoiser, contexts, reference, "digest", 0)


def unexpected(model: Trained) -> Trained:
    """The same model, but nothing is expected of any perturbation."""
    effects = model.reference.effects
    effects = replace(effects, tilt=np.zeros_like(effects.tilt))
    return replace(
        model,
        contexts=replace(model.contexts, tilt=torch.zeros_like(model.contexts.tilt)),
        reference=replace(model.reference, effects=effects),
    )


def with_reliability(trained: Trained, value: float) -> Trained:
    effects = trained.reference.effects
    effects = replace(effects, reliability=np.full_like(effects.reliability, value))
    return replace(trained, reference=replace(trained.reference, effects=effects))


def generated(trained, config, cell_type="B cell", perturbation="raise") -> list[GeneratedCells]:
    units = plan_units([cell_type], [perturbation], config)
    return [generate_unit(trained, unit, config) for unit in units]


def values_of(parts: list[GeneratedCells]) -> np.ndarray:
    return np.concatenate([part.values for part in parts])


# Units.


def test_units_cover_every_condition_in_shards_of_at_most_the_size():
    config = InferenceConfig(num_samples_per_condition=45, shard_size=20)

    units = plan_units(iter(["B", "T"]), iter(["IL6", "IFNb"]), config)

    assert [(u.cell_type, u.perturbation, u.shard, u.num_cells) for u in units[:4]] == [
        ("B", "IL6", 0, 20), ("B", "IL6", 1, 20), ("B", "IL6", 2, 5), ("B", "IFNb", 0, 20),
    ]  # fmt: skip
    assert len(units) == len(set(units)) == 12
    assert sum(unit.num_cells for unit in units) == 4 * 45


def test_the_key_of_a_unit_changes_with_all_that_fixes_its_cells():
    unit, config = Unit("B", "IL6", 0, 20), InferenceConfig()
    units = [
        replace(unit, cell_type="T"), replace(unit, perturbation="x"), replace(unit, shard=1),
        replace(unit, num_cells=19), Unit("BI", "L6", 0, 20),
    ]  # fmt: skip
    configs = [
        replace(config, seed=1), replace(config, num_steps=2), replace(config, temperature=0.9),
        replace(config, shrink_effects=False), replace(config, shard_size=9),
        replace(config, guidance=1.5), replace(config, effect_anchor=0.25),
        replace(config, mode="population"), replace(config, block_schedule="measured"),
        replace(config, mode="population", sampler="euler"),
    ]  # fmt: skip

    keys = [unit.key("digest", config), unit.key("other", config)]
    keys += [other.key("digest", config) for other in units]
    keys += [unit.key("digest", other) for other in configs]

    assert len(set(keys)) == len(keys)
    more = replace(config, num_samples_per_condition=1000, cell_type="B", perturbations=("IL6",))
    assert unit.key("digest", more) == keys[0]


# What the cells depend on.


@pytest.mark.parametrize("config", WAYS, ids=name_of)
def test_a_unit_gives_the_same_cells_in_any_order_and_company(trained, config):
    units = plan_units(["B cell", "T cell"], ["raise", "lower"], config)[::3]

    forwards = {unit: generate_unit(trained, unit, config).values for unit in units}
    backwards = {unit: generate_unit(trained, unit, config).values for unit in units[::-1]}

    for unit in units:
        np.testing.assert_array_equal(forwards[unit], backwards[unit])
    for one, other in pairwise(forwards.values()):
        assert not np.array_equal(one, other)


def test_asking_for_more_cells_adds_to_those_that_were_there(trained):
    few = generated(trained, replace(POPULATION, num_samples_per_condition=20))
    many = generated(trained, replace(POPULATION, num_samples_per_condition=60))

    np.testing.assert_array_equal(many[0].values, few[0].values)


@pytest.mark.parametrize("config", WAYS, ids=name_of)
def test_another_seed_shard_or_model_gives_other_cells(trained, config):
    unit = Unit("B cell", "raise", 0, 20)
    first = generate_unit(trained, unit, config).values

    others = [
        generate_unit(trained, unit, replace(config, seed=1)).values,
        generate_unit(trained, replace(unit, shard=1), config).values,
        generate_unit(replace(trained, digest="other"), unit, config).values,
    ]

    for other in others:
        assert not np.array_equal(other, first)


# What the cells are.


@pytest.mark.parametrize("config", WAYS, ids=name_of)
def test_cells_are_whole_counts_at_the_depths_of_real_controls(trained, config):
    cells = tiny_cells()

    for part in generated(trained, config):
        assert part.values.dtype == np.int32
        assert part.values.shape == (20, 40)
        assert part.values.min() >= 0
        np.testing.assert_array_equal(part.depth, cells.depth[part.control_row])
        assert set(cells.perturbation[part.control_row]) == {"control"}
        assert set(cells.cell_type[part.control_row]) == {"B cell"}


@pytest.mark.parametrize("config", WAYS, ids=name_of)
def test_the_perturbation_raises_its_genes_in_the_type_it_was_never_seen_in(trained, config):
    config = replace(config, num_samples_per_condition=100, shard_size=100)

    mean = values_of(generated(trained, config)).mean(0)
    control = values_of(generated(trained, config, perturbation="control")).mean(0)

    # The truth is 1 to 6 in the first ten genes; the rest keep within sampling error and what a
    # short training leaves.
    assert mean[:10].mean() > control[:10].mean() + 1.5
    assert np.abs(mean[26:] - control[26:]).mean() < 0.8


def test_the_control_of_a_control_is_the_very_cell(trained):
    cells = tiny_cells()

    for part in generated(trained, COUNTERFACTUAL, perturbation="control"):
        expected = cells.select(part.control_row, trained.reference.vocabulary.genes)
        np.testing.assert_array_equal(part.values, expected.expression.toarray())


def test_the_identity_holds_for_any_temperature_and_number_of_steps(trained):
    for changes in (
        {"temperature": 0.5},
        {"temperature": 2.0},
        {"num_steps": 1},
        {"num_steps": 99},
    ):
        config = replace(COUNTERFACTUAL, **changes)
        (part, *_) = generated(trained, config, perturbation="control")

        expected = tiny_cells().select(part.control_row).expression.toarray()
        np.testing.assert_array_equal(part.values, expected)


def test_counts_above_all_bins_survive_where_nothing_changes(trained):
    controls = trained.reference.control_cells
    huge = replace(controls, values=np.where(controls.values > 7, 10_000, controls.values))
    changed = replace(trained, reference=replace(trained.reference, control_cells=huge))

    (part, *_) = generated(changed, COUNTERFACTUAL, perturbation="control")

    assert part.values.max() == 10_000


def test_an_effect_neither_reliable_nor_expected_leaves_the_control_cells_as_they_are(trained):
    doubted = unexpected(with_reliability(trained, 0.0))

    for part in generated(doubted, COUNTERFACTUAL):
        expected = tiny_cells().select(part.control_row).expression.toarray()
        np.testing.assert_array_equal(part.values, expected)


def test_an_effect_neither_reliable_nor_expected_draws_from_the_control_law(trained):
    config = replace(POPULATION, num_samples_per_condition=300, shard_size=300)
    doubted = unexpected(with_reliability(trained, 0.0))

    mean, control = (
        values_of(generated(doubted, config, perturbation=name)).mean(0)
        for name in ("raise", "control")
    )

    # Two means of 300 cells of variance about the mean itself; 40 genes, so 4.5 sigma.
    error = np.sqrt((mean + control + 0.2) / 300)
    assert (np.abs(mean - control) / error).max() < 4.5


def test_reliability_counts_only_when_effects_are_shrunk(trained):
    config = replace(COUNTERFACTUAL, shrink_effects=False)

    believed, doubted = (values_of(generated(with_reliability(trained, r), config)) for r in (1, 0))

    np.testing.assert_array_equal(believed, doubted)


def test_half_the_reliability_is_between_nothing_and_all(trained):
    config = replace(
        COUNTERFACTUAL, effect_anchor=0.0, num_samples_per_condition=100, shard_size=100
    )

    none, half, all_of_it = (
        values_of(generated(with_reliability(trained, share), config))[:, :10].mean()
        for share in (0.0, 0.5, 1.0)
    )

    assert none + 0.3 < half < all_of_it - 0.3


@pytest.mark.parametrize("config", [POPULATION, WAYS[2], WAYS[3]], ids=name_of)
def test_an_untrained_model_draws_cells_of_the_control_law(config):
    model = untrained(tiny_shards().reference)
    config = replace(config, num_samples_per_condition=400, shard_size=400, num_steps=8)

    mean = values_of(generated(model, config, perturbation="control")).mean(0)

    law = np.exp(model.reference.controls.log_prior(global_share=0.1)[0])
    means = model.reference.tokenizer.means
    expected = (law * means).sum(1)
    variance = (law * means**2).sum(1) - expected**2 + 0.25
    # 40 genes: 4.5 standard errors.
    assert (np.abs(mean - expected) / np.sqrt(variance / 400)).max() < 4.5


# The controls that cells start from.


def test_every_control_is_used_once_before_any_is_used_twice(trained):
    controls = trained.reference.control_cells.of_type(0).row
    config = replace(COUNTERFACTUAL, num_samples_per_condition=3 * len(controls), shard_size=7)

    rows = np.concatenate([part.control_row for part in generated(trained, config)])

    for first in range(0, len(rows), len(controls)):
        assert sorted(rows[first : first + len(controls)]) == sorted(controls)
    assert not np.array_equal(rows[: len(controls)], rows[len(controls) : 2 * len(controls)])


def test_all_perturbations_start_from_the_same_controls(trained):
    raised, lowered = (
        np.concatenate(
            [part.control_row for part in generated(trained, COUNTERFACTUAL, "T cell", p)]
        )
        for p in ("raise", "lower")
    )

    np.testing.assert_array_equal(raised, lowered)


def test_a_twin_keeps_more_of_its_control_than_a_stranger_does(trained):
    (part, *_) = generated(trained, replace(COUNTERFACTUAL, shard_size=60))
    controls = tiny_cells().select(part.control_row).expression.toarray()

    # Genes 26 on are not touched: twins share quantiles with their control, strangers do not.
    twin = np.abs(part.values - controls)[:, 26:].mean()
    stranger = np.abs(part.values - np.roll(controls, 1, axis=0))[:, 26:].mean()

    assert twin < 0.5 * stranger


# The blocks.


def with_profile(trained: Trained, *entropy: float) -> Trained:
    return replace(trained, profile=InformationProfile(40, tuple(range(len(entropy))), entropy))


def test_even_blocks_need_no_profile_and_measured_blocks_follow_it(trained):
    config = replace(POPULATION, num_steps=3)
    measured, informed = (
        replace(config, block_schedule="measured"),
        with_profile(trained, 3.0, 2.0, 1.0),
    )

    assert blocks_for(trained, config) == blocks_for(informed, config) == [13, 14, 13]
    assert blocks_for(informed, measured) == [1, 1, 38]


@pytest.mark.parametrize("config", [COUNTERFACTUAL, POPULATION], ids=name_of)
def test_cells_are_drawn_in_the_blocks_that_were_chosen(trained, config, monkeypatch):
    asked = []
    forward = type(trained.denoiser).forward

    def recording(self, tokens, condition, contexts, genes=None):
        if genes is not None:  # the marginal laws that anchor the effect ask for all genes
            asked.append(genes.shape[1])
        return forward(self, tokens, condition, contexts, genes)

    monkeypatch.setattr(type(trained.denoiser), "forward", recording)
    config = replace(config, num_steps=2, block_schedule="measured", shrink_effects=False)
    generate_unit(with_profile(trained, 3.0, 2.0, 1.0), Unit("B cell", "raise", 0, 5), config)

    assert list(dict.fromkeys(asked)) == [2, 38]


def test_measured_blocks_without_a_profile_are_answered_with_the_way_to_one(trained):
    config = replace(COUNTERFACTUAL, block_schedule="measured")

    with pytest.raises(UsageError, match=r"no information profile.*--resume auto.*schedule=even"):
        generate_unit(trained, Unit("B cell", "raise", 0, 5), config)


def test_the_profile_of_a_model_gives_the_nelbo_that_training_measures(trained):
    run = tiny_run()
    cells = run.batches.of(np.arange(280))

    profile = profile_of(trained, cells)

    nelbo = held_out_nelbo(trained.denoiser, cells, trained.contexts, num_draws=16).mean().item()
    # Both average over random masks of the same cells; the profile runs over 20 mask counts.
    assert profile.nelbo([1] * 40) == pytest.approx(nelbo, abs=0.02)
    assert profile.num_genes == 40
    assert profile == profile_of(trained, cells) != profile_of(trained, cells, seed=1)


# What cannot be asked.


def test_an_unknown_cell_type_or_perturbation_is_answered_with_the_near_ones(trained):
    with pytest.raises(UsageError, match=r"Unknown cell type: 'B cells' \(did you mean 'B cell'"):
        generate_unit(trained, Unit("B cells", "raise", 0, 5), COUNTERFACTUAL)
    with pytest.raises(UsageError, match=r"Unknown perturbation: 'rise' \(did you mean 'raise'"):
        generate_unit(trained, Unit("B cell", "rise", 0, 5), COUNTERFACTUAL)


@pytest.mark.parametrize("config", [COUNTERFACTUAL, POPULATION], ids=name_of)
def test_a_cell_type_without_controls_is_named(config):
    cells = a_cell_type_without_controls()
    split = make_split(
        SplitConfig(),
        perturbation=cells.perturbation,
        cell_type=cells.cell_type,
        control_name="control",
    )
    model = untrained(prepare(cells, split, DataConfig(), TINY_MODEL).reference)

    with pytest.raises(DataError, match=r"no control cell of 'B cell'.* Add 'control' cells of"):
        generate_unit(model, Unit("B cell", "drug", 0, 5), config)

    assert generate_unit(model, Unit("T cell", "drug", 0, 5), config).values.shape == (5, 6)


@pytest.mark.parametrize("mode", ["counterfactual", "population"])
def test_models_of_log1p_cells_generate_log1p_cells(mode):
    counts = tiny_cells()
    cells = replace(counts, expression=sparse.csr_array(counts.log1p_cp10k()), kind="log1p")
    reference = prepare(cells, without_b_cells(cells), DataConfig(), TINY_MODEL).reference
    model, config = untrained(reference), replace(COUNTERFACTUAL, mode=mode)

    part = generated(model, config, perturbation="control")[0]

    assert part.values.dtype == np.float32
    expected = cells.select(part.control_row).expression.toarray()
    if mode == "counterfactual":
        np.testing.assert_array_equal(part.values, expected)
    else:
        assert 0 <= part.values.min() < part.values.max() <= reference.tokenizer.means.max()
        assert abs(part.values.mean() - expected.mean()) < 0.3
