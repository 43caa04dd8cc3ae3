"""Addresses of MLflow's pages, for a browser; they hold for any server."""

import json
from collections.abc import Sequence
from pathlib import Path

from tests.pipelines.browser import Browser

TRAINING = "workflowType=machine_learning"  # not the pages for chat programs


def runs(uri: str, experiment_id: str, *, charts: bool = False) -> str:
    """The runs of an experiment as a table, or their charts."""
    mode = "&compareRunsMode=CHART" if charts else ""
    return f"{uri}/#/experiments/{experiment_id}/runs?{TRAINING}{mode}"


def comparison(uri: str, experiment_id: str, run_ids: Sequence[str]) -> str:
    """Runs side by side."""
    chosen = json.dumps(list(run_ids), separators=(",", ":"))
    return f'{uri}/#/compare-runs?runs={chosen}&experiments=["{experiment_id}"]&{TRAINING}'


def run(uri: str, experiment_id: str, run_id: str) -> str:
    """A run with its note, numbers and tags."""
    return f"{uri}/#/experiments/{experiment_id}/runs/{run_id}?{TRAINING}"


def artifact(uri: str, experiment_id: str, run_id: str, path: str) -> str:
    """A file of a run in the viewer."""
    return f"{uri}/#/experiments/{experiment_id}/runs/{run_id}/artifacts/{path}?{TRAINING}"


def picture_comparison(
    browser: Browser, uri: str, experiment_id: str, run_ids: Sequence[str], path: Path
) -> str:
    """Save the comparison of runs with its plot; returns what stands there."""
    browser.open(comparison(uri, experiment_id, run_ids))
    browser.wait_for(f"Comparing {len(run_ids)} Runs", "Run Name")
    browser.wait_for_element(".js-plotly-plot .main-svg")
    browser.picture(path)
    return browser.text()


def picture_report(browser: Browser, uri: str, experiment_id: str, run_id: str, path: Path) -> str:
    """Save the report of a run in the viewer; returns what stands there."""
    browser.open(artifact(uri, experiment_id, run_id, "evaluation/report.html"))
    said = browser.wait_for("predicted against real cells", "Where it comes from")
    browser.picture(path)
    return said
