"""What the README shows of a sweep: its numbers as a page, and MLflow's own pages as pictures.

`python -m benchmarks.sweep_page experiments/sweep_kang --told "..." --pictures DIR` reads a sweep
that `tune` finished and prints the page; the pictures are of the store that its runs are in, taken
in a headless Chromium.
"""

import argparse
import json
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pandas as pd

from pipelines.tuning.summary import as_markdown
from pipelines.tuning.sweep import FILE_NAME, SweepFolder, winner

SHOW_MORE = """[...document.querySelectorAll("button")]
  .find((button) => button.innerText.trim() === "Show more").click()"""
HIDE_PATH = """[...document.querySelectorAll("*")]
  .filter((it) => /^Path: file:/.test(it.innerText || "") && it.innerText.length < 300)
  .forEach((it) => { it.style.visibility = "hidden" })"""
"""Where the store lies is nobody's business."""


def page(sweep: SweepFolder, told: str) -> str:
    """The trials, the choice, and how the chosen one fares against the held-out cells."""
    trials = sweep.trials()
    best = winner(trials)
    if best is None:
        raise SystemExit(f"{sweep.path} has no winner yet")
    searched = json.loads((sweep.path / FILE_NAME).read_text())["search"]
    summary = (sweep.path / "best" / "evaluation" / "summary.md").read_text().strip()
    return "\n".join(
        [
            told,
            "",
            f"{len(trials)} trials, {searched['searcher']} search with seed {searched['seed']}. "
            f"Chosen: {best.name}, validation NELBO {best.nelbo:.4f} nats per gene.",
            "",
            as_markdown(trials),
            "",
            "The chosen trial, fitted again, against the held-out cells:",
            "",
            summary,
        ]
    )


def take_pictures(sweep: SweepFolder, folder: Path) -> None:
    """The sweep's table of trials, the comparison of its best four, and the report of the best."""
    from mlflow import MlflowClient

    from tests.pipelines import mlflow_pages
    from tests.pipelines.browser import Browser
    from tests.pipelines.servers import LabServer

    record = json.loads((sweep.path / "tracking.json").read_text())
    uri, parent = record["tracking_uri"], record["run_id"]
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_run(parent).info.experiment_id
    children = client.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{parent}'")
    runs = {run.info.run_name: run.info.run_id for run in children}
    trials = pd.read_csv(sweep.path / "trials.csv")
    best = [runs[name] for name in trials["trial"][:4]]
    refit = runs[f"best ({trials['trial'][0]})"]
    with ExitStack() as stack:
        work = stack.enter_context(tempfile.TemporaryDirectory())
        server = LabServer(Path(work), uri, "--no_auth")
        stack.callback(server.kill)
        server.start()
        browser = stack.enter_context(Browser())
        at = server.uri
        browser.open(mlflow_pages.run(at, experiment, parent))
        browser.wait_for("Chosen by validation NELBO", "Show more")
        browser.run(SHOW_MORE)
        browser.picture(folder / "mlflow-sweep.png", height=590)
        mlflow_pages.picture_comparison(
            browser, at, experiment, best, folder / "mlflow-comparison.png"
        )
        mlflow_pages.picture_report(browser, at, experiment, refit, folder / "mlflow-report.png")
        browser.run(HIDE_PATH)
        browser.picture(folder / "mlflow-report.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sweep", type=Path, help="folder of a sweep that is finished")
    parser.add_argument("--told", default="", help="what the page begins with")
    parser.add_argument("--pictures", type=Path, help="folder for the pictures")
    arguments = parser.parse_args()
    found = SweepFolder(arguments.sweep.resolve())
    print(page(found, arguments.told))
    if arguments.pictures:
        take_pictures(found, arguments.pictures)
