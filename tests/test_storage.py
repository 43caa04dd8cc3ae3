"""A folder is whole or not there, says when it was damaged, and has a name no label can abuse."""

import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sedd import storage
from sedd.errors import DataError, StorageError
from sedd.storage import (
    MANIFEST,
    folder_digest,
    folder_names,
    verify_folder,
    whole_folder,
    write_text,
)

ROOT = Path(__file__).parents[1]


def filled(final: Path, text: str = "first") -> Path:
    with whole_folder(final) as folder:
        (folder / "cells.txt").write_text(text)
        (folder / "more.bin").write_bytes(bytes(range(256)))
    return final


def half_written(final: Path, error: BaseException) -> None:
    with whole_folder(final) as folder:
        (folder / "cells.txt").write_text("second")
        raise error


def test_a_finished_folder_holds_its_files_and_nothing_else_is_left(tmp_path):
    final = filled(tmp_path / "deep" / "down" / "folder")

    assert (final / "cells.txt").read_text() == "first"
    assert [path.name for path in final.parent.iterdir()] == ["folder"]
    verify_folder(final)


@pytest.mark.parametrize("error", [RuntimeError("bug"), DataError("bad"), KeyboardInterrupt()])
def test_an_error_inside_leaves_nothing_behind_and_is_passed_on(tmp_path, error):
    with pytest.raises(type(error)):
        half_written(tmp_path / "folder", error)

    assert list(tmp_path.iterdir()) == []


def test_an_error_inside_keeps_the_folder_that_stood_there(tmp_path):
    final = filled(tmp_path / "folder")
    before = folder_digest(final)

    with pytest.raises(RuntimeError):
        half_written(final, RuntimeError("bug"))

    assert folder_digest(final) == before
    verify_folder(final)
    assert list(tmp_path.iterdir()) == [final]


def test_a_finished_folder_replaces_the_one_that_stood_there(tmp_path):
    final = filled(tmp_path / "folder")
    before = folder_digest(final)

    filled(final, "second")

    assert (final / "cells.txt").read_text() == "second"
    assert folder_digest(final) != before
    assert list(tmp_path.iterdir()) == [final]


def test_a_rename_that_fails_brings_the_old_folder_back(tmp_path, monkeypatch):
    final = filled(tmp_path / "folder")
    rename = Path.rename

    def failing(self, target):
        if self.suffix == ".tmp":
            raise OSError(errno.EIO, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(StorageError, match=r"folder could not be written: .*Input/output"):
        filled(final, "second")

    assert (final / "cells.txt").read_text() == "first"
    verify_folder(final)
    assert list(tmp_path.iterdir()) == [final]


def test_a_folder_that_reads_back_wrong_never_takes_its_place(tmp_path, monkeypatch):
    write_manifest = storage._write_manifest

    def bad_disk(folder):
        write_manifest(folder)
        (folder / "cells.txt").write_text("other")

    monkeypatch.setattr(storage, "_write_manifest", bad_disk)
    with pytest.raises(StorageError, match=r"cells\.txt is missing or was changed"):
        filled(tmp_path / "folder")

    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(StorageError, match=r"could not be written: .*Not a directory"):
        filled(tmp_path / "file" / "folder")
    with pytest.raises(StorageError, match="could not be written"):
        write_text(tmp_path / "file" / "text", "new")


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import numpy as np
from safetensors.numpy import save_file
from sedd.errors import StorageError
from sedd.storage import verify_folder, whole_folder
final = Path(sys.argv[1])
with whole_folder(final) as folder:
    (folder / "old").write_text("old")
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
writers = {
    "text": lambda folder: (folder / "a").write_text("x" * 10_000),
    "array": lambda folder: np.zeros(10_000, np.uint8).tofile(folder / "a"),
    "safetensors": lambda folder: save_file({"a": np.zeros(10_000, np.uint8)}, folder / "a"),
}
try:
    with whole_folder(final) as folder:
        writers[sys.argv[2]](folder)
except StorageError as error:
    assert "Is the disk full" in str(error), error
    verify_folder(final)
    assert (final / "old").read_text() == "old"
    assert list(final.parent.iterdir()) == [final]
    sys.exit(74)
"""


@pytest.mark.parametrize("writer", ["text", "array", "safetensors"])
def test_a_disk_that_takes_no_more_is_a_storage_error_that_keeps_what_was_there(tmp_path, writer):
    # A limit on the size of files stands for a full disk; Python ignores the signal that comes
    # with it, so writing fails with "File too large" instead of "No space left".
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "folder"), writer]

    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)

    assert (done.returncode, done.stderr) == (74, "")


def test_a_flipped_byte_anywhere_is_found(tmp_path):
    final = filled(tmp_path / "folder")
    rng = np.random.default_rng(0)

    for path in sorted(final.iterdir()):
        whole = path.read_bytes()
        positions = range(len(whole)) if len(whole) < 60 else rng.integers(0, len(whole), 60)
        for position in positions:
            broken = bytearray(whole)
            broken[position] ^= 1 << int(rng.integers(8))
            path.write_bytes(broken)
            with pytest.raises(StorageError):
                verify_folder(final)
        path.write_bytes(whole)
    verify_folder(final)


@pytest.mark.parametrize("damage", ["cut", "gone", "longer"])
def test_a_file_that_was_cut_lost_or_added_to_is_named(tmp_path, damage):
    path = filled(tmp_path / "folder") / "more.bin"
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "cut" else content + b"\0")

    with pytest.raises(StorageError, match=r"more\.bin is missing or was changed"):
        verify_folder(path.parent)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"sha256": 3}', '{"sha256": ["ab"]}x'])
def test_a_folder_without_a_manifest_was_not_finished(tmp_path, text):
    final = filled(tmp_path / "folder")
    (final / MANIFEST).write_text(text)

    with pytest.raises(StorageError, match=r"no readable MANIFEST\.json: it was not finished"):
        verify_folder(final)
    (final / MANIFEST).unlink()
    with pytest.raises(StorageError, match=r"no readable MANIFEST\.json: it was not finished"):
        verify_folder(final)


def test_equal_folders_have_equal_digests_wherever_they_stand(tmp_path):
    one, other = (filled(tmp_path / name) for name in ("one", "other"))

    assert folder_digest(one) == folder_digest(other)
    assert folder_digest(one) != folder_digest(filled(tmp_path / "third", "else"))


def test_a_text_is_replaced_in_one_step_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "deep" / "config.yaml"
    write_text(path, "ä\n")
    write_text(path, "ö\n")
    assert path.read_text(encoding="utf-8") == "ö\n"

    def failing(self, target):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(StorageError, match="No space left on device"):
        write_text(path, "third")

    assert path.read_text(encoding="utf-8") == "ö\n"
    assert list(path.parent.iterdir()) == [path]


HOSTILE = [
    "T cell", "T_cell", "t cell", "", ".", "..", "...", "/", "/etc/passwd", "../x", "a/../../b",
    "-rf", "~", "$(reboot)", "a\0b", "line\nbreak", "CON", "x" * 300, "x" * 301, "x" * 80,
    "αβ T cells", "γδ T cells", "naïve", "nai\u0308ve", "細胞", "🧬", "\u202etxt.exe", "dot.",
    "dot", ".hidden", "CD4+", "CD4-", "CD14+ Monocytes", "B cell-0123abcd", " ", "  ", "\t", "a:b",
    "a\\b",
]  # fmt: skip


def assert_distinct_and_safe(labels: list[str]) -> None:
    names = folder_names(labels)
    assert set(names) == set(labels)
    assert len({name.casefold() for name in names.values()}) == len(set(labels))
    for name in names.values():
        assert name.strip(".") != ""
        assert len(name.encode()) <= 100
        assert set(name) <= set(
            "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.+-"
        )


def test_hostile_labels_get_distinct_names_inside_the_folder():
    assert_distinct_and_safe(HOSTILE)


# Few letters, so that labels collide once they are made safe.
LABEL = st.text(st.sampled_from("aA_ ./-é0"), max_size=5) | st.text(max_size=120)


@given(st.lists(LABEL | st.sampled_from(HOSTILE), max_size=12))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_any_labels_get_distinct_names_inside_the_folder(labels):
    assert_distinct_and_safe(labels)


def test_a_label_that_looks_like_the_name_made_for_another_gets_its_own():
    made = folder_names(["T cell", "T_cell"])["T cell"]

    assert_distinct_and_safe(["T cell", "T_cell", made])
    assert_distinct_and_safe(["T cell", "T_cell", made.upper()])


def test_plain_labels_keep_readable_names_and_their_place_in_the_list_does_not_matter():
    names = folder_names(["T cell", "CD14+ Monocytes", "NK"])

    assert names == {"T cell": "T_cell", "CD14+ Monocytes": "CD14+_Monocytes", "NK": "NK"}
    assert folder_names(HOSTILE[::-1]) == folder_names(HOSTILE)


def test_hostile_names_can_be_made_as_folders(tmp_path):
    for name in folder_names(HOSTILE).values():
        (tmp_path / f"celltype_{name}").mkdir()

    assert len(list(tmp_path.iterdir())) == len(set(HOSTILE))
