"""Cells and their labels: the only door through which an h5ad enters, and the way back out.

`read_cells` either returns cells the model can learn from or raises one `DataError` that says what
came, what was wanted and how to fix it. The file is checked before its matrix is touched (see
`hdf5`, `columns`, `matrix`), because anndata and scipy trust what a file declares.
"""

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Float32, Integer, Shaped
from scipy import sparse

from sedd.data.columns import Table, read_depth, read_gene_names, read_labels, repeated
from sedd.data.digest import content_digest
from sedd.data.hdf5 import listing, open_h5ad, suggestion
from sedd.data.matrix import InputKind, Kind, find_matrix, layer_names, read_expression
from sedd.errors import DataError, StorageError


@dataclass(frozen=True)
class Source:
    """Where cells came from: the path for people, the digest for everything else."""

    path: str
    digest: str
    """sha256 of the content (`content_digest`): equal for equal cells, however they are stored."""


@dataclass(frozen=True, eq=False)
class Cells:
    """Expression of cells with their labels. Row i of every array is the same cell."""

    expression: sparse.csr_array
    """Cells by genes, canonical CSR: int32 raw counts or float32 log1p values."""

    genes: tuple[str, ...]
    perturbation: Shaped[np.ndarray, " cells"]
    """Object array of str, as are `cell_type` and `names`."""

    cell_type: Shaped[np.ndarray, " cells"]
    depth: Float[np.ndarray, " cells"]
    """Total counts of each cell over all genes of its file (not only those selected here), or the
    column `data.depth_col`; for log1p the total of expm1, in the units of the normalisation."""

    kind: Kind
    names: Shaped[np.ndarray, " cells"]
    source: Source
    batch: Shaped[np.ndarray, " cells"] | None = None
    """Batch (donor, plate) of each cell as an object array of str, or None if no column says."""

    def __len__(self) -> int:
        return len(self.names)

    def select(
        self,
        rows: Integer[np.ndarray, " chosen"] | Bool[np.ndarray, " cells"] | None = None,
        genes: Sequence[str] | None = None,
    ) -> "Cells":
        """The cells of an index array or mask and the named genes, both in the order given.

        Depth stays what it was: it belongs to the cell, not to the choice of genes.
        """
        cells = self
        if rows is not None:
            cells = replace(
                cells,
                expression=cells.expression[rows],
                perturbation=cells.perturbation[rows],
                cell_type=cells.cell_type[rows],
                depth=cells.depth[rows],
                names=cells.names[rows],
                batch=None if cells.batch is None else cells.batch[rows],
            )
        if genes is not None:
            expression = cells.expression[:, self._gene_positions(genes)]
            expression.sort_indices()
            cells = replace(cells, expression=expression, genes=tuple(genes))
        return cells

    def batch_labels(self) -> Shaped[np.ndarray, " cells"]:
        """Batch of each cell; None for every cell if no column says."""
        return np.full(len(self), None) if self.batch is None else self.batch

    def log1p_cp10k(self) -> Float32[np.ndarray, "cells genes"]:
        """Dense log1p of counts per 10,000 of the cell's depth; log1p cells as they are."""
        if self.kind == "log1p":
            return self.expression.toarray()
        scale = np.repeat(1e4 / self.depth, np.diff(self.expression.indptr))
        logged = np.log1p(self.expression.data * scale).astype(np.float32)
        parts = (logged, self.expression.indices, self.expression.indptr)
        return sparse.csr_array(parts, shape=self.expression.shape).toarray()

    def _gene_positions(self, genes: Sequence[str]) -> Integer[np.ndarray, " chosen"]:
        position = {gene: index for index, gene in enumerate(self.genes)}
        unknown = [gene for gene in genes if gene not in position]
        if unknown:
            message = (
                f"{len(unknown)} of {len(genes)} genes are not in {self.source.path}: "
                f"{listing(unknown, limit=5)}. {suggestion(unknown[0], self.genes)}"
                f"The file has {len(self.genes)} genes, e.g. {listing(self.genes[:3])}."
            )
            raise DataError(message)
        if len(set(genes)) != len(genes):
            message = f"Genes named twice: {listing(repeated(genes), limit=5)}. Name each once."
            raise DataError(message)
        return np.array([position[gene] for gene in genes], dtype=np.int64)


@dataclass(frozen=True)
class Request:
    """Which columns and which matrix of a file to read."""

    perturbation_col: str
    cell_type_col: str
    control_name: str
    layer: str | None = None
    depth_col: str | None = None
    kind: InputKind = "auto"
    batch_col: str | None = None


@dataclass(frozen=True, eq=False)
class Contents:
    """A valid file, before empty cells are refused, and what else could be read from it."""

    cells: Cells
    obs_columns: tuple[str, ...]
    layers: tuple[str, ...]


def read_cells(  # noqa: PLR0913  (one argument per name in the section `data` of a config)
    path: str | Path,
    *,
    perturbation_col: str,
    cell_type_col: str,
    control_name: str,
    layer: str | None = None,
    depth_col: str | None = None,
    kind: InputKind = "auto",
    batch_col: str | None = None,
    drop_empty_cells: bool = False,
) -> Cells:
    """Validated cells of an h5ad; `DataError` on anything the model could not learn from.

    Args:
        path: the h5ad, written by any version of anndata.
        perturbation_col: column of `obs` that says what was done to a cell.
        cell_type_col: column of `obs` with the cell types.
        control_name: label of unperturbed cells in `perturbation_col`.
        layer: layer to read in place of `X`.
        depth_col: numeric column with the total counts of each cell, for files cut to few genes.
        kind: what the matrix holds; "auto" finds out, a named kind must be what is found.
        batch_col: column of `obs` with the batch (donor, plate) of each cell.
        drop_empty_cells: leave out cells without a single count, which have no depth to condition
            on. By default they are an error, since rows should not vanish unasked.
    """
    request = Request(
        perturbation_col, cell_type_col, control_name, layer, depth_col, kind, batch_col
    )
    cells = read_contents(Path(path), request).cells
    empty = np.flatnonzero(cells.depth <= 0)
    if not empty.size:
        return cells
    if not drop_empty_cells:
        message = (
            f"{path}: {empty.size} of {len(cells)} cells have no counts at all, first rows "
            f"{empty[:5].tolist()} ({listing(cells.names[empty[:5]])}). Remove them with "
            f"adata[adata.X.sum(axis=1) > 0] (or drop_empty_cells=True in Python), or name a "
            f"column of total counts with data.depth_col."
        )
        raise DataError(message)
    return _with_digest(cells.select(rows=cells.depth > 0), cells.source.path)


def read_contents(path: Path, request: Request) -> Contents:
    """Everything `read_cells` checks, except that empty cells are let through."""
    with open_h5ad(path) as file:
        obs, var = Table.of(file, "obs", path), Table.of(file, "var", path)
        if len(obs) < 2 or len(var) == 0:
            message = (
                f"{path} has {len(obs)} cells and {len(var)} genes; at least a control cell, a "
                f"perturbed cell and a gene are needed. Check the filter that wrote the file."
            )
            raise DataError(message)
        _require_different_columns(obs, request)
        perturbation = read_labels(obs, request.perturbation_col, flag="--gene")
        cell_type = read_labels(obs, request.cell_type_col, flag="--cell_type_col")
        batch = None
        if request.batch_col is not None:
            batch = read_labels(obs, request.batch_col, flag="--batch_col")
        _require_control(perturbation, request, path)
        depth = read_depth(obs, request.depth_col) if request.depth_col is not None else None
        genes = read_gene_names(var)
        matrix = find_matrix(file, path, request.layer, genes=genes, num_cells=len(obs))
        expression, kind = read_expression(matrix, request.kind)
        depth = _totals(expression, kind) if depth is None else depth
        names = obs.row_names()
        source = Source(str(path), "")
        cells = Cells(expression, genes, perturbation, cell_type, depth, kind, names, source, batch)
        return Contents(_with_digest(cells, str(path)), obs.columns, layer_names(file))


def write_h5ad(cells: Cells, path: str | Path) -> None:
    """Writes cells as `read_cells` reads them: X, `obs` perturbation, cell_type, depth, batch.

    The file appears under its name only when it is complete, so a crash leaves an older one whole.
    """
    import anndata
    import pandas

    path = Path(path)
    columns = {
        "perturbation": pandas.Categorical(cells.perturbation),
        "cell_type": pandas.Categorical(cells.cell_type),
        "depth": cells.depth,
    }
    if cells.batch is not None:
        columns["batch"] = pandas.Categorical(cells.batch)
    obs = pandas.DataFrame(columns, index=pandas.Index(cells.names, dtype=object))
    var = pandas.DataFrame(index=pandas.Index(cells.genes, dtype=object))
    adata = anndata.AnnData(X=sparse.csr_matrix(cells.expression), obs=obs, var=var)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
            unfinished = Path(folder) / path.name
            adata.write_h5ad(unfinished, compression="gzip")
            with unfinished.open("rb+") as stream:
                os.fsync(stream.fileno())
            unfinished.replace(path)
    except OSError as error:
        message = (
            f"{path} could not be written ({error.strerror or error}). Check that the folder "
            f"exists, that it may be written to and that the disk has room."
        )
        raise StorageError(message) from error


def _with_digest(cells: Cells, path: str) -> Cells:
    labels = [cells.perturbation, cells.cell_type]
    if cells.batch is not None:
        labels.append(cells.batch)
    digest = content_digest(cells.expression, cells.genes, labels, cells.depth)
    return replace(cells, source=Source(path, digest))


def _require_different_columns(obs: Table, request: Request) -> None:
    named = {
        "perturbation (--gene)": request.perturbation_col,
        "cell type (--cell_type_col)": request.cell_type_col,
        "batch (--batch_col)": request.batch_col,
    }
    for (one, name), (other, again) in combinations(named.items(), 2):
        if name == again:
            message = (
                f"Column {name!r} is named both as {one} and as {other}. "
                f"Name two columns: {listing(obs.columns, limit=30)}."
            )
            raise DataError(message)


def _require_control(
    perturbation: Shaped[np.ndarray, " cells"], request: Request, path: Path
) -> None:
    labels = sorted(set(perturbation))
    if request.control_name not in labels:
        message = (
            f"{path}: no cell is labelled {request.control_name!r} in "
            f"obs[{request.perturbation_col!r}], so there are no control cells. "
            f"{suggestion(request.control_name, labels)}Labels: {listing(labels)}. "
            f"Name the label of unperturbed cells with --control_name."
        )
        raise DataError(message)


def _totals(expression: sparse.csr_array, kind: Kind) -> Float[np.ndarray, " cells"]:
    values = expression.data.astype(np.float64)
    values = values if kind == "counts" else np.expm1(values)
    parts = (values, expression.indices, expression.indptr)
    return np.asarray(sparse.csr_array(parts, shape=expression.shape).sum(axis=1))
