"""The project's central claim, on the real cells and through the real verbs."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.real_cells
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("held_out", ["CD14+ Monocytes", "CD4 T cells"])
def test_the_demo_beats_no_change_and_additive_on_shift_and_distribution(
    held_out: str, real_cells_folder: Path, tmp_path: Path, empty_store: Path
) -> None:
    (tmp_path / "mlflow.db").write_bytes(empty_store.read_bytes())
    cells = real_cells_folder / "kang_pbmc_1176g.h5ad"

    done = subprocess.run(
        [
            sys.executable, "-m", "pipelines.demo", "--train_data_path", cells.resolve(),
            "--hold_out", held_out, "--experiment_dir", "demo",
        ],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1400,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr[-3000:]
    table = pd.read_csv(tmp_path / "demo" / "evaluation" / "per_condition.csv")
    scores = table.set_index("method")
    for mode in ("counterfactual", "population"):
        for baseline in ("additive", "no_change"):
            assert scores.pearson[mode] > scores.pearson[baseline]
            assert scores.energy_distance[mode] < scores.energy_distance[baseline]
