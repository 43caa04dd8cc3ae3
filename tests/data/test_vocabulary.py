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


@given(st.one_of(st.none(), st.text(min_size=1)))
@FUZZ
def test_the_separator_survives_json(separator):
    vocabulary = joined("A", "B", separator=separator)

    read = Vocabulary.from_json(vocabulary.to_json())

    assert read == vocabulary
    assert read.separator == separator


def test_a_vocabulary_from_before_separators_has_none():
    text = '{"genes": ["G"], "perturbations": ["control", "A"], "cell_types": ["T"]}'

    assert Vocabulary.from_json(text) == Vocabulary(("G",), ("control", "A"), ("T",), None)


def test_batches_are_sorted_and_unknown_ones_are_not_told():
    vocabulary = Vocabulary.of(
        genes=["G"],
        perturbations=["c"],
        cell_types=["T"],
        control_name="c",
        batches=["donor 9", "donor 1", "donor 9"],
    )

    assert vocabulary.batches == ("donor 1", "donor 9")
    found = vocabulary.batch_ids(["donor 9", "donor 1", "donor 2", None])
    np.testing.assert_array_equal(found, [1, 0, 2, 2])
    assert Vocabulary.from_json(vocabulary.to_json()) == vocabulary


def test_without_batches_none_is_told_and_none_is_written():
    assert "batches" not in blood().to_json()
    np.testing.assert_array_equal(blood().batch_ids(["donor 1", None]), [0, 0])


# Perturbations made of others.


def joined(
    *perturbations: str, control_name: str = "control", separator: str | None = "+"
) -> Vocabulary:
    return Vocabulary.of(
        genes=[],
        perturbations=perturbations,
        cell_types=[],
        control_name=control_name,
        separator=separator,
    )


def named_combinations(vocabulary: Vocabulary) -> dict[str, list[str]]:
    """Names instead of numbers."""
    name = vocabulary.perturbations
    found = vocabulary.combinations()
    return {name[number]: [name[part] for part in parts] for number, parts in found.items()}


def named_parts(vocabulary: Vocabulary) -> dict[str, list[str]]:
    parts = vocabulary.parts()
    return {
        name: [parts.names[part] for part in row if part >= 0]
        for name, row in zip(vocabulary.perturbations, parts.of.tolist(), strict=True)
    }


NAMES = ("A", "B", "C", "A+B", "C + A", "A+B+C", "A+A", "A+unknown", "Ca2+", "+", "B-C")


def test_combinations_are_names_all_of_whose_parts_are_perturbations():
    assert named_combinations(joined(*NAMES)) == {
        "A+A": ["A", "A"],
        "A+B": ["A", "B"],
        "A+B+C": ["A", "B", "C"],
        "C + A": ["C", "A"],
    }
    assert named_combinations(joined(*NAMES, separator="-")) == {"B-C": ["B", "C"]}
    assert joined(*NAMES, separator=None).combinations() == {}


def test_control_adds_nothing_to_a_combination():
    names = joined("A", "A+ctrl", "ctrl+A", "ctrl+ctrl", control_name="ctrl")

    assert named_combinations(names) == {"A+ctrl": ["A"], "ctrl+A": ["A"], "ctrl+ctrl": []}


def test_a_control_whose_name_holds_the_separator_is_no_combination():
    names = joined("A", "B", control_name="A+B")

    assert names.combinations() == {}
    assert named_parts(names)["A+B"] == ["A+B"]


@given(st.lists(st.text("AB+ ", min_size=1), unique=True, max_size=8), st.sampled_from("+ A"))
@FUZZ
def test_the_parts_of_any_combination_are_names_that_make_it_up(perturbations, separator):
    names = joined(*perturbations, separator=separator)

    for whole, parts in named_combinations(names).items():
        told = [part.strip() for part in whole.split(separator)]
        assert [part for part in told if part != "control"] == parts
        assert whole not in parts


def test_a_perturbation_is_made_of_its_parts_seen_alone_or_not():
    assert named_parts(joined(*NAMES)) == {
        "control": ["control"],
        "A": ["A"],
        "B": ["B"],
        "C": ["C"],
        "A+B": ["A", "B"],
        "C + A": ["C", "A"],
        "A+B+C": ["A", "B", "C"],
        "A+A": ["A", "A"],
        "A+unknown": ["A", "unknown"],
        "Ca2+": ["Ca2+"],
        "+": ["+"],
        "B-C": ["B-C"],
    }


def test_parts_are_numbered_with_control_first_and_rows_filled_up_with_minus_one():
    parts = joined("B", "A+C", "A+B+D").parts()

    assert parts.names == ("control", "A", "B", "C", "D")
    np.testing.assert_array_equal(parts.of, [[0, -1, -1], [1, 2, 4], [1, 3, -1], [2, -1, -1]])


def test_control_is_no_part_of_another_perturbation():
    names = joined("A+ctrl", "ctrl+A", "A", "ctrl+ctrl", control_name="ctrl")

    assert named_parts(names) == {
        "ctrl": ["ctrl"],
        "A": ["A"],
        "A+ctrl": ["A"],
        "ctrl+A": ["A"],
        "ctrl+ctrl": ["ctrl", "ctrl"],
    }


def test_without_a_separator_every_perturbation_is_a_part_of_its_own():
    names = joined(*NAMES, separator=None)

    parts = names.parts()

    assert parts.names == names.perturbations
    np.testing.assert_array_equal(parts.of, np.arange(len(NAMES) + 1)[:, None])


@given(st.lists(st.text("AB+ ", min_size=1), unique=True, max_size=8), st.sampled_from("+ A"))
@FUZZ
def test_every_perturbation_has_parts_and_every_part_is_of_some_perturbation(labels, separator):
    names = joined(*labels, separator=separator)
    parts = names.parts()

    assert parts.of.shape[0] == len(names.perturbations)
    assert (parts.of[:, 0] >= 0).all()
    assert set(parts.of[parts.of >= 0].tolist()) == set(range(len(parts.names)))
    combinations = named_combinations(names)
    for name, made_of in named_parts(names).items():
        if len(made_of) > 1 and set(made_of) <= set(names.perturbations) - {"control"}:
            assert combinations[name] == made_of


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
