"""The whole job on a tiny world, through real Ray and a real SQLite MLflow."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import anndata
import numpy as np
import pandas
import pytest
from safetensors.numpy import load_file

from pipelines.journal import read_journal
from sedd.data.cells import write_h5ad
from sedd.data.simulate import simulate

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

ROOT = Path(__file__).resolve().parents[2]
HELD_OUT = "B cells"
TINY = (
    "data.num_genes=40",
    "model.hidden_dim=16",
    "model.num_layers=1",
    "model.num_heads=2",
    "training.batch_size=16",
    "training.validate_every=10",
    "training.checkpoint_every=10",
    "inference.num_steps=4",
    "inference.shard_size=8",
    "split.kind=unseen_cell_type",
    f"split.cell_types=['{HELD_OUT}']",
)


def run_verb(
    verb: str, *arguments: str, folder: Path, settings: Sequence[str] = TINY
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(verb, *arguments, settings=settings),
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        timeout=170,
    )


def command(verb: str, *arguments: str, settings: Sequence[str] = TINY) -> list[str]:
    sets = [part for text in settings for part in ("--set", text)]
    return [sys.executable, "-m", f"pipelines.{verb}", *arguments, *sets]


def environment(folder: Path) -> dict[str, str]:
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    return os.environ | {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": uri}


def runs_of(client: "MlflowClient") -> list["Run"]:
    return client.search_runs([e.experiment_id for e in client.search_experiments()])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, empty_store: Path) -> Path:
    """A folder with cells and a trained experiment."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "mlflow.db").write_bytes(empty_store.read_bytes())
    write_h5ad(simulate(num_cells=500, num_genes=60, num_cell_types=3).cells, folder / "cells.h5ad")
    trained = run_verb(
        "train", "--train_data_path", "cells.h5ad", "--max_steps", "20",
        "--experiment_dir", "e", folder=folder,
    )  # fmt: skip
    assert trained.returncode == 0, trained.stderr
    return folder


def test_training_leaves_an_experiment_that_explains_itself(world: Path) -> None:
    experiment = world / "e"

    steps = [point.step for point in read_journal(experiment / "metrics.jsonl")]
    split = json.loads((experiment / "split.json").read_text())

    assert steps == list(range(1, 21))
    assert split["held_out"] == [[HELD_OUT, "IFNb"]]
    profile = json.loads((experiment / "checkpoints/best/information_profile.json").read_text())
    assert profile["num_genes"] == 40
    assert len(profile["nats_per_masked_gene"]) == len(profile["visible_genes"]) > 10
    assert sorted(p.name for p in (experiment / "checkpoints").iterdir()) == [
        "best",
        "step_00000010",
        "step_00000020",
    ]


def test_mlflow_holds_every_point_of_the_journal_and_the_configuration(world: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{world / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "sedd"]
    (run,) = client.search_runs([experiment.experiment_id])

    points = read_journal(world / "e" / "metrics.jsonl")
    history = client.get_metric_history(run.info.run_id, "train/loss")

    assert run.info.status == "FINISHED"
    assert run.data.params["cfg.model.hidden_dim"] == "16"
    assert [(m.step, m.value) for m in sorted(history, key=lambda m: m.step)] == [
        (point.step, point.metrics["train/loss"]) for point in points
    ]


def test_the_run_says_what_it_cost_and_what_was_held_out(world: Path) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{world / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "sedd"]
    (run,) = client.search_runs([experiment.experiment_id])
    weights = load_file(world / "e" / "checkpoints" / "best" / "average.safetensors")
    speeds = [p.metrics["speed/cells_per_s"] for p in read_journal(world / "e" / "metrics.jsonl")]

    measured = run.data.metrics

    assert "Compare" in experiment.tags["mlflow.note.content"]
    assert measured["cells_seen"] == 20 * 16
    assert measured["wall_s"] == pytest.approx(sum(16 / speed for speed in speeds))
    assert 0 < measured["n_params"] <= sum(array.size for array in weights.values())
    assert 0.1 < measured["system/host_memory_gb"] < 10
    assert "system/gpu_memory_gb" not in measured
    note = run.data.tags["mlflow.note.content"]
    assert note.startswith(f"Held out: {HELD_OUT} × IFNb.")
    assert "python -m pipelines.train --config e/config.yaml --experiment_dir e_again" in note


def test_generated_cells_are_whole_counts_of_what_was_asked_and_evaluate_scores_them(
    world: Path,
) -> None:
    from mlflow import MlflowClient

    generated = run_verb(
        "generate", "--experiment_dir", "e", "--cell_types", HELD_OUT, "CD4 T cells",
        "--num_samples_per_condition", "20", folder=world, settings=TINY[-4:-2],
    )  # fmt: skip
    evaluated = run_verb(
        "evaluate", "--experiment_dir", "e", "--sampler_sweep", folder=world, settings=TINY[-4:-2]
    )

    assert generated.returncode == 0, generated.stderr
    assert evaluated.returncode == 0, evaluated.stderr
    cells = anndata.read_h5ad(world / "e/inference_results/celltype_B_cells/generated_cells.h5ad")
    vocabulary = json.loads((world / "e" / "vocabulary.json").read_text())
    assert cells.shape == (20, 40)
    assert list(cells.var_names) == vocabulary["genes"]
    assert np.issubdtype(cells.X.dtype, np.integer)
    assert cells.X.min() >= 0
    assert set(cells.obs["perturbation"]) == {"IFNb"}
    for method in ("counterfactual", "population", "additive", "no change", "ceiling"):
        assert method in evaluated.stdout
    assert "more gain less than 5 % of what steps can; inference.num_steps is" in evaluated.stdout
    table = pandas.read_csv(world / "e" / "evaluation" / "sampler.csv")
    assert sorted(set(table["num_steps"])) == [1, 2, 4, 8, 16, 32]
    assert table[["nelbo", "energy_distance"]].notna().all(axis=None)
    assert (world / "e" / "evaluation" / "report.html").stat().st_size > 10_000
    card = (world / "e" / "evaluation" / "model_card.md").read_text(encoding="utf-8")
    assert f"### {HELD_OUT} × IFNb" in card
    assert "## Known failures" in card
    client = MlflowClient(tracking_uri=f"sqlite:///{world / 'mlflow.db'}")
    (run,) = [run for run in runs_of(client) if run.info.run_name == "e"]
    inputs = {i.tags[0].value: i.dataset for i in run.inputs.dataset_inputs}
    assert {context: data.name for context, data in inputs.items()} == {
        "training": "cells.h5ad",
        "evaluation": "cells.h5ad held out",
    }
    assert inputs["training"].digest != inputs["evaluation"].digest
    assert "| counterfactual" in run.data.tags["mlflow.note.content"]
    assert run.info.status == "FINISHED"
    assert {f.path for f in client.list_artifacts(run.info.run_id, "evaluation")} >= {
        "evaluation/report.html",
        "evaluation/summary.md",
    }
    assert json.loads((world / "e" / "tracking.json").read_text())["missing"]["metrics"] == []


@pytest.mark.slow
def test_the_number_of_actors_does_not_change_the_cells(world: Path) -> None:
    def cells(actors: str) -> np.ndarray:
        out = f"actors{actors}"
        done = run_verb(
            "generate", "--experiment_dir", "e", "--cell_type", HELD_OUT, "--output_dir", out,
            "--num_samples_per_condition", "20", "--num_actors", actors, folder=world,
            settings=TINY[-4:-2],
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        path = world / out / "celltype_B_cells" / "generated_cells.h5ad"
        return anndata.read_h5ad(path).X.toarray()

    np.testing.assert_array_equal(cells("1"), cells("2"))


def test_an_unknown_cell_type_is_refused_before_any_folder_is_made(world: Path) -> None:
    refused = run_verb(
        "generate", "--experiment_dir", "e", "--cell_type", "B cell", "--output_dir", "nowhere",
        folder=world, settings=(),
    )  # fmt: skip

    assert refused.returncode == 2
    assert "did you mean 'B cells'" in refused.stderr
    assert not (world / "nowhere").exists()


def test_training_over_a_trained_model_is_refused(world: Path) -> None:
    before = (world / "e" / "metrics.jsonl").read_bytes()

    refused = run_verb(
        "train", "--train_data_path", "cells.h5ad", "--max_steps", "20",
        "--experiment_dir", "e", folder=world,
    )  # fmt: skip

    assert refused.returncode == 73
    assert "--resume auto" in refused.stderr
    assert (world / "e" / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("setting", "code", "message"),
    [
        ("data.bin_ratio=1.5", 2, "shards"),
        ("split.cell_types=['CD4 T cells']", 2, "split_digest"),
        ("model.hidden_dim=32", 74, "model.hidden_dim"),
    ],
)
def test_resuming_with_other_settings_is_refused_and_the_old_ones_stay(
    world: Path, setting: str, code: int, message: str
) -> None:
    before = (world / "e" / "config.yaml").read_bytes()

    refused = run_verb(
        "train", "--train_data_path", "cells.h5ad", "--max_steps", "30", "--resume", "auto",
        "--experiment_dir", "e", folder=world, settings=(*TINY, setting),
    )  # fmt: skip

    assert refused.returncode == code
    assert message in refused.stderr
    assert (world / "e" / "config.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--train_data_path", "none.h5ad"), 65, "none.h5ad"),
        (("--train_data_path", "cells.h5ad", "--gene", "drug"), 65, "'drug'"),
        (("--train_data_path", "cells.h5ad", "--control_name", "contrl"), 65, "control"),
        (("--train_data_path", "cells.h5ad", "--set", "model.hidden_dims=3"), 2, "hidden_dim"),
        ((), 2, "--train_data_path"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(
    world: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    refused = run_verb("train", "--experiment_dir", "bad", *arguments, folder=world)

    assert refused.returncode == code
    assert message in refused.stderr
    assert refused.stderr.startswith("error: ")
    assert "Traceback" not in refused.stderr
    assert not (world / "bad").exists()


@pytest.mark.timeout(600)
def test_a_killed_training_goes_on_and_ends_where_an_undisturbed_one_does(world: Path) -> None:
    arguments = ("--train_data_path", "cells.h5ad", "--max_steps", "60")
    folder = world / "killed"
    process = subprocess.Popen(
        command("train", *arguments, "--experiment_dir", "killed"),
        cwd=world,
        env=environment(world),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while not (folder / "checkpoints" / "step_00000020").is_dir():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()

    resumed = run_verb(
        "train", *arguments, "--experiment_dir", "killed", "--resume", "auto", folder=world
    )
    undisturbed = run_verb("train", *arguments, "--experiment_dir", "whole", folder=world)

    assert resumed.returncode == 0, resumed.stderr
    assert undisturbed.returncode == 0, undisturbed.stderr
    name = "checkpoints/step_00000060/model.safetensors"
    assert (folder / name).read_bytes() == (world / "whole" / name).read_bytes()
    losses = [
        [(p.step, p.metrics["train/loss"]) for p in read_journal(world / run / "metrics.jsonl")]
        for run in ("killed", "whole")
    ]
    assert losses[0] == losses[1]


@pytest.mark.timeout(300)
@pytest.mark.slow
def test_a_terminated_training_says_so_and_goes_on(world: Path) -> None:
    from mlflow import MlflowClient

    arguments = ("train", "--train_data_path", "cells.h5ad", "--experiment_dir", "terminated")
    process = subprocess.Popen(
        command(*arguments, "--max_steps", "100000"),
        cwd=world,
        env=environment(world),
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not list((world / "terminated" / "checkpoints").glob("step_*")):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    client = MlflowClient(tracking_uri=environment(world)["MLFLOW_TRACKING_URI"])
    (stopped,) = [run for run in runs_of(client) if run.info.run_name == "terminated"]
    steps = read_journal(world / "terminated" / "metrics.jsonl")[-1].step

    resumed = run_verb(*arguments, "--max_steps", str(steps + 10), "--resume", "auto", folder=world)

    assert process.returncode == 143, said
    assert said.endswith("warning: terminated.\n")
    assert "Traceback" not in said
    assert stopped.info.status == "KILLED"
    assert resumed.returncode == 0, resumed.stderr
    assert client.get_run(stopped.info.run_id).info.status == "FINISHED"


def test_two_workers_see_the_losses_of_one(world: Path) -> None:
    both = run_verb(
        "train", "--train_data_path", "cells.h5ad", "--max_steps", "20", "--num_workers", "2",
        "--experiment_dir", "two", folder=world,
    )  # fmt: skip

    assert both.returncode == 0, both.stderr
    one, two = (
        [p.metrics["val/nelbo"] for p in read_journal(world / run / "metrics.jsonl")
         if "val/nelbo" in p.metrics]
        for run in ("e", "two")
    )  # fmt: skip
    np.testing.assert_allclose(one, two, rtol=1e-5)


@pytest.mark.slow
def test_a_time_limit_ends_with_75_and_the_rest_follows(world: Path) -> None:
    arguments = ("--train_data_path", "cells.h5ad", "--max_steps", "4000")
    limited = run_verb(
        "train", *arguments, "--experiment_dir", "my limits", "--max_seconds", "1", folder=world
    )

    steps = [point.step for point in read_journal(world / "my limits" / "metrics.jsonl")]
    assert limited.returncode == 75, limited.stderr
    assert f"--resume auto --experiment_dir '{world / 'my limits'}'" in limited.stderr
    assert 0 < steps[-1] < 4000
    assert (world / "my limits" / "checkpoints" / f"step_{steps[-1]:08d}").is_dir()
