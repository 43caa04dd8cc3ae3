"""A sweep on a tiny world, through real Ray Tune and a real SQLite MLflow, killed on its way."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import yaml

from benchmarks.sweep_page import page
from pipelines.experiment import only_writer
from pipelines.journal import read_journal
from pipelines.tuning.sweep import SweepFolder, winner
from sedd.checkpoint import newest_valid
from sedd.data.cells import write_h5ad
from sedd.data.simulate import simulate

ROOT = Path(__file__).resolve().parents[2]
CONFIG = {
    "data": {"train_data_path": "cells.h5ad", "num_genes": 40},
    "model": {"hidden_dim": 16, "num_layers": 1, "num_heads": 2},
    "training": {
        "batch_size": 16, "max_steps": 90, "validate_every": 10, "checkpoint_every": 10,
    },
    "inference": {"num_steps": 4, "shard_size": 8, "num_samples_per_condition": 16},
    "split": {"kind": "unseen_cell_type", "cell_types": ["B cells"]},
}  # fmt: skip
SEARCH = {
    "space": {
        "model.hidden_dim": {"choice": [16, 32]},
        "training.learning_rate": {"loguniform": [3e-4, 3e-2]},
    },
    "num_trials": 3,
}


def write_world(folder: Path, store: Path) -> None:
    (folder / "mlflow.db").write_bytes(store.read_bytes())
    write_h5ad(simulate(num_cells=500, num_genes=60, num_cell_types=3).cells, folder / "cells.h5ad")
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "search.yaml").write_text(yaml.safe_dump(SEARCH))


def command(*arguments: str) -> list[str]:
    return [
        sys.executable, "-m", "pipelines.tune", "--config", "config.yaml",
        "--search", "search.yaml", "--experiment_dir", "sweep", *arguments,
    ]  # fmt: skip


def environment(folder: Path) -> dict[str, str]:
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    return os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": uri}


def tune(folder: Path, *arguments: str, timeout: float = 400) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def started(folder: Path, *arguments: str, when: Callable[[], bool]) -> subprocess.Popen[str]:
    """Start a sweep, and wait until `when` holds."""
    with (folder / "interrupted.log").open("w") as log:
        process = subprocess.Popen(
            command(*arguments),
            cwd=folder,
            env=environment(folder),
            stdout=log,
            stderr=log,
            text=True,
        )
    deadline = time.monotonic() + 170
    while not when():
        assert process.poll() is None, (folder / "interrupted.log").read_text()
        assert time.monotonic() < deadline, (folder / "interrupted.log").read_text()
        time.sleep(0.1)
    return process


def interrupt(
    folder: Path, number: signal.Signals, *arguments: str, when: Callable[[], bool]
) -> subprocess.Popen[str]:
    """Start a sweep and send its driver a signal as soon as `when` holds."""
    process = started(folder, *arguments, when=when)
    process.send_signal(number)
    process.wait(60)
    return process


def runs(folder: Path) -> dict[str, Sequence]:
    """All MLflow runs by name."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    found: dict[str, list] = {}
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            found.setdefault(run.info.run_name, []).append(run)
    return found


class World:
    """A sweep that was killed after its first trial, and gone on with to its end."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.sweep = folder, SweepFolder(folder / "sweep")
        interrupt(folder, signal.SIGKILL, when=self._one_ended_and_one_trains)
        for trial in self.sweep.trials():  # their processes notice a little later
            with only_writer(self.sweep.folder(trial.name), "train", patience_s=60):
                pass
        self.before = {trial.name: trial for trial in self.sweep.trials()}
        self.journals = {
            name: (self.sweep.folder(name) / "metrics.jsonl").read_bytes()
            for name, trial in self.before.items()
            if trial.state != "running"
        }
        self.reached = {
            name: newest_valid(self.sweep.folder(name) / "checkpoints", set_aside=False)
            for name in self.before
        }
        self.again = tune(folder)

    def _one_ended_and_one_trains(self) -> bool:
        trials = self.sweep.trials()
        training = [t for t in trials if t.state == "running"]
        return len(trials) > len(training) and any(
            list(self.sweep.folder(t.name).glob("checkpoints/step_*")) for t in training
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> World:
    folder = tmp_path_factory.mktemp("sweep")
    write_world(folder, empty_store)
    return World(folder)


pytestmark = pytest.mark.timeout(900)


def test_a_killed_sweep_goes_on_where_it_was(world: World) -> None:
    assert world.again.returncode == 0, world.again.stderr
    trials = world.sweep.trials()

    assert [trial.name for trial in trials] == [f"trial_{n:03d}" for n in range(3)]
    assert {t.state for t in trials} <= {"finished", "stopped"}
    for name, content in world.journals.items():  # ended before: not touched again
        assert (world.sweep.folder(name) / "metrics.jsonl").read_bytes() == content
    for trial in trials:
        steps = [p.step for p in read_journal(world.sweep.folder(trial.name) / "metrics.jsonl")]
        assert steps == list(range(1, len(steps) + 1))
        assert trial.point == world.before.get(trial.name, trial).point


def test_a_finished_trial_has_used_its_budget_and_the_best_is_the_smallest_nelbo(
    world: World,
) -> None:
    trials = world.sweep.trials()
    best = winner(trials)

    assert best is not None
    assert {t.cells_seen for t in trials if t.state == "finished"} == {90 * 16}
    assert best.nelbo == min(t.nelbo for t in trials if t.state == "finished")
    for trial in trials:
        points = read_journal(world.sweep.folder(trial.name) / "metrics.jsonl")
        measured = [
            p.metrics["val/nelbo"]
            for p in points
            if "val/nelbo" in p.metrics and p.metrics["train/cells_seen"] <= trial.cells_seen
        ]
        assert trial.nelbo == min(measured)


def test_the_refit_repeats_the_winner_and_is_evaluated(world: World) -> None:
    best = winner(world.sweep.trials())
    folder = (world.sweep.path / "best").resolve()

    refit = read_journal(folder / "metrics.jsonl")
    trial = read_journal(world.sweep.folder(best.name) / "metrics.jsonl")

    assert folder == world.sweep.refit_folder(best.name)
    assert [p.metrics["train/loss"] for p in refit] == [p.metrics["train/loss"] for p in trial]
    assert "| counterfactual" in (folder / "evaluation" / "summary.md").read_text()


def test_mlflow_shows_one_parent_with_every_trial_once_and_none_running(world: World) -> None:
    found = runs(world.folder)
    trials = world.sweep.trials()
    best = winner(trials)
    ((parent,), refits) = found["sweep"], found[f"best ({best.name})"]

    assert all(len(each) == 1 for each in found.values()), found
    assert parent.info.status == "FINISHED"
    assert refits[0].info.status == "FINISHED"
    assert refits[0].data.tags["mlflow.parentRunId"] == parent.info.run_id
    for trial in trials:
        (run,) = found[trial.name]
        ends = {"finished": "FINISHED", "stopped": "KILLED"}
        assert run.info.status == ends[trial.state]
        assert run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.tags["sedd.trial"] == trial.state
        assert (
            float(run.data.params["hp.training.learning_rate"])
            == (trial.point["training.learning_rate"])
        )
        assert run.data.metrics["val/best_nelbo"] == trial.nelbo
        assert run.data.metrics["n_params"] == trial.num_parameters > 1000
        assert run.data.metrics["cells_seen"] == trial.cells_seen
        assert run.data.metrics["wall_s"] == trial.wall_s > 0


def test_every_point_of_a_trial_s_journal_is_in_mlflow_once(world: World) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{world.folder / 'mlflow.db'}")
    found = runs(world.folder)
    for trial in world.sweep.trials():
        history = client.get_metric_history(found[trial.name][0].info.run_id, "train/loss")
        points = read_journal(world.sweep.folder(trial.name) / "metrics.jsonl")
        assert sorted((m.step, m.value) for m in history) == [
            (p.step, p.metrics["train/loss"]) for p in points
        ]


def test_the_parent_run_shows_the_trials_and_what_they_cost(world: World) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{world.folder / 'mlflow.db'}")
    (parent,) = runs(world.folder)["sweep"]
    trials = world.sweep.trials()
    note = parent.data.tags["mlflow.note.content"]

    assert f"**{winner(trials).name}**" in note
    assert all(f"{trial.nelbo:.4f}" in note for trial in trials)
    assert "counterfactual" in note
    assert "cfg.experiment_dir" not in parent.data.params
    assert f"| **{winner(trials).name}** |" in page(world.sweep, "Told.")
    top = {a.path for a in client.list_artifacts(parent.info.run_id)}
    assert {"config.yaml", "trials.csv", "trials.md", "figures"} <= top
    (figure,) = client.list_artifacts(parent.info.run_id, "figures")
    assert figure.path == "figures/quality_against_cost.png"
    table = (world.sweep.path / "trials.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [float(row["nelbo"]) for row in rows if row["state"] == "finished"] == sorted(
        t.nelbo for t in trials if t.state == "finished"
    )


def test_the_same_command_again_trains_nothing(world: World) -> None:
    written = {p: p.stat().st_mtime_ns for p in world.sweep.path.rglob("metrics.jsonl")}

    again = tune(world.folder)

    assert again.returncode == 0, again.stderr
    assert "begins" not in again.stdout
    assert {p: p.stat().st_mtime_ns for p in world.sweep.path.rglob("metrics.jsonl")} == written
    assert all(len(each) == 1 for each in runs(world.folder).values())
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{world.folder / 'mlflow.db'}")
    (parent,) = runs(world.folder)["sweep"]
    assert len(client.get_metric_history(parent.info.run_id, "val/best_nelbo")) == 1


def test_a_folder_of_another_sweep_is_refused_by_what_differs(world: World) -> None:
    before = (world.sweep.path / "sweep.json").read_bytes()

    refused = tune(world.folder, "--set", "model.dropout=0.5", "--search_seed", "7")

    assert refused.returncode == 2
    assert "config.model.dropout: there 0.0, now 0.5" in refused.stderr
    assert "search.seed: there 0, now 7" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert (world.sweep.path / "sweep.json").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--set", "scaling.use_gpu=true"), "needs a GPU"),
        (("--searcher", "grid"), "'random' or 'optuna'"),
        (("--num_trials", "0"), "num_trials is 0, wanted 1 or more"),
        (("--search", "nowhere.yaml"), "nowhere.yaml does not exist"),
    ],
)
def test_what_cannot_be_done_is_said_at_once_and_leaves_no_sweep(
    tmp_path: Path, empty_store: Path, arguments: Sequence[str], said: str
) -> None:
    write_world(tmp_path, empty_store)

    refused = tune(tmp_path, *arguments)

    assert refused.returncode == 2, refused.stderr
    assert said in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (tmp_path / "sweep" / "sweep.json").exists()
    assert not runs(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_sweep_ends_every_run_and_the_same_command_goes_on(
    tmp_path: Path, empty_store: Path, number: signal.Signals, code: int
) -> None:
    write_world(tmp_path, empty_store)
    sweep = SweepFolder(tmp_path / "sweep")

    stopped = interrupt(
        tmp_path, number, when=lambda: bool(list(sweep.path.glob("trials/*/checkpoints/s*")))
    )
    states = {name: run[0].info.status for name, run in runs(tmp_path).items()}
    again = tune(tmp_path)

    assert stopped.returncode == code
    assert "the same command goes on" in (tmp_path / "interrupted.log").read_text()
    assert "RUNNING" not in states.values()
    assert states["sweep"] == "KILLED"
    assert again.returncode == 0, again.stderr
    assert all(len(each) == 1 for each in runs(tmp_path).values())


@pytest.mark.slow
def test_a_trial_whose_process_is_killed_is_started_again_and_a_second_driver_is_refused(
    tmp_path: Path, empty_store: Path
) -> None:
    write_world(tmp_path, empty_store)
    sweep = SweepFolder(tmp_path / "sweep")
    owner = sweep.folder("trial_000") / ".train.owner.json"

    process = started(
        tmp_path,
        when=lambda: bool(list(sweep.folder("trial_000").glob("checkpoints/step_*"))),
    )
    os.kill(json.loads(owner.read_text())["pid"], signal.SIGKILL)
    second = tune(tmp_path)
    process.wait(400)

    assert second.returncode == 73
    assert "is being written by" in second.stderr
    assert process.returncode == 0, (tmp_path / "interrupted.log").read_text()
    trial = sweep.trial("trial_000")
    steps = [p.step for p in read_journal(sweep.folder("trial_000") / "metrics.jsonl")]
    assert trial.state in ("finished", "stopped")
    assert steps == list(range(1, len(steps) + 1))
    assert all(len(each) == 1 for each in runs(tmp_path).values())


@pytest.mark.slow
def test_a_sweep_killed_while_the_best_is_evaluated_evaluates_it_to_the_end(
    tmp_path: Path, empty_store: Path
) -> None:
    write_world(tmp_path, empty_store)
    sweep = SweepFolder(tmp_path / "sweep")

    interrupt(
        tmp_path,
        signal.SIGKILL,
        "--num_trials",
        "2",
        when=lambda: bool(list(sweep.path.glob("refits/*/evaluation/summary.md"))),
    )
    (refit,) = sweep.path.glob("refits/*")
    unmarked = not (refit / "refit.json").exists()
    again = tune(tmp_path, "--num_trials", "2")

    assert unmarked
    assert again.returncode == 0, again.stderr
    assert (refit / "evaluation" / "evaluation.json").is_file()
    (run,) = runs(tmp_path)[f"best ({refit.name})"]
    assert "eval/energy_distance" in run.data.metrics
    assert run.info.status == "FINISHED"


@pytest.mark.slow
def test_optuna_proposes_distinct_points_and_a_sweep_of_it_can_be_gone_on_with(
    tmp_path: Path, empty_store: Path
) -> None:
    write_world(tmp_path, empty_store)

    first = tune(tmp_path, "--searcher", "optuna", "--num_trials", "2")
    more = tune(tmp_path, "--searcher", "optuna", "--num_trials", "5")

    assert first.returncode == 0, first.stderr
    assert more.returncode == 0, more.stderr
    points = [json.dumps(t.point) for t in SweepFolder(tmp_path / "sweep").trials()]
    assert len(points) == len(set(points)) == 5


@pytest.mark.slow
def test_a_budget_in_seconds_gives_a_trial_as_many_steps_as_fit(
    tmp_path: Path, empty_store: Path
) -> None:
    write_world(tmp_path, empty_store)
    budget = {"unit": "seconds", "per_trial": 6.0, "reduction": None}
    (tmp_path / "search.yaml").write_text(yaml.safe_dump(SEARCH | {"budget": budget}))

    done = tune(tmp_path, "--num_trials", "2")

    assert done.returncode == 0, done.stderr
    for trial in SweepFolder(tmp_path / "sweep").trials():
        assert 2 < trial.wall_s < 18  # by the pace of its first steps, on a machine that is shared


@pytest.mark.slow
def test_trials_of_two_workers_give_their_places_back_when_they_are_stopped(
    tmp_path: Path, empty_store: Path
) -> None:
    write_world(tmp_path, empty_store)

    done = tune(tmp_path, "--set", "scaling.num_workers=2", "--num_trials", "3")

    assert done.returncode == 0, done.stderr
    trials = SweepFolder(tmp_path / "sweep").trials()
    assert len(trials) == 3
    assert "stopped" in {trial.state for trial in trials}
