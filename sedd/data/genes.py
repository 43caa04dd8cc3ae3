"""Which genes a model is made of: given ones, all, or the most variable among training cells."""

from pathlib import Path

import numpy as np
from scipy import sparse

from sedd.data.cells import Cells
from sedd.data.choices import DataConfig
from sedd.data.splits import Split
from sedd.data.vocabulary import unknown_names_message
from sedd.errors import DataError, UsageError


def choose_genes(cells: Cells, split: Split, config: DataConfig) -> list[str]:
    """The given genes, all of them, or the most variable ones among training cells."""
    if config.gene_list is not None:
        return _listed_genes(cells, Path(config.gene_list))
    if config.num_genes == "all" or config.num_genes >= len(cells.genes):
        return list(cells.genes)
    import anndata
    import scanpy
    import torch

    threads = torch.get_num_threads()
    data = anndata.AnnData(sparse.csr_matrix(_sparse_log1p_cp10k(cells.select(split.train))))
    scanpy.pp.highly_variable_genes(data, n_top_genes=config.num_genes)
    torch.set_num_threads(threads)  # numba, inside scanpy, gives OpenMP all cores
    # Ranked here, because scanpy takes every gene that ties with the last one.
    dispersion = data.var["dispersions_norm"].fillna(-np.inf).to_numpy()
    chosen = np.argsort(-dispersion, kind="stable")[: config.num_genes]
    return [cells.genes[index] for index in np.sort(chosen)]


def _sparse_log1p_cp10k(cells: Cells) -> sparse.csr_array:
    values = cells.expression.astype(np.float32)
    if cells.kind == "log1p":
        return values
    per_entry = np.repeat((1e4 / cells.depth).astype(np.float32), np.diff(values.indptr))
    values.data = np.log1p(values.data * per_entry)
    return values


def _listed_genes(cells: Cells, path: Path) -> list[str]:
    if not path.is_file():
        raise UsageError(f"data.gene_list {path} does not exist; wanted one gene name per line.")
    wanted = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    wanted = list(dict.fromkeys(name for name in wanted if name))
    known = set(cells.genes)
    unknown = [name for name in wanted if name not in known]
    if not wanted:
        message = f"data.gene_list {path} is empty; wanted one gene name per line."
        raise DataError(message)
    if unknown:
        message = f"data.gene_list {path}: " + unknown_names_message(unknown, cells.genes, "gene")
        raise DataError(message)
    return wanted
