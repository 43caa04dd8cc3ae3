"""What the network says is corrected by as much as was asked, and by nothing when nothing was."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Generator, Tensor

from sedd.building import build_contexts, build_denoiser
from sedd.checkpoint import Trained
from sedd.data.effects import log1p_of_bins
from sedd.errors import UsageError
from sedd.generation import generate_unit, plan_units
from sedd.inference import InferenceConfig
from sedd.laws import (
    BEYOND,
    NEVER,
    NUM_DEPTHS,
    Law,
    PerturbedLaw,
    perturbed_law,
    support,
)
from sedd.model.inputs import Condition, Contexts
from tests.tiny_training import TINY_MODEL, tiny_shards
from tests.worlds import tiny_cells

PLAIN = InferenceConfig(shrink_effects=False, effect_anchor=0.0)
B_CELL, RAISE = 0, 2
"""Numbers in the vocabulary of `tiny_cells`; perturbed B cells are held out."""


@cache
def trained(
    *, condition_dropout: float = 0.0, reliability: float = 1.0, shown: bool = True
) -> Trained:
    """Weights as if training had moved every one of them."""
    reference = tiny_shards().reference
    certain = np.full_like(reference.effects.reliability, reliability)
    effects = replace(reference.effects, reliability=certain, shown=np.full(certain.shape, shown))
    reference = replace(reference, effects=effects)
    model = replace(TINY_MODEL, condition_dropout=condition_dropout)
    denoiser = build_denoiser(model, reference).eval()
    generator = Generator().manual_seed(5)
    with torch.no_grad():
        for _, parameter in sorted(denoiser.named_parameters()):
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return Trained(denoiser, build_contexts(model, reference), reference, "digest", 0)


def asked(perturbation: int = RAISE, num_cells: int = 6) -> Condition:
    number = torch.full((num_cells,), B_CELL)
    depth = torch.linspace(4.0, 5.0, num_cells)
    not_told = torch.zeros_like(number)
    return Condition(torch.full_like(number, perturbation), number, number, depth, not_told)


def noised(num_cells: int = 6) -> Tensor:
    """Some genes of every cell are visible."""
    tokens = torch.from_numpy(tiny_shards().tokens[:num_cells]).long()
    hidden = torch.rand(tokens.shape, generator=Generator().manual_seed(0)) < 0.6
    return torch.where(hidden, trained().denoiser.sizes.num_bins, tokens)


def logits(
    config: InferenceConfig, model: Trained | None = None, perturbation: int = RAISE
) -> Tensor:
    model = model or trained()
    with torch.no_grad():
        return perturbed_law(model, asked(perturbation), config)(noised(), None)


def said(model: Trained, condition: Condition, contexts: Contexts | None = None) -> Tensor:
    """What the network itself says, of the bins that a gene may take."""
    with torch.no_grad():
        found = model.denoiser(noised(), condition, contexts or model.contexts)
    return found.masked_fill(~support(model.reference), NEVER)


# The anchor.


def b_cell_depth() -> np.ndarray:
    return trained().reference.control_cells.of_type(B_CELL).depth


def mean_level(config: InferenceConfig, perturbation: int, model: Trained) -> np.ndarray:
    """Mean log1p expression of genes drawn with nothing revealed, at the depths of the controls."""
    depths = np.quantile(np.log(b_cell_depth()), (np.arange(NUM_DEPTHS) + 0.5) / NUM_DEPTHS)
    condition = replace(asked(perturbation, NUM_DEPTHS), log_depth=torch.from_numpy(depths).float())
    masked = torch.full((NUM_DEPTHS, 40), model.denoiser.sizes.num_bins)
    with torch.no_grad():
        law = perturbed_law(model, condition, config)(masked, None).double().softmax(-1).mean(0)
    return law.numpy() @ log1p_of_bins(model.reference.tokenizer, b_cell_depth())


def shift(config: InferenceConfig, model: Trained | None = None) -> np.ndarray:
    """Mean shift of the law that B cells are drawn from."""
    model = model or trained()
    return mean_level(config, RAISE, model) - mean_level(config, 0, model)


def assert_reached(found: np.ndarray, wanted: np.ndarray) -> None:
    """Where the bins can reach it; genes near 0 or the last bin cannot."""
    level = log1p_of_bins(trained().reference.tokenizer, b_cell_depth())
    target = mean_level(PLAIN, 0, trained()) + wanted
    reachable = (target < 0.95 * level[-1]) & (target > 0)
    assert reachable.sum() >= 36
    np.testing.assert_allclose(found[reachable], wanted[reachable], atol=1e-3)


def expected_shift() -> np.ndarray:
    """The shift that the reference expects, from its prior and tilt."""
    model, depth = trained(), b_cell_depth()
    prior = np.exp(model.contexts.log_prior[B_CELL].double().numpy())
    tilt = model.reference.effects.tilt[B_CELL, RAISE].astype(np.float64)
    law = prior * np.exp(tilt[:, None] * model.reference.effects.direction)
    law /= law.sum(-1, keepdims=True)
    return (law - prior) @ log1p_of_bins(model.reference.tokenizer, depth)


@pytest.mark.parametrize("anchor", [0.25, 0.5, 1.0])
def test_the_mean_effect_is_as_far_from_the_networks_to_the_expected_as_the_anchor_says(anchor):
    of_network = shift(PLAIN)

    found = shift(replace(PLAIN, effect_anchor=anchor))

    assert_reached(found, anchor * expected_shift() + (1 - anchor) * of_network)
    # That there was something to correct.
    assert np.abs(expected_shift() - of_network).max() > 0.5


def test_the_less_an_effect_is_believed_the_more_its_mean_is_the_expected_one():
    """The shrunk network keeps its half of the say, and the expected shift gets all the rest."""
    doubted, config = trained(reliability=0.25), replace(PLAIN, shrink_effects=True)
    shrunk = shift(config, doubted)

    found = shift(replace(config, effect_anchor=0.5), doubted)

    assert_reached(found, (1 - 0.5 * 0.25) * expected_shift() + 0.5 * shrunk)
    nothing = trained(reliability=0.0)
    assert_reached(shift(replace(config, effect_anchor=0.5), nothing), expected_shift())


def test_the_anchor_holds_whatever_the_guidance():
    model = trained(condition_dropout=0.5)

    found = shift(replace(PLAIN, guidance=3.0, effect_anchor=1.0), model)

    assert_reached(found, expected_shift())


def test_of_a_perturbation_that_no_training_cell_shows_the_expected_effect_decides():
    unseen = trained(shown=False)

    found = shift(replace(PLAIN, effect_anchor=0.5), unseen)

    assert_reached(found, expected_shift())
    assert torch.equal(logits(PLAIN, unseen), said(unseen, asked()))


def test_an_anchor_of_zero_leaves_what_the_network_says():
    assert torch.equal(logits(PLAIN), said(trained(), asked()))


def test_the_anchor_tilts_every_gene_by_the_direction_wherever_cells_stand():
    moved = logits(replace(PLAIN, effect_anchor=0.5)) - logits(PLAIN)

    assert moved.abs().max() > 0.1
    direction = torch.from_numpy(trained().reference.effects.direction)
    tilt = moved[..., -1:] / direction[-1]
    torch.testing.assert_close(moved, tilt * direction, rtol=0, atol=1e-4)
    torch.testing.assert_close(tilt, tilt[:1].expand_as(tilt), rtol=0, atol=1e-4)


def test_a_network_that_says_what_is_expected_is_not_moved():
    """An untrained one says what is expected of any type; here that is the same for all."""
    reference = tiny_shards().reference
    alike = np.broadcast_to(reference.effects.tilt.mean(0), reference.effects.tilt.shape)
    reference = replace(reference, effects=replace(reference.effects, tilt=alike))
    denoiser = build_denoiser(TINY_MODEL, reference).eval()
    model = Trained(denoiser, build_contexts(TINY_MODEL, reference), reference, "digest", 0)

    law = perturbed_law(model, asked(), replace(PLAIN, effect_anchor=1.0))

    assert isinstance(law, PerturbedLaw)
    assert law.anchor is not None
    assert law.anchor.abs().max() < 1e-3


# Guidance.


def test_guidance_of_one_is_no_guidance_bit_for_bit():
    model = trained(condition_dropout=0.5)
    law = perturbed_law(model, asked(), PLAIN)

    assert isinstance(law, PerturbedLaw)
    assert law.untold is None
    assert torch.equal(logits(replace(PLAIN, guidance=1.0), model), said(model, asked()))


def test_guidance_of_zero_is_the_law_without_being_told():
    model = trained(condition_dropout=0.5)
    everyone = torch.ones(6, dtype=torch.bool)

    found = logits(replace(PLAIN, guidance=0.0), model)

    untold = said(model, asked().with_hidden_perturbations(everyone, 3))
    assert torch.equal(found, untold)
    assert torch.equal(found, logits(replace(PLAIN, guidance=0.0), model, perturbation=1))
    assert (found - said(model, asked())).abs().max() > 0.1


@pytest.mark.parametrize("guidance", [0.5, 2.0, 3.5])
def test_guidance_goes_on_from_the_untold_law_through_the_told_one(guidance):
    model = trained(condition_dropout=0.5)
    told, untold = (logits(replace(PLAIN, guidance=g), model) for g in (1.0, 0.0))

    found = logits(replace(PLAIN, guidance=guidance), model)

    torch.testing.assert_close(found, untold + guidance * (told - untold), rtol=0, atol=1e-4)


def test_guidance_needs_a_model_that_was_not_always_told():
    with pytest.raises(
        UsageError, match=r"guidance is 2\.5, but .*always told.*condition_dropout=0\.1.*at 1"
    ):
        perturbed_law(trained(), asked(), replace(PLAIN, guidance=2.5))


# Shrinking.


def test_an_effect_that_is_all_noise_is_shrunk_to_control():
    doubted = trained(reliability=0.0)

    found = logits(replace(PLAIN, shrink_effects=True), doubted)

    assert torch.equal(found, said(doubted, asked().as_control()))


def test_a_share_of_the_effect_is_kept():
    model = trained(reliability=0.25)
    config = replace(PLAIN, shrink_effects=True)

    found = logits(config, model)

    effect, control = said(model, asked()), said(model, asked().as_control())
    torch.testing.assert_close(found, 0.25 * effect + 0.75 * control, rtol=0, atol=1e-5)
    assert torch.equal(logits(PLAIN, model), effect)


def test_shrinking_comes_after_guidance():
    model = trained(condition_dropout=0.5, reliability=0.5)
    config = replace(PLAIN, guidance=3.0)

    guided, shrunk = (logits(replace(config, shrink_effects=on), model) for on in (False, True))

    control = said(model, asked().as_control())
    torch.testing.assert_close(shrunk, (guided + control) / 2, rtol=0, atol=1e-4)


@pytest.mark.parametrize("reliability", [0.98, 0.995])
def test_a_nearly_certain_effect_costs_no_further_evaluation(reliability):
    config = replace(PLAIN, shrink_effects=True)

    law = perturbed_law(trained(reliability=reliability), asked(), config)

    assert isinstance(law, PerturbedLaw)
    assert (law.control is None) == (reliability > 0.99)


# Control.


@pytest.mark.parametrize("changes", [{}, {"guidance": 3.0}, {"effect_anchor": 1.0}])
def test_control_is_drawn_from_the_plain_law_whatever_was_set(changes):
    model = trained(condition_dropout=0.5, reliability=0.0)
    config = replace(InferenceConfig(), **changes)

    law = perturbed_law(model, asked(perturbation=0), config)

    assert isinstance(law, Law)
    assert torch.equal(law(noised(), None), said(model, asked(perturbation=0)))


@pytest.mark.parametrize("changes", [{}, {"guidance": 3.0}, {"effect_anchor": 1.0}])
def test_control_cells_asked_for_as_control_are_themselves(changes):
    model = trained(condition_dropout=0.5, reliability=0.5)
    config = replace(InferenceConfig(num_samples_per_condition=20, num_steps=4), **changes)
    (unit,) = plan_units(["B cell"], ["control"], config)

    made = generate_unit(model, unit, config)

    expected = tiny_cells().select(made.control_row).expression.toarray()
    np.testing.assert_array_equal(made.values, expected)


@pytest.mark.parametrize("genes", [None, torch.tensor([[3, 17]] * 6)])
def test_every_correction_answers_at_the_genes_that_were_asked_for(genes):
    model = trained(condition_dropout=0.5, reliability=0.5)
    config = InferenceConfig(guidance=2.0)

    with torch.no_grad():
        everywhere, found = (
            perturbed_law(model, asked(), config)(noised(), at) for at in (None, genes)
        )

    expected = everywhere if genes is None else everywhere[:, [3, 17]]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


# The support.


def test_a_gene_may_take_the_bins_up_to_twice_its_largest_value():
    reference = trained().reference
    histogram = np.zeros_like(reference.controls.global_histogram)
    edges = reference.tokenizer.edges
    histogram[:, 0] = 9
    histogram[1, 1] = histogram[2, 3] = 1
    controls = replace(reference.controls, global_histogram=histogram)

    found = support(replace(reference, controls=controls)).numpy()

    assert [edges[row].max() for row in found[:3]] == [0, 2, 6]
    assert (found.sum(axis=1)[3:] == 1).all()
    assert BEYOND == 2


def test_no_cell_goes_beyond_the_support(monkeypatch):
    """Of genes that training cells show once at most, the network's law has more."""
    model = trained()
    seen = np.zeros_like(model.reference.controls.global_histogram)
    seen[:, :2] = 1
    controls = replace(model.reference.controls, global_histogram=seen)
    model = replace(model, reference=replace(model.reference, controls=controls))
    config = InferenceConfig(mode="population", num_samples_per_condition=40)
    (unit,) = plan_units(["B cell"], ["raise"], config)

    assert generate_unit(model, unit, config).values.max() == 2
    monkeypatch.setattr("sedd.laws.BEYOND", 1e6)
    assert generate_unit(model, unit, config).values.max() > 10


def test_the_support_holds_every_value_of_a_control_cell():
    reference = trained().reference
    tokens = reference.tokenizer.encode(reference.control_cells.values)

    assert support(reference).numpy()[np.arange(tokens.shape[1]), tokens].all()
