"""The field's own judges, cell-eval and cell-eval2, on our predictions.

A `Question` is one cell type with all its held-out perturbations. `judge` writes prediction and
truth as a pair of h5ads, which the command lines of the judges read as well, runs the real package
on them and returns its numbers. Both files hold the *same real controls*: a judge subtracts each
file's own controls, and predicted ones would move every score.

**Depth.** A library size counts all genes of a cell's file, a panel only some, and the judges
normalise a cell by the sum of what they are given. On a panel that would turn a response (hundreds
of interferon genes up) into a fall of every other gene, and forgive a prediction with too many
counts. So both sides are normalised by the library size:

* cell-eval gets log1p of counts per 10,000 *of the library*, the numbers of our own metrics, and is
  told that they are log1p. (From counts it would normalise each file to a median of its own.)
* cell-eval2, which takes counts alone, gets them with one more gene, `OTHER_GENES`: the counts of
  the library outside the panel. It is there in both files, or in neither where the panel is
  everything. It weighs as much as any other gene.
"""

import importlib.metadata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Integer, Shaped
from scipy import sparse

from sedd.errors import DataError, UsageError
from sedd.evaluation.judge_runs import (
    ALL,
    CELL_EVAL,
    CELL_EVAL2,
    PERTURBATION,
    RUNS,
    Files,
    LeftOut,
    Verdict,
)

__all__ = [
    "ALL",
    "CELL_EVAL",
    "CELL_EVAL2",
    "JUDGES",
    "LabelledCounts",
    "LeftOut",
    "Question",
    "Verdict",
    "judge",
    "require_judges",
    "rounded_counts",
    "write_question",
]

JUDGES = tuple(RUNS)
SERIES = {CELL_EVAL: "0.8.", CELL_EVAL2: "0.20."}
"""Versions whose input and metrics this module was checked against."""

OTHER_GENES = "genes outside the panel"
MIN_CELLS = 2
SNAP = 2e-6
"""Relative error of log1p values in float32, on the scale of counts."""


@dataclass(frozen=True, eq=False)
class LabelledCounts:
    """Raw counts over the panel, with the label and the library size (all genes) of each cell."""

    counts: Integer[np.ndarray, "cells genes"]
    perturbation: Shaped[np.ndarray, " cells"]
    depth: Float[np.ndarray, " cells"]


@dataclass(frozen=True, eq=False)
class Question:
    """Predicted, real perturbed and real control cells of one cell type.

    Raises:
        DataError: Genes or labels of prediction and truth differ, or a label has fewer than
            `MIN_CELLS` cells.
    """

    genes: tuple[str, ...]
    control_name: str
    predicted: LabelledCounts
    real: LabelledCounts
    control: LabelledCounts

    def __post_init__(self) -> None:
        for name in ("predicted", "real", "control"):
            self._require_sound(name, getattr(self, name))
        predicted, real = set(self.predicted.perturbation), set(self.real.perturbation)
        if predicted != real:
            msg = (
                f"Predicted and real cells carry different labels: only predicted "
                f"{sorted(predicted - real)}, only real {sorted(real - predicted)}. A judge "
                "compares label by label: predict each real perturbation and nothing else."
            )
            raise DataError(msg)
        control = set(self.control.perturbation)
        if control != {self.control_name} or self.control_name in real:
            msg = (
                f"Control cells are labelled {sorted(control)} and perturbed ones {sorted(real)}, "
                f"but {self.control_name!r} has to be the label of all control cells and of no "
                "other."
            )
            raise DataError(msg)

    @property
    def perturbations(self) -> tuple[str, ...]:
        """Labels, sorted."""
        return tuple(sorted(set(self.real.perturbation)))

    def _require_sound(self, name: str, cells: LabelledCounts) -> None:
        if cells.counts.shape[1] != len(self.genes) or len(set(self.genes)) != len(self.genes):
            msg = (
                f"The {name} cells have {cells.counts.shape[1]} genes, the panel "
                f"{len(self.genes)} names, {len(set(self.genes))} of them different. Select the "
                "same genes, each once, on all sides."
            )
            raise DataError(msg)
        labels, numbers = np.unique(cells.perturbation.astype(str), return_counts=True)
        few = labels[numbers < MIN_CELLS].tolist()
        if few or len(labels) == 0:
            msg = (
                f"Too few {name} cells{f' of {few}' if few else ''} to judge: each label needs "
                f"{MIN_CELLS}. Leave these labels out."
            )
            raise DataError(msg)
        if cells.counts.min() < 0 or not np.all(cells.depth > 0):
            msg = (
                f"The {name} cells have a negative count or a library size of 0. Judges take raw "
                "counts: give those, not normalised values, and leave empty cells out."
            )
            raise DataError(msg)


def judge(name: str, question: Question, folder: Path, *, num_threads: int = 1) -> Verdict:
    """Write `prediction.h5ad` and `truth.h5ad` into the folder and have them judged.

    Args:
        name: one of `JUDGES`.
        question: the cells.
        folder: made if absent; files of an earlier run are replaced.
        num_threads: of the judge's rank tests.
    """
    require_judges([name])
    prediction, truth = write_question(name, question, folder)
    files = Files(prediction, truth, question.control_name, question.perturbations, question.genes)
    return RUNS[name](files, importlib.metadata.version(name), num_threads)


def require_judges(names: Iterable[str]) -> None:
    """UsageError, before any work is done, if one of the judges cannot be run here."""
    for name in names:
        if name not in RUNS:
            msg = f"There is no judge {name!r}. Choose from: {', '.join(JUDGES)}."
            raise UsageError(msg)
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            version = None
        if version is None or not version.startswith(SERIES[name]):
            found = "is not installed" if version is None else f"is installed as {version}"
            msg = (
                f"The judge {name} {found}; {SERIES[name]}x is wanted. "
                "Install it with: pip install '.[eval]'"
            )
            raise UsageError(msg)


def write_question(name: str, question: Question, folder: Path) -> tuple[Path, Path]:
    """`prediction.h5ad` and `truth.h5ad` in the form this judge takes; `obs['perturbation']`.

    X is float32 CSR: log1p of counts per 10,000 for cell-eval, integers for cell-eval2.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sides = (question.predicted, question.real, question.control)
    matrices, genes = [_log1p_cp10k(cells) for cells in sides], question.genes
    if name == CELL_EVAL2:
        matrices = [sparse.csr_matrix(cells.counts, dtype=np.float32) for cells in sides]
        rest = [_counts_elsewhere(cells) for cells in sides]
        if any(counts.any() for counts in rest):
            genes = (*genes, OTHER_GENES)
            matrices = [
                sparse.csr_matrix(sparse.hstack([matrix, counts[:, None]]))
                for matrix, counts in zip(matrices, rest, strict=True)
            ]
    predicted, real, control = matrices
    prediction, truth = folder / "prediction.h5ad", folder / "truth.h5ad"
    labels = question.control.perturbation
    _write(prediction, (control, predicted), (labels, question.predicted.perturbation), genes)
    _write(truth, (control, real), (labels, question.real.perturbation), genes)
    return prediction, truth


def rounded_counts(
    cells_log1p: Float[np.ndarray, "cells genes"],
    depth: Float[np.ndarray, " cells"],
    *,
    seed: int = 0,
) -> Int[np.ndarray, "cells genes"]:
    """Counts at random whose expected log1p(counts per 10,000 of the depth) is `cells_log1p`.

    Each value falls on one of the two whole counts around it. Their odds keep the mean of the
    *logarithm*, which is what a method in that space predicts; odds that keep the mean count would
    lose most of a small shift added to a silent gene (Jensen). Whole counts come back as they
    are. For judging methods that do not predict counts, such as the additive baseline.
    """
    if cells_log1p.size and cells_log1p.min() < 0:
        msg = (
            f"The least log1p value is {cells_log1p.min():.3g}, and there is no negative "
            "expression. Clip the prediction at 0."
        )
        raise DataError(msg)
    unit = 1e4 / depth.astype(np.float64)[:, None]
    log1p = cells_log1p.astype(np.float64)
    counts = np.expm1(log1p) / unit
    whole = np.rint(counts)
    is_whole = np.abs(counts - whole) <= SNAP * (counts + 1 / unit)
    lower = np.where(is_whole, whole, np.floor(counts))
    low_log1p = np.log1p(lower * unit)
    up = (log1p - low_log1p) / (np.log1p((lower + 1) * unit) - low_log1p)
    raised = (np.random.default_rng(seed).random(counts.shape) < up) & ~is_whole
    return (lower + raised).astype(np.int32)


def _log1p_cp10k(cells: LabelledCounts) -> sparse.csr_matrix:
    matrix = sparse.csr_matrix(cells.counts, dtype=np.float64)
    scale = np.repeat(1e4 / cells.depth, np.diff(matrix.indptr))
    matrix.data = np.log1p(matrix.data * scale)
    return matrix.astype(np.float32)


def _counts_elsewhere(cells: LabelledCounts) -> Float[np.ndarray, " cells"]:
    """Counts of the library outside the panel; 0 where the panel has more than the library."""
    panel = cells.counts.sum(axis=1)
    return np.maximum(np.rint(cells.depth) - panel, 0).astype(np.float32)


def _write(
    path: Path,
    matrices: tuple[sparse.csr_matrix, sparse.csr_matrix],
    labels: tuple[Shaped[np.ndarray, " control"], Shaped[np.ndarray, " perturbed"]],
    genes: tuple[str, ...],
) -> None:
    import anndata
    import pandas

    label = np.concatenate(labels).astype(str)
    obs = pandas.DataFrame(
        {PERTURBATION: pandas.Categorical(label)},
        index=pandas.Index([f"{position}" for position in range(len(label))], dtype=object),
    )
    var = pandas.DataFrame(index=pandas.Index(genes, dtype=object))
    adata = anndata.AnnData(X=sparse.vstack(matrices, format="csr"), obs=obs, var=var)
    unfinished = path.with_name(f".{path.name}")
    adata.write_h5ad(unfinished, compression="gzip")
    unfinished.replace(path)
