"""The documented server for a lab, and every verb against it, on both kinds of database."""

import json
import os
import stat
import subprocess
import sys
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.journal import read_journal
from sedd.data.cells import write_h5ad
from sedd.data.simulate import simulate
from tests.pipelines.servers import ADMIN_PASSWORD, ROOT, LabServer, postgres
from tests.pipelines.test_end_to_end import HELD_OUT, TINY, command

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
ANNA = {"MLFLOW_TRACKING_USERNAME": "anna", "MLFLOW_TRACKING_PASSWORD": "anna-s-long-password"}


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A running server with a second user, beside cells to train on."""
    folder = tmp_path_factory.mktemp(request.param)
    write_h5ad(simulate(num_cells=500, num_genes=60, num_cell_types=3).cells, folder / "cells.h5ad")
    if request.param == "sqlite":
        yield from _serving(folder, "sqlite:///lab.db")
    else:
        with postgres() as address:
            yield from _serving(folder, address)


def _serving(folder: Path, address: str) -> Iterator[LabServer]:
    server = LabServer(folder, address, "--allowed_hosts", "mlflow.lab.example")
    server.start()
    try:
        asked = ask(server, "/api/2.0/mlflow/users/create", json.dumps({
            "username": ANNA["MLFLOW_TRACKING_USERNAME"],
            "password": ANNA["MLFLOW_TRACKING_PASSWORD"],
        }))  # fmt: skip
        assert asked == 200
        yield server
    finally:
        server.kill()


def ask(server: LabServer, path: str, body: str | None = None, **headers: str) -> int:
    """The HTTP status of a request of the admin."""
    login = b64encode(f"admin:{ADMIN_PASSWORD}".encode()).decode()
    request = urllib.request.Request(
        server.uri + path,
        data=body.encode() if body else None,
        headers={
            "Authorization": f"Basic {login}",
            "Content-Type": "application/json",
            **{name.title(): value for name, value in headers.items()},
        },
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def environment(server: LabServer, **login: str) -> dict[str, str]:
    short = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "5"}
    there = {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": server.uri}
    return os.environ | there | short | (login or ANNA)


def run_verb(server: LabServer, *words: str, **login: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *words],
        cwd=server.folder,
        env=environment(server, **login),
        capture_output=True,
        text=True,
        timeout=170,
    )


@pytest.fixture
def client(lab: LabServer, monkeypatch: pytest.MonkeyPatch):
    from mlflow import MlflowClient

    for name, value in ANNA.items():
        monkeypatch.setenv(name, value)
    return MlflowClient(tracking_uri=lab.uri)


def train_words(name: str, steps: int) -> list[str]:
    return command(
        "train", "--train_data_path", "cells.h5ad", "--max_steps", str(steps),
        "--experiment_dir", name,
    )[2:]  # fmt: skip


def run_named(client, name: str):
    (experiment,) = [e for e in client.search_experiments() if e.name == "sedd"]
    runs = client.search_runs([experiment.experiment_id])
    (run,) = [run for run in runs if run.info.run_name == name]
    return run


def points_there(client, run_id: str, key: str) -> list[tuple[int, float, int]]:
    return sorted((m.step, m.value, m.timestamp) for m in client.get_metric_history(run_id, key))


def points_here(journal: Path, key: str) -> list[tuple[int, float, int]]:
    return [(p.step, p.metrics[key], p.timestamp_ms) for p in read_journal(journal)]


def test_strangers_wrong_passwords_and_foreign_names_stay_outside(lab: LabServer) -> None:
    opened = run_verb(
        lab, "pipelines.tracking", "open",
        MLFLOW_TRACKING_USERNAME="admin", MLFLOW_TRACKING_PASSWORD=ADMIN_PASSWORD,
    )  # fmt: skip
    refused = run_verb(
        lab, *train_words("refused", 20),
        MLFLOW_TRACKING_USERNAME="anna", MLFLOW_TRACKING_PASSWORD="not-anna-s-password",
    )  # fmt: skip

    assert opened.returncode == 0, opened.stderr
    assert refused.returncode == 2
    assert refused.stderr.count("refuses these credentials") == 1
    assert "not-anna-s-password" not in refused.stderr
    assert "Traceback" not in refused.stderr
    assert ask(lab, "/", host="mlflow.lab.example") == 200
    assert ask(lab, "/", host=f"mlflow.lab.example:{lab.port}") == 200
    assert ask(lab, "/", host="evil.example") == 403
    assert ask(lab, "/", authorization="Basic bm9ib2R5Om5vdGhpbmc=") == 401
    assert ask(lab, "/signup") == 200
    private = lab.folder / "mlflow_auth"
    assert stat.S_IMODE(private.stat().st_mode) == 0o700
    assert ADMIN_PASSWORD not in lab.log.read_text() + (private / "basic_auth.ini").read_text()


def test_every_verb_works_against_the_server_as_a_user(lab: LabServer, client) -> None:
    trained = run_verb(lab, *train_words("e", 20))
    sets = [part for text in TINY[-4:-2] for part in ("--set", text)]
    generated = run_verb(
        lab, "pipelines.generate", "--experiment_dir", "e", "--cell_types", HELD_OUT,
        "--num_samples_per_condition", "20", *sets,
    )  # fmt: skip
    before = run_named(client, "e").info
    evaluated = run_verb(lab, "pipelines.evaluate", "--experiment_dir", "e", *sets)

    for done in (trained, generated, evaluated):
        assert done.returncode == 0, done.stderr
        assert "warning: MLflow" not in done.stderr
    run = run_named(client, "e")
    assert (run.info.status, run.info.end_time) == ("FINISHED", before.end_time)
    journal = lab.folder / "e" / "metrics.jsonl"
    for key in ("train/loss", "speed/cells_per_s"):
        assert points_there(client, run.info.run_id, key) == points_here(journal, key)
    assert run.data.params["cfg.model.hidden_dim"] == "16"
    assert "| counterfactual" in run.data.tags["mlflow.note.content"]
    report = client.download_artifacts(run.info.run_id, "evaluation/report.html", str(lab.folder))
    own = lab.folder / "e" / "evaluation" / "report.html"
    assert Path(report).read_bytes() == own.read_bytes()
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")


def test_a_server_killed_in_mid_training_costs_nothing_and_sync_makes_the_run_whole(
    lab: LabServer, client
) -> None:
    folder = lab.folder / "cut"
    journal = folder / "metrics.jsonl"
    training = subprocess.Popen(
        [sys.executable, "-m", *train_words("cut", 400)],
        cwd=lab.folder,
        env=environment(lab),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 240
        while len(read_journal(journal)) < 20:
            assert training.poll() is None, training.stderr.read()
            assert time.monotonic() < deadline, "the training did not start"
            time.sleep(0.1)
        lab.kill()
        steps_at_kill = len(read_journal(journal))
        _, said = training.communicate(timeout=200)
    finally:
        training.kill()
        lab.start()
    incomplete = run_named(client, "cut")
    synced, again = (
        run_verb(lab, "pipelines.tracking", "sync", "--experiment_dir", "cut") for _ in range(2)
    )

    assert training.returncode == 0, said
    assert steps_at_kill < 400
    assert "pipelines.tracking sync --experiment_dir" in said
    assert incomplete.info.status == "RUNNING"
    assert synced.returncode == 0, synced.stderr
    assert again.stdout.startswith("0 of ")
    run = run_named(client, "cut")
    record = json.loads((folder / "tracking.json").read_text())
    assert (run.info.status, run.info.end_time) == ("FINISHED", record["ended_ms"])
    for key in ("train/loss", "speed/cells_per_s"):
        assert points_there(client, run.info.run_id, key) == points_here(journal, key)
    assert run.data.metrics["cells_seen"] == 400 * 16
    files = {f.path for f in client.list_artifacts(run.info.run_id)}
    assert files == {"config.yaml", "split.json", "figures"}
