"""Given embeddings are read as numbers, by name, or refused; nothing in the file is executed."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from sedd.data.vectors import read_vectors
from sedd.errors import DataError

TABLE = {"STAT1": torch.tensor([1.0, 2.0]), "IRF9": torch.tensor([3.0, 4.0])}


def saved(folder: Path, content: object, name: str = "vectors.pt") -> Path:
    torch.save(content, folder / name)
    return folder / name


def test_rows_follow_the_names_asked_for(tmp_path):
    rows = read_vectors(saved(tmp_path, TABLE), ["IRF9", "STAT1", "IRF9"])

    np.testing.assert_array_equal(rows, [[3, 4], [1, 2], [3, 4]])
    assert rows.dtype == np.float32


def test_a_safetensors_file_says_the_same_as_a_pt_file(tmp_path):
    save_file(TABLE, tmp_path / "vectors.safetensors")

    rows = read_vectors(tmp_path / "vectors.safetensors", ["IRF9", "STAT1"])

    np.testing.assert_array_equal(rows, read_vectors(saved(tmp_path, TABLE), ["IRF9", "STAT1"]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int64])
def test_other_number_types_become_float32(tmp_path, dtype):
    table = {name: vector.to(dtype) for name, vector in TABLE.items()}

    np.testing.assert_array_equal(read_vectors(saved(tmp_path, table), ["STAT1"]), [[1, 2]])


def test_control_is_zero_unless_it_has_a_vector_of_its_own(tmp_path):
    own = TABLE | {"control": torch.tensor([9.0, 9.0])}

    absent = read_vectors(saved(tmp_path, TABLE), ["control", "IRF9"], zero="control")
    given = read_vectors(saved(tmp_path, own), ["control", "IRF9"], zero="control")

    np.testing.assert_array_equal(absent, [[0, 0], [3, 4]])
    np.testing.assert_array_equal(given, [[9, 9], [3, 4]])


class Gadget:
    """What a malicious pickle looks like."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def test_code_in_a_pt_file_is_refused_and_never_run(tmp_path):
    path = saved(tmp_path, {"STAT1": Gadget(tmp_path / "executed")})

    with pytest.raises(DataError, match=r"could not be read as tensors only .*safetensors"):
        read_vectors(path, ["STAT1"])

    assert not (tmp_path / "executed").exists()
    torch.load(path, weights_only=False)  # the gadget does work
    assert (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "content",
    [
        {"STAT1": np.array([1.0, 2.0])},
        pd.DataFrame({"STAT1": [1.0, 2.0]}),
    ],
)
def test_arrays_and_tables_are_refused_with_the_line_that_converts_them(tmp_path, content):
    with pytest.raises(DataError, match=r"torch\.save\(\{name: torch\.tensor\(vector\)"):
        read_vectors(saved(tmp_path, content), ["STAT1"])


@pytest.mark.parametrize(
    "content",
    [torch.ones(2), [torch.ones(2)], {}, {"STAT1": torch.ones(2, 2)}, {3: torch.ones(2)}],
)
def test_anything_but_a_dict_of_names_to_vectors_is_refused(tmp_path, content):
    with pytest.raises(DataError, match="not a dict of label -> one-dimensional tensor"):
        read_vectors(saved(tmp_path, content), ["STAT1"])


def test_missing_names_are_listed(tmp_path):
    with pytest.raises(DataError, match=r"no vector for 2 of 3 labels, e\.g\. \['JAK1', 'TYK2'\]"):
        read_vectors(saved(tmp_path, TABLE), ["JAK1", "IRF9", "TYK2"])


def test_names_that_nobody_asked_for_may_be_in_the_file(tmp_path):
    odd = TABLE | {"unused": torch.full((7,), torch.nan)}

    np.testing.assert_array_equal(read_vectors(saved(tmp_path, odd), ["IRF9"]), [[3, 4]])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_no_number_names_its_vector(tmp_path, value):
    broken = TABLE | {"IRF9": torch.tensor([1.0, value])}

    with pytest.raises(DataError, match=r"NaN or infinite values in the vectors of \['IRF9'\]"):
        read_vectors(saved(tmp_path, broken), ["STAT1", "IRF9"])


def test_vectors_of_different_lengths_are_refused(tmp_path):
    uneven = TABLE | {"IRF9": torch.ones(3)}

    with pytest.raises(DataError, match=r"different lengths \[2, 3\]"):
        read_vectors(saved(tmp_path, uneven), ["STAT1", "IRF9"])


def test_a_missing_or_broken_file_is_named(tmp_path):
    (tmp_path / "broken.pt").write_bytes(b"not a zip")
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 20)

    with pytest.raises(DataError, match=r"none\.pt does not exist"):
        read_vectors(tmp_path / "none.pt", ["STAT1"])
    for name in ("broken.pt", "broken.safetensors"):
        with pytest.raises(DataError, match="could not be read as tensors only"):
            read_vectors(tmp_path / name, ["STAT1"])
