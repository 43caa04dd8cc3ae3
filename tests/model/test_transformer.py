"""The denoiser against what it promises before training, its symmetries and a slow reference."""

import math
from dataclasses import replace

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


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=Generator().manual_seed(seed), dtype=torch.float64)


def initial(num_genes: int, rank: int | None = RANK) -> Initial:
    levels = torch.log1p(torch.arange(NUM_BINS, dtype=torch.float64))
    basis = torch.from_numpy(ordinal_basis(torch.expm1(levels).numpy(), rank))
    tilt = normal(NUM_PERTURBATIONS, num_genes, len(basis), seed=1)
    tilt[0] = 0
    return Initial(
        basis=basis.double(),
        levels=levels,
        tilt=tilt,
        gene_mean=normal(num_genes, seed=2),
        gene_std=normal(num_genes, seed=3).exp(),
        components=normal(num_genes, 4, seed=4),
        depth_mean=8.0,
        depth_std=0.5,
    )


def untrained(num_genes: int = 7, **changes) -> Denoiser:
    torch.manual_seed(0)
    config = replace(TINY, **changes)
    sizes = Sizes(num_genes, NUM_BINS, NUM_PERTURBATIONS, NUM_TYPES)
    return Denoiser(config, sizes, initial(num_genes, config.ordinal_rank)).double().eval()


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
    return Contexts(features, log_prior)


def asked(num_cells: int, seed: int = 8) -> Condition:
    generator = Generator().manual_seed(seed)
    return Condition(
        perturbation=torch.randint(NUM_PERTURBATIONS, (num_cells,), generator=generator),
        cell_type=torch.randint(NUM_TYPES, (num_cells,), generator=generator),
        label=torch.randint(NUM_TYPES, (num_cells,), generator=generator),
        log_depth=8 + normal(num_cells, seed=seed + 1),
    )


def noised(num_cells: int, num_genes: int, seed: int = 10) -> Tensor:
    """Bins and MASK in equal parts."""
    generator = Generator().manual_seed(seed)
    tokens = torch.randint(NUM_BINS, (num_cells, num_genes), generator=generator)
    return AbsorbingGraph(NUM_BINS).corrupt(
        tokens, torch.full((num_cells,), math.log(2)), generator=generator
    )


# Before training


def test_an_untrained_model_says_the_prior_tilted_by_the_perturbation():
    denoiser, contexts, condition = untrained(), contexts_of(7), asked(9)

    logits = denoiser(noised(9, 7), condition, contexts)

    tilt = initial(7).tilt[condition.perturbation] @ initial(7).basis
    assert torch.equal(logits, contexts.log_prior[condition.cell_type] + tilt)
    assert tilt[condition.perturbation > 0].abs().max() > 0.5


@pytest.mark.parametrize("rank", [RANK, None])
def test_an_untrained_model_says_nothing_changes_under_control_and_where_tilts_are_off(rank):
    contexts, condition = contexts_of(7), asked(9)
    prior = contexts.log_prior[condition.cell_type]

    under_control = untrained(ordinal_rank=rank)(noised(9, 7), condition.as_control(), contexts)
    without_tilt = untrained(ordinal_rank=rank, additive_tilt=False)(
        noised(9, 7), condition, contexts
    )

    assert torch.equal(under_control, prior)
    assert torch.equal(without_tilt, prior)


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
        renamed.tilt.copy_(denoiser.tilt[:, order])
    tokens, condition, contexts = noised(5, 7), asked(5), contexts_of(7)
    reordered = Contexts(contexts.features[:, order], contexts.log_prior[:, order])

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
    denoiser = trained(genes_per_token=3, additive_tilt=False)
    tokens, condition, contexts = noised(5, 7), asked(5), contexts_of(7)
    with torch.no_grad():
        denoiser.head[1] = 0

    logits = denoiser(tokens, condition, contexts)

    by_bias = contexts.log_prior[condition.cell_type] + denoiser.head_bias @ denoiser.basis
    same = torch.isclose(logits, by_bias, rtol=0, atol=1e-12).all(-1).all(0)
    assert same.tolist() == [False] * 3 + [True] * 3 + [False]


@pytest.mark.parametrize("switched", [{}, {"token_encoder": 0}, {"genes_per_token": 3}])
def test_every_gene_hears_of_every_visible_gene_and_of_the_whole_condition(switched):
    denoiser = trained(cell_type_label_dropout=0.5, **switched)
    tokens, condition, contexts = noised(1, 7), asked(1), contexts_of(7)
    before = denoiser(tokens, condition, contexts)

    def largest_change(tokens=tokens, condition=condition) -> float:
        """In the gene that changes least, beside what the prior alone says."""
        change = denoiser(tokens, condition, contexts) - before
        change = change - contexts.log_prior[condition.cell_type]
        return (change + contexts.log_prior[asked(1).cell_type]).abs().amax(-1).min().item()

    for gene in range(7):
        told = tokens.clone()
        told[0, gene] = (tokens[0, gene] + 1) % (NUM_BINS + 1)
        assert largest_change(tokens=told) > 1e-4
    for name in ("perturbation", "cell_type", "label"):
        other = replace(condition, **{name: (getattr(condition, name) + 1) % 2})
        assert largest_change(condition=other) > 1e-4
    assert largest_change(condition=replace(condition, log_depth=condition.log_depth + 1)) > 1e-4


# Switches


@pytest.mark.parametrize(
    ("off", "gone"),
    [
        ({"control_features": False}, {"control_map"}),
        ({"time_conditioning": False}, {"mask_fraction"}),
        ({"token_encoder": 0}, {"components", "encoder"}),
        ({"additive_tilt": False}, {"tilt"}),
        ({"cell_type_label_dropout": 1.0}, {"cell_type_label"}),
    ],
)
def test_a_switch_takes_away_its_weights_and_nothing_else(off, gone):
    everything = trained(cell_type_label_dropout=0.5)
    without = trained(**{"cell_type_label_dropout": 0.5} | off)

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
    condition = Condition(perturbation, cell_type, cell_type, torch.full((4,), 5.0))
    tokens = torch.from_numpy(tiny_shards().tokens[:4]).long()

    logits = denoiser(tokens, condition, contexts)

    tilt = torch.from_numpy(reference.effects.tilt)[perturbation] @ denoiser.basis
    torch.testing.assert_close(logits, contexts.log_prior[cell_type] + tilt, rtol=0, atol=1e-5)
    assert torch.equal(logits[:2], contexts.log_prior[cell_type[:2]])
    assert tilt[2:].abs().amax((1, 2)).min() > 0.5


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
    tilt = NUM_PERTURBATIONS * num_genes * RANK
    expected = blocks + in_and_out + scalars + labels + encoder + final + tilt
    assert sum(parameter.numel() for parameter in denoiser.parameters()) == expected


# Precision


def test_bfloat16_changes_the_bound_by_less_than_two_thousandths_of_a_nat():
    """NELBO per gene of 256 cells drawn from the prior; weights that bend it by a nat or so."""
    num_cells, num_genes = 256, 64
    denoiser = trained(num_genes, spread=0.1, hidden_dim=32, genes_per_token=4).float()
    contexts = contexts_of(num_genes)
    contexts = Contexts(contexts.features.float(), contexts.log_prior.float())
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
