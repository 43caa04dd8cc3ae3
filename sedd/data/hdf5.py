"""Opening an HDF5 file of unknown origin: what can be refused is refused before a value is read.

anndata follows links into other files, believes declared shapes and hands unchecked indices to
compiled code. A file that came through `open_h5ad` holds everything it names, and no more than it
could plausibly hold.
"""

import difflib
import os
import traceback
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from pathlib import Path

import h5py

from sedd.errors import DataError, SeddError, StorageError

_SIGNATURE = b"\x89HDF\r\n\x1a\n"
# deflate cannot shrink anything by more than 1032 times, so a file holds at most that much.
_HIGHEST_COMPRESSION = 1100
_SLACK_BYTES = 1 << 20


@contextmanager
def open_h5ad(path: Path) -> Generator[h5py.File, None, None]:
    """An open, read-only file whose tree is checked: no links out, no impossible sizes.

    Whatever HDF5 cannot read inside the `with` block becomes a `DataError` as well.
    """
    _check_is_hdf5(path)
    try:
        with h5py.File(path, "r") as file:
            _check_tree(file, path)
            _check_is_h5ad(file, path)
            yield file
    except SeddError:
        raise
    except PermissionError as error:
        raise _forbidden(path) from error
    except BlockingIOError as error:
        message = (
            f"{path} is locked: another program has it open for writing. "
            f"Close that program, or copy the file and read the copy."
        )
        raise StorageError(message) from error
    except MemoryError:
        raise
    except Exception as error:
        if not _came_from_h5py(error):
            raise
        raise _damaged(path, error) from error


def member(group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | None:
    """What stands under `name`, None where nothing with values does."""
    node = group.get(name)
    return node if isinstance(node, h5py.Group | h5py.Dataset) else None


def dataset_at(group: h5py.Group, name: str) -> h5py.Dataset | None:
    """The dataset under `name`, None where there is none."""
    node = member(group, name)
    return node if isinstance(node, h5py.Dataset) else None


def attribute(node: h5py.Group | h5py.Dataset, name: str, default: str = "") -> str:
    """A text attribute; `default` where there is none."""
    value = node.attrs.get(name, default)
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def refuse_beyond_memory(path: Path, name: str, num_bytes: int) -> None:
    """Refuses to start reading what this machine could never hold."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if num_bytes > memory:
        message = (
            f"{path}: {name} needs {byte_size(num_bytes)} of memory and this machine has "
            f"{byte_size(memory)}. Keep fewer cells or genes (adata[:, genes]), or use a machine "
            f"with more memory."
        )
        raise DataError(message)


def close_matches(name: str, options: Iterable[str]) -> tuple[str, ...]:
    """The (at most three) options a reader would take for `name`, nearest first."""
    by_lower: dict[str, str] = {}
    for option in options:
        by_lower.setdefault(option.lower().strip(), option)
    near = difflib.get_close_matches(name.lower().strip(), list(by_lower), n=3, cutoff=0.6)
    return tuple(by_lower[match] for match in near)


def listing(names: Iterable[object], *, limit: int = 10) -> str:
    """`names` as one line of quoted words; beyond `limit` only how many more there are."""
    words = [repr(name) for name in names]
    more = f" and {len(words) - limit} more" if len(words) > limit else ""
    return (", ".join(words[:limit]) or "none") + more


def suggestion(name: str, options: Iterable[str]) -> str:
    """`Did you mean 'x'? ` when something near `name` exists, else nothing."""
    near = close_matches(name, options)
    return f"Did you mean {' or '.join(repr(match) for match in near)}? " if near else ""


def byte_size(num_bytes: int) -> str:
    """`1.6 TB`, as in disk listings."""
    for power, unit in ((4, "TB"), (3, "GB"), (2, "MB"), (1, "KB")):
        if num_bytes >= 1000**power:
            return f"{num_bytes / 1000**power:.1f} {unit}"
    return f"{num_bytes} bytes"


def _check_is_hdf5(path: Path) -> None:
    try:
        if path.is_dir():
            message = f"{path} is a folder. Give the path of an .h5ad file{_h5ad_beside(path)}."
            raise DataError(message)
        with path.open("rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if size == 0:
                message = f"{path} is empty (0 bytes). Copy or download the .h5ad file again."
                raise DataError(message)
            if not _has_signature(stream.fileno(), size):
                message = (
                    f"{path} is not an HDF5 file, so it cannot be an .h5ad. Write one with "
                    f"adata.write_h5ad(...), and unpack it first if it is compressed."
                )
                raise DataError(message)
    except FileNotFoundError as error:
        message = (
            f"{path} does not exist{_h5ad_beside(path.parent)}. "
            f"Give the .h5ad file with --train_data_path."
        )
        raise DataError(message) from error
    except PermissionError as error:
        raise _forbidden(path) from error


def _has_signature(descriptor: int, size: int) -> bool:
    """HDF5 may start at byte 0 or, behind a user block, at 512, 1024, 2048, ..."""
    offset = 0
    while offset < size:
        if os.pread(descriptor, len(_SIGNATURE), offset) == _SIGNATURE:
            return True
        offset = max(512, offset * 2)
    return False


def _h5ad_beside(folder: Path) -> str:
    try:
        names = sorted(entry.name for entry in folder.glob("*.h5ad"))
    except OSError:
        return ""
    return f" (in {folder}: {listing(names, limit=5)})" if names else ""


def _check_tree(file: h5py.File, path: Path) -> None:
    """Visits every object once, without following a link, and checks links and datasets."""
    seen = set()
    groups: list[h5py.Group] = [file]
    while groups:
        group = groups.pop()
        for key in group:
            if isinstance(key, bytes):
                # h5py gives up decoding only where the name is not UTF-8.
                message = (
                    f"{path}: {key!r} in {group.name!r} is not a UTF-8 name. The file is damaged, "
                    f"or the name must be changed with the program that wrote it."
                )
                raise DataError(message)
            name = f"{group.name}/{key}".lstrip("/")
            _check_link(group, key, name, path)
            node = member(group, key)
            if isinstance(node, h5py.Dataset):
                _check_dataset(node, name, path)
            elif node is not None and (address := h5py.h5o.get_info(node.id).addr) not in seen:
                seen.add(address)
                groups.append(node)


def _check_link(group: h5py.Group, key: str, name: str, path: Path) -> None:
    """Refuses links into other files, and soft links that lead nowhere.

    A soft link can only leave the file through an external one, which is refused where it stands.
    """
    link = group.get(key, getlink=True)
    if isinstance(link, h5py.ExternalLink):
        message = (
            f"{path}: {name!r} is an external link to {link.filename!r}. A data file must hold "
            f"its own values: read it with anndata where both files are, and write it again."
        )
        raise DataError(message)
    if isinstance(link, h5py.SoftLink) and group.get(key) is None:
        message = (
            f"{path}: {name!r} is a soft link to {link.path!r}, which is not in the file. "
            f"Write the file again with adata.write_h5ad(...)."
        )
        raise DataError(message)


def _check_dataset(dataset: h5py.Dataset, name: str, path: Path) -> None:
    """Refuses values stored elsewhere, unreadable filters and sizes the file cannot hold."""
    if dataset.is_virtual or dataset.external:
        message = (
            f"{path}: the values of {name!r} lie in other files (a virtual or external dataset). "
            f"Write one self-contained file with adata.write_h5ad(...)."
        )
        raise DataError(message)
    file_bytes = path.stat().st_size
    if dataset.shape is not None and dataset.nbytes > _most_bytes(file_bytes):
        message = (
            f"{path}: {name!r} declares {byte_size(dataset.nbytes)} (shape {dataset.shape}, "
            f"{dataset.dtype}), but the whole file has {byte_size(file_bytes)}. It is damaged or "
            f"made to exhaust memory; get it again from its source."
        )
        raise DataError(message)
    _check_filters(dataset, name, path)


def _most_bytes(file_bytes: int) -> int:
    return _HIGHEST_COMPRESSION * file_bytes + _SLACK_BYTES


def _check_filters(dataset: h5py.Dataset, name: str, path: Path) -> None:
    properties = dataset.id.get_create_plist()
    for position in range(properties.get_nfilters()):
        code, _, _, label = properties.get_filter(position)
        if not h5py.h5z.filter_avail(code):
            message = (
                f"{path}: {name!r} is compressed with {label.decode(errors='replace')!r} (HDF5 "
                f"filter {code}), which h5py cannot read here. Write the file again with "
                f"adata.write_h5ad(path, compression='gzip')."
            )
            raise DataError(message)


def _check_is_h5ad(file: h5py.File, path: Path) -> None:
    missing = [name for name in ("obs", "var") if member(file, name) is None]
    if missing:
        message = (
            f"{path} is HDF5 but not an .h5ad: it has {listing(file)} and no {listing(missing)}. "
            f"Read it with scanpy (e.g. sc.read_10x_h5 or sc.read_loom) and write it with "
            f"adata.write_h5ad(...)."
        )
        raise DataError(message)


def _came_from_h5py(error: Exception) -> bool:
    """Whether h5py raised it: damaged bytes become any of six kinds of exception there."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__", "").startswith("h5py") for frame, _ in frames)


def _damaged(path: Path, error: Exception) -> DataError:
    what = "truncated" if "truncated" in str(error) else "truncated or damaged"
    detail = (str(error).strip().strip("'\"") or type(error).__name__).splitlines()[0]
    return DataError(f"{path} is {what} ({detail}). Copy or download the file again.")


def _forbidden(path: Path) -> StorageError:
    return StorageError(
        f"{path} may not be read by this user. Ask its owner, or `chmod +r` it and its folders."
    )
