"""`generate`: a trained experiment or a registered model in, whole cells per cell type out.

Names and controls are checked before any folder is made. Units of (cell type, perturbation, shard)
are drawn by Ray actors; when all of a type are there they become one h5ad, renamed into place.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines import command_line
from pipelines.borrowed import Borrowed, lender
from pipelines.fanout import Source, read_part, run_units
from sedd.config import Config, resolve
from sedd.errors import DataError, OutputExistsError, UsageError
from sedd.flags import FLAGS

if TYPE_CHECKING:
    from sedd.data.vocabulary import Vocabulary
    from sedd.generation import Unit

DESCRIPTION = "Generate perturbed cells, as raw counts, for each cell type of an experiment."
CELLS = "generated_cells.h5ad"
RECORD = "generation_config.json"
FIXED = ("num_genes", "batch_col")
"""Values of the section `data` that generation refuses to change."""
ONLY_EXPERIMENTS = ("EXPERIMENT_DIR", "CHECKPOINT_DIR")
"""Variables of the environment that a registered model has nothing to do with."""
ONLY_TRAINING = ("COND_LABELS_PT_PATH", "CELLTYPE_LABELS_PT_PATH")
"""Variables of the environment that generation leaves alone: a checkpoint holds its vectors."""
SETTINGS = (
    "mode", "sampler", "num_steps", "block_schedule", "temperature", "shrink_effects", "guidance",
    "effect_anchor", "shard_size", "seed",
)  # fmt: skip
"""Values of the section `inference` that fix the cells of a unit, as in `Unit.key`."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where cells go, and what may happen to what stands there."""

    folder: Path
    include_controls: bool = False
    overwrite: bool = False
    model: str | None = None
    """Address of the registered model that generates; None for an experiment's own."""


def run(config: Config, output: Output) -> list[Path]:
    """Generate what `config.inference` asks for; returns the h5ad of each cell type.

    Raises:
        UsageError: A cell type or perturbation that the model does not know.
        DataError: A cell type without control cells to start from.
        OutputExistsError: Other cells stand in the output folder.
    """
    from pipelines.experiment import only_writer
    from sedd.data.vocabulary import Vocabulary
    from sedd.generation import plan_units
    from sedd.storage import folder_names

    vocabulary = Vocabulary.from_json(
        (Path(config.experiment_dir) / "vocabulary.json").read_text(encoding="utf-8")
    )
    cell_types, perturbations = chosen_labels(config, vocabulary)
    source = find_source(config)
    _require_controls(source, cell_types)
    names = folder_names(list(vocabulary.cell_types))
    folders = {label: output.folder / f"celltype_{names[label]}" for label in cell_types}
    plan = {label: plan_units([label], perturbations, config.inference) for label in cell_types}
    todo = [
        label
        for label in cell_types
        if not _is_done(folders[label], _record(config, source, plan[label], output), output)
    ]
    with only_writer(output.folder, "generate"):
        parts = output.folder / ".parts"
        run_units(
            source,
            [unit for label in todo for unit in plan[label]],
            config.inference,
            parts,
            num_actors=config.scaling.num_actors,
            gpus_per_actor=config.scaling.gpus_per_actor if config.scaling.use_gpu else 0.0,
        )
        for label in todo:
            _assemble(config, source, plan[label], folders[label], parts, output)
        shutil.rmtree(parts, ignore_errors=True)
    for label in cell_types:
        print(f"{label}: {folders[label] / CELLS}")
    return [folders[label] / CELLS for label in cell_types]


def chosen_labels(config: Config, vocabulary: "Vocabulary") -> tuple[list[str], list[str]]:
    """Cell types and perturbations to generate, in vocabulary order, all of them known."""
    inference = config.inference
    wanted = list(inference.cell_types)
    if inference.cell_type is not None and not wanted:
        wanted = [inference.cell_type]
    if not wanted or wanted == ["all"]:
        wanted = list(vocabulary.cell_types)
    vocabulary.cell_type_ids(wanted)
    treated = list(inference.perturbations) or list(vocabulary.perturbations[1:])
    vocabulary.perturbation_ids(treated)
    return list(dict.fromkeys(wanted)), list(dict.fromkeys(treated))


def find_source(config: Config) -> Source:
    """The checkpoint that generates, and its digest."""
    from sedd.checkpoint import best_or_newest, load_trained
    from sedd.generation import blocks_for

    checkpoint = best_or_newest(config.checkpoints)
    trained = load_trained(checkpoint, config.model)
    blocks_for(trained, config.inference)  # a schedule the model cannot follow ends here
    return Source(checkpoint=checkpoint, model=config.model, digest=trained.digest)


def _require_controls(source: Source, cell_types: Sequence[str]) -> None:
    """Refuse cell types that no control cell of the training data belongs to."""
    from sedd.data.hdf5 import listing
    from sedd.data.reference import Reference

    reference = Reference.load(source.checkpoint)
    known, control = reference.vocabulary.cell_types, reference.vocabulary.control_name
    present = {known[number] for number in reference.control_cells.cell_type}
    without = [label for label in cell_types if label not in present]
    if without:
        others = [label for label in cell_types if label in present] or sorted(present)
        message = (
            f"The training data hold no {control!r} cell of {listing(without)}, so there is "
            f"nothing to start from. Leave them out, --cell_types {shlex.join(others)}, or add "
            f"{control!r} cells of these types and train again."
        )
        raise DataError(message)


def _assemble(
    config: Config,
    source: Source,
    units: Sequence["Unit"],
    folder: Path,
    parts: Path,
    output: Output,
) -> None:
    import anndata

    from pipelines.cell_table import as_anndata, controls_as_anndata
    from sedd.data.reference import Reference
    from sedd.storage import write_text

    reference = Reference.load(source.checkpoint)
    record = _record(config, source, units, output)
    cells = [read_part(parts, unit, source, config.inference) for unit in units]
    provenance = {key: value for key, value in record.items() if not isinstance(value, dict)}
    data = as_anndata(reference, cells, provenance)
    if output.include_controls:
        controls = controls_as_anndata(reference, units[0].cell_type, provenance)
        data = anndata.concat([data, controls], uns_merge="first")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{CELLS}.tmp"
    data.write_h5ad(temporary, compression="gzip")
    (folder / RECORD).unlink(missing_ok=True)  # a record never stands beside other cells
    temporary.replace(folder / CELLS)
    write_text(folder / RECORD, json.dumps(record, indent=1, ensure_ascii=False))


def _record(
    config: Config, source: Source, units: Sequence["Unit"], output: Output
) -> dict[str, Any]:
    """What was asked and what answered; equal records mean equal cells."""
    from pipelines.tracking import git_commit

    counts: dict[str, int] = {}
    for unit in units:
        counts[unit.perturbation] = counts.get(unit.perturbation, 0) + unit.num_cells
    return {
        "cell_type": units[0].cell_type,
        "model_digest": source.digest,
        "checkpoint": source.checkpoint.name,
        "experiment": Path(config.experiment_dir).name,
        **{name: getattr(config.inference, name) for name in SETTINGS},
        "git_commit": git_commit() or "unknown",
        "include_controls": output.include_controls,
        "cells_per_perturbation": counts,
        "complete": True,
        **({} if config.data.batch_col is None else {"batch_col": config.data.batch_col}),
        **({} if output.model is None else {"model": output.model}),
    }


def _is_done(folder: Path, record: dict[str, Any], output: Output) -> bool:
    """Whether these very cells stand there already.

    Raises:
        OutputExistsError: Other cells do, and --overwrite was not given.
    """
    if not (folder / CELLS).exists() or output.overwrite:
        return False
    try:
        there = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        there = {}
    if {**there, "git_commit": None} == {**record, "git_commit": None}:
        return True
    message = (
        f"{folder / CELLS} holds cells of another model or other settings. Add --overwrite to "
        "replace them, or choose another --output_dir."
    )
    raise OutputExistsError(message)


def read_arguments(
    parser: argparse.ArgumentParser, argv: Sequence[str], borrowed: Borrowed | None = None
) -> tuple[Any, Config]:
    """Arguments, and the model's own configuration under what they override."""
    arguments = parser.parse_args(argv)
    from pipelines.experiment import load_config  # after --help, which imports nothing heavy

    said = command_line.given(arguments, FLAGS)
    environment = {key: text for key, text in os.environ.items() if key not in ONLY_TRAINING}
    if borrowed is not None:
        environment = {k: v for k, v in environment.items() if k not in ONLY_EXPERIMENTS}
        said.flags.pop("experiment_dir", None)  # with a borrowed model it names a folder for cells
    given = {"environment": environment, "flags": said.flags, "settings": said.settings}
    asked = resolve(file=command_line.config_file(said), **given)
    trained = borrowed.config if borrowed else load_config(Path(asked.experiment_dir))
    trained = replace(trained, resume=None)
    if said.config or os.environ.get("CONFIG"):
        # A file may say how to generate; what was trained stands in the experiment.
        trained = replace(trained, inference=asked.inference, scaling=asked.scaling)
    config = resolve(**given, base=trained)
    if (
        "cell_type" in said.flags or os.environ.get("CELL_TYPE")
    ) and "cell_types" not in said.flags:
        config = replace(config, inference=replace(config.inference, cell_types=()))
    changed = [name for name in FIXED if getattr(config.data, name) != getattr(trained.data, name)]
    if config.model != trained.model or changed:
        message = (
            "The model cannot be changed after training: leave the sections model and data to "
            f"{asked.experiment_dir}/config.yaml."
        )
        raise UsageError(message)
    return arguments, config.with_absolute_paths(Path.cwd())


@command_line.entry
def main(argv: Sequence[str]) -> int:
    """Parse, resolve, generate."""
    parser = command_line.verb_parser("generate", DESCRIPTION)
    command_line.add_config_flags(parser, FLAGS)
    parser.add_argument("--output_dir", help="default: EXPERIMENT_DIR/inference_results")
    parser.add_argument(
        "--include_controls", action="store_true", help="add the real control cells, marked"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace other cells")
    parser.add_argument(
        "--model",
        help="a registered model, models:/NAME@ALIAS or models:/NAME/VERSION, in place of an "
        "experiment; --experiment_dir then names a folder for the cells",
    )
    with lender(parser.parse_args(argv)) as borrowed:
        arguments, config = read_arguments(parser, argv, borrowed)
        home = borrowed.home if borrowed else Path(config.experiment_dir)
        output = Output(
            folder=Path(arguments.output_dir or home / "inference_results").resolve(),
            include_controls=arguments.include_controls,
            overwrite=arguments.overwrite,
            model=borrowed.uri if borrowed else None,
        )
        run(config, output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
