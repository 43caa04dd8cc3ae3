"""What the driver does around trials: their folders before, their MLflow runs during and after."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.experiment import load_config, shards_for
from pipelines.tracking import git_commit
from pipelines.train import plain_config, write_contract_files
from pipelines.tuning.run import Watcher
from pipelines.tuning.search import Search
from pipelines.tuning.space import Point, told
from pipelines.tuning.summary import final_numbers
from pipelines.tuning.sweep import SweepFolder, Trial, trial_config, with_pace_of
from sedd.config import Config
from sedd.data.cells import Cells
from sedd.data.splits import Split

if TYPE_CHECKING:
    from pipelines.tracking import DriverRun
    from pipelines.tracking.children import Children


@dataclass(frozen=True, kw_only=True)
class Preparer:
    """Makes the experiment directory of a trial: configuration, split, vocabulary, shards."""

    sweep: SweepFolder
    search: Search
    config: Config
    """What all trials share."""
    cells: Cells
    split: Split

    def prepare(self, name: str, point: Point) -> str:
        """Write what belongs into the folder of a trial; returns the folder of its shards."""
        folder = self.sweep.folder(name)
        config = trial_config(point, self.config, self.search, folder)
        if config.training.max_steps is None and (folder / "config.yaml").is_file():
            config = with_pace_of(config, load_config(folder))
        shards = shards_for(config, self.cells, self.split)
        write_contract_files(config, self.cells, self.split, shards)
        return str(shards)


class Reporter(Watcher):
    """Says on the terminal and in MLflow how trials fare."""

    def __init__(self, preparer: Preparer, children: "Children") -> None:
        self._sweep, self._children = preparer.sweep, children
        self._preparer = preparer

    def begin(self, trial: Trial) -> None:
        """Open the child run, or the one that an earlier attempt left."""
        folder = self._sweep.folder(trial.name)
        run = self._children.begin(trial.name, folder)
        track_cells(run, self._preparer)
        run.log_params({f"hp.{name}": str(value) for name, value in trial.point.items()})
        _say(f"{trial.name} begins: {told(trial.point)}")

    def end(self, trial: Trial) -> None:
        """Close the child run as the trial ended."""
        config = load_config(self._sweep.folder(trial.name))
        self._children.end(
            trial.name,
            trial.state,
            reason=trial.reason,
            metrics=final_numbers(trial),
            config=plain_config(config),
            text=config.to_yaml(),
        )
        nelbo = "" if trial.nelbo is None else f", validation NELBO {trial.nelbo:.4f}"
        reason = f": {trial.reason}" if trial.reason else ""
        cost = f"{trial.cells_seen:,} cells in {trial.wall_s:.0f} s"
        _say(f"{trial.name} {trial.state}{nelbo}, {cost}{reason}")


def track_cells(run: "DriverRun", preparer: Preparer) -> None:
    """Attach to a run what the cells were and how they were split."""
    source = preparer.cells.source
    run.log_dataset(
        Path(source.path).name, digest=source.digest[:36], source=source.path, context="training"
    )
    run.set_tags({
        "sedd.split": preparer.split.digest,
        "sedd.git_commit": git_commit() or "unknown",
    })  # fmt: skip


def _say(text: str) -> None:
    print(text, flush=True)
