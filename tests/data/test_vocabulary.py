"""Names and numbers stand in a fixed order, and a wrong name is answered with a right one."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sedd.data.vocabulary import Vocabulary
from sedd.errors import DataError, UsageError

FUZZ = settings(max_examples=60, deadline=None, derandomize=True)
LABELS = st.lists(st.text(min_size=1), unique=True, max_size=6)


def blood() -> Vocabulary:
    return Vocabulary.of(
        genes=["ISG15", "CD3E"],
        perturbations=["STAT1", "control", "IRF9", "STAT1"],
        cell_types=["T cell", "B cell", "T cell"],
        control_name="control",
    )


def test_control_comes_first_and_genes_keep_their_order():
    assert blood() == Vocabulary(
        ("ISG15", "CD3E"), ("control", "IRF9", "STAT1"), ("B cell", "T cell")
    )
    assert blood().control_name == "control"


@given(LABELS, LABELS, st.randoms())
@FUZZ
def test_numbers_do_not_depend_on_the_order_of_the_cells(perturbations, cell_types, random):
    shuffled = random.sample(perturbations, len(perturbations))
    kinds = random.sample(cell_types, len(cell_types))

    first = Vocabulary.of(
        genes=[], perturbations=perturbations, cell_types=cell_types, control_name="c"
    )
    second = Vocabulary.of(genes=[], perturbations=shuffled, cell_types=kinds, control_name="c")

    assert first == second
    np.testing.assert_array_equal(
        first.perturbation_ids(first.perturbations), range(len(first.perturbations))
    )


@given(LABELS, LABELS, LABELS)
@FUZZ
def test_any_labels_survive_json(genes, perturbations, cell_types):
    vocabulary = Vocabulary.of(
        genes=genes, perturbations=perturbations, cell_types=cell_types, control_name="control"
    )

    assert Vocabulary.from_json(vocabulary.to_json()) == vocabulary


def test_an_unknown_name_is_answered_with_the_near_and_the_valid_ones():
    message = "Unknown cell type: 'T cells' (did you mean 'T cell' or 'B cell'?). Known: 'B cell'"
    with pytest.raises(UsageError, match=re.escape(message)):
        blood().cell_type_ids(["B cell", "T cells"])


def test_a_name_that_differs_only_in_case_is_recognised():
    with pytest.raises(UsageError, match=r"'stat1' \(did you mean 'STAT1'"):
        blood().perturbation_ids(["stat1"])


def test_hundreds_of_valid_names_are_not_all_listed():
    many = Vocabulary.of(
        genes=[],
        perturbations=[f"GENE{n}" for n in range(500)],
        cell_types=[],
        control_name="control",
    )

    with pytest.raises(UsageError, match=r"… \(501 in all\)") as caught:
        many.perturbation_ids(["MYC"])

    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "text", ["", "[]", "3", '{"genes": []}', '{"gene": ["A"]}', '{"genes": 3}']
)
def test_something_else_is_not_taken_for_a_vocabulary(text):
    with pytest.raises(DataError, match="not a vocabulary"):
        Vocabulary.from_json(text)
