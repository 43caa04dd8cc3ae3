"""The denoiser against what it promises before training, its symmetries and a slow reference."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Generator, Tensor, nn

from sedd.building import build_contexts, build_denoiser
from sedd.diffusion.graph import AbsorbingGraph, stratified_mask_counts
from sedd.diffusion.loss import nelbo_per_gene
from sedd.model.config import ModelConfig
from sedd.model.embeddings import ordinal_basis
from sedd.model.inputs import Condition, Contexts, Initial, Sizes
from sedd.model.transformer import Block, Denoiser, modulate
from sedd.training import autocast
from tests.tiny_training import TINY_MODEL, tiny_shards

NUM_BINS, NUM_PERTURBATIONS, NUM_TYPES, RANK = 6, 3, 2, 3
TINY = ModelConfig(
    hidden_dim=16,
    num_layers=2,
    num_heads=2,
    token_encoder=4,
    genes_per_token=1,
    ordinal_rank=RANK,
)
DIRECTION = torch.tensor([0.1, 0.9, 1.4, 1.6, 2.2, 2.3], dtype=torch.float64)
"""Along which effects tilt: growing, but not the levels of the bins."""


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def initial(num_genes: int, rank: int | None = RANK, **changes) -> Initial:
    levels = torch.log1p(torch.arange(NUM_BINS, dtype=torch.float64))
    basis = torch.from_numpy(ordinal_basis(torch.expm1(levels).numpy(), rank))
    singles = torch.arange(NUM_PERTURBATIONS)[:, None]
    plain = Initial(
        basis=basis.double(),
        levels=levels,
        direction=DIRECTION,
        gene_mean=normal(num_genes, seed=2),
        gene_std=normal(num_genes, seed=3).exp(),
        components=normal(num_genes, 4, seed=4),
        depth_mean=8.0,
        depth_std=0.5,
        parts=singles,
        targets=torch.full_like(singles, -1),
    )
    return replace(plain, **changes)


def untrained(num_genes: int = 7, told: Mapping | None = None, **changes) -> Denoiser:
    """`told` changes what the data say, the others change the configuration."""
    torch.manual_seed(0)
    config = replace(TINY, **changes)
    start = initial(num_genes, config.ordinal_rank, **(told or {}))
    sizes = Sizes(num_genes, NUM_BINS, len(start.parts), NUM_TYPES)
    return Denoiser(config, sizes, start).double().eval()


def trained(num_genes: int = 7, *, spread: float = 0.3, **changes) -> Denoiser:
    """Weights as if training had moved every one of them; float64."""
    denoiser = untrained(num_genes, **changes)
    generator = Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter += spread * torch.randn(parameter.shape, generator=generator).double()
    return denoiser


def contexts_of(num_genes: int) -> Contexts:
    features = normal(NUM_TYPES, num_genes, 3, seed=6)
    log_prior = normal(NUM_TYPES, num_genes, NUM_BINS, seed=7).log_softmax(-1)
    return Contexts(features, log_prior, normal(NUM_PERTURBATIONS, num_genes, seed=1))


def expected_law(contexts: Contexts, condition: Condition) -> Tensor:
    """Log prior and tilt, before the network has its say; [batch, genes, bins]."""
    tilt = contexts.tilt[condition.perturbation]
    return contexts.log_prior[condition.cell_type] + tilt[..., None] * DIRECTION


def asked(num_cells: int, seed: int = 8) -> Condition:
    generator = Generator().manual_seed(seed)
    return Condition(
        perturbation=torch.randint(NUM_PERTURBATIONS, (num_cells,), generator=generator),
        cell_type=torch.randint(NUM_TYPES, (num_cells,), generator=generator),
        label=torch.randint(NUM_TYPES, (num_cells,), generator=generator),
        log_depth=8 + normal(num_cells, seed=seed + 1),
        batch=torch.zeros(num_cells, dtype=torch.int64),
    )


def noised(num_cells: int, num_genes: int, seed: int = 10) -> Tensor:
    """Bins and MASK in equal parts."""
    generator = Generator().manual_seed(seed)
    tokens = torch.randint(NUM_BINS, (num_cells, num_genes), generator=generator)
    return AbsorbingGraph(NUM_BINS).corrupt(
        tokens, torch.full((num_cells,), math.log(2)), generator=generator
    )


# Before training


@pytest.mark.parametrize("rank", [RANK, None])
def test_an_untrained_model_says_the_prior_of_the_type_tilted_by_the_expected_effect(rank):
    contexts, condition = contexts_of(7), asked(9)
    prior = contexts.log_prior[condition.cell_type]

    logits = untrained(ordinal_rank=rank)(noised(9, 7), condition, contexts)

    for cell in range(9):
        tilt = contexts.tilt[condition.perturbation[cell]]
        for bin_number in range(NUM_BINS):
            expected = prior[cell, :, bin_number] + tilt * DIRECTION[bin_number]
            torch.testing.assert_close(logits[cell, :, bin_number], expected, rtol=0, atol=1e-12)
    assert (logits - prior).abs().amax((1, 2)).min() > 0.5


def test_an_untrained_model_says_nothing_changes_where_no_effect_is_expected():
    contexts, condition = contexts_of(7), asked(9)
    unmoved = replace(contexts, tilt=torch.zeros_like(contexts.tilt))

    logits = untrained()(noised(9, 7), condition, unmoved)

    assert torch.equal(logits, contexts.log_prior[condition.cell_type])


def test_a_trained_model_adds_its_correction_to_whatever_was_expected():
    denoiser, contexts = trained(), contexts_of(7)
    tokens, condition = noised(9, 7), asked(9)
    more = replace(contexts, tilt=contexts.tilt + normal(*contexts.tilt.shape, seed=11))

    difference = denoiser(tokens, condition, more) - denoiser(tokens, condition, contexts)

    added = (more.tilt - contexts.tilt)[condition.perturbation]
    torch.testing.assert_close(difference, added[..., None] * DIRECTION, rtol=0, atol=1e-10)


def test_an_untrained_block_is_the_identity():
    torch.manual_seed(0)
    stream = normal(3, 5, 16)

    assert torch.equal(Block(16, 4, dropout=0.0).double()(stream, normal(3, 16, seed=1)), stream)


# Formulae


def test_modulate_is_normed_times_one_plus_scale_plus_offset():
    normed, scale, offset = normal(2, 3, 4), normal(2, 4, seed=1), normal(2, 4, seed=2)

    found = modulate(normed, scale, offset)

    for cell in range(2):
        for group in range(3):
            expected = normed[cell, group] * (1 + scale[cell]) + offset[cell]
            torch.testing.assert_close(found[cell, group], expected, rtol=1e-14, atol=1e-14)


def test_a_block_is_attention_and_feed_forward_each_shifted_scaled_and_gated():
    """Against a loop over cells and heads with a softmax written out."""
    dim, num_heads, width = 12, 3, 4
    torch.manual_seed(0)
    block = Block(dim, num_heads, dropout=0.0).double()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter += 0.3 * torch.randn(parameter.shape).double()
    stream, conditioning = normal(2, 5, dim), normal(2, dim, seed=1)

    found = block(stream, conditioning)

    for cell in range(2):
        numbers = block.modulation.weight @ conditioning[cell] + block.modulation.bias
        scale, offset, gate, wide_scale, wide_offset, wide_gate = numbers.split(dim)
        normed = standardised(stream[cell]) * (1 + scale) + offset
        query, key, value = (normed @ block.qkv.weight.T + block.qkv.bias).split(dim, dim=1)
        heads = []
        for first in range(0, dim, width):
            own = slice(first, first + width)
            affinity = (query[:, own] @ key[:, own].T / math.sqrt(width)).exp()
            heads.append(affinity / affinity.sum(1, keepdim=True) @ value[:, own])
        mixed = torch.cat(heads, 1) @ block.attended.weight.T + block.attended.bias
        expected = stream[cell] + gate * mixed
        normed = standardised(expected) * (1 + wide_scale) + wide_offset
        expected = expected + wide_gate * block.feed_forward(normed)
        torch.testing.assert_close(found[cell], expected, rtol=1e-10, atol=1e-10)


def standardised(rows: Tensor) -> Tensor:
    return (rows - rows.mean(1, keepdim=True)) / (
        rows.var(1, keepdim=True, correction=0) + 1e-5
    ).sqrt()


def test_a_gene_enters_the_stream_by_what_its_token_says():
    """Is masked, is zero, level, its square, one: in float64, for every state of a gene."""
    denoiser = untrained()
    level = torch.log1p(torch.arange(NUM_BINS, dtype=torch.float64)) / math.log(NUM_BINS)

    expected = [[0.0, float(number == 0), x, x * x, 1.0] for number, x in enumerate(level.tolist())]
    expected.append([1.0, 0.0, 0.0, 0.0, 1.0])

    found = denoiser.value_features
    torch.testing.assert_close(found, torch.tensor(expected).double(), rtol=1e-6, atol=0)


# Symmetries


def test_renaming_the_genes_renames_the_answer():
    order = torch.tensor([3, 0, 6, 1, 5, 2, 4])
    denoiser, renamed = trained(), trained()
    with torch.no_grad():
        for name in ("token_map", "control_map", "head", "head_bias", "components"):
            getattr(renamed, name).copy_(getattr(denoiser, name)[order])
        for name in ("gene_mean", "gene_std"):
            getattr(renamed, name).copy_(getattr(denoiser, name)[order])
    tokens, condition, contexts = noised(5, 7), asked(5), contexts_of(7)
    reordered = Contexts(
        contexts.features[:, order], contexts.log_prior[:, order], contexts.tilt[..., order]
    )

    answer = denoiser(tokens, condition, contexts)
    answer_renamed = renamed(tokens[:, order], condition, reordered)

    torch.testing.assert_close(answer_renamed, answer[:, order], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("genes_per_token", [1, 3])
def test_logits_at_some_genes_are_those_of_all_genes(genes_per_token):
    denoiser = trained(genes_per_token=genes_per_token)
    tokens, condition, contexts = noised(5, 7), asked(5), contexts_of(7)
    genes = normal(5, 7).argsort(1)[:, :3]

    some = denoiser(tokens, condition, contexts, genes)

    everywhere = denoiser(tokens, condition, contexts)
    expected = everywhere[torch.arange(5)[:, None], genes]
    torch.testing.assert_close(some, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("genes_per_token", [1, 3])
def test_a_cell_gets_the_same_answer_alone_and_in_any_batch(genes_per_token):
    denoiser = trained(genes_per_token=genes_per_token)
    tokens, condition, contexts = noised(6, 7), asked(6), contexts_of(7)

    together = denoiser(tokens, condition, contexts)

    for cell in range(6):
        own = slice(cell, cell + 1)
        alone = denoiser(tokens[own], condition.select(own), contexts)
        torch.testing.assert_close(alone, together[own], rtol=1e-11, atol=1e-11)


def test_genes_that_fill_the_last_token_up_have_no_say():
    """7 genes in tokens of 3: two places of the last token stand for no gene."""
    denoiser = trained(genes_per_token=3)
    tokens, condition, contexts = noised(5, 7), asked(5), contexts_of(7)
    assert denoiser.padding == 2

    before = denoiser(tokens, condition, contexts)
    before.square().sum().backward()
    with torch.no_grad():
        denoiser.token_map[-1, 5:] = 1e6
        denoiser.control_map[-1, 3:] = 1e6
        denoiser.head[-1, :, RANK:] = 1e6
    after = denoiser(tokens, condition, contexts)

    assert before.shape == (5, 7, NUM_BINS)
    assert torch.equal(after, before)
    for weight in (denoiser.token_map.grad[-1, 5:], denoiser.head.grad[-1, :, RANK:]):
        assert not weight.any()
    assert denoiser.token_map.grad[-1, :5].any()


def test_a_group_is_the_neighbours_of_a_gene_and_no_other():
    """With all weights of the second token gone, its three genes are predicted by bias alone."""
    denoiser = trained(genes_per_token=3)
    tokens, condition, contexts = noised(5, 7), asked(5), contexts_of(7)
    with torch.no_grad():
        denoiser.head[1] = 0

    logits = denoiser(tokens, condition, contexts)

    by_bias = expected_law(contexts, condition) + denoiser.head_bias @ denoiser.basis
    same = torch.isclose(logits, by_bias, rtol=0, atol=1e-12).all(-1).all(0)
    assert same.tolist() == [False] * 3 + [True] * 3 + [False]


@pytest.mark.parametrize("switched", [{}, {"token_encoder": 0}, {"genes_per_token": 3}])
def test_every_gene_hears_of_every_visible_gene_and_of_the_whole_condition(switched):
    denoiser = trained(cell_type_label_dropout=0.5, **switched)
    tokens, condition, contexts = noised(1, 7), asked(1), contexts_of(7)
    before = denoiser(tokens, condition, contexts)

    def largest_change(tokens=tokens, condition=condition) -> float:
        """In the gene that changes least, beside what the prior and the tilt alone say."""
        change = denoiser(tokens, condition, contexts) - before
        change = change - expected_law(contexts, condition)
        return (change + expected_law(contexts, asked(1))).abs().amax(-1).min().item()

    for gene in range(7):
        told = tokens.clone()
        told[0, gene] = (tokens[0, gene] + 1) % (NUM_BINS + 1)
        assert largest_change(tokens=told) > 1e-4
    for name in ("perturbation", "cell_type", "label"):
        other = replace(condition, **{name: (getattr(condition, name) + 1) % 2})
        assert largest_change(condition=other) > 1e-4
    assert largest_change(condition=replace(condition, log_depth=condition.log_depth + 1)) > 1e-4


# Combinations and targets

COMBINED = {
    "parts": torch.tensor([[0, -1, -1], [1, -1, -1], [2, -1, -1], [1, 2, -1], [1, 2, 3]]),
    "targets": torch.tensor([[-1] * 3, [6, -1, -1], [2, -1, -1], [6, 2, -1], [6, 2, -1]]),
}
"""Control, A, B, A+B, A+B+C; A acts on the last of seven genes, B on the third."""

COMBINATIONS = [torch.tensor(order) for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0])]


def combined_contexts() -> Contexts:
    return replace(contexts_of(7), tilt=normal(5, 7, seed=1))


def combined(order: Tensor = COMBINATIONS[0], **changes) -> Denoiser:
    told = {name: places[:, order] for name, places in COMBINED.items()}
    return trained(told=told, **changes)


@pytest.mark.parametrize("order", COMBINATIONS[1:])
@pytest.mark.parametrize("genes_per_token", [1, 3])
def test_the_order_of_the_parts_of_a_combination_does_not_matter(order, genes_per_token):
    tokens, contexts = noised(5, 7), combined_contexts()
    condition = replace(asked(5), perturbation=torch.arange(5))

    first, other = (
        combined(o, genes_per_token=genes_per_token)(tokens, condition, contexts)
        for o in (COMBINATIONS[0], order)
    )

    torch.testing.assert_close(other, first, rtol=0, atol=1e-9)


@pytest.mark.parametrize("genes", [None, torch.tensor([[6, 0]] * 5)])
def test_parts_as_further_tokens_add_no_genes_to_the_answer(genes):
    denoiser = combined(genes_per_token=3)

    condition = replace(asked(5), perturbation=torch.arange(5))
    logits = denoiser(noised(5, 7), condition, combined_contexts(), genes)

    assert logits.shape == (5, 7 if genes is None else 2, NUM_BINS)
    assert denoiser.head.shape[0] == 3


def test_genes_attend_to_the_parts_so_that_a_combination_is_more_than_its_sum():
    """Given the sum itself, but not its parts, a trained denoiser says something else."""
    denoiser, tokens, contexts = combined(), noised(5, 7), combined_contexts()
    condition = replace(asked(5), perturbation=torch.full((5,), 3))
    before = denoiser(tokens, condition, contexts)

    denoiser.perturbation.each = lambda perturbation: denoiser_parts(denoiser, perturbation)
    after = denoiser(tokens, condition, contexts)

    assert (after - before).abs().amax((1, 2)).min() > 1e-3


def denoiser_parts(denoiser: Denoiser, perturbation: Tensor) -> Tensor:
    """The same sum, all of it in the first part."""
    embed = denoiser.perturbation
    parts = type(embed).each(embed, perturbation)
    return torch.cat([parts.sum(1, keepdim=True), torch.zeros_like(parts[:, 1:])], dim=1)


def test_a_perturbation_without_combinations_adds_no_token():
    """A vocabulary of singles: as long a stream as there are groups of genes."""
    lengths = []

    def note(module, inputs, output):
        lengths.append(output.shape[1])

    for denoiser, contexts in ((trained(), contexts_of(7)), (combined(), combined_contexts())):
        denoiser.blocks[0].register_forward_hook(note)
        denoiser(noised(5, 7), asked(5), contexts)

    assert lengths == [7, 10]


def test_the_head_of_a_denoiser_moves_the_target_by_what_all_targets_have_learned():
    """Twice the shift of the flag moves the coefficients of gene 6 under A, and no other."""
    denoiser, tokens, contexts = combined(), noised(5, 7), combined_contexts()
    condition = replace(asked(5), perturbation=torch.arange(5))
    before = denoiser(tokens, condition, contexts)
    with torch.no_grad():
        denoiser.target.shift += 1.0

    change = denoiser(tokens, condition, contexts) - before

    expected = torch.zeros_like(change)
    for cell, hit in enumerate([[], [6], [2], [2, 6], [2, 6]]):
        expected[cell, hit] = denoiser.basis.sum(0)
    torch.testing.assert_close(change, expected, rtol=0, atol=1e-9)


def test_a_model_none_of_whose_perturbations_is_a_gene_has_no_flag():
    assert not hasattr(trained(), "target")
    assert hasattr(combined(), "target")


def test_before_training_neither_parts_nor_targets_say_anything():
    contexts, condition = combined_contexts(), replace(asked(5), perturbation=torch.arange(5))
    denoiser = untrained(told=COMBINED)

    logits = denoiser(noised(5, 7), condition, contexts)

    torch.testing.assert_close(logits, expected_law(contexts, condition), rtol=0, atol=1e-12)


# Not told


@pytest.mark.parametrize("hidden", [{"told": COMBINED}, {}])
def test_a_perturbation_that_is_not_told_is_not_seen(hidden):
    denoiser = trained(condition_dropout=0.5, **hidden)
    tokens, contexts = noised(5, 7), combined_contexts() if hidden else contexts_of(7)
    condition, everyone = asked(5), torch.ones(5, dtype=torch.bool)
    number = denoiser.sizes.num_perturbations
    other = replace(condition, perturbation=(condition.perturbation + 1) % 3)

    first, second = (
        denoiser(tokens, one.with_hidden_perturbations(everyone, number), contexts)
        for one in (condition, other)
    )

    assert torch.equal(first, second)
    told = denoiser(tokens, condition, contexts)
    assert (told - first).abs().amax((1, 2)).min() > 1e-3


def test_before_training_a_perturbation_that_is_not_told_has_no_effect():
    contexts, condition = contexts_of(7), asked(5)
    everyone = torch.ones(5, dtype=torch.bool)

    logits = untrained(condition_dropout=0.5)(
        noised(5, 7), condition.with_hidden_perturbations(everyone, NUM_PERTURBATIONS), contexts
    )

    assert torch.equal(logits, contexts.log_prior[condition.cell_type])


# Switches


@pytest.mark.parametrize(
    ("off", "gone"),
    [
        ({"control_features": False}, {"control_map"}),
        ({"time_conditioning": False}, {"mask_fraction"}),
        ({"token_encoder": 0}, {"components", "encoder"}),
        ({"cell_type_label_dropout": 1.0}, {"cell_type_label"}),
        ({"told": {}}, {"target"}),
    ],
)
def test_a_switch_takes_away_its_weights_and_nothing_else(off, gone):
    on = {"cell_type_label_dropout": 0.5, "told": {"targets": torch.tensor([[-1], [0], [1]])}}
    everything, without = trained(**on), trained(**on | off)

    def parts(denoiser: Denoiser) -> set[str]:
        return {name.partition(".")[0] for name, _ in denoiser.named_parameters()}

    assert parts(everything) - parts(without) == gone
    assert parts(without) < parts(everything)


def test_every_weight_has_a_say_once_training_has_begun():
    denoiser = trained(cell_type_label_dropout=0.5, genes_per_token=7)
    condition = asked(200)

    denoiser(noised(200, 7), condition, contexts_of(7)).square().sum().backward()

    told = {int(label) for label in condition.label}
    for name, parameter in denoiser.named_parameters():
        used = (
            parameter.grad[sorted(told)] if name.startswith("cell_type_label") else parameter.grad
        )
        if name.endswith("qkv.bias"):  # softmax does not see what all keys share
            used = torch.cat([used[:16], used[32:]])
        assert (used != 0).all(), name


def test_without_control_features_the_model_does_not_see_them():
    tokens, condition, contexts = noised(5, 7), asked(5), contexts_of(7)
    others = replace(contexts, features=contexts.features + 1)

    for shown in (True, False):
        denoiser = trained(control_features=shown)
        same = torch.equal(
            denoiser(tokens, condition, contexts), denoiser(tokens, condition, others)
        )
        assert same == (not shown)


def test_a_hidden_label_is_not_seen_and_a_model_without_labels_sees_none():
    tokens, contexts, condition = noised(5, 7), contexts_of(7), asked(5)
    other = replace(condition, label=1 - condition.label)
    hide = torch.tensor([True, False, True, True, False])

    told = trained(cell_type_label_dropout=0.5)
    changed = [
        told(tokens, cond.with_hidden_labels(hide, NUM_TYPES), contexts)
        for cond in (condition, other)
    ]
    untold = [trained()(tokens, cond, contexts) for cond in (condition, other)]

    assert (changed[0] != changed[1]).flatten(1).any(1).tolist() == (~hide).tolist()
    assert torch.equal(*untold)


def test_given_vectors_of_cell_types_leave_room_for_a_label_that_is_not_told():
    torch.manual_seed(0)
    vectors = normal(NUM_TYPES, 5)
    config = replace(TINY, cell_type_label_dropout=0.5)
    sizes = Sizes(7, NUM_BINS, NUM_PERTURBATIONS, NUM_TYPES)
    denoiser = Denoiser(config, sizes, replace(initial(7), cell_type_vectors=vectors)).double()

    given = denoiser.cell_type_label.vectors

    assert given.shape == (NUM_TYPES + 1, 5)
    # "Not told" is the mean type, and the mean is the origin of standardised vectors.
    torch.testing.assert_close(given[NUM_TYPES], torch.zeros(5).double(), atol=1e-12, rtol=0)


def test_without_an_output_prior_every_type_starts_from_the_global_histogram():
    reference = tiny_shards().reference
    counts = torch.from_numpy(reference.controls.global_histogram).double()

    own, shared = (
        build_contexts(replace(TINY_MODEL, output_prior=on), reference).log_prior
        for on in (True, False)
    )

    smoothed = counts + 1 / counts.shape[1]
    expected = (smoothed / smoothed.sum(1, keepdim=True)).log()
    for of_type in shared.double():
        torch.testing.assert_close(of_type, expected, atol=1e-5, rtol=0)
    assert (own[0] - own[1]).abs().amax(1)[20:32].min() > 0.5  # their marker genes


def test_a_denoiser_built_from_real_statistics_starts_at_their_prior_and_tilt():
    reference = tiny_shards().reference
    denoiser = build_denoiser(TINY_MODEL, reference).eval()
    contexts = build_contexts(TINY_MODEL, reference)
    cell_type, perturbation = torch.tensor([0, 1, 2, 1]), torch.tensor([0, 0, 1, 2])
    depth, batch = torch.full((4,), 5.0), torch.zeros_like(cell_type)
    condition = Condition(perturbation, cell_type, cell_type, depth, batch)
    tokens = torch.from_numpy(tiny_shards().tokens[:4]).long()

    logits = denoiser(tokens, condition, contexts)

    direction = torch.from_numpy(reference.effects.direction)
    tilt = torch.from_numpy(reference.effects.tilt.mean(0))[perturbation][..., None] * direction
    torch.testing.assert_close(logits, contexts.log_prior[cell_type] + tilt, rtol=0, atol=1e-5)
    assert tilt[2:].abs().amax((1, 2)).min() > 1


def test_the_effect_prior_can_be_turned_off():
    reference = tiny_shards().reference

    on, off = (
        build_contexts(replace(TINY_MODEL, effect_prior=switch), reference)
        for switch in (True, False)
    )

    np.testing.assert_array_equal(on.tilt, reference.effects.tilt.mean(0))
    assert not off.tilt.any()
    assert torch.equal(on.log_prior, off.log_prior)


def test_equal_seeds_build_equal_denoisers_and_leave_other_draws_alone():
    reference = tiny_shards().reference
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)

    first, again, other = (
        build_denoiser(TINY_MODEL, reference, seed=seed).state_dict() for seed in (0, 0, 1)
    )

    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["token_map"], other["token_map"])


def test_dropout_acts_in_training_only():
    tokens, condition, contexts = noised(5, 7), asked(5), contexts_of(7)
    denoiser = trained(dropout=0.5)
    steady = denoiser(tokens, condition, contexts)

    torch.manual_seed(0)
    drops = [denoiser.train()(tokens, condition, contexts) for _ in range(2)]

    assert torch.equal(denoiser.eval()(tokens, condition, contexts), steady)
    assert torch.equal(trained()(tokens, condition, contexts), steady)
    assert not torch.equal(*drops)


# Sizes


@pytest.mark.parametrize(
    ("size", "width", "layers", "heads"),
    [("small", 128, 4, 4), ("medium", 256, 6, 8), ("large", 512, 8, 8)],
)
def test_presets_have_the_width_layers_heads_and_weights_of_their_closed_form(
    size, width, layers, heads
):
    config = ModelConfig(size=size)
    assert (config.width, config.layers, config.heads) == (width, layers, heads)

    with torch.device("meta"):
        blocks = nn.ModuleList(Block(width, heads, 0.0) for _ in range(layers))

    # 12 d^2 attention and feed-forward, 6 d^2 modulation, 9 d and 6 d biases.
    found = sum(parameter.numel() for parameter in blocks.parameters())
    assert found == layers * (12 * width**2 + 6 * width**2 + 9 * width + 6 * width)


def test_one_number_of_a_preset_can_be_overridden():
    config = ModelConfig(size="medium", num_layers=2)

    assert (config.width, config.layers, config.heads) == (256, 2, 8)


@pytest.mark.parametrize("genes_per_token", [1, 3, 8])
def test_the_denoiser_has_the_weights_of_its_closed_form(genes_per_token):
    num_genes, dim, factors = 20, 16, 4
    denoiser = untrained(num_genes=num_genes, genes_per_token=genes_per_token)
    places = math.ceil(num_genes / genes_per_token) * genes_per_token

    blocks = 2 * (18 * dim**2 + 15 * dim)
    in_and_out = places * dim * (5 + 3 + RANK) + num_genes * RANK
    scalars = 2 * (33 * dim + dim + dim * dim + dim)  # depth and mask fraction
    labels = NUM_PERTURBATIONS * dim
    encoder = num_genes * factors + (factors + 1) * dim + (dim + 1) * 2 * dim
    final = (dim + 1) * 2 * dim
    expected = blocks + in_and_out + scalars + labels + encoder + final
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == expected


# Precision


def test_bfloat16_changes_the_bound_by_less_than_two_thousandths_of_a_nat():
    """NELBO per gene of 256 cells drawn from the prior; weights that bend it by a nat or so."""
    num_cells, num_genes = 256, 64
    denoiser = trained(num_genes, spread=0.1, hidden_dim=32, genes_per_token=4).float()
    contexts = contexts_of(num_genes)
    contexts = Contexts(
        contexts.features.float(), contexts.log_prior.float(), contexts.tilt.float()
    )
    condition = asked(num_cells).as_control()
    condition = replace(condition, log_depth=condition.log_depth.float())
    generator, graph = Generator().manual_seed(0), AbsorbingGraph(NUM_BINS)
    prior = contexts.log_prior[condition.cell_type].exp().flatten(0, 1)
    clean = torch.multinomial(prior, 1, generator=generator).view(num_cells, num_genes)
    counts = stratified_mask_counts(num_cells, num_genes, generator=generator)
    tokens = graph.mask_exactly(clean, counts, generator=generator)

    bounds = []
    for precision in ("float32", "bfloat16"):
        with torch.no_grad(), autocast(torch.device("cpu"), precision):
            logits = denoiser(tokens, condition, contexts)
        bounds.append(nelbo_per_gene(logits, clean, graph.masked(tokens)))

    single, half = (bound.mean().item() for bound in bounds)
    prior_alone = -prior.log().gather(1, clean.flatten()[:, None]).mean().item()
    assert abs(single - prior_alone) > 0.2
    assert not torch.equal(*bounds)
    assert half == pytest.approx(single, abs=2e-3)
