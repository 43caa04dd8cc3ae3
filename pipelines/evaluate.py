"""`evaluate`: generated cells against the held-out real ones, with baselines and ceiling beside.

Scores what `generate` wrote for each held-out (cell type, perturbation), and cells of the other
mode drawn for the purpose, so that every evaluation shows both. Predictions never see the truth:
they are read, or drawn, before the held-out cells are.
"""

import importlib.metadata
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines import command_line
from pipelines.fanout import Source, read_part, run_units
from pipelines.generate import CELLS, RECORD, find_source, read_arguments
from sedd.config import FLAGS, Config
from sedd.errors import DataError, UsageError

if TYPE_CHECKING:
    import numpy as np

    from sedd.checkpoint import Trained
    from sedd.data.cells import Cells
    from sedd.data.reference import Reference
    from sedd.data.splits import Split
    from sedd.evaluation.baselines import Prediction, TrainingCells
    from sedd.evaluation.report import ConditionResult, ReportFigure

DESCRIPTION = "Score generated cells against held-out real cells, beside baselines and ceiling."
OTHER_MODE = {"counterfactual": "population", "population": "counterfactual"}
MIN_REAL_CELLS = 10
NELBO_CELLS = 300
NELBO_DRAWS = 8


@dataclass(frozen=True, eq=False)
class Truth:
    """Real cells over the model's genes, with what each of them may be used for."""

    cells: "Cells"
    log1p: "np.ndarray"
    split: "Split"
    training: "TrainingCells"

    def held_out(self, cell_type: str, perturbation: str) -> "np.ndarray":
        """Rows of the held-out cells of a condition."""
        test = self.split.test
        chosen = self.cells.cell_type[test] == cell_type
        return test[chosen & (self.cells.perturbation[test] == perturbation)]

    def controls(self, cell_type: str) -> "np.ndarray":
        """log1p expression of the type's control cells; none of them is ever held out."""
        return self.training.log1p[self.training.rows(cell_type, self.training.control_name)]


def run(config: Config, generated: Path, *, tracking_uri: str | None = None) -> str:
    """Evaluate; writes tables and report, and returns the summary as Markdown.

    Raises:
        UsageError: Nothing was held out, or held-out conditions were not generated.
        DataError: The data are not the ones the experiment was trained on.
    """
    from pipelines.experiment import load_cells
    from pipelines.tracking import driver_run
    from sedd.checkpoint import load_trained
    from sedd.data.splits import Split
    from sedd.evaluation.report import to_markdown, write_per_condition_csv
    from sedd.storage import write_text

    folder = Path(config.experiment_dir)
    with driver_run("evaluate", experiment_dir=folder, tracking_uri=tracking_uri) as tracked:
        cells = load_cells(config)
        split = Split.load(folder / "split.json", data_digest=cells.source.digest)
        conditions = _conditions(cells, split)
        source = find_source(config)
        predictions = _predictions(config, source, conditions, generated)
        trained = load_trained(source.checkpoint, config.model)
        truth = _truth(cells, split, trained, config.data.control_name)
        results, baselines = [], []
        for condition in conditions:
            result, others = _score(truth, trained, condition, predictions[condition])
            results.append(result)
            baselines.append(others)
        output = folder / "evaluation"
        write_per_condition_csv(output / "per_condition.csv", results)
        table = to_markdown(results)
        write_text(output / "summary.md", to_markdown(results, bold=False) + "\n")
        figures = _figures(truth, results, predictions, config)
        _write_report(output / "report.html", config, truth, source, results, figures)
        tracked.log_metrics(_flat_metrics(results, config.inference.mode))
        tracked.log_artifacts(output, "evaluation")
    return table


def _conditions(cells: "Cells", split: "Split") -> list[tuple[str, str]]:
    """Held-out conditions with enough real cells to be scored."""
    if not split.held_out:
        message = (
            "This experiment held nothing out (split.kind=none), so there is no truth to compare "
            "with. Train again with e.g. --set split.kind=unseen_cell_type "
            "--set 'split.cell_types=[\"B cells\"]'."
        )
        raise UsageError(message)
    test = list(zip(cells.cell_type[split.test], cells.perturbation[split.test], strict=True))
    enough = [c for c in split.held_out if test.count(c) >= MIN_REAL_CELLS]
    if not enough:
        message = (
            f"No held-out condition has {MIN_REAL_CELLS} real cells; {len(split.held_out)} have "
            "fewer. Hold out larger conditions."
        )
        raise DataError(message)
    return enough


def _predictions(
    config: Config, source: Source, conditions: Sequence[tuple[str, str]], generated: Path
) -> dict[tuple[str, str], dict[str, "Prediction"]]:
    """Cells of both modes for each condition: those that were generated, and the other mode's."""
    from sedd.data.reference import Reference
    from sedd.evaluation.baselines import Prediction

    reference = Reference.load(source.checkpoint)
    found: dict[tuple[str, str], dict[str, Prediction]] = {}
    for condition in conditions:
        mode, log1p = _read_generated(source, reference, condition, generated)
        found[condition] = {mode: Prediction.of_cells(mode, log1p)}
    mode, num_cells = next(
        (mode, len(p.cells_log1p)) for modes in found.values() for mode, p in modes.items()
    )
    other = OTHER_MODE[mode]
    drawn = _draw(config, source, conditions, other, num_cells)
    for condition, log1p in drawn.items():
        found[condition][other] = Prediction.of_cells(other, log1p)
    return found


def _read_generated(
    source: Source, reference: "Reference", condition: tuple[str, str], generated: Path
) -> tuple[str, "np.ndarray"]:
    """Mode and log1p expression of the generated cells of one condition."""
    from sedd.data.cells import read_cells
    from sedd.storage import folder_names

    cell_type, perturbation = condition
    name = folder_names(list(reference.vocabulary.cell_types))[cell_type]
    folder = generated / f"celltype_{name}"
    command = f"python -m pipelines.generate --cell_types {cell_type!r}"
    if not (folder / CELLS).is_file():
        message = f"{folder / CELLS} is not there. Generate it first: {command}."
        raise UsageError(message)
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    if record["model_digest"] != source.digest:
        message = (
            f"{folder / CELLS} was generated by another model than {source.checkpoint}. Generate "
            f"again: {command} --overwrite."
        )
        raise UsageError(message)
    cells = read_cells(
        folder / CELLS,
        perturbation_col="perturbation",
        cell_type_col="cell_type",
        control_name=perturbation,
        depth_col="depth",
        kind=reference.tokenizer.kind,
    )
    chosen = (cells.perturbation == perturbation) & (cells.cell_type == cell_type)
    return record["mode"], cells.select(chosen, reference.vocabulary.genes).log1p_cp10k()


def _draw(
    config: Config,
    source: Source,
    conditions: Sequence[tuple[str, str]],
    mode: str,
    num_cells: int,
) -> dict[tuple[str, str], "np.ndarray"]:
    """Cells of a mode that was not generated, for the held-out conditions alone."""
    import numpy as np

    from sedd.generation import plan_units

    inference = replace(config.inference, mode=mode, num_samples_per_condition=num_cells)
    plan = {
        condition: plan_units([condition[0]], [condition[1]], inference) for condition in conditions
    }
    parts = Path(config.experiment_dir) / "evaluation" / ".parts"
    run_units(
        source,
        [unit for units in plan.values() for unit in units],
        inference,
        parts,
        num_actors=config.scaling.num_actors,
        gpus_per_actor=config.scaling.gpus_per_actor if config.scaling.use_gpu else 0.0,
    )
    drawn = {}
    for condition, units in plan.items():
        cells = [read_part(parts, unit, source, inference) for unit in units]
        values = np.concatenate([part.values for part in cells]).astype(np.float32)
        depth = np.concatenate([part.depth for part in cells]).astype(np.float32)
        counts = np.issubdtype(cells[0].values.dtype, np.integer)
        drawn[condition] = np.log1p(values / depth[:, None] * 1e4) if counts else values
    return drawn


def _truth(cells: "Cells", split: "Split", trained: "Trained", control_name: str) -> Truth:
    import numpy as np

    from sedd.evaluation.baselines import TokenCells, TrainingCells

    cells = cells.select(None, trained.reference.vocabulary.genes)
    log1p = cells.log1p_cp10k()
    known = np.sort(np.concatenate([split.train, split.validation]))
    tokenizer = trained.reference.tokenizer
    depth = cells.depth[known].astype(np.float32)

    def decode(tokens: np.ndarray, rows: np.ndarray) -> np.ndarray:
        values = tokenizer.decode(tokens, np.random.default_rng(0)).astype(np.float32)
        if tokenizer.kind == "log1p":
            return values
        return np.log1p(values / depth[rows][:, None] * 1e4)

    tokens = tokenizer.encode(cells.select(known).expression.toarray())
    training = TrainingCells(
        log1p=log1p[known],
        cell_type=cells.cell_type[known],
        perturbation=cells.perturbation[known],
        control_name=control_name,
        tokenized=TokenCells(tokens, tokenizer.num_bins, decode),
    )
    return Truth(cells, log1p, split, training)


def _score(
    truth: Truth,
    trained: "Trained",
    condition: tuple[str, str],
    predictions: Mapping[str, "Prediction"],
) -> tuple["ConditionResult", tuple["Prediction", ...]]:
    from sedd.evaluation.baselines import baseline_predictions
    from sedd.evaluation.metrics import limits, score
    from sedd.evaluation.report import ConditionResult

    rows = truth.held_out(*condition)
    real, control = truth.log1p[rows], truth.controls(condition[0])
    others = baseline_predictions(truth.training, *condition, real_log1p=real)
    everything = (*predictions.values(), *others)
    result = ConditionResult(
        cell_type=condition[0],
        perturbation=condition[1],
        num_real=len(real),
        num_control=len(control),
        num_generated=len(next(iter(predictions.values())).cells_log1p),
        scores={prediction.name: score(prediction, real, control) for prediction in everything},
        limits=limits(real, control),
        nelbo=_nelbo(truth, trained, rows, next(iter(predictions))),
    )
    return result, others


def _nelbo(truth: Truth, trained: "Trained", rows: "np.ndarray", mode: str) -> dict[str, float]:
    """Nats per gene of the held-out cells, under the model and under the control histogram."""
    import numpy as np

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


def _figures(
    truth: Truth,
    results: Sequence["ConditionResult"],
    predictions: Mapping[tuple[str, str], Mapping[str, "Prediction"]],
    config: Config,
    *,
    most: int = 4,
) -> list["ReportFigure"]:
    """Energy distances of all conditions; shifts and cells of the first few."""
    import numpy as np

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
        name = config.inference.mode if config.inference.mode in modes else next(iter(modes))
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


def _write_report(
    path: Path,
    config: Config,
    truth: Truth,
    source: Source,
    results: Sequence["ConditionResult"],
    figures: Sequence["ReportFigure"],
) -> None:
    from sedd.evaluation.report import Provenance, write_html_report

    provenance = Provenance(
        data_digest=truth.cells.source.digest,
        split_hash=truth.split.digest,
        model_digest=source.digest,
        seed=config.inference.seed,
        command=f"python -m pipelines.evaluate --experiment_dir {Path(config.experiment_dir).name}",
        versions={name: importlib.metadata.version(name) for name in ("torch", "ray", "mlflow")},
    )
    write_html_report(
        path,
        results,
        provenance=provenance,
        figures=figures,
        title=f"{Path(config.experiment_dir).name}: predicted against real cells",
    )


def _flat_metrics(results: Sequence["ConditionResult"], mode: str) -> dict[str, float]:
    """`eval/METRIC` of the default mode and `eval/METHOD/METRIC` of every method."""
    from sedd.evaluation.report import summary_table

    flat: dict[str, float] = {}
    table = summary_table(results)
    for method, row in table.iterrows():
        for metric, value in row.items():
            flat[f"eval/{method}/{metric}"] = float(value)
            if method == mode:
                flat[f"eval/{metric}"] = float(value)
    return {name: value for name, value in flat.items() if value == value}  # noqa: PLR0124 (nan)


@command_line.entry
def main(argv: Sequence[str]) -> int:
    """Parse, resolve, evaluate."""
    parser = command_line.verb_parser("evaluate", DESCRIPTION)
    command_line.add_config_flags(parser, FLAGS)
    parser.add_argument("--generated_dir", help="default: EXPERIMENT_DIR/inference_results")
    arguments, config = read_arguments(parser, argv)
    generated = arguments.generated_dir or Path(config.experiment_dir) / "inference_results"
    print(run(config, Path(generated).resolve()))  # noqa: T201
    print(f"\nreport: {Path(config.experiment_dir) / 'evaluation' / 'report.html'}")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())
