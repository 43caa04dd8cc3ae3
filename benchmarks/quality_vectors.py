"""Given vectors of the perturbations of a study: as the model reads them, and the baselines."""

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float
from safetensors.numpy import save_file

from benchmarks.quality_study import Job
from sedd.data.cells import Cells
from sedd.data.choices import DataConfig
from sedd.data.vectors import read_vectors
from sedd.data.vocabulary import Vocabulary
from sedd.errors import DataError
from sedd.evaluation.shifts import Perturbations
from sedd.storage import file_digest, whole_folder

FILE = "vectors.safetensors"


def with_readable_vectors(job: Job, cells: Cells, folder: Path) -> Job:
    """The job with the gene embedding of its configuration as a file that training reads.

    An `.npz` with `genes` and `embedding` [genes, given] becomes a vector for each perturbation (of
    each part of a combination) in a subfolder of `folder`, unless it is there from before; other
    files are left to training. Training perturbations whose gene has no row get the mean of the
    vectors of the others.

    Raises:
        DataError: The file is no such `.npz`, or a perturbation that is held out has no row.
    """
    given = job.config.data.cond_labels_pt_path
    if given is None or Path(given).suffix != ".npz":
        return job
    vocabulary = _vocabulary(job.config.data, cells)
    names = vocabulary.parts().names[1:]
    known = _read_rows(Path(given), names)
    told = Perturbations.of(vocabulary).parts
    held_out = {part for name in job.config.split.perturbations for part in told[name]}
    missing = sorted(held_out - set(known))
    if missing or not known:
        raise DataError(
            f"{given} has no row for {missing or 'any perturbation'}, so nothing tells what a "
            "held-out perturbation is. Hold out others, or give another embedding."
        )
    digest = hashlib.sha256(repr((file_digest(Path(given)), names)).encode()).hexdigest()[:16]
    path = folder / f"{Path(given).stem}-{digest}" / FILE
    if not path.is_file():
        unknown = np.mean(list(known.values()), axis=0)
        with whole_folder(path.parent) as unfinished:
            save_file({name: known.get(name, unknown) for name in names}, unfinished / FILE)
    data = replace(job.config.data, cond_labels_pt_path=str(path))
    return replace(job, config=replace(job.config, data=data))


def read_perturbations(data: DataConfig, cells: Cells) -> Perturbations:
    """What the labels of the cells mean, with the vectors that the configuration names."""
    vocabulary = _vocabulary(data, cells)
    path = data.cond_labels_pt_path
    if path is None:
        return Perturbations.of(vocabulary)
    names = vocabulary.parts().names
    return Perturbations.of(vocabulary, read_vectors(Path(path), names, zero=data.control_name))


def _vocabulary(data: DataConfig, cells: Cells) -> Vocabulary:
    return Vocabulary.of(
        genes=cells.genes,
        perturbations=cells.perturbation,
        cell_types=cells.cell_type,
        control_name=data.control_name,
        separator=data.combination_separator,
    )


def _read_rows(path: Path, names: tuple[str, ...]) -> dict[str, Float[np.ndarray, " given"]]:
    """The rows of an embedding of genes that are among the names."""
    try:
        with np.load(path, allow_pickle=False) as file:
            genes, embedding = file["genes"].tolist(), file["embedding"].astype(np.float32)
        row = dict(zip(genes, embedding, strict=True))
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"{path} is no embedding of genes ({type(error).__name__}: {error}); wanted an .npz "
            "with `genes` and `embedding`, a row for each gene."
        ) from error
    return {name: np.ascontiguousarray(row[name]) for name in names if name in row}
