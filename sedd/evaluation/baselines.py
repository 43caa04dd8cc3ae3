"""Predictions without a network, which a model has to beat, and the ceiling it cannot.

For a held-out (cell type, perturbation) the baselines see the control cells of the type, the cells
of the *other* types and those of the type's other perturbations; only the ceiling sees the held-out
perturbed cells themselves.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

from sedd.errors import DataError
from sedd.evaluation.prediction import Prediction
from sedd.evaluation.shifts import Perturbations, additive_shift, ridge_shift

NO_CHANGE = "no_change"
MEAN_OF_OTHERS = "mean_of_others"
ADDITIVE = "additive"
TOKEN_TILT = "token_tilt"
RIDGE = "ridge"
CEILING = "split_half_ceiling"
BASELINES = (ADDITIVE, RIDGE, TOKEN_TILT, MEAN_OF_OTHERS, NO_CHANGE)
"""In the order of tables and figures; they stand below the model and above the ceiling."""

CONTROL_HISTOGRAM = "control_histogram"
"""Who the NELBO is compared with: each gene independent, with the law of the control cells."""

MIN_CELLS = 30
"""A type with fewer control or perturbed cells than this has no say in a mean over types."""

RATIO_PRIOR_CELLS = 1.0
CONTROL_PRIOR_CELLS = 3.0
"""Pseudo-counts of the token tilt; the second was chosen (of 1, 3 and 10, by energy distance) on
five held-out types of Kang 2018, without CD14+ monocytes and CD4 T cells, which we report."""

Cells = Float[np.ndarray, "cells genes"]
Histogram = Float[np.ndarray, "genes bins"]
Histograms = Float[np.ndarray, "types genes bins"]
Tokens = UInt8[np.ndarray, "cells genes"]


@dataclass(frozen=True, eq=False)
class TokenCells:
    """The training cells as tokens, for the token tilt.

    `decode(tokens, rows)` turns sampled tokens into log1p expression, taking what a token does not
    know (the library size) from the training cells at `rows`, one row for each sampled cell.
    """

    tokens: Tokens
    num_bins: int
    decode: Callable[[Tokens, Int[np.ndarray, " cells"]], Cells]


@dataclass(frozen=True, eq=False)
class TrainingCells:
    """Cells that baselines may learn from, one label of each kind per cell.

    `perturbations` says what every label means, also those that are asked for; without it each
    stands for itself, and no combination has parts.
    """

    log1p: Cells
    cell_type: Shaped[np.ndarray, " cells"]
    perturbation: Shaped[np.ndarray, " cells"]
    control_name: str
    tokenized: TokenCells | None = None
    perturbations: Perturbations | None = None

    def rows(self, cell_type: str, perturbation: str) -> Int[np.ndarray, " rows"]:
        """Where the cells with both labels stand."""
        chosen = (self.cell_type == cell_type) & (self.perturbation == perturbation)
        return np.flatnonzero(chosen)

    def rows_of_others(self, cell_type: str, perturbation: str) -> Int[np.ndarray, " rows"]:
        """The cells that the mean of others pools.

        The perturbed cells of the other types; where no other type shows the perturbation, those of
        the type's other perturbations.
        """
        own = self.cell_type == cell_type
        pooled = ~own & (self.perturbation == perturbation)
        if not pooled.any():
            pooled = own & ~np.isin(self.perturbation, [self.control_name, perturbation])
        return np.flatnonzero(pooled)

    def rows_of_other_types(
        self, cell_type: str, perturbation: str
    ) -> Iterator[tuple[Int[np.ndarray, " control"], Int[np.ndarray, " perturbed"]]]:
        """Control and perturbed rows of each other type that has `MIN_CELLS` of both."""
        for other in sorted(set(self.cell_type) - {cell_type}):
            control, perturbed = self.rows(other, self.control_name), self.rows(other, perturbation)
            if min(len(control), len(perturbed)) >= MIN_CELLS:
                yield control, perturbed


def baseline_predictions(
    training: TrainingCells,
    cell_type: str,
    perturbation: str,
    *,
    real_log1p: Float[np.ndarray, "real genes"] | None = None,
    seed: int = 0,
) -> tuple[Prediction, ...]:
    """Every baseline that the training cells allow, then the ceiling if `real_log1p` is given.

    Training cells that carry both held-out labels are ignored. Left out are: what needs another
    type, or another perturbation, with enough cells, where there is none; for a perturbation that
    no other type shows, additive unless it is a combination of ones that the type shows, and ridge
    without given vectors; the token tilt, without `training.tokenized`; the ceiling, with fewer
    than four real cells. The token tilt makes one cell for each control cell of the type, at its
    library size.

    Raises:
        DataError: The type has no control cell.
    """
    control_rows = training.rows(cell_type, training.control_name)
    if len(control_rows) == 0:
        msg = (
            f"Cell type {cell_type!r} has no training cell labelled {training.control_name!r}, so "
            "there is nothing to predict its perturbed cells from. Check the control label, or "
            "leave this cell type out of the evaluation."
        )
        raise DataError(msg)
    control_log1p = training.log1p[control_rows]
    predictions = [no_change(control_log1p)]
    pooled = training.rows_of_others(cell_type, perturbation)
    if len(pooled):
        predictions.append(mean_of_others(training.log1p[pooled]))
    for name, predict in ((ADDITIVE, additive_shift), (RIDGE, ridge_shift)):
        shift = predict(training, cell_type, perturbation, least=MIN_CELLS)
        if shift is not None:
            predictions.append(shifted(name, control_log1p, shift))
    others = tuple(training.rows_of_other_types(cell_type, perturbation))
    if others and training.tokenized is not None:
        predictions.append(_token_tilt_of(training.tokenized, control_rows, others, seed))
    if real_log1p is not None and len(real_log1p) >= 4:
        predictions.append(split_half_ceiling(real_log1p, seed=seed))
    return tuple(predictions)


def no_change(control_log1p: Cells) -> Prediction:
    """The control cells of the type, as they are."""
    return Prediction.of_cells(NO_CHANGE, control_log1p)


def mean_of_others(others_log1p: Cells) -> Prediction:
    """The pooled cells of `TrainingCells.rows_of_others`.

    For a perturbation that no training cell shows this is the mean over perturbations, which
    published models rarely beat (Ahlmann-Eltze et al. 2025).
    """
    return Prediction.of_cells(MEAN_OF_OTHERS, others_log1p)


def shifted(
    name: str, control_log1p: Cells, shift_log1p: Float[np.ndarray, " genes"]
) -> Prediction:
    """Control cells moved by a shift.

    Cells are clipped at 0, since there is no negative expression; the mean is not.
    """
    cells_log1p = np.maximum(control_log1p + shift_log1p.astype(control_log1p.dtype), 0)
    mean_log1p = control_log1p.mean(axis=0, dtype=np.float64) + shift_log1p
    return Prediction(name, cells_log1p, mean_log1p)


def token_tilt(
    control: Histogram,
    others_control: Histograms,
    others_perturbed: Histograms,
    decode: Callable[[Tokens], Cells],
    *,
    num_cells: int,
    seed: int = 0,
) -> Prediction:
    """Cells whose genes are drawn independently from `tilted_histogram`, decoded to log1p."""
    probabilities = tilted_histogram(control, others_control, others_perturbed)
    tokens = _sample_tokens(probabilities, num_cells, np.random.default_rng(seed))
    return Prediction.of_cells(TOKEN_TILT, decode(tokens))


def tilted_histogram(
    control: Histogram, others_control: Histograms, others_perturbed: Histograms
) -> Histogram:
    """The type's control law of each gene, tilted by the other types' mean log ratio; sums to 1.

    Histograms are counts of cells. In each other type the log ratio of a bin is
    log((perturbed + e) / (control + e)) of the frequencies, with e = `RATIO_PRIOR_CELLS` / cells of
    the rarer kind: bins that neither kind uses are left alone whatever the numbers of cells. The
    control law gets `CONTROL_PRIOR_CELLS` cells of the other types' pooled law, so that a gene that
    is silent in these controls but not elsewhere can be switched on.
    """
    cells_control = others_control.sum(-1, keepdims=True)
    cells_perturbed = others_perturbed.sum(-1, keepdims=True)
    frequency_control = others_control / cells_control
    frequency_perturbed = others_perturbed / cells_perturbed
    prior = RATIO_PRIOR_CELLS / np.minimum(cells_control, cells_perturbed)
    log_ratio = np.log((frequency_perturbed + prior) / (frequency_control + prior)).mean(0)
    pooled = (frequency_control.mean(0) + frequency_perturbed.mean(0)) / 2
    tilted = (control + CONTROL_PRIOR_CELLS * pooled) * np.exp(log_ratio)
    return tilted / tilted.sum(-1, keepdims=True)


def token_histogram(tokens: Tokens, num_bins: int) -> Histogram:
    """Number of cells in each bin, per gene."""
    num_genes = tokens.shape[1]
    counts = np.zeros(num_genes * num_bins)
    for start in range(0, len(tokens), 4096):
        cells = tokens[start : start + 4096] + np.arange(num_genes) * num_bins
        counts += np.bincount(cells.ravel(), minlength=len(counts))
    return counts.reshape(num_genes, num_bins)


def split_half_ceiling(real_log1p: Float[np.ndarray, "real genes"], *, seed: int = 0) -> Prediction:
    """A random half of the real cells predicts the other half.

    As good as sampling allows with half the cells: its own scores still hold the noise of both
    halves (an MSE of 4 variance / n where a perfect mean would leave variance / n).
    """
    order = np.random.default_rng(seed).permutation(len(real_log1p))
    half, other_half = np.array_split(order, 2)
    cells_log1p = real_log1p[half]
    mean_log1p = cells_log1p.mean(axis=0, dtype=np.float64)
    return Prediction(CEILING, cells_log1p, mean_log1p, against_log1p=real_log1p[other_half])


def _token_tilt_of(
    tokenized: TokenCells,
    control_rows: Int[np.ndarray, " control"],
    others: tuple[tuple[Int[np.ndarray, " c"], Int[np.ndarray, " p"]], ...],
    seed: int,
) -> Prediction:
    def histogram(rows: Int[np.ndarray, " rows"]) -> Histogram:
        return token_histogram(tokenized.tokens[rows], tokenized.num_bins)

    return token_tilt(
        histogram(control_rows),
        np.stack([histogram(control) for control, _ in others]),
        np.stack([histogram(perturbed) for _, perturbed in others]),
        lambda tokens: tokenized.decode(tokens, control_rows),
        num_cells=len(control_rows),
        seed=seed,
    )


def _sample_tokens(probabilities: Histogram, num_cells: int, rng: np.random.Generator) -> Tokens:
    """Independent draws for each gene, by inverse distribution function."""
    cumulative = probabilities.cumsum(-1)
    cumulative /= cumulative[:, -1:]
    uniform = rng.random((num_cells, len(probabilities)))
    tokens = np.zeros(uniform.shape, dtype=np.uint8)
    # u in [0, 1) and >= keep bins of probability 0 out at both ends.
    for bin_end in cumulative[:, :-1].T:
        tokens += uniform >= bin_end
    return tokens
