"""`evaluate`: generated cells against the held-out real ones, with baselines and ceiling beside.

Scores what `generate` wrote for each held-out (cell type, perturbation), and cells of the other
mode drawn for the purpose, so that every evaluation shows both. Predictions never see the truth:
they come from the checkpoint and the generated files alone; of the held-out cells only their number
decides which conditions are scored.
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines import command_line
from pipelines.evaluation_record import EvaluationRecord
from pipelines.fanout import Source, read_part, run_units
from pipelines.generate import CELLS, find_source, read_arguments
from pipelines.repeat import Evaluated, folder_of, read_how_generated
from sedd.config import Config
from sedd.errors import DataError, UsageError
from sedd.flags import FLAGS
from sedd.inference import InferenceConfig

if TYPE_CHECKING:
    from sedd.data.cells import Cells
    from sedd.data.reference import Reference
    from sedd.data.splits import Split
    from sedd.evaluation.prediction import Prediction
    from sedd.evaluation.report import ConditionResult

DESCRIPTION = "Score generated cells against held-out real cells, beside baselines and ceiling."
OTHER_MODE = {"counterfactual": "population", "population": "counterfactual"}
MIN_REAL_CELLS = 10


def run(
    config: Config,
    generated: Path,
    *,
    tracking_uri: str | None = None,
    sampler_sweep: bool = False,
    judges: Sequence[str] = (),
) -> str:
    """Evaluate; writes tables and report, and returns the summary as Markdown.

    Raises:
        UsageError: Nothing was held out, or held-out conditions were not generated, or not alike.
        DataError: The data are not the ones the experiment was trained on.
    """
    from pipelines.experiment import load_cells, load_config
    from pipelines.judging import judge_predictions, require_judgeable, write_judged
    from pipelines.model_card import document, provenance_of, separation_metrics, separation_tables
    from pipelines.notes import evaluation_note, log_held_out
    from pipelines.responses import measure_responses, response_figures, write_responses
    from pipelines.sampler_report import draw_sweep, report_sampler
    from pipelines.scoring import draw_figures, read_truth, score_condition, warn_of_lone_units
    from pipelines.tracking import driver_run
    from sedd.checkpoint import load_trained
    from sedd.data.splits import Split
    from sedd.evaluation.judge_tables import judge_metrics, judge_report
    from sedd.evaluation.report import (
        to_markdown,
        write_html_report,
        write_per_condition_csv,
    )
    from sedd.storage import write_text

    folder = Path(config.experiment_dir)
    with driver_run("evaluate", experiment_dir=folder, tracking_uri=tracking_uri) as tracked:
        cells = load_cells(config)
        require_judgeable(judges, cells.kind)
        split = Split.load(folder / "split.json", data_digest=cells.source.digest)
        conditions = _conditions(cells, split)
        log_held_out(tracked, cells, split)
        source = find_source(config)
        trained = load_trained(source.checkpoint, config.model)
        experiment = replace(load_config(folder), experiment_dir=config.experiment_dir)
        drawn = read_how_generated(
            generated,
            [cell_type for cell_type, _ in conditions],
            trained.reference.vocabulary,
            source,
            experiment.inference,
        )
        asked, config = config, replace(config, inference=drawn[0])
        predictions = _predictions(config, source, conditions, generated)
        swept = draw_sweep(trained, conditions, config.inference) if sampler_sweep else {}
        warn_of_lone_units(predictions)
        truth = read_truth(cells, split, trained, config.data.control_name)
        responses = measure_responses(truth, predictions)  # refuses twins of no control cell
        results = [
            score_condition(truth, trained, condition, predictions[condition])
            for condition in conditions
        ]
        output = folder / "evaluation"
        write_per_condition_csv(output / "per_condition.csv", results)
        table = to_markdown(results)
        write_text(output / "summary.md", to_markdown(results, bold=False) + "\n")
        mode = config.inference.mode
        figures = draw_figures(truth, results, predictions, mode)
        write_responses(output / "response.csv", truth, responses)
        figures += response_figures(responses)
        steps = report_sampler(output / "sampler.csv", trained, truth, swept, config.inference)
        figures += steps.figures
        judged = judge_predictions(judges, truth, predictions, folder / "judges")
        write_judged(output, judged)
        evaluated = Evaluated(
            config=asked,
            experiment=experiment,
            drawn=drawn,
            generated=generated,
            flags=_own_flags(sampler_sweep=sampler_sweep, judges=judges),
        )
        known = provenance_of(evaluated, truth, source.digest)
        EvaluationRecord.of(output, evaluated.how, known).save(output)
        separations = document(output, evaluated, truth, trained, known, results)
        tables = [*separation_tables(separations), *judge_report(judged)]
        write_html_report(
            output / "report.html",
            results,
            provenance=known,
            figures=figures,
            tables=tables,
            title=f"{folder.name}: predicted against real cells",
        )
        metrics = _flat_metrics(results, mode) | separation_metrics(separations, mode)
        tracked.log_metrics({**metrics, **steps.metrics, **judge_metrics(judged)})
        tracked.describe(evaluation_note(table, conditions, evaluated))
        tracked.log_artifacts(output, "evaluation")
    return "\n\n".join(text for text in (table, steps.sentence) if text)


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


def _own_flags(*, sampler_sweep: bool, judges: Sequence[str]) -> tuple[str, ...]:
    """The flags of this verb alone, as they were given."""
    sweep = ("--sampler_sweep", "true") if sampler_sweep else ()
    return (*sweep, *(("--judges", *judges) if judges else ()))


def _predictions(
    config: Config,
    source: Source,
    conditions: Sequence[tuple[str, str]],
    generated: Path,
) -> dict[tuple[str, str], dict[str, "Prediction"]]:
    """Cells of both modes for each condition: those that were generated, and the other mode's."""
    from sedd.data.reference import Reference

    reference, mode = Reference.load(source.checkpoint), config.inference.mode
    found = {
        condition: {mode: _read_generated(reference, condition, generated, config.inference)}
        for condition in conditions
    }
    num_cells = len(found[conditions[0]][mode].cells_log1p)
    other = OTHER_MODE[mode]
    drawn = _draw(config, source, conditions, other, num_cells)
    for condition, prediction in drawn.items():
        found[condition][other] = prediction
    return found


def _read_generated(
    reference: "Reference", condition: tuple[str, str], generated: Path, how: InferenceConfig
) -> "Prediction":
    """The generated cells of one condition, under the name of their mode."""
    from pipelines.scoring import units_of
    from sedd.data.generated import read_generated
    from sedd.evaluation.prediction import Prediction

    there = read_generated(
        folder_of(generated, reference.vocabulary, condition[0]) / CELLS,
        condition,
        genes=reference.vocabulary.genes,
        kind=reference.tokenizer.kind,
    )
    units = units_of(len(there.control_row), how.shard_size)
    return Prediction.of_cells(how.mode, there.cells.log1p_cp10k(), there.control_row, units)


def _draw(
    config: Config,
    source: Source,
    conditions: Sequence[tuple[str, str]],
    mode: str,
    num_cells: int,
) -> dict[tuple[str, str], "Prediction"]:
    """Cells of a mode that was not generated, for the held-out conditions alone."""
    import numpy as np

    from pipelines.scoring import units_of
    from sedd.evaluation.prediction import Prediction
    from sedd.generation import plan_units

    inference = replace(
        config.inference, mode=mode, sampler="blocks", num_samples_per_condition=num_cells
    )
    plan = {
        condition: plan_units([condition[0]], [condition[1]], inference) for condition in conditions
    }
    parts = Path(config.experiment_dir) / ".evaluation_parts"
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
        drawn[condition] = Prediction.of_cells(
            mode,
            np.concatenate([part.log1p_cp10k() for part in cells]),
            np.concatenate([part.control_row for part in cells]),
            units_of(num_cells, inference.shard_size),
        )
    shutil.rmtree(parts, ignore_errors=True)
    return drawn


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
    return {name: value for name, value in flat.items() if value == value}


@command_line.entry
def main(argv: Sequence[str]) -> int:
    """Parse, resolve, evaluate."""
    parser = command_line.verb_parser("evaluate", DESCRIPTION)
    command_line.add_config_flags(parser, FLAGS)
    parser.add_argument("--generated_dir", help="default: EXPERIMENT_DIR/inference_results")
    command_line.add_switch(
        parser,
        "sampler_sweep",
        help_text="also draw cells with 1 to 64 steps and score them (minutes)",
    )
    parser.add_argument(
        "--judges",
        nargs="+",
        default=(),
        metavar="JUDGE",
        help="also ask cell-eval and/or cell-eval2 (needs pip install '.[eval]')",
    )
    arguments, config = read_arguments(parser, argv)
    generated = arguments.generated_dir or Path(config.experiment_dir) / "inference_results"
    summary = run(
        config,
        Path(generated).resolve(),
        sampler_sweep=arguments.sampler_sweep,
        judges=tuple(dict.fromkeys(command_line.listed(arguments.judges))),
    )
    print(summary)
    print(f"\nreport: {Path(config.experiment_dir) / 'evaluation' / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
