"""`tune`: a sweep over model size, learning rate and any other value; the best is fitted again.

Each trial is an experiment directory trained by `train`'s own loop; Ray Tune places the trials and
stops the hopeless ones early. The choice is by NELBO on validation cells, never by what was held
out. Stopped in any way, the same command goes on.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines import cluster, command_line
from sedd.config import Config
from sedd.errors import DataError, SeddError
from sedd.flags import FLAGS

if TYPE_CHECKING:
    from pipelines.tracking import DriverRun
    from pipelines.tuning.duties import Preparer
    from pipelines.tuning.search import Search
    from pipelines.tuning.space import Space
    from pipelines.tuning.sweep import SweepFolder, Trial

DESCRIPTION = "Search model size, learning rate, or any other value; fit the best again."
SEARCH = Path(__file__).resolve().parents[1] / "configs" / "search.yaml"


def run(config: Config, search: "Search", space: "Space") -> None:
    """Run a sweep, or what is left of it, then fit and evaluate the best.

    Args:
        config: What every trial shares; `experiment_dir` is the folder of the sweep.
        search: On which budget, in which order, how many.
        space: What they differ in.

    Raises:
        UsageError: The folder holds another sweep, or the cluster has no room for a trial.
        OutputExistsError: Another process works on this sweep.
        SeddError: No trial came to a NELBO to choose by.
    """
    from pipelines.experiment import only_writer
    from pipelines.tracking import driver_run
    from pipelines.tracking.children import Children
    from pipelines.tuning.sweep import SweepFolder

    sweep, scaling = SweepFolder(Path(config.experiment_dir)), config.scaling
    with (
        only_writer(sweep.path, "tune"),
        cluster.connect(
            num_workers=scaling.num_workers, use_gpu=scaling.use_gpu, log_to_driver=False
        ) as there,
    ):
        # These import Ray, which reads its environment then, so only after `connect`.
        from pipelines.tuning.duties import Reporter
        from pipelines.tuning.points import points_of
        from pipelines.tuning.run import room_for, run_trials

        room = room_for(search, scaling, there)
        preparer, provenance = _begin(sweep, config, search)
        search, config = preparer.search, preparer.config
        points = points_of(search, space, config, sweep.trials())
        with driver_run("tune", experiment_dir=sweep.path) as tracked:
            _track_inputs(tracked, preparer)
            with Children(tracked.ref) as children:
                run_trials(
                    sweep,
                    search,
                    points,
                    room,
                    provenance,
                    prepare=preparer.prepare,
                    watcher=Reporter(preparer, children),
                )
            _conclude(sweep, search, config, tracked)


def _begin(
    sweep: "SweepFolder", config: Config, search: "Search"
) -> tuple["Preparer", dict[str, str]]:
    """Read the cells, spell the budget out, and make sure that the folder is of this sweep."""
    from pipelines.experiment import load_cells, load_shards, shards_for, split_cells
    from pipelines.tuning.duties import Preparer
    from pipelines.tuning.search import in_cells
    from pipelines.tuning.sweep import record_of

    cells = load_cells(config)
    split = split_cells(config, cells)
    if config.data.prepared_dir is None:
        data = replace(config.data, prepared_dir=str(sweep.path / "prepared"))
        config = replace(config, data=data)
    digests = {"data_digest": cells.source.digest, "split_digest": split.digest}
    sweep.require_same(record_of(search, config, **digests))
    shards = shards_for(config, cells, split)
    validation = load_shards(shards).validation
    if not validation.any():
        message = (
            "No cells are kept for validation, and a sweep chooses by their NELBO. Set "
            "split.validation_fraction above 0."
        )
        raise DataError(message)
    sweep.remember(record_of(search, config, **digests))
    search = in_cells(search, config, int((~validation).sum()))
    preparer = Preparer(sweep=sweep, search=search, config=config, cells=cells, split=split)
    return preparer, digests


def _track_inputs(tracked: "DriverRun", preparer: "Preparer") -> None:
    from pipelines.tuning.duties import track_cells

    config = preparer.config
    tracked.log_config(dataclasses.asdict(config), text=config.to_yaml())
    searched = dataclasses.asdict(preparer.search)
    tracked.log_params({f"search.{name}": str(value) for name, value in searched.items()})
    track_cells(tracked, preparer)


def _conclude(sweep: "SweepFolder", search: "Search", config: Config, tracked: "DriverRun") -> None:
    """Show the trials, fit the winner again, evaluate it, and show that too."""
    from pipelines.tuning.summary import as_markdown, note, track_summary, write_summary
    from pipelines.tuning.sweep import winner

    trials = sweep.trials()
    track_summary(tracked, write_summary(sweep), trials)
    tracked.describe(note(trials, search))
    print(f"\n{as_markdown(trials)}\n")
    best = winner(trials)
    if best is None:
        reasons = "; ".join(f"{t.name}: {t.reason}" for t in trials if t.reason)
        message = f"No trial of {sweep.path} came to a validation NELBO. {reasons[:500]}"
        raise SeddError(message)
    print(f"best: {best.name}, validation NELBO {best.nelbo:.4f} nats per gene; fitting it again")
    evaluated = _refit(sweep, best, config, tracked)
    tracked.describe(note(trials, search, evaluated=evaluated))
    print(f"\n{evaluated}\n\nbest model: {sweep.path / 'best'}")


def _refit(sweep: "SweepFolder", best: "Trial", config: Config, tracked: "DriverRun") -> str:
    """Train the winner's point as configured, generate and evaluate; returns the summary."""
    from pipelines import evaluate, generate, train
    from pipelines.tuning.sweep import refit_config

    folder = sweep.refit_folder(best.name)
    summary = folder / "evaluation" / "summary.md"
    if summary.is_file():
        sweep.point_best_at(folder)
        return summary.read_text(encoding="utf-8").strip()
    fitted = refit_config(best.point, config, folder)
    train.run(fitted, parent=tracked.ref, name=f"best ({best.name})")
    sweep.point_best_at(folder)
    fitted, results = replace(fitted, resume=None), folder / "inference_results"
    if config.split.kind == "none":
        return "Nothing was held out (split.kind is none), so the best is not evaluated."
    generate.run(fitted, generate.Output(folder=results, overwrite=True))
    return evaluate.run(fitted, results)


@command_line.entry
def main(argv: Sequence[str]) -> int:
    """Parse, resolve, search."""
    parser = command_line.verb_parser("tune", DESCRIPTION)
    command_line.add_config_flags(parser, FLAGS)
    parser.add_argument(
        "--search", help="YAML file of what is tried (default: configs/search.yaml)"
    )
    parser.add_argument("--num_trials", help="how many points are tried")
    parser.add_argument("--searcher", help="random or optuna")
    parser.add_argument("--search_seed", help="seed of the points")
    parser.add_argument("--gpus_per_trial", help="share of a GPU for a trial of one worker")
    arguments = parser.parse_args(argv)
    from pipelines.tuning.search import read_search

    config = command_line.read_config(arguments, FLAGS).with_absolute_paths(Path.cwd())
    path = Path(arguments.search or SEARCH).expanduser()
    search = read_search(
        path,
        num_trials=arguments.num_trials,
        searcher=arguments.searcher,
        seed=arguments.search_seed,
        gpus_per_trial=arguments.gpus_per_trial,
    )
    space = search.read_space(config, source=str(path))
    try:
        run(config, search, space)
    except KeyboardInterrupt:
        command_line.warn(f"stopped; the same command goes on with {config.experiment_dir}.")
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
