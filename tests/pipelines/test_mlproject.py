"""Every entry point of MLproject runs through `mlflow run`, with what a user would pass."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from sedd.data.cells import write_h5ad
from sedd.data.simulate import simulate

ROOT = Path(__file__).resolve().parents[2]
TINY = (
    "model.hidden_dim=16; model.num_layers=1; model.num_heads=2; training.max_steps=10; "
    "training.validate_every=5; inference.num_steps=4; inference.num_samples_per_condition=10; "
    "scaling.num_actors=1; scaling.num_workers=1"
)
HOLD_OUT = "split.kind=unseen_cell_type; split.cell_types=['B cells']; data.num_genes=40; "


def mlflow_run(entry: str, folder: Path, **parameters: str) -> subprocess.CompletedProcess[str]:
    given = [part for key, value in parameters.items() for part in ("-P", f"{key}={value}")]
    scripts = Path(sys.executable).parent
    return subprocess.run(
        [scripts / "mlflow", "run", ROOT, "-e", entry, "--env-manager", "local", *given],
        cwd=folder,
        env=os.environ
        | {
            "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
            "MLFLOW_TRACKING_URI": f"sqlite:///{folder / 'mlflow.db'}",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_entry_point_runs_and_a_failure_is_a_failed_run(
    tmp_path: Path, empty_store: Path
) -> None:
    from mlflow import MlflowClient

    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    cells = tmp_path / "cells.h5ad"
    write_h5ad(simulate(num_cells=500, num_genes=60, num_cell_types=3).cells, cells)
    (tmp_path / "search.yaml").write_text("space: {model.hidden_dim: {choice: [16, 32]}}")
    experiment = str(tmp_path / "mine")
    parameters = {
        "validate": {"train_data_path": str(cells)},
        "prepare": {
            "train_data_path": str(cells), "experiment_dir": experiment, "set": HOLD_OUT + TINY
        },
        "train": {
            "train_data_path": str(cells), "experiment_dir": experiment, "set": HOLD_OUT + TINY
        },
        "generate": {"experiment_dir": experiment, "cell_types": "['B cells']", "set": TINY},
        "evaluate": {"experiment_dir": experiment, "set": TINY},
        "tune": {
            "train_data_path": str(cells), "experiment_dir": str(tmp_path / "sweep"),
            "search": str(tmp_path / "search.yaml"), "num_trials": "2", "set": HOLD_OUT + TINY,
        },
        "register": {"experiment_dir": experiment, "name": "mine", "force": "true"},
        "demo": {"experiment_dir": str(tmp_path / "demo"), "set": "data.num_genes=40; " + TINY},
    }  # fmt: skip

    assert set(parameters) == set(yaml.safe_load((ROOT / "MLproject").read_text())["entry_points"])
    for entry, given in parameters.items():
        done = mlflow_run(entry, tmp_path, **given)
        assert done.returncode == 0, f"{entry}: {done.stderr[-3000:]}"
    failed = mlflow_run("train", tmp_path, train_data_path=str(tmp_path / "none.h5ad"))

    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([e.experiment_id for e in client.search_experiments()])
    assert failed.returncode != 0
    assert {run.info.status for run in runs} == {"FINISHED", "FAILED"}
    assert sum(run.info.status == "FAILED" for run in runs) == 1
    assert any("eval/energy_distance" in run.data.metrics for run in runs)
