"""`demo`: the whole job in minutes: cells, training, generation, evaluation, a report.

Without a file it simulates blood cells whose true response is known; with `--train_data_path` it
takes real ones. One cell type's perturbed cells are held out and predicted.
"""

import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines import cluster, command_line
from sedd.config import Config, resolve
from sedd.errors import OutputExistsError, UsageError
from sedd.flags import FLAGS

DESCRIPTION = "Train, generate and evaluate on built-in cells, or on an h5ad, in minutes."
CONFIG = Path(__file__).resolve().parents[1] / "configs" / "demo.yaml"
BUILT_IN_HOLD_OUT = "CD14+ Monocytes"
CELLS = "cells.h5ad"
WRITTEN = (
    "config.yaml", "split.json", "vocabulary.json", "metrics.jsonl", "tracking.json",
    "training.png", "checkpoints", "prepared", "inference_results", "evaluation", ".ray",
)  # fmt: skip
"""What the verbs write into an experiment directory."""


def run(config: Config) -> None:
    """Train, generate all cell types, evaluate, and say where to look."""
    from pipelines import evaluate, generate, train

    began = time.monotonic()
    folder = Path(config.experiment_dir)
    held_out = ", ".join(config.split.cell_types) or config.split.kind
    _say(f"1/3 train; held out: perturbed cells of {held_out}")
    train.run(config)
    results = folder / "inference_results"
    with cluster.connect(num_workers=config.scaling.num_actors, flag="--num_actors"):
        _say("2/3 generate every cell type")
        generate.run(config, generate.Output(folder=results))
        _say("3/3 evaluate against the held-out cells")
        table = evaluate.run(config, results)
    _say(f"\n{table}\n")
    _say(f"report    {folder / 'evaluation' / 'report.html'}")
    _say(f"cells     {results}")
    _say("tracking  mlflow ui --backend-store-uri sqlite:///mlflow.db")
    _say(f"done in {(time.monotonic() - began) / 60:.1f} minutes")


def with_hold_out(config: Config, hold_out: str | None) -> Config:
    """The configuration with its held-out cell type.

    Raises:
        UsageError: A file was given without the type to hold out.
    """
    if hold_out is None and config.data.train_data_path is None:
        hold_out = BUILT_IN_HOLD_OUT
    if hold_out is None and config.split.kind == "none":
        path = shlex.quote(str(config.data.train_data_path))
        message = (
            "Which cell type's perturbed cells should be predicted? Name it with --hold_out "
            f"(make demo: HOLD_OUT=...). `python -m pipelines.validate --train_data_path {path}` "
            "lists the types."
        )
        raise UsageError(message)
    if hold_out is None:
        return config
    split = replace(config.split, kind="unseen_cell_type", cell_types=(hold_out,))
    return replace(config, split=split)


def fetch(dataset: str, folder: Path) -> Path:
    """An h5ad of built-in or public cells in `folder`.

    Raises:
        UsageError: There is no such data set.
    """
    if dataset == "simulated":
        from sedd.data.cells import write_h5ad
        from sedd.data.simulate import simulate

        write_h5ad(simulate(seed=0).cells, folder / CELLS)
        return folder / CELLS
    if dataset == "kang_2018":
        from sedd.data.download import fetch_kang_2018

        return fetch_kang_2018(folder)
    message = f"--dataset {dataset!r} is unknown; wanted simulated or kang_2018."
    raise UsageError(message)


def _check(config: Config) -> None:
    """Read and split given cells once, so that a mistake is told before anything is replaced."""
    from pipelines.experiment import load_cells, split_cells

    split_cells(config, load_cells(config))


def _free_folder(folder: Path) -> None:
    """Make room for a new demo: what an earlier demo wrote there goes, by name.

    Raises:
        OutputExistsError: The folder holds something that no demo wrote.
    """
    marker = folder / ".demo"
    if folder.is_dir() and any(folder.iterdir()) and not marker.is_file():
        message = (
            f"{folder} holds files that no demo wrote. Choose another --experiment_dir "
            "(make demo: EXPERIMENT_DIR=...)."
        )
        raise OutputExistsError(message)
    from pipelines.experiment import only_writer

    with only_writer(folder, "train"):
        for name in WRITTEN:
            path = folder / name
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        marker.touch()


def _say(text: str) -> None:
    print(text, flush=True)


@command_line.entry
def main(argv: Sequence[str]) -> int:
    """Parse, find cells, run everything."""
    parser = command_line.verb_parser("demo", DESCRIPTION)
    command_line.add_config_flags(parser, FLAGS)
    parser.add_argument("--hold_out", help="cell type whose perturbed cells are predicted")
    parser.add_argument("--dataset", default="simulated", help="simulated or kang_2018")
    arguments = parser.parse_args(argv)
    base = resolve(file=CONFIG)
    config = command_line.read_config(arguments, FLAGS, base=base)
    config = config.with_absolute_paths(Path.cwd())
    config = with_hold_out(config, arguments.hold_out or None)
    folder = Path(config.experiment_dir)
    if config.data.train_data_path is not None:
        _check(config)
        _free_folder(folder)
    else:
        _free_folder(folder)
        path = fetch(arguments.dataset or "simulated", folder)
        config = replace(config, data=replace(config.data, train_data_path=str(path)))
    run(config)
    return 0


if __name__ == "__main__":
    sys.exit(main())
