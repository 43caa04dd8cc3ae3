"""What is in an h5ad and what might surprise: the facts that the verb `validate` prints."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped

from sedd.data.cells import Cells, Contents, Request, read_contents
from sedd.data.hdf5 import listing
from sedd.data.matrix import InputKind, Kind

GeneNames = Literal["symbols", "Ensembl", "mixed"]

_FEW_CELLS = 10
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class DepthQuantiles:
    """Total counts per cell at fixed quantiles; empty cells count as 0."""

    minimum: float
    q05: float
    q25: float
    median: float
    q75: float
    q95: float
    maximum: float


@dataclass(frozen=True)
class Survey:
    """A file the model can use, in numbers."""

    path: str
    digest: str
    num_cells: int
    num_genes: int
    kind: Kind
    """Raw counts or log1p values."""

    gene_names: GeneNames
    depth: DepthQuantiles
    control_name: str
    cell_types: tuple[str, ...]
    """Rows of `table`, most cells first."""

    perturbations: tuple[str, ...]
    """Columns of `table`: the control, then most cells first."""

    table: tuple[tuple[int, ...], ...]
    """Number of cells of each cell type under each perturbation."""

    num_empty_cells: int
    """Cells with no counts at all: training refuses them until they are dropped."""

    num_duplicate_names: int
    obs_columns: tuple[str, ...]
    layers: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def controls(self) -> tuple[int, ...]:
        """Number of control cells of each cell type, in the order of `cell_types`."""
        return tuple(row[0] for row in self.table)

    def as_json(self) -> str:
        """All fields, indented."""
        return json.dumps(asdict(self), indent=2)


def survey(  # noqa: PLR0913  (one argument per name in the section `data` of a config)
    path: str | Path,
    *,
    perturbation_col: str,
    cell_type_col: str,
    control_name: str,
    layer: str | None = None,
    depth_col: str | None = None,
    kind: InputKind = "auto",
    batch_col: str | None = None,
) -> Survey:
    """The facts of a valid file, and warnings of what merely surprises.

    What `read_cells` refuses is a `DataError` here too, except cells without counts: those are
    counted and become a warning.
    """
    request = Request(
        perturbation_col, cell_type_col, control_name, layer, depth_col, kind, batch_col
    )
    contents = read_contents(Path(path), request)
    cells = contents.cells
    cell_types = _by_size(cells.cell_type)
    treatments = [name for name in _by_size(cells.perturbation) if name != control_name]
    perturbations = (control_name, *treatments)
    sizes = Counter(zip(cells.cell_type, cells.perturbation, strict=True))
    table = tuple(tuple(sizes[row, column] for column in perturbations) for row in cell_types)
    facts = Survey(
        path=str(path),
        digest=cells.source.digest,
        num_cells=len(cells),
        num_genes=len(cells.genes),
        kind=cells.kind,
        gene_names=_gene_names(cells.genes),
        depth=_depth_quantiles(cells.depth),
        control_name=control_name,
        cell_types=cell_types,
        perturbations=perturbations,
        table=table,
        num_empty_cells=int((cells.depth <= 0).sum()),
        num_duplicate_names=len(cells) - len(set(cells.names)),
        obs_columns=contents.obs_columns,
        layers=contents.layers,
        warnings=(),
    )
    return replace(facts, warnings=tuple(_warnings(facts, contents, request)))


def _warnings(facts: Survey, contents: Contents, request: Request) -> Iterable[str]:
    cells = contents.cells
    yield from _label_warnings(facts)
    yield from _table_warnings(facts)
    yield from _batch_warnings(cells, facts.control_name)
    if facts.num_empty_cells:
        yield (
            f"{facts.num_empty_cells} cells have no counts at all: training refuses them. Remove "
            f"them with adata[adata.X.sum(axis=1) > 0]."
        )
    if facts.num_duplicate_names:
        yield (
            f"{facts.num_duplicate_names} obs names repeat an earlier one; rows are told apart by "
            f"their position."
        )
    if facts.gene_names == "mixed":
        yield "Some gene names are Ensembl identifiers, others symbols: embeddings need one kind."
    if facts.kind == "log1p" and facts.layers:
        yield (
            f"The matrix holds log1p values. If one of the layers {listing(facts.layers)} has the "
            f"counts, read it with data.layer: generated cells are then counts too."
        )
    if request.depth_col is not None and cells.kind == "counts":
        low = int((cells.depth < cells.expression.sum(axis=1)).sum())
        if low:
            yield (
                f"{low} cells have a smaller {request.depth_col!r} than the counts in the file: "
                f"the column may not hold total counts."
            )


def _label_warnings(facts: Survey) -> Iterable[str]:
    for what, labels in (
        ("Cell types", facts.cell_types),
        ("Perturbations", facts.perturbations),
    ):
        alike: defaultdict[str, list[str]] = defaultdict(list)
        for label in labels:
            alike["".join(label.lower().split())].append(label)
        for group in alike.values():
            if len(group) > 1:
                yield (
                    f"{what} {listing(sorted(group))} differ only by upper case or spaces and are "
                    f"kept apart. Rename them in obs if they are the same."
                )


def _table_warnings(facts: Survey) -> Iterable[str]:
    pairs = zip(facts.cell_types, facts.controls, strict=True)
    without = [cell_type for cell_type, controls in pairs if controls == 0]
    if without:
        yield f"{len(without)} cell types have no control cells: {listing(without)}."
    if len(facts.perturbations) == 1:
        yield "There are only control cells: nothing can be learned about perturbations."
    if len(facts.cell_types) == 1:
        yield "There is a single cell type: nothing can be said about unseen cell types."
    few = [
        f"{cell_type} / {perturbation} ({num_cells})"
        for cell_type, row in zip(facts.cell_types, facts.table, strict=True)
        for perturbation, num_cells in zip(facts.perturbations, row, strict=True)
        if 0 < num_cells < _FEW_CELLS
    ]
    if few:
        yield f"{len(few)} pairs have fewer than {_FEW_CELLS} cells: {listing(few)}."


def _batch_warnings(cells: Cells, control_name: str) -> Iterable[str]:
    if cells.batch is None:
        return
    with_controls = set(cells.batch[cells.perturbation == control_name])
    without = sorted(set(cells.batch) - with_controls)
    if without:
        yield (
            f"{len(without)} batches have no control cells: {listing(without)}. A model that is "
            f"told the batch may take what was done to their cells for a property of the batch."
        )


def _by_size(labels: Shaped[np.ndarray, " cells"]) -> tuple[str, ...]:
    sizes = Counter(labels)
    return tuple(sorted(sizes, key=lambda label: (-sizes[label], label)))


def _gene_names(genes: tuple[str, ...]) -> GeneNames:
    ensembl = sum(gene.startswith("ENS") and gene[-1].isdigit() for gene in genes)
    # A few symbols begin like an Ensembl identifier (ENSA), a few identifiers have no symbol.
    if ensembl >= 0.95 * len(genes):
        return "Ensembl"
    return "symbols" if ensembl <= 0.05 * len(genes) else "mixed"


def _depth_quantiles(depth: Float[np.ndarray, " cells"]) -> DepthQuantiles:
    return DepthQuantiles(*(float(value) for value in np.quantile(depth, _QUANTILES)))
