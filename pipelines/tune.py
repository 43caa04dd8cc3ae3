"""`tune`: a sweep over model size, learning rate and any other value; the best is fitted again.

Each trial is an experiment directory trained by `train`'s own loop; Ray Tune places the trials and
stops the hopeless ones early. The choice is by NELBO on validation cells, never by what was held
out. Stopped in any way, the same command goes on.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipelines import cluster, command_line
from sedd.config import Config
from sedd.errors import DataError, Preempted, SeddError
from sedd.flags import FLAGS

if TYPE_CHECKING:
    from pipelines.tracking import DriverRun
    from pipelines.tuning.duties import Preparer
    from pipelines.tuning.search import Search
    from pipelines.tuning.space import Space
    from pipelines.tuning.sweep import SweepFolder, Trial
    from sedd.inference import InferenceConfig

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

    _require_equal_shares(config, space)
    if space.size is not None and space.size < search.num_trials:
        few = f"the space has {space.size} points, fewer than {search.num_trials} trials."
        command_line.warn(few)
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
        from pipelines.tuning.room import room_for
        from pipelines.tuning.run import run_trials

        room = room_for(search, scaling, there)
        preparer, provenance = _begin(sweep, config, search)
        search, config = preparer.search, preparer.config
        points = points_of(search, space, config, sweep.trials())
        with driver_run("tune", experiment_dir=sweep.path) as tracked:
            _track_inputs(tracked, preparer)
            with Children(tracked.ref) as children:
                for trial in sweep.trials():
                    if trial.state == "stopped":
                        children.expect_rest(sweep.folder(trial.name))
                ran = run_trials(
                    sweep,
                    search,
                    points,
                    room,
                    provenance,
                    prepare=preparer.prepare,
                    watcher=Reporter(preparer, children),
                )
            _conclude(sweep, search, config, tracked, ran=ran)


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
    from pipelines.train import plain_config
    from pipelines.tuning.duties import track_cells

    config = preparer.config
    tracked.log_config(plain_config(config), text=config.to_yaml())
    searched = dataclasses.asdict(preparer.search)
    tracked.log_params({f"search.{name}": str(value) for name, value in searched.items()})
    track_cells(tracked, preparer)


def _conclude(
    sweep: "SweepFolder", search: "Search", config: Config, tracked: "DriverRun", *, ran: bool
) -> None:
    """Show the trials, fit the winner again, evaluate it, and show that too."""
    from pipelines.tuning.summary import as_markdown, note, track_summary, write_summary
    from pipelines.tuning.sweep import winner

    trials = sweep.trials()
    written = write_summary(sweep)
    print(f"\n{as_markdown(trials)}\n")
    best = winner(trials)
    if best is None:
        tracked.describe(note(trials, search))
        reasons = "; ".join(f"{t.name}: {t.reason}" for t in trials if t.reason)
        message = f"No trial of {sweep.path} came to a validation NELBO. {reasons[:500]}"
        raise SeddError(message)
    print(f"best: {best.name}, validation NELBO {best.nelbo:.4f} nats per gene")
    refit = Refit(sweep.refit_folder(best.name), config.inference)
    evaluated = refit.done()
    if ran or evaluated is None:  # else MLflow has it all
        track_summary(tracked, written, trials)
        tracked.describe(note(trials, search, evaluated=evaluated or ""))
    if evaluated is None:
        print("fitting it again", flush=True)
        evaluated = _fit_again(refit, best, config, tracked)
        tracked.describe(note(trials, search, evaluated=evaluated))
    sweep.point_best_at(refit.folder)
    print(f"\n{evaluated}\n\nbest model: {sweep.path / 'best'}")


@dataclass(frozen=True)
class Refit:
    """The experiment in which the winner is fitted again, and whether that is done."""

    folder: Path
    inference: "InferenceConfig"
    """How it is to be evaluated."""

    def done(self) -> str | None:
        """What its evaluation said, if it was one with these settings and came to its end."""
        try:
            there = json.loads(self._marker.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return there["evaluated"] if there["inference"] == self._settings else None

    def mark_done(self, evaluated: str) -> None:
        """Note the end, and what the evaluation said."""
        from sedd.storage import write_text

        content = {"inference": self._settings, "evaluated": evaluated}
        write_text(self._marker, json.dumps(content, indent=1, ensure_ascii=False))

    @property
    def _marker(self) -> Path:
        return self.folder / "refit.json"

    @property
    def _settings(self) -> dict[str, Any]:
        return json.loads(json.dumps(dataclasses.asdict(self.inference)))


def _fit_again(refit: Refit, best: "Trial", config: Config, tracked: "DriverRun") -> str:
    """Train the winner's point as configured, generate and evaluate; returns what that said.

    Raises:
        Preempted: `training.max_seconds` ended; the same command goes on.
    """
    from pipelines import evaluate, generate, train
    from pipelines.tuning.sweep import refit_config

    fitted = refit_config(best.point, config, refit.folder)
    try:
        train.run(fitted, parent=tracked.ref, name=f"best ({best.name})")
    except Preempted as error:
        message = f"Stopped after {config.training.max_seconds:g} s of fitting {best.name} again. "
        raise Preempted(message + "The same command goes on.") from error
    if config.split.kind == "none":
        evaluated = "Nothing was held out (split.kind is none), so the best is not evaluated."
    else:
        fitted, results = replace(fitted, resume=None), refit.folder / "inference_results"
        generate.run(fitted, generate.Output(folder=results, overwrite=True))
        evaluated = evaluate.run(fitted, results)
    refit.mark_done(evaluated)
    return evaluated


def _require_equal_shares(config: Config, space: "Space") -> None:
    """Every batch size that is tried must be shared equally by the workers of a trial."""
    from pipelines.train import require_equal_shares

    tried = [d.values for d in space.dimensions if d.name == "training.batch_size"]
    for batch_size in tried[0] if tried else (config.training.batch_size,):
        require_equal_shares(batch_size, config.scaling.num_workers)


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
