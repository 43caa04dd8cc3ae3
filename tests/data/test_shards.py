"""Shards come back as they were written, or not at all."""

from dataclasses import fields

import numpy as np
import pytest

from sedd.data.shards import Shards, fingerprint
from sedd.errors import StorageError
from tests.tiny_training import tiny_shards

FILES = {
    "tokens.u8", "rows.parquet", "vocabulary.json", "reference.safetensors", "MANIFEST.json",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    tiny_shards().save(tmp_path / "shards")
    return tmp_path / "shards"


def test_cells_come_back_as_they_were(folder):
    shards, loaded = tiny_shards(), Shards.load(folder)

    assert {path.name for path in folder.iterdir()} == FILES
    for field in fields(shards)[1:]:
        expected, found = (getattr(s, field.name) for s in (shards, loaded))
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    assert loaded.reference.vocabulary == shards.reference.vocabulary
    assert len(loaded) == len(shards.row)


def test_equal_shards_are_equal_bytes(folder, tmp_path):
    Shards.load(folder).save(tmp_path / "again")

    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_tokens_are_read_from_the_disk_one_byte_each(folder):
    loaded = Shards.load(folder)

    assert (folder / "tokens.u8").stat().st_size == loaded.tokens.size
    assert isinstance(loaded.tokens.base, np.memmap)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_flipped_bit_in_any_file_is_found(folder, name):
    path = folder / name
    whole = path.read_bytes()
    rng = np.random.default_rng(0)

    for position in [0, len(whole) - 1, *rng.integers(0, len(whole), 5)]:
        broken = bytearray(whole)
        broken[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        with pytest.raises(StorageError):
            Shards.load(folder)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_missing_file_is_found(folder, name):
    (folder / name).unlink()

    with pytest.raises(StorageError, match=name.replace(".", r"\.")):
        Shards.load(folder)


def test_a_condition_is_a_pair_of_cell_type_and_perturbation():
    shards = tiny_shards()

    pairs = {(t, p) for t, p in zip(shards.cell_type, shards.perturbation, strict=True)}

    assert len(set(shards.condition)) == len(pairs) == 7
    for number in set(shards.condition):
        rows = shards.condition == number
        assert len(set(shards.cell_type[rows])) == len(set(shards.perturbation[rows])) == 1


def test_the_name_of_shards_follows_data_split_and_settings_and_not_their_order():
    given = {"data_digest": "a", "split_digest": "b", "settings": {"x": 1, "y": None}}

    names = [
        fingerprint(**given),
        fingerprint(**given | {"data_digest": "c"}),
        fingerprint(**given | {"split_digest": "c"}),
        fingerprint(**given | {"settings": {"x": 2, "y": None}}),
        fingerprint(**given | {"settings": {"x": 1}}),
        fingerprint(**given | {"data_digest": "b", "split_digest": "a"}),
    ]

    assert len(set(names)) == 6
    assert fingerprint(**given | {"settings": {"y": None, "x": 1}}) == names[0]
