"""The expression matrix of an h5ad, whatever its storage, as one canonical CSR matrix.

Compiled sparse routines trust their index arrays; a wrong index there is a crash or a wrong number.
So indices are checked with numpy first, and then every value is: finite, not negative, and of the
kind (raw counts or log1p) that was announced.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import h5py
import numpy as np
from jaxtyping import Integer
from scipy import sparse

from sedd.data.hdf5 import attribute, dataset_at, listing, member, refuse_beyond_memory, suggestion
from sedd.errors import DataError

Kind = Literal["counts", "log1p"]
InputKind = Literal["auto", "counts", "log1p"]

# Above this, float32 no longer tells a count from the next one.
LARGEST_COUNT = 2**24
# log1p of 3 million counts; totals per cell are far below, so larger values were never logged.
_LARGEST_LOG1P = 15.0
_BLOCK_BYTES = 64 << 20


@dataclass(frozen=True)
class MatrixSource:
    """One matrix of an open file and what is needed to speak about it."""

    node: h5py.Group | h5py.Dataset
    name: str
    path: Path
    genes: tuple[str, ...]
    num_cells: int
    others: tuple[str, ...]
    """The other matrices of the file and how to reach them, offered when this one will not do."""

    @property
    def shape(self) -> tuple[int, int]:
        """Cells and genes according to obs and var."""
        return self.num_cells, len(self.genes)


def layer_names(file: h5py.File) -> tuple[str, ...]:
    """Names of the layers, in alphabetical order."""
    layers = member(file, "layers")
    return tuple(sorted(layers)) if layers is not None and isinstance(layers, h5py.Group) else ()


def find_matrix(
    file: h5py.File, path: Path, layer: str | None, *, genes: tuple[str, ...], num_cells: int
) -> MatrixSource:
    """X, or the named layer."""
    layers = layer_names(file)
    if layer is not None and layer not in layers:
        message = (
            f"{path} has no layer {layer!r}. {suggestion(layer, layers)}Layers: {listing(layers)}. "
            f"Name one with data.layer, or leave data.layer out to read X."
        )
        raise DataError(message)
    node = member(file, "X" if layer is None else f"layers/{layer}")
    if node is None or "null" in attribute(node, "encoding-type"):
        message = (
            f"{path} has no values in {layer or 'X'}. Layers: {listing(layers)}. Name the one with "
            f"raw counts with data.layer, or write the file again with adata.X set."
        )
        raise DataError(message)
    name = "X" if layer is None else f"layers[{layer!r}]"
    others = ["X (data.layer left out)"] if layer is not None and "X" in file else []
    others += [f"layers[{other!r}] (data.layer={other})" for other in layers if other != layer]
    others += ["raw (adata.raw.to_adata())"] if "raw" in file or "raw.X" in file else []
    return MatrixSource(node, name, path, genes, num_cells, tuple(others))


def read_expression(source: MatrixSource, declared: InputKind) -> tuple[sparse.csr_array, Kind]:
    """Canonical CSR (sorted, no duplicates, no stored zeros): int32 counts or float32 log1p."""
    node = source.node
    is_sparse = isinstance(node, h5py.Group)
    matrix = _read_sparse(source, node) if is_sparse else _read_dense(source, node)
    _check_values(source, matrix)
    if not matrix.has_canonical_format:
        # Small integer types could overflow when duplicates add up.
        matrix = _with_values(matrix, matrix.data.astype(np.float64))
        matrix.sum_duplicates()
    matrix.eliminate_zeros()
    kind = _decide_kind(source, matrix, declared)
    if kind == "counts" and matrix.nnz and matrix.data.max() > LARGEST_COUNT:
        raise _too_large(source, matrix)
    value_type = np.int32 if kind == "counts" else np.float32
    return _with_values(matrix, matrix.data.astype(value_type)), kind


def _with_values(matrix: sparse.csr_array, values: np.ndarray) -> sparse.csr_array:
    return sparse.csr_array((values, matrix.indices, matrix.indptr), shape=matrix.shape)


def _read_sparse(source: MatrixSource, group: h5py.Group) -> sparse.csr_array:
    layout = _sparse_layout(source, group)
    data, indices, indptr = (_vector(source, group, name) for name in ("data", "indices", "indptr"))
    num_bytes = data.nbytes + indices.nbytes + indptr.nbytes
    refuse_beyond_memory(source.path, source.name, num_bytes)
    major, minor = source.shape if layout == "csr" else source.shape[::-1]
    stored = len(data)
    pointers = _checked_indptr(source, indptr, major, stored)
    positions = _checked_indices(source, indices, minor, stored)
    index_type = np.int32 if max(stored, major, minor) < 2**31 else np.int64
    values = _native(source, data[:])
    parts = (values, positions.astype(index_type), pointers.astype(index_type))
    if layout == "csr":
        return sparse.csr_array(parts, shape=source.shape)
    return sparse.csr_array(sparse.csc_array(parts, shape=source.shape))


def _vector(source: MatrixSource, group: h5py.Group, name: str) -> h5py.Dataset:
    dataset = dataset_at(group, name)
    if dataset is not None and dataset.shape is not None and dataset.ndim == 1:
        return dataset
    raise _malformed(source, f"it has no one-dimensional {name!r}")


def _sparse_layout(source: MatrixSource, group: h5py.Group) -> Literal["csr", "csc"]:
    encoding = attribute(group, "encoding-type") or attribute(group, "h5sparse_format")
    layouts: dict[str, Literal["csr", "csc"]] = {"csr": "csr", "csc": "csc"}
    layout = layouts.get(encoding.removesuffix("_matrix"))
    if layout is None:
        raise _malformed(source, f"its encoding is {encoding!r}, not csr_matrix or csc_matrix")
    declared = np.asarray(group.attrs.get("shape", group.attrs.get("h5sparse_shape", ())))
    if declared.tolist() != list(source.shape):
        raise _wrong_shape(source, tuple(declared.ravel().tolist()))
    return layout


def _checked_indptr(
    source: MatrixSource, dataset: h5py.Dataset, major: int, stored: int
) -> Integer[np.ndarray, " pointers"]:
    if dataset.dtype.kind not in "iu" or len(dataset) != major + 1:
        what = f"'indptr' has {len(dataset)} entries of {dataset.dtype}, not {major + 1} integers"
        raise _malformed(source, what)
    indptr = dataset[:].astype(np.int64)
    if indptr[0] != 0 or indptr[-1] != stored or (np.diff(indptr) < 0).any():
        what = f"'indptr' does not rise from 0 to the {stored} stored values"
        raise _malformed(source, what)
    return indptr


def _checked_indices(
    source: MatrixSource, dataset: h5py.Dataset, minor: int, stored: int
) -> Integer[np.ndarray, " stored"]:
    if dataset.dtype.kind not in "iu" or len(dataset) != stored:
        what = f"'indices' has {len(dataset)} entries of {dataset.dtype}, not {stored} integers"
        raise _malformed(source, what)
    indices = dataset[:]
    if stored and (indices.min() < 0 or indices.max() >= minor):
        what = f"'indices' runs from {indices.min()} to {indices.max()}, not within 0..{minor - 1}"
        raise _malformed(source, what)
    return indices


def _read_dense(source: MatrixSource, dataset: h5py.Dataset) -> sparse.csr_array:
    """Row block by row block, so that a dense file may be larger than memory."""
    if dataset.shape != source.shape:
        raise _wrong_shape(source, dataset.shape)
    num_cells, num_genes = source.shape
    rows = max(1, _BLOCK_BYTES // (num_genes * dataset.dtype.itemsize))
    chunk_rows = dataset.chunks[0] if dataset.chunks else 1
    rows = -(-rows // chunk_rows) * chunk_rows
    data, indices, lengths = [], [], [np.zeros(1, dtype=np.int64)]
    for start in range(0, num_cells, rows):
        block = _native(source, dataset[start : start + rows])
        cell, gene = np.nonzero(block)
        data.append(block[cell, gene])
        indices.append(gene.astype(np.int32))
        lengths.append(np.bincount(cell, minlength=len(block)))
    indptr = np.cumsum(np.concatenate(lengths))
    parts = (np.concatenate(data), np.concatenate(indices), indptr)
    return sparse.csr_array(parts, shape=source.shape)


def _native(source: MatrixSource, values: np.ndarray) -> np.ndarray:
    """Values in a type that scipy calculates with, unchanged in value."""
    dtype = values.dtype
    if dtype.kind not in "biuf":
        message = (
            f"{source.path}: {source.name} holds {dtype}, not numbers. Write counts or log1p "
            f"values as integers or floats{_elsewhere(source)}."
        )
        raise DataError(message)
    if dtype.kind == "f":
        return values.astype(np.float32 if dtype.itemsize <= 4 else np.float64)
    return values.astype(dtype.newbyteorder("="))


def _check_values(source: MatrixSource, matrix: sparse.csr_array) -> None:
    """Refuses NaN, infinite and negative values, naming the first cell and gene."""
    data = matrix.data
    if data.dtype.kind == "u" or data.size == 0:
        return
    # min and max are NaN when anything is, and need no array of flags.
    if np.isfinite(data.max()) and np.isfinite(data.min()) and data.min() >= 0:
        return
    finite = np.isfinite(data)
    bad = np.flatnonzero(~finite if not finite.all() else data < 0)
    row, gene = _locate(matrix, int(bad[0]))
    where = f"first in row {row}, gene {source.genes[gene]!r} ({data[bad[0]]})"
    if not finite.all():
        message = (
            f"{source.path}: {source.name} has {bad.size} values that are NaN or infinite, {where}."
            f" Remove these cells or genes, or write the values as 0 if they are zeros"
            f"{_elsewhere(source)}."
        )
        raise DataError(message)
    message = (
        f"{source.path}: {source.name} has {bad.size} negative values, {where}. It looks scaled "
        f"(z-scored) or corrected; raw counts or log1p values are needed{_elsewhere(source)}."
    )
    raise DataError(message)


def _decide_kind(source: MatrixSource, matrix: sparse.csr_array, declared: InputKind) -> Kind:
    data = matrix.data
    share = float(np.mean(data == np.rint(data))) if data.size else 1.0
    largest = float(data.max()) if data.size else 0.0
    totals = np.asarray(matrix.sum(axis=1, dtype=np.float64))
    # Every cell with the same total: divided by its total, and no logarithm taken since.
    same_total = totals.size > 2 and np.ptp(totals) <= 1e-3 * totals.max()
    found: Kind | None = None
    if share == 1.0:
        found = "counts"
    elif largest < _LARGEST_LOG1P and not same_total:
        found = "log1p"
    if found is not None and declared in ("auto", found):
        return found
    facts = (
        f"max {largest:g}, {_percent(share)} of the nonzero values are integers, row sums "
        f"{totals.min():g} to {totals.max():g}"
    )
    looks = {"counts": "raw counts", "log1p": "log1p values", None: "normalised, not logged"}[found]
    if found is None:
        fix = "Give raw counts, or log1p of counts per 10,000 (sc.pp.log1p)"
    else:
        fix = f"Set data.input_kind to {found}"
    wanted = "raw counts or log1p values" if declared == "auto" else f"data.input_kind={declared}"
    message = (
        f"{source.path}: {source.name} looks like {looks} ({facts}), but {wanted} was expected. "
        f"{fix}{_elsewhere(source)}."
    )
    raise DataError(message)


def _percent(share: float) -> str:
    """Never rounds up to `100 %`."""
    return f"{np.floor(share * 1000) / 10:g} %"


def _locate(matrix: sparse.csr_array, position: int) -> tuple[int, int]:
    """Row and column of the stored value at `position`."""
    row = int(np.searchsorted(matrix.indptr, position, side="right")) - 1
    return row, int(matrix.indices[position])


def _too_large(source: MatrixSource, matrix: sparse.csr_array) -> DataError:
    row, gene = _locate(matrix, int(matrix.data.argmax()))
    return DataError(
        f"{source.path}: {source.name} has a count of {matrix.data.max():.0f} in row {row}, gene "
        f"{source.genes[gene]!r}; counts above 2^24 = {LARGEST_COUNT} lose their last digits in "
        f"float32. No cell has that many molecules: check what {source.name} holds"
        f"{_elsewhere(source)}."
    )


def _elsewhere(source: MatrixSource) -> str:
    if not source.others:
        return ""
    return f", or use another matrix of the file: {', '.join(source.others)}"


def _malformed(source: MatrixSource, what: str) -> DataError:
    return DataError(
        f"{source.path}: {source.name} is not a well-formed sparse matrix: {what}. The file is "
        f"damaged or was written by hand; write it again with adata.write_h5ad(...)."
    )


def _wrong_shape(source: MatrixSource, shape: object) -> DataError:
    return DataError(
        f"{source.path}: {source.name} has shape {shape}, but obs has {source.num_cells} cells and "
        f"var {len(source.genes)} genes. Write the file again with adata.write_h5ad(...)."
    )
