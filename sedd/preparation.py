"""From cells to what training reads: genes chosen, counts tokenised, controls summarised.

Only training and validation cells go in. A held-out cell never reaches a gene choice, a bin, a
statistic or a file written here.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy import sparse

from sedd.data.cells import Cells
from sedd.data.choices import DataConfig
from sedd.data.controls import ControlCells, control_statistics
from sedd.data.effects import measure_effects
from sedd.data.reference import Reference, measure_scales
from sedd.data.shards import Shards
from sedd.data.splits import Split
from sedd.data.tokens import Tokenizer
from sedd.data.vectors import read_vectors
from sedd.data.vocabulary import Vocabulary, unknown_names_message
from sedd.errors import DataError, UsageError
from sedd.model.config import ModelConfig
from sedd.model.embeddings import ordinal_basis
from sedd.storage import file_digest


def prepare(
    cells: Cells, split: Split, config: DataConfig, model: ModelConfig, *, seed: int = 0
) -> Shards:
    """Choose genes and bins, tokenise, and measure what the model starts from.

    Everything measured uses `split.train` alone; validation cells are only tokenised.
    """
    genes = choose_genes(cells, split, config)
    vocabulary = Vocabulary.of(
        genes=genes,
        perturbations=cells.perturbation,
        cell_types=cells.cell_type,
        control_name=config.control_name,
    )
    _require_meaning(vocabulary, cells, split, config)
    row = np.sort(np.concatenate([split.train, split.validation]))
    kept = cells.select(row, genes)
    validation = np.isin(row, split.validation)
    train = kept.select(~validation)
    tokenizer = Tokenizer.fit(
        train.expression.toarray(),
        kind=cells.kind,
        exact=config.exact_counts,
        ratio=config.bin_ratio,
    )
    reference = _measure(train, row[~validation], vocabulary, tokenizer, config, model, seed)
    return Shards(
        reference,
        tokenizer.encode(kept.expression.toarray()),
        vocabulary.perturbation_ids(kept.perturbation),
        vocabulary.cell_type_ids(kept.cell_type),
        kept.depth,
        validation,
        row,
    )


def _require_meaning(
    vocabulary: Vocabulary, cells: Cells, split: Split, config: DataConfig
) -> None:
    """Refuse perturbations that no training cell shows and no given vector describes."""
    if config.cond_labels_pt_path is not None:
        return
    unseen = sorted(set(vocabulary.perturbations) - set(cells.perturbation[split.train]))
    if unseen:
        message = (
            f"No training cell shows {len(unseen)} of the perturbations, e.g. {unseen[:3]}, so "
            "the model cannot know what they mean. Give vectors of the perturbations with "
            "--cond_labels_pt_path, or hold out fewer."
        )
        raise UsageError(message)


def shard_settings(data: DataConfig, model: ModelConfig, *, seed: int) -> dict[str, Any]:
    """Every setting that changes what `prepare` writes; part of the shards' fingerprint."""
    settings = {
        name: getattr(data, name)
        for name in ("num_genes", "gene_list", "layer", "depth_col", "input_kind", "exact_counts",
                     "bin_ratio", "control_cells_per_type", "control_name")
    }  # fmt: skip
    for name in ("gene_list", "cond_labels_pt_path", "celltype_labels_pt_path"):
        path = getattr(data, name)
        settings[name] = file_digest(Path(path)) if path and Path(path).is_file() else path
    model_settings = ("global_share", "output_prior", "ordinal_rank", "token_encoder")
    return settings | {name: getattr(model, name) for name in model_settings} | {"seed": seed}


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


def _measure(
    train: Cells,
    row: Int[np.ndarray, " cells"],
    vocabulary: Vocabulary,
    tokenizer: Tokenizer,
    config: DataConfig,
    model: ModelConfig,
    seed: int,
) -> Reference:
    """Everything the model starts from, from training cells; `row` is their row in the file."""
    values = train.expression.toarray()
    tokens = tokenizer.encode(values)
    log1p = train.log1p_cp10k()
    perturbation = vocabulary.perturbation_ids(train.perturbation)
    cell_type = vocabulary.cell_type_ids(train.cell_type)
    share = model.global_share if model.output_prior else 1.0
    controls = control_statistics(
        tokens,
        log1p,
        cell_type=cell_type,
        is_control=perturbation == 0,
        num_types=len(vocabulary.cell_types),
        num_bins=tokenizer.num_bins,
    )
    effects = measure_effects(
        tokens,
        log1p,
        cell_type=cell_type,
        perturbation=perturbation,
        log_prior=controls.log_prior(global_share=share),
        basis=ordinal_basis(tokenizer.centers, model.ordinal_rank),
        num_perturbations=len(vocabulary.perturbations),
    )
    level = tokenizer.expected(tokens)
    scales = measure_scales(
        np.log1p(level) if tokenizer.kind == "counts" else level,
        train.depth,
        num_factors=max(1, model.token_encoder),
        seed=seed,
    )
    chosen = _some_controls(perturbation, cell_type, config.control_cells_per_type, seed)
    control_cells = ControlCells(
        cell_type[chosen], row[chosen], train.depth[chosen], values[chosen]
    )
    return Reference(
        vocabulary,
        tokenizer,
        controls,
        control_cells,
        effects,
        scales,
        perturbation_vectors=_vectors(
            config.cond_labels_pt_path, vocabulary.perturbations, zero=vocabulary.control_name
        ),
        cell_type_vectors=_vectors(config.celltype_labels_pt_path, vocabulary.cell_types),
    )


def _vectors(
    path: str | None, names: Sequence[str], *, zero: str | None = None
) -> Float[np.ndarray, "names given"] | None:
    return None if path is None else read_vectors(Path(path), names, zero=zero)


def _some_controls(
    perturbation: Int[np.ndarray, " cells"],
    cell_type: Int[np.ndarray, " cells"],
    most: int,
    seed: int,
) -> Int[np.ndarray, " chosen"]:
    """At most `most` control cells of each type, ordered by type."""
    rng = np.random.default_rng(seed)
    chosen = []
    for number in np.unique(cell_type):
        rows = np.flatnonzero((perturbation == 0) & (cell_type == number))
        chosen.append(np.sort(rng.permutation(rows)[:most]))
    return np.concatenate(chosen)
