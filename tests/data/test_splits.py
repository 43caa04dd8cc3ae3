"""What is held out is exactly what was asked, is never a control, and cannot change unseen."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sedd.data.splits import Split, SplitConfig, make_split
from sedd.errors import ConfigError, DataError, UsageError

TYPES = np.array(["B cell", "T cell", "monocyte"], dtype=object)
ARMS = np.array(["control", "IFNb", "IL6"], dtype=object)
PERTURBATION, CELL_TYPE = (
    np.repeat(grid.ravel(), 20) for grid in np.meshgrid(ARMS, TYPES, indexing="ij")
)
"""20 cells of each of 9 conditions."""


def split_of(perturbation=PERTURBATION, cell_type=CELL_TYPE, **settings) -> Split:
    return make_split(
        SplitConfig(**settings),
        perturbation=perturbation,
        cell_type=cell_type,
        control_name="control",
    )


def test_an_unseen_cell_type_loses_all_its_perturbed_cells_and_nothing_else_does():
    split = split_of(kind="unseen_cell_type", cell_types=("B cell",))

    expected = (CELL_TYPE == "B cell") & (PERTURBATION != "control")
    np.testing.assert_array_equal(split.test, np.flatnonzero(expected))
    assert split.held_out == (("B cell", "IFNb"), ("B cell", "IL6"))


def test_an_unseen_pair_loses_that_perturbation_in_that_type_alone():
    split = split_of(kind="unseen_pair", pairs=(("T cell", "IL6"), ("B cell", "IFNb")))

    expected = ((CELL_TYPE == "T cell") & (PERTURBATION == "IL6")) | (
        (CELL_TYPE == "B cell") & (PERTURBATION == "IFNb")
    )
    np.testing.assert_array_equal(split.test, np.flatnonzero(expected))
    assert split.held_out == (("B cell", "IFNb"), ("T cell", "IL6"))


def test_an_unseen_perturbation_is_held_out_in_all_types():
    split = split_of(kind="unseen_perturbation", perturbations=("IL6",))

    np.testing.assert_array_equal(split.test, np.flatnonzero(PERTURBATION == "IL6"))


def test_random_cells_takes_its_share_of_every_perturbed_condition():
    split = split_of(kind="random_cells", test_fraction=0.25)

    pairs, counts = np.unique(
        [f"{t}|{p}" for t, p in zip(CELL_TYPE[split.test], PERTURBATION[split.test], strict=True)],
        return_counts=True,
    )
    assert len(pairs) == 6
    assert set(counts) == {5}
    assert "control" not in PERTURBATION[split.test]


def test_none_holds_out_nothing():
    split = split_of(kind="none")

    assert len(split.test) == 0
    assert split.held_out == ()


@given(
    kind=st.sampled_from(
        ["random_cells", "unseen_cell_type", "unseen_pair", "unseen_perturbation"]
    ),
    validation=st.floats(0, 0.5),
    seed=st.integers(0, 2**32 - 1),
    arms=st.lists(st.sampled_from([(t, p) for t in TYPES for p in ARMS]), min_size=30, max_size=60),
)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_roles_are_disjoint_cover_all_cells_and_never_hold_out_a_control(
    kind, validation, seed, arms
):
    anchors = [(t, p) for t in TYPES for p in ARMS] * 5
    cell_type, perturbation = (np.array(x, dtype=object) for x in zip(*anchors, *arms, strict=True))
    lists = {
        "unseen_cell_type": {"cell_types": ("B cell",)},
        "unseen_pair": {"pairs": (("B cell", "IL6"),)},
        "unseen_perturbation": {"perturbations": ("IL6",)},
    }
    chosen = {"kind": kind, "validation_fraction": validation, "seed": seed} | lists.get(kind, {})

    split = split_of(perturbation, cell_type, **chosen)

    rows = np.concatenate([split.train, split.validation, split.test])
    np.testing.assert_array_equal(np.sort(rows), np.arange(len(cell_type)))
    assert not (perturbation[split.test] == "control").any()
    # Validation cells are training conditions: held-out ones must not choose the best step.
    told = set(zip(cell_type[split.validation], perturbation[split.validation], strict=True))
    assert kind == "random_cells" or not told & set(split.held_out)


def test_validation_keeps_back_its_share_of_each_training_condition():
    split = split_of(kind="unseen_cell_type", cell_types=("B cell",), validation_fraction=0.1)

    kept = list(zip(CELL_TYPE[split.validation], PERTURBATION[split.validation], strict=True))
    assert len(kept) == 14
    assert {kept.count(condition) for condition in kept} == {2}


def test_a_split_depends_on_its_seed_and_on_nothing_else():
    asked = {"kind": "random_cells", "test_fraction": 0.3}

    assert split_of(**asked).digest == split_of(**asked).digest
    assert split_of(**asked).digest != split_of(**asked, seed=1).digest


def test_the_digest_changes_with_the_role_of_a_single_cell_and_with_what_is_held_out():
    split = split_of(kind="unseen_cell_type", cell_types=("B cell",))
    train, validation, test = split.train, split.validation, split.test
    moved = [
        (train[1:], np.append(validation, train[0]), test),
        (train[1:], validation, np.append(test, train[0])),
        (train, validation[1:], np.append(test, validation[0])),
        (np.append(train, test[0]), validation, test[1:]),
        (train[1:], validation, test),
    ]

    others = [Split(split.kind, *roles, split.held_out) for roles in moved]
    others.append(Split("none", train, validation, test, split.held_out))
    others.append(Split(split.kind, train, validation, test, split.held_out[:1]))

    assert len({split.digest, *(other.digest for other in others)}) == 8


def test_a_saved_split_comes_back_as_it_was(tmp_path):
    split = split_of(kind="unseen_pair", pairs=(("T cell", "IL6"),))
    split.save(tmp_path / "split.json", data_digest="abc")

    loaded = Split.load(tmp_path / "split.json", data_digest="abc")

    assert loaded.digest == split.digest
    assert loaded.held_out == split.held_out
    for role in ("train", "validation", "test"):
        np.testing.assert_array_equal(getattr(loaded, role), getattr(split, role))


@pytest.mark.parametrize("role", ["train", "validation", "test", "held_out", "kind"])
def test_a_split_that_was_edited_by_hand_is_refused(tmp_path, role):
    path = tmp_path / "split.json"
    split_of(kind="unseen_cell_type", cell_types=("B cell",)).save(path, data_digest="abc")
    content = json.loads(path.read_text())
    content[role] = "none" if role == "kind" else content[role][1:]
    path.write_text(json.dumps(content))

    with pytest.raises(DataError, match="was changed after it was written"):
        Split.load(path, data_digest="abc")


def test_a_split_of_other_data_is_refused(tmp_path):
    path = tmp_path / "split.json"
    split_of(kind="none").save(path, data_digest="abc")

    with pytest.raises(DataError, match=r"made for other data .*Use the h5ad the experiment"):
        Split.load(path, data_digest="abd")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "none"}'])
def test_a_file_that_is_no_split_is_refused(tmp_path, text):
    path = tmp_path / "split.json"
    path.write_text(text)

    with pytest.raises(DataError, match="not a split this program wrote"):
        Split.load(path)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"kind": "unseen_cell_type", "cell_types": ("B cells",)},
            "Unknown cell type in split.cell_types: 'B cells' (did you mean 'B cell'",
        ),
        (
            {"kind": "unseen_perturbation", "perturbations": ("IFNB",)},
            "Unknown perturbation in split.perturbations: 'IFNB' (did you mean 'IFNb'",
        ),
        (
            {"kind": "unseen_pair", "pairs": (("b cell", "IL6"),)},
            "Unknown cell type in split.pairs: 'b cell' (did you mean 'B cell'",
        ),
        (
            {"kind": "unseen_pair", "pairs": (("B cell", "IL-6"),)},
            "Unknown perturbation in split.pairs: 'IL-6' (did you mean 'IL6'",
        ),
        (
            {"kind": "unseen_perturbation", "perturbations": ("control",)},
            "Unknown perturbation in split.perturbations: 'control'",
        ),
    ],
)
def test_a_label_that_does_not_occur_is_named_with_its_neighbours(asked, message):
    with pytest.raises(UsageError, match=re.escape(message)):
        split_of(**asked)


def test_a_split_that_leaves_no_perturbed_cell_to_learn_from_is_refused():
    with pytest.raises(DataError, match=r"leaves no perturbed cell to train on\. Hold out fewer"):
        split_of(kind="unseen_cell_type", cell_types=tuple(TYPES))


@pytest.mark.parametrize(
    ("lost", "asked", "named"),
    [
        (
            (CELL_TYPE == "B cell") & (PERTURBATION != "control"),
            {"kind": "unseen_cell_type", "cell_types": ("T cell", "B cell")},
            r"no perturbed cell of \['B cell'\] .* \(1 of 2 named\)\. Take them out of the list",
        ),
        (
            (CELL_TYPE == "B cell") & (PERTURBATION == "IL6"),
            {"kind": "unseen_pair", "pairs": (("B cell", "IL6"), ("T cell", "IL6"))},
            r"no perturbed cell of \[\('B cell', 'IL6'\)\] .* \(1 of 2 named\)",
        ),
        (
            np.zeros(len(CELL_TYPE), bool),
            {"kind": "random_cells", "test_fraction": 0.04},
            r"test_fraction=0\.04 .* rounded down, is none\. Raise it",
        ),
    ],
)
def test_a_fold_without_cells_is_refused_by_name_though_others_have_some(lost, asked, named):
    with pytest.raises(DataError, match=named):
        split_of(PERTURBATION[~lost], CELL_TYPE[~lost], **asked)


@pytest.mark.parametrize(
    "asked",
    [
        {"kind": "unseen_cell_type", "cell_types": ("B cell",)},
        {"kind": "unseen_pair", "pairs": (("B cell", "IL6"),)},
        {"kind": "unseen_perturbation", "perturbations": ("IL6",)},
        {"kind": "random_cells"},
    ],
)
def test_cells_of_a_type_without_controls_are_not_held_out(asked):
    kept = (CELL_TYPE != "B cell") | (PERTURBATION != "control")

    with pytest.raises(DataError, match=r"\['B cell'\] are held out, .* Add 'control' cells"):
        split_of(PERTURBATION[kept], CELL_TYPE[kept], **asked)

    assert len(split_of(PERTURBATION[kept], CELL_TYPE[kept]).train) > 0


@pytest.mark.parametrize(
    "asked",
    [
        {"kind": "unseen_cell_type"},
        {"kind": "unseen_pair", "cell_types": ("B cell",)},
        {"kind": "none", "perturbations": ("IL6",)},
        {"kind": "random_cells", "pairs": (("B cell", "IL6"),)},
    ],
)
def test_a_kind_and_its_list_come_together_or_not_at_all(asked):
    with pytest.raises(ConfigError, match="set both or neither"):
        SplitConfig(**asked)


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_fraction_outside_zero_to_one_is_refused(fraction):
    with pytest.raises(ConfigError, match=r"split\.test_fraction"):
        SplitConfig(kind="random_cells", test_fraction=fraction)
