"""What a person sees: MLflow's own pages in a real browser, on runs that our verbs made."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sedd.data.cells import write_h5ad
from sedd.data.simulate import simulate
from tests.pipelines import mlflow_pages
from tests.pipelines.browser import Browser
from tests.pipelines.servers import LabServer
from tests.pipelines.test_end_to_end import HELD_OUT, TINY
from tests.pipelines.test_lab_server import run_verb, train_words

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
WIDTHS = {"narrow": 16, "wide": 32}


@dataclass(frozen=True)
class Shown:
    """A server that shows two runs, and a browser before it."""

    uri: str
    experiment_id: str
    runs: dict
    browser: Browser
    pictures: Path

    @property
    def ids(self) -> list[str]:
        return [self.runs[name].info.run_id for name in WIDTHS]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shown]:
    from mlflow import MlflowClient

    folder = tmp_path_factory.mktemp("ui")
    pictures = Path(os.environ.get("SEDD_SCREENSHOTS") or folder / "pictures")
    write_h5ad(simulate(num_cells=500, num_genes=60, num_cell_types=3).cells, folder / "cells.h5ad")
    server = LabServer(folder, "sqlite:///lab.db", "--no_auth")
    with Browser() as browser:  # first, since it may skip
        server.start()
        try:
            make_runs(server)
            client = MlflowClient(tracking_uri=server.uri)
            experiment = client.get_experiment_by_name("sedd").experiment_id
            runs = {run.info.run_name: run for run in client.search_runs([experiment])}
            yield Shown(server.uri, experiment, runs, browser, pictures)
        finally:
            server.kill()


def make_runs(server: LabServer) -> None:
    sets = [part for text in TINY[-4:-2] for part in ("--set", text)]
    jobs = [
        [*train_words(name, 30), "--set", f"model.hidden_dim={width}"]
        for name, width in WIDTHS.items()
    ]
    jobs.append([
        "pipelines.generate", "--experiment_dir", "wide", "--cell_types", HELD_OUT,
        "--num_samples_per_condition", "20", *sets,
    ])  # fmt: skip
    jobs.append(["pipelines.evaluate", "--experiment_dir", "wide", *sets])
    for words in jobs:
        done = run_verb(server, *words)
        assert done.returncode == 0, done.stderr


def metric_rows(said: str) -> dict[str, list[str]]:
    """Metric names and their values by run, of those that the page has drawn so far.

    MLflow draws all names first and then all values, row by row.
    """
    lines = said.partition("Metrics\nShow diff only\n")[2].partition("\nArtifacts\n")[0].split("\n")
    count = len(lines) // (1 + len(WIDTHS))
    values = lines[count:]
    return {
        name: values[row * len(WIDTHS) : (row + 1) * len(WIDTHS)]
        for row, name in enumerate(lines[:count])
    }


def test_two_runs_are_compared_by_name_setting_and_number(shown: Shown) -> None:
    said = mlflow_pages.picture_comparison(
        shown.browser, shown.uri, shown.experiment_id, shown.ids, shown.pictures / "comparison.png"
    )

    rows = {row[0]: row[1:] for row in shown.browser.rows() if row}
    assert rows["Run Name:"] == list(WIDTHS)
    assert rows["cfg.model.hidden_dim"] == [str(width) for width in WIDTHS.values()]
    numbers = metric_rows(said)
    assert numbers["cells_seen"] == ["480", "480"]
    assert "eval/counterfactual/pearson" in numbers
    for key, texts in numbers.items():
        measured = [shown.runs[name].data.metrics.get(key, math.nan) for name in WIDTHS]
        told = [float(text) for text in texts]
        assert told == pytest.approx(measured, abs=6e-4, rel=6e-4, nan_ok=True)  # as rounded there
    assert (shown.pictures / "comparison.png").stat().st_size > 20_000


def test_a_report_opens_in_the_viewer(shown: Shown) -> None:
    run_id = shown.runs["wide"].info.run_id

    said = mlflow_pages.picture_report(
        shown.browser, shown.uri, shown.experiment_id, run_id, shown.pictures / "report.png"
    )

    assert "wide: predicted against real cells" in said
    for method in ("counterfactual", "population", "additive", "no change", "ceiling"):
        assert method in said


def test_a_run_says_what_was_held_out_how_it_did_and_what_it_cost(shown: Shown) -> None:
    browser = shown.browser
    browser.open(mlflow_pages.run(shown.uri, shown.experiment_id, shown.runs["wide"].info.run_id))

    said = browser.wait_for(f"Held out: {HELD_OUT} × IFNb.", "counterfactual", "n_params", "wall_s")
    browser.picture(shown.pictures / "run.png")

    assert "cells.h5ad" in said
    assert "Finished" in said


def test_the_experiment_says_how_to_compare(shown: Shown) -> None:
    browser = shown.browser
    browser.open(mlflow_pages.runs(shown.uri, shown.experiment_id, charts=True))

    browser.wait_for("Models of perturbed single cells", "matching runs", "eval/energy_distance")
    browser.picture(shown.pictures / "charts.png")
