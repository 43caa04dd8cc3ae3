"""The truth of a held-out condition, and what each prediction of it is worth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pipelines.command_line import warn

if TYPE_CHECKING:
    from sedd.checkpoint import Trained
    from sedd.data.cells import Cells
    from sedd.data.splits import Split
    from sedd.data.tokens import Tokenizer
    from sedd.evaluation.baselines import TokenCells, TrainingCells
    from sedd.evaluation.discrimination import Separation
    from sedd.evaluation.prediction import Prediction
    from sedd.evaluation.report import ConditionResult, ReportFigure
    from sedd.evaluation.shifts import Perturbations

NELBO_CELLS = 300
NELBO_DRAWS = 8
TWINS = "counterfactual"


@dataclass(frozen=True, eq=False)
class Truth:
    """Real cells over the model's genes, with what each of them may be used for."""

    cells: "Cells"
    log1p: np.ndarray
    split: "Split"
    training: "TrainingCells"

    def held_out(self, cell_type: str, perturbation: str) -> np.ndarray:
        """Rows of the held-out cells of a condition."""
        test = self.split.test
        chosen = self.cells.cell_type[test] == cell_type
        return test[chosen & (self.cells.perturbation[test] == perturbation)]

    def control_rows(self, cell_type: str) -> np.ndarray:
        """Rows of the type's control cells."""
        is_control = self.cells.perturbation == self.training.control_name
        return np.flatnonzero(is_control & (self.cells.cell_type == cell_type))

    def controls(self, cell_type: str) -> np.ndarray:
        """log1p expression of the type's control cells; none of them is ever held out."""
        return self.training.log1p[self.training.rows(cell_type, self.training.control_name)]


def read_truth(cells: "Cells", split: "Split", trained: "Trained", control_name: str) -> Truth:
    """Real cells over the model's genes; the baselines may learn from those not held out."""
    from sedd.evaluation.shifts import Perturbations

    reference = trained.reference
    return make_truth(
        cells.select(None, reference.vocabulary.genes),
        split,
        control_name,
        Perturbations.of(reference.vocabulary, reference.perturbation_vectors),
        reference.tokenizer,
    )


def make_truth(
    cells: "Cells",
    split: "Split",
    control_name: str,
    perturbations: "Perturbations",
    tokenizer: "Tokenizer | None",
) -> Truth:
    """Cells over the genes that are judged, with the known ones as baselines may learn from them.

    Without a tokenizer the token tilt is left out of the baselines.
    """
    from sedd.evaluation.baselines import TrainingCells

    log1p = cells.log1p_cp10k()
    known = np.sort(np.concatenate([split.train, split.validation]))
    training = TrainingCells(
        log1p=log1p[known],
        cell_type=cells.cell_type[known],
        perturbation=cells.perturbation[known],
        control_name=control_name,
        tokenized=None if tokenizer is None else _tokenized(cells.select(known), tokenizer),
        perturbations=perturbations,
    )
    return Truth(cells, log1p, split, training)


def _tokenized(cells: "Cells", tokenizer: "Tokenizer") -> "TokenCells":
    """Tokens of cells, and what turns tokens of the cell in a row back into log1p expression."""
    from sedd.evaluation.baselines import TokenCells

    depth = cells.depth.astype(np.float32)

    def decode(tokens: np.ndarray, rows: np.ndarray) -> np.ndarray:
        values = tokenizer.decode(tokens, np.random.default_rng(0)).astype(np.float32)
        if tokenizer.kind == "log1p":
            return values
        return np.log1p(values / depth[rows][:, None] * 1e4)

    tokens = tokenizer.encode(cells.expression.toarray())
    return TokenCells(tokens, tokenizer.num_bins, decode)


def score_condition(
    truth: Truth,
    trained: "Trained",
    condition: tuple[str, str],
    predictions: Mapping[str, "Prediction"],
) -> "ConditionResult":
    """Model modes, baselines, ceiling and NELBO of one held-out condition."""
    from sedd.evaluation.baselines import baseline_predictions
    from sedd.evaluation.metrics import limits, score
    from sedd.evaluation.report import ConditionResult
    from sedd.evaluation.resampling import ScoreBootstrap
    from sedd.evaluation.trust import assess

    rows = truth.held_out(*condition)
    real, control = truth.log1p[rows], truth.controls(condition[0])
    others = baseline_predictions(truth.training, *condition, real_log1p=real)
    mine = (paired(truth, condition[0], prediction) for prediction in predictions.values())
    everything = (*mine, *others)
    scores = {prediction.name: score(prediction, real, control) for prediction in everything}
    bootstrap = ScoreBootstrap(real, control)
    control_mean = control.mean(axis=0, dtype=np.float64)
    return ConditionResult(
        cell_type=condition[0],
        perturbation=condition[1],
        num_real=len(real),
        num_control=len(control),
        num_generated=len(next(iter(predictions.values())).cells_log1p),
        scores=scores,
        limits=limits(real, control),
        nelbo=_nelbo(truth, trained, rows, next(iter(predictions))),
        trust={p.name: assess(p, scores[p.name], real, bootstrap) for p in everything},
        shifts={p.name: p.mean_log1p - control_mean for p in everything},
    )


def _nelbo(truth: Truth, trained: "Trained", rows: np.ndarray, mode: str) -> dict[str, float]:
    """Nats per gene of the held-out cells, under the model and under the control histogram."""
    from sedd.building import labelled_batch
    from sedd.evaluation.baselines import CONTROL_HISTOGRAM
    from sedd.training import held_out_nelbo

    rows = np.sort(np.random.default_rng(0).permutation(rows)[:NELBO_CELLS])
    cells = truth.cells.select(rows)
    batch = labelled_batch(trained.reference, cells)
    nelbo = held_out_nelbo(trained.denoiser, batch, trained.contexts, num_draws=NELBO_DRAWS)
    prior = trained.reference.controls.log_prior(global_share=0.0)
    law = prior[batch.condition.cell_type.numpy()[0]]
    tokens = batch.tokens.numpy()
    independent = -law[np.arange(law.shape[0]), tokens].mean()
    return {mode: float(nelbo.mean()), CONTROL_HISTOGRAM: float(independent)}


def units_of(num_cells: int, shard_size: int) -> np.ndarray:
    """Which generated cells of a condition were drawn together: units follow each other."""
    return np.arange(num_cells) // shard_size


def warn_of_lone_units(
    predictions: Mapping[tuple[str, str], Mapping[str, "Prediction"]],
) -> None:
    """Tell where the energy distance has only pairs of cells that were drawn together."""
    single = [
        f"{cell_type} × {perturbation}"
        for (cell_type, perturbation), modes in predictions.items()
        if any(len(set(p.unit.tolist())) == 1 for p in modes.values() if p.unit is not None)
    ]
    if single:
        some = ", ".join(single[:3]) + (", ..." if len(single) > 3 else "")
        warn(
            f"{len(single)} of {len(predictions)} conditions ({some}) were drawn as one unit, "
            "whose cells are spread evenly: their energy distances come out too low, by up to .1. "
            "For a fair figure generate several units of each: inference.shard_size at most a "
            "quarter of inference.num_samples_per_condition."
        )


def paired(truth: Truth, cell_type: str, prediction: "Prediction") -> "Prediction":
    """Twins with the mean that their effects state; any other prediction as it is."""
    if prediction.name != TWINS or prediction.control_row is None:
        return prediction
    return prediction.as_twins(truth.log1p[prediction.control_row], truth.controls(cell_type))


def separate(
    truth: Truth, shifts: Mapping[tuple[str, str], Mapping[str, np.ndarray]]
) -> list["Separation"]:
    """How each method tells the held-out perturbations of a cell type apart, where there are two.

    A method counts in a cell type if it predicts each of them. The ceiling is half of the real
    cells, to be found among the other halves.

    Args:
        truth: The real cells.
        shifts: Predicted mean shift of each method, by condition.
    """
    from sedd.evaluation.baselines import CEILING, split_half_ceiling
    from sedd.evaluation.discrimination import separation
    from sedd.evaluation.report import order_methods

    meaning = truth.training.perturbations
    found = []
    for cell_type in dict.fromkeys(cell_type for cell_type, _ in shifts):
        of_type = {name: methods for (of, name), methods in shifts.items() if of == cell_type}
        if len(of_type) < 2:
            continue
        parts = {name: meaning.parts[name] if meaning else (name,) for name in of_type}
        control = truth.controls(cell_type)
        real = {name: truth.log1p[truth.held_out(cell_type, name)] for name in of_type}
        halves = {
            name: half
            for name, cells in real.items()
            if (half := split_half_ceiling(cells).against_log1p) is not None
        }
        for method in order_methods(name for methods in of_type.values() for name in methods):
            own = {name: of[method] for name, of in of_type.items() if method in of}
            candidates = halves if method == CEILING else real
            if len(own) == len(of_type):
                measured = separation(
                    cell_type, method, own, candidates, control, truth.cells.genes, parts
                )
                found.append(measured)
    return found


def draw_figures(
    truth: Truth,
    results: Sequence["ConditionResult"],
    predictions: Mapping[tuple[str, str], Mapping[str, "Prediction"]],
    mode: str,
    *,
    most: int = 4,
) -> list["ReportFigure"]:
    """Energy distances of all conditions; shifts and cells of the first few."""
    from sedd.evaluation.plots import cells_figure, energy_figure, shift_figure
    from sedd.evaluation.report import ReportFigure, order_methods

    methods = order_methods(name for result in results for name in result.scores)
    values = {
        name: [r.scores[name].energy_distance for r in results if name in r.scores]
        for name in methods
    }
    floors = [r.limits.control_floor for r in results if r.limits is not None]
    floor = float(np.mean(floors)) if floors else None
    caption = "How far the predicted population is from the real one; shorter is better."
    figures = [ReportFigure("Energy distance", caption, energy_figure(values, control_floor=floor))]
    for condition, modes in list(predictions.items())[:most]:
        real = truth.log1p[truth.held_out(*condition)]
        control = truth.controls(condition[0])
        title = f"{condition[0]} × {condition[1]}"
        name = mode if mode in modes else next(iter(modes))
        figures.append(
            ReportFigure(
                f"{title}: shift of each gene",
                "Mean change from control cells, predicted against real; the line is equality.",
                shift_figure(
                    modes[name].mean_log1p,
                    real.mean(0, dtype=np.float64),
                    control.mean(0, dtype=np.float64),
                    truth.cells.genes,
                    method=name,
                ),
            )
        )
        figures.append(
            ReportFigure(
                f"{title}: the cells",
                "Real perturbed, control and generated cells on two principal components.",
                cells_figure(real, control, {n: p.cells_log1p for n, p in modes.items()}),
            )
        )
    return figures
