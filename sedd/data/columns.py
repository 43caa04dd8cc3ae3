"""Columns of `obs` and `var`, from every layout anndata has written since 2017.

Today a table is a group with one dataset (or categorical group) per column; anndata 0.7 kept the
categories in a side group; before that a table was one compound dataset and the categories stood
in `uns`. Public files of all three kinds are in use, pertpy's Kang 2018 among the oldest.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
from jaxtyping import Bool, Float, Shaped

from sedd.data.hdf5 import attribute, dataset_at, listing, member, suggestion
from sedd.errors import DataError

# How a missing label looks once some program has turned it into text.
_MISSING_TEXT = frozenset({"", "nan", "NaN", "<NA>"})


@dataclass(frozen=True)
class Column:
    """Values of one column and where they are missing (the value is then arbitrary)."""

    values: Shaped[np.ndarray, " rows"]
    missing: Bool[np.ndarray, " rows"]


@dataclass(frozen=True)
class Table:
    """`obs` or `var` of an open file."""

    name: str
    node: h5py.Group | h5py.Dataset
    path: Path

    @classmethod
    def of(cls, file: h5py.File, name: str, path: Path) -> "Table":
        """The table `name` of a file that `open_h5ad` let through."""
        node = member(file, name)
        assert node is not None, "open_h5ad refuses files without obs or var"
        return cls(name, node, path)

    @property
    def index_name(self) -> str:
        """Name of the column that holds the row names."""
        if isinstance(self.node, h5py.Dataset):
            if not self.node.dtype.names:
                raise self._wrong_layout()
            return self.node.dtype.names[0]
        name = attribute(self.node, "_index", "_index")
        if member(self.node, name) is None:
            raise self._wrong_layout()
        return name

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns beside the row names, in alphabetical order."""
        index_name = self.index_name
        names = self.node.dtype.names if isinstance(self.node, h5py.Dataset) else self.node.keys()
        hidden = {index_name, "__categories"}
        return tuple(sorted(str(name) for name in names if name not in hidden))

    def __len__(self) -> int:
        node = (
            member(self.node, self.index_name) if isinstance(self.node, h5py.Group) else self.node
        )
        if isinstance(node, h5py.Group):
            node = dataset_at(node, "values") or dataset_at(node, "codes")
        shape = None if node is None else node.shape
        if shape is None or len(shape) != 1:
            raise self._wrong_layout()
        return int(shape[0])

    def row_names(self) -> Shaped[np.ndarray, " rows"]:
        """The index of the table as text."""
        return as_text(self.column(self.index_name).values)

    def column(self, name: str) -> Column:
        """One column, decoded; its length is that of the table."""
        if isinstance(self.node, h5py.Dataset):
            column = _legacy_column(self, name, self.node)
        else:
            column = _column(self, name, member(self.node, name))
        if len(column.values) != len(self):
            message = (
                f"{self.path}: {self.name}[{name!r}] has {len(column.values)} rows and "
                f"{self.name} has {len(self)}. Write the file again with adata.write_h5ad(...)."
            )
            raise DataError(message)
        return column

    def require(self, name: str, *, fix: str) -> None:
        """Refuses the name of a column that is not there; `fix` says how to name another."""
        if name not in self.columns:
            message = (
                f"{self.path}: {self.name} has no column {name!r}. "
                f"{suggestion(name, self.columns)}Columns: {listing(self.columns, limit=30)}. {fix}"
            )
            raise DataError(message)

    def _wrong_layout(self) -> DataError:
        return DataError(
            f"{self.path}: {self.name!r} is not a table that anndata writes. "
            f"Read the file with the program that made it and use adata.write_h5ad(...)."
        )


def read_labels(table: Table, name: str, *, flag: str) -> Shaped[np.ndarray, " rows"]:
    """A label column as text, complete: numbers and booleans become their shortest text.

    Labels are not trimmed: two that differ by a space stay two (the survey warns of them).
    """
    table.require(name, fix=f"Name the column with {flag}.")
    column = table.column(name)
    labels = as_text(column.values)
    blank = np.fromiter((label.strip() in _MISSING_TEXT for label in labels), bool, len(labels))
    rows = np.flatnonzero(column.missing | blank)
    if rows.size:
        names = table.row_names()[rows[:5]]
        message = (
            f"{table.path}: {rows.size} of {len(labels)} cells have no label in "
            f"{table.name}[{name!r}] (missing or empty), first rows {rows[:5].tolist()} "
            f"({listing(names)}). Label these cells, leave them out of the file, "
            f"or name another column with {flag}."
        )
        raise DataError(message)
    return labels


def read_depth(table: Table, name: str) -> Float[np.ndarray, " rows"]:
    """A column of total counts per cell: finite and positive everywhere."""
    table.require(name, fix="Name the column of total counts with data.depth_col, or leave it out.")
    column = table.column(name)
    if column.values.dtype.kind not in "iuf":
        message = (
            f"{table.path}: {table.name}[{name!r}] holds {_kind_of(column)}, but data.depth_col "
            f"needs numbers (total counts of each cell)."
        )
        raise DataError(message)
    depth = column.values.astype(np.float64)
    bad = np.flatnonzero(column.missing | ~np.isfinite(depth) | (depth <= 0))
    if bad.size:
        message = (
            f"{table.path}: {bad.size} of {depth.size} cells have no positive number in "
            f"{table.name}[{name!r}], first rows {bad[:5].tolist()}. Fill the column, drop these "
            f"cells, or leave data.depth_col out: depth is then the sum over the file's genes."
        )
        raise DataError(message)
    return depth


def read_gene_names(var: Table) -> tuple[str, ...]:
    """Row names of `var`, each there once."""
    genes = tuple(var.row_names())
    if len(set(genes)) != len(genes):
        twice = repeated(genes)
        message = (
            f"{var.path}: {len(twice)} gene names occur more than once: {listing(twice, limit=5)}. "
            f"Make them unique with adata.var_names_make_unique(), or add their counts up."
        )
        raise DataError(message)
    return genes


def repeated(names: Iterable[str]) -> list[str]:
    """Names that occur more than once, in the order in which they come again."""
    seen: set[str] = set()
    twice = {name: None for name in names if name in seen or seen.add(name)}
    return list(twice)


def as_text(values: Shaped[np.ndarray, " rows"]) -> Shaped[np.ndarray, " rows"]:
    """Values as an object array of str: 3.0 and 3 become '3', True becomes 'True'."""
    text = np.empty(len(values), dtype=object)
    if values.dtype.kind == "f":
        text[:] = [str(int(v)) if v.is_integer() else str(v) for v in values]
    else:
        text[:] = [str(value) for value in values]
    return text


def _column(table: Table, name: str, node: h5py.Group | h5py.Dataset | None) -> Column:
    """A column of a group table: plain, nullable (values + mask) or categorical."""
    if node is None:
        raise _unusable(table, name, "not stored as values")
    if isinstance(node, h5py.Group):
        return _column_group(table, name, node)
    plain = _values(table, name, node[()])
    reference = node.attrs.get("categories")
    if isinstance(reference, h5py.Reference):
        categories = node.file[reference]  # pyright: ignore[reportArgumentType]
        if isinstance(categories, h5py.Dataset):
            return _from_codes(table, name, plain, _values(table, name, categories[()]))
    return plain


def _column_group(table: Table, name: str, group: h5py.Group) -> Column:
    codes, categories = dataset_at(group, "codes"), member(group, "categories")
    if codes is not None and categories is not None:
        return _from_codes(
            table, name, _values(table, name, codes[()]), _column(table, name, categories)
        )
    values, mask = dataset_at(group, "values"), dataset_at(group, "mask")
    if values is not None and mask is not None:
        plain = _values(table, name, values[()])
        if mask.shape == plain.missing.shape and mask.dtype.kind == "b":
            return Column(plain.values, plain.missing | mask[:])
    raise _unusable(table, name, f"a group of {listing(group)}")


def _legacy_column(table: Table, name: str, records: h5py.Dataset) -> Column:
    """A field of a compound table; its categories, if any, stand in `uns/NAME_categories`."""
    plain = _values(table, name, records.fields(name)[()])
    categories = records.file.get(f"uns/{name}_categories")
    if not isinstance(categories, h5py.Dataset) or plain.values.dtype.kind not in "iu":
        return plain
    return _from_codes(table, name, plain, _values(table, name, categories[()]))


def _values(table: Table, name: str, raw: object) -> Column:
    """What h5py read, as text, numbers or booleans in one dimension."""
    values = np.atleast_1d(np.asarray(raw))
    if values.dtype.kind in "SO":
        values = _decoded(table, name, values)
    if values.ndim != 1 or values.dtype.kind not in "biufO":
        raise _unusable(table, name, f"an array of {values.dtype} with shape {values.shape}")
    missing = ~np.isfinite(values) if values.dtype.kind == "f" else np.zeros(values.shape, bool)
    return Column(values, missing)


def _from_codes(table: Table, name: str, code_column: Column, categories: Column) -> Column:
    codes, num = code_column.values, len(categories.values)
    if codes.dtype.kind not in "iu":
        raise _unusable(table, name, f"categorical with codes of type {codes.dtype}")
    wrong = (codes < -1) | (codes >= num) if codes.dtype.kind == "i" else codes >= num
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        message = (
            f"{table.path}: {table.name}[{name!r}] has {num} categories, but row {row} points at "
            f"category {codes[row]} ({int(wrong.sum())} such rows). The file is damaged: write it "
            f"again from its source."
        )
        raise DataError(message)
    missing = codes < 0
    if num == 0:
        return Column(np.full(codes.shape, "", dtype=object), np.ones(codes.shape, dtype=bool))
    safe = np.where(missing, 0, codes).astype(np.int64)
    return Column(categories.values[safe], missing | categories.missing[safe])


def _decoded(table: Table, name: str, raw: np.ndarray) -> np.ndarray:
    """Text as objects of type str; h5py hands it over as bytes."""
    if raw.ndim != 1 or not all(isinstance(word, bytes | str) for word in raw):
        raise _unusable(table, name, "not one text per row")
    try:
        words = [word.decode() if isinstance(word, bytes) else word for word in raw]
    except UnicodeDecodeError as error:
        message = (
            f"{table.path}: {table.name}[{name!r}] holds text that is not UTF-8 ({error.reason}). "
            f"Write the column again as UTF-8."
        )
        raise DataError(message) from error
    text = np.empty(len(words), dtype=object)
    text[:] = words
    return text


def _unusable(table: Table, name: str, what: str) -> DataError:
    return DataError(
        f"{table.path}: {table.name}[{name!r}] cannot be used: it is {what}. A column must hold "
        f"text, categories, numbers or booleans, one per row."
    )


def _kind_of(column: Column) -> str:
    return "booleans" if column.values.dtype.kind == "b" else "text"
