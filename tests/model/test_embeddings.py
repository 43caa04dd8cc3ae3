"""Embeddings against their formulae, and the ordinal basis against linear algebra."""

import math

import numpy as np
import pytest
import torch
from torch import Generator

from sedd.model.embeddings import (
    LabelEmbedding,
    PerturbationEmbedding,
    ScalarEmbedding,
    TargetFlag,
    ordinal_basis,
)

CENTERS = np.array([0, 1, 2, 3, 4.5, 7, 11, 18, 30, 55, 110, 260], dtype=np.float64)


# Ordinal basis


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 5, 8, 10])
def test_the_basis_is_orthonormal_and_free_of_the_constant(rank):
    basis = ordinal_basis(CENTERS, rank).astype(np.float64)

    assert basis.shape == (rank, 12)
    # Float32 rows of root mean square one: rounding leaves 12 products of 1e-7.
    np.testing.assert_allclose(basis @ basis.T / 12, np.eye(rank), atol=1e-6)
    np.testing.assert_allclose(basis.sum(1), 0, atol=1e-5)


@pytest.mark.parametrize(
    ("rank", "spanned"),
    [
        (1, ["zero"]),
        (2, ["zero", "level"]),
        (4, ["zero", "level", "square", "one"]),
        (5, ["zero", "level", "square", "one", "cube"]),
    ],
)
def test_the_basis_spans_zero_the_first_bin_above_it_and_powers_of_the_level(rank, spanned):
    level = np.log1p(CENTERS)
    shapes = {
        "zero": np.eye(12)[0],
        "one": np.eye(12)[1],
        "level": level,
        "square": level**2,
        "cube": level**3,
    }
    basis = ordinal_basis(CENTERS, rank).astype(np.float64)
    with_constant = np.concatenate([np.ones((1, 12)), basis])

    for name, shape in shapes.items():
        left = shape - with_constant.T @ np.linalg.lstsq(with_constant.T, shape, rcond=None)[0]
        distance = np.linalg.norm(left) / np.linalg.norm(shape - shape.mean())
        assert (distance < 1e-5) == (name in spanned), (name, distance)


@pytest.mark.parametrize("rank", [None, 11, 12, 40])
def test_without_a_rank_or_with_a_full_one_every_bin_has_its_own_coefficient(rank):
    np.testing.assert_array_equal(ordinal_basis(CENTERS, rank), np.eye(12, dtype=np.float32))


def test_the_basis_does_not_depend_on_the_unit_of_the_level():
    """Levels are log1p of the centers: here twice as long, with the same functions over them."""
    level = np.linspace(0, 3, 9)
    single, double = (ordinal_basis(np.expm1(scale * level), 5) for scale in (1.0, 2.0))

    np.testing.assert_allclose(single, double, atol=1e-6)


# Numbers


def test_a_number_is_embedded_by_itself_and_its_sines_and_cosines():
    torch.manual_seed(0)
    embed = ScalarEmbedding(8, num_frequencies=3).double()
    first, _, second = embed.network
    values = torch.tensor([-1.3, 0.0, 0.4], dtype=torch.float64)

    rows = []
    for value in values.tolist():
        angles = [value * math.pi * frequency for frequency in (0.25, 2.125, 4.0)]
        features = [value, *map(math.sin, angles), *map(math.cos, angles)]
        hidden = first.weight @ torch.tensor(features, dtype=torch.float64) + first.bias
        rows.append(second.weight @ (hidden * torch.sigmoid(hidden)) + second.bias)

    # The frequencies are float32 numbers: pi is off by 3e-8.
    torch.testing.assert_close(embed(values), torch.stack(rows), atol=1e-6, rtol=0)


# Labels


def test_learned_labels_are_rows_of_a_table():
    torch.manual_seed(0)
    embed = LabelEmbedding(4, 3)

    assert torch.equal(embed(torch.tensor([2, 0, 2])), embed.table.weight[[2, 0, 2]])
    assert [name for name, _ in embed.named_parameters()] == ["table.weight"]


def test_given_vectors_count_only_up_to_their_unit_and_origin():
    vectors = torch.randn(6, 5, generator=Generator().manual_seed(0), dtype=torch.float64)
    stretched = 40 * vectors * torch.arange(1, 6) - 7
    labels = torch.arange(6)

    answers = []
    for given in (vectors, stretched):
        torch.manual_seed(1)
        answers.append(LabelEmbedding(6, 4, given).double()(labels))

    torch.testing.assert_close(answers[0], answers[1], rtol=1e-10, atol=1e-12)
    assert answers[0].std(0).min() > 0.01


def test_labels_with_equal_vectors_mean_the_same_and_no_label_has_weights_of_its_own():
    vectors = torch.tensor([[0.0, 1.0], [2.0, 3.0], [0.0, 1.0]])
    embed = LabelEmbedding(3, 4, vectors)

    first, other, again = embed(torch.tensor([0, 1, 2]))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-3)
    assert {len(weight) for weight in embed.parameters()} == {4}


@pytest.mark.parametrize("vectors", [torch.tensor([[3.0, 4.0]]), torch.ones(2, 3)])
def test_a_single_label_and_a_constant_feature_are_no_division_by_zero(vectors):
    embed = LabelEmbedding(len(vectors), 4, vectors)

    assert torch.equal(embed.vectors, torch.zeros_like(vectors))
    assert embed(torch.tensor([0])).isfinite().all()


# Perturbations

CONTROL, A, B, A_B, B_A, A_A, NOT_TOLD = range(7)
PARTS = torch.tensor([[0, -1], [1, -1], [2, -1], [1, 2], [2, 1], [1, 1]])
"""Control, A, B, A+B, B+A and A+A; 6 is "not told"."""

GIVEN = torch.tensor([[0.0, 0.0, 0.0], [1.0, -2.0, 0.5], [0.3, 1.0, 4.0]])
"""Vectors of control, A and B."""


def perturbations(
    vectors: torch.Tensor | None = None, *, can_be_hidden: bool = False
) -> PerturbationEmbedding:
    torch.manual_seed(0)
    embed = PerturbationEmbedding(PARTS, 4, vectors, can_be_hidden=can_be_hidden)
    with torch.no_grad():
        for parameter in embed.parameters():
            parameter += torch.randn(parameter.shape)
    return embed


@pytest.mark.parametrize("vectors", [None, GIVEN])
def test_a_combination_is_the_sum_of_its_parts_in_any_order(vectors):
    embedded = perturbations(vectors)(torch.arange(6))

    torch.testing.assert_close(embedded[A_B], embedded[A] + embedded[B], rtol=0, atol=1e-6)
    torch.testing.assert_close(embedded[B_A], embedded[A_B], rtol=0, atol=1e-6)
    torch.testing.assert_close(embedded[A_A], 2 * embedded[A], rtol=0, atol=1e-6)
    assert (embedded[A] - embedded[B]).abs().max() > 0.1


@pytest.mark.parametrize("vectors", [None, GIVEN])
def test_single_perturbations_are_embedded_as_plain_labels(vectors):
    torch.manual_seed(0)
    plain = LabelEmbedding(3, 4, vectors)
    torch.manual_seed(0)
    embed = PerturbationEmbedding(torch.arange(3)[:, None], 4, vectors)
    asked = torch.tensor([2, 0, 1, 2])

    assert torch.equal(embed(asked), plain(asked))
    names = [name for name, _ in embed.named_parameters()]
    assert names == [f"single.{name}" for name, _ in plain.named_parameters()]


def test_a_part_that_only_combinations_have_gets_weights_of_its_own():
    """A+B alone in the data: what A and B do is learned from it."""
    embed = PerturbationEmbedding(torch.tensor([[0, -1], [1, 2]]), 4)

    embed(torch.tensor([1])).sum().backward()

    assert embed.single.table.weight.grad.tolist() == [[0.0] * 4, [1.0] * 4, [1.0] * 4]


@pytest.mark.parametrize("vectors", [None, GIVEN])
def test_each_part_stands_in_its_place_and_is_zero_where_there_is_none(vectors):
    embed = perturbations(vectors)
    singles = embed(torch.tensor([CONTROL, A, B]))

    parts = embed.each(torch.tensor([A, B_A, NOT_TOLD]))

    expected = torch.stack([singles[1], torch.zeros(4), singles[2], singles[1]]).view(2, 2, 4)
    torch.testing.assert_close(parts[:2], expected, rtol=0, atol=1e-6)
    assert not parts[0, 1].any()
    assert not parts[2].any()


def test_not_told_is_a_vector_of_its_own_and_the_others_know_nothing_of_it():
    embed, plain = perturbations(can_be_hidden=True), perturbations()
    asked = torch.tensor([CONTROL, A, A_B, NOT_TOLD])
    with torch.no_grad():
        embed.single.table.weight.copy_(plain.single.table.weight)

    embedded = embed(asked)

    assert torch.equal(embedded[:3], plain(asked[:3]))
    assert torch.equal(embedded[3], embed.hidden)
    assert embed.hidden.abs().min() > 0


def test_before_training_not_told_is_nothing_and_a_model_that_is_always_told_has_no_such_vector():
    untrained = PerturbationEmbedding(PARTS, 4, can_be_hidden=True)

    assert not untrained(torch.tensor([NOT_TOLD])).any()
    assert not hasattr(PerturbationEmbedding(PARTS, 4), "hidden")


# Targets

TARGETS = torch.tensor([[-1, -1], [5, -1], [0, -1], [5, 0], [0, 5], [5, 5]])
"""A acts on gene 5, B on gene 0; genes share tokens of three."""


def flag() -> TargetFlag:
    """Weights as if trained: place p of a token adds p + 1, coefficients shift by (10, 20)."""
    found = TargetFlag(TARGETS, 3, 2, 2)
    with torch.no_grad():
        found.slots += torch.tensor([[1.0, 1], [2, 2], [3, 3]])
        found.shift += torch.tensor([10.0, 20])
    return found


def test_before_training_a_target_changes_nothing():
    stream, coefficients, asked = torch.randn(7, 3, 2), torch.randn(7, 7, 2), torch.arange(7)
    untrained = TargetFlag(TARGETS, 3, 2, 2)

    assert torch.equal(untrained.on_tokens(stream, asked), stream)
    assert torch.equal(untrained.on_genes(coefficients, asked), coefficients)


@pytest.mark.parametrize(
    ("perturbation", "genes", "tokens"),
    [
        (CONTROL, {}, {}),
        (A, {5: 1}, {1: 3.0}),  # gene 5 is the third of token 1
        (B, {0: 1}, {0: 1.0}),
        (A_B, {0: 1, 5: 1}, {0: 1.0, 1: 3.0}),
        (B_A, {0: 1, 5: 1}, {0: 1.0, 1: 3.0}),
        (A_A, {5: 2}, {1: 6.0}),
        (NOT_TOLD, {}, {}),
    ],
)
def test_a_target_moves_its_own_token_and_coefficients_alone(perturbation, genes, tokens):
    """In a batch, beside a cell that is not perturbed."""
    asked = torch.tensor([CONTROL, perturbation])
    on_tokens = flag().on_tokens(torch.zeros(2, 3, 2), asked)
    on_genes = flag().on_genes(torch.zeros(2, 7, 2), asked)

    expected_tokens, expected_genes = torch.zeros(2, 3, 2), torch.zeros(2, 7, 2)
    for token, added in tokens.items():
        expected_tokens[1, token] = added
    for gene, times in genes.items():
        expected_genes[1, gene] = times * torch.tensor([10.0, 20])
    assert torch.equal(on_tokens, expected_tokens)
    assert torch.equal(on_genes, expected_genes)


def test_targets_are_learned_from_all_perturbations_together():
    found = flag()

    asked = torch.tensor([A, B, A_B])
    found.on_genes(torch.zeros(3, 7, 2), asked).sum().backward()
    found.on_tokens(torch.zeros(3, 3, 2), asked).sum().backward()

    assert found.shift.grad.tolist() == [4, 4]
    assert found.slots.grad.tolist() == [[2, 2], [0, 0], [2, 2]]
