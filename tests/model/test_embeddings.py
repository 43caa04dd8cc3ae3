"""Embeddings against their formulae, and the ordinal basis against linear algebra."""

import math

import numpy as np
import pytest
import torch
from torch import Generator

from sedd.model.embeddings import LabelEmbedding, ScalarEmbedding, ordinal_basis

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
