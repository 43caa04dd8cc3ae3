"""Folders that are either whole or not there, and that can tell if they were damaged.

A folder is filled under a temporary name beside its place, every file is flushed to disk, a
MANIFEST.json with the hash of each file is written last, everything is read back and checked, and
only then is the folder renamed into place.
"""

import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from sedd.errors import StorageError

MANIFEST = "MANIFEST.json"
HASHED = re.compile(r"-[0-9a-f]{8}$", re.IGNORECASE)
"""How a folder name ends that `folder_names` made distinct."""


@contextmanager
def whole_folder(final: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `final` when the block ends without an error.

    An existing `final` is replaced only then.

    Raises:
        StorageError: The disk refuses; what stood there before stays.
    """
    folder = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        folder.mkdir(parents=True)
        yield folder
        _write_manifest(folder)
        verify_folder(folder)
        _replace(folder, final)
    except (OSError, SafetensorError) as error:
        message = f"{final} could not be written: {error}. Is the disk full, or read-only?"
        raise StorageError(message) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def verify_folder(folder: Path) -> None:
    """Raise StorageError unless every file of the manifest is there with its hash."""
    try:
        digests = dict(json.loads((folder / MANIFEST).read_text())["sha256"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        message = f"{folder} has no readable {MANIFEST}: it was not finished, or was damaged."
        raise StorageError(message) from error
    for name, digest in digests.items():
        if not (folder / name).is_file() or file_digest(folder / name) != digest:
            message = f"{folder / name} is missing or was changed after it was written."
            raise StorageError(message)


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_digest(folder: Path) -> str:
    """One hash for a whole folder, from its manifest."""
    return file_digest(folder / MANIFEST)


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise StorageError(f"{path} could not be written: {error}.") from error
    finally:
        with suppress(OSError):
            temporary.unlink()


def folder_names(labels: list[str]) -> dict[str, str]:
    """A safe, distinct folder name for each label.

    Letters, digits, dot, plus, dash and underscore stay, anything else becomes an underscore. A
    name that was shortened, that two labels would share on any file system, or that looks as if
    it ended in a hash, ends in a hash.
    """
    plain = {label: re.sub(r"[^A-Za-z0-9_.+-]", "_", label).strip(".")[:80] for label in labels}
    taken: dict[str, int] = {}
    for name in plain.values():
        taken[name.casefold()] = taken.get(name.casefold(), 0) + 1
    return {
        label: name
        if name and taken[name.casefold()] == 1 and len(label) <= 80 and not HASHED.search(name)
        else f"{name}-{hashlib.sha256(label.encode()).hexdigest()[:8]}"
        for label, name in plain.items()
    }


def _write_manifest(folder: Path) -> None:
    files = {path.name for path in folder.iterdir() if path.is_file()}
    names = sorted(files - {MANIFEST})  # a folder that was copied from another brings its own
    for name in names:
        _flush(folder / name)
    content = {"sha256": {name: file_digest(folder / name) for name in names}}
    (folder / MANIFEST).write_text(json.dumps(content, indent=1))
    _flush(folder / MANIFEST)


def _replace(folder: Path, final: Path) -> None:
    if final.exists():
        old = final.with_name(f".{final.name}.{uuid.uuid4().hex[:8]}.old")
        final.rename(old)
        try:
            folder.rename(final)
        except OSError:
            old.rename(final)
            raise
        shutil.rmtree(old, ignore_errors=True)
    else:
        folder.rename(final)
    _flush(final.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
