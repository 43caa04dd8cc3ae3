import http.server
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import closing

import pytest

from pipelines.journal import Journal, read_journal, truncate_after
from pipelines.signals import Terminated
from pipelines.tracking import (
    RunRef,
    TrackingUnavailableError,
    driver_run,
    mirror,
    open_store,
    sync,
)
from pipelines.tracking.__main__ import main as tracking_main
from pipelines.tracking.faults import redact
from pipelines.tracking.store import connect, metric_history, metric_key
from sedd.errors import Preempted, StorageError, UsageError


def status_and_tags(ref: RunRef):
    run = connect(ref.tracking_uri).get_run(ref.run_id)
    return run.info.status, run.data.tags


def stored_points(ref: RunRef, key: str):
    found = metric_history(connect(ref.tracking_uri), ref.run_id, key)
    return sorted((m.step, m.value, m.timestamp_ms) for m in found)


def journal_points(folder, key: str):
    return [
        (p.step, p.metrics[key], p.timestamp_ms) for p in read_journal(folder / "metrics.jsonl")
    ]


def write_steps(folder, steps, key="train/loss"):
    with Journal(folder / "metrics.jsonl") as journal:
        for step in steps:
            journal.append(step, {key: 1 / step})


@pytest.fixture
def dead_port():
    """An address of this machine where nobody listens."""
    with closing(socket.socket()) as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture
def short_waits(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")


@pytest.fixture
def serve():
    """Starts small HTTP servers in place of MLflow; each answers every request alike."""
    servers = []

    def start(answer):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                answer(self)

            do_POST = do_GET  # noqa: N815  (the name that http.server looks for)

            def log_message(self, *arguments):
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        servers.append(server)
        return server.server_port

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


# The store


def test_four_processes_may_make_the_store_at_once(tmp_path):
    uri = f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}"
    code = (
        "from pipelines.tracking import open_store\n"
        f"print(open_store({uri!r}, 'many').experiment_id)"
    )

    makers = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        for _ in range(4)
    ]
    answers = [maker.communicate(timeout=150)[0].strip() for maker in makers]

    assert [maker.returncode for maker in makers] == [0, 0, 0, 0]
    assert len(set(answers)) == 1
    assert open_store(uri, "many").experiment_id == answers[0]


def test_the_default_store_is_this_folder_s_by_an_absolute_path(
    tracking_uri, tmp_path, monkeypatch
):
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(tmp_path)

    store = open_store()

    assert store.tracking_uri == f"sqlite:///{tmp_path}/mlflow.db"
    experiment = connect(store.tracking_uri).get_experiment(store.experiment_id)
    assert experiment.name == "sedd"
    assert experiment.artifact_location == (tmp_path / "mlartifacts").as_uri()


def test_an_experiment_is_described_unless_a_person_did(tracking_uri):
    client = connect(tracking_uri)
    new = open_store(experiment="new").experiment_id
    bare = client.create_experiment("bare")
    own = client.create_experiment("own", tags={"mlflow.note.content": "ours"})

    for name in ("new", "bare", "own"):
        open_store(experiment=name)

    notes = [client.get_experiment(e).tags["mlflow.note.content"] for e in (new, bare, own)]
    assert "**How to compare.**" in notes[0]
    assert notes == [notes[0], notes[0], "ours"]


def test_a_file_that_is_no_database_is_named(tmp_path):
    path = tmp_path / "mlflow.db"
    path.write_text("not a database " * 100)

    with pytest.raises(StorageError, match=r"mlflow.db cannot be opened: .*not a database"):
        open_store(f"sqlite:///{path}")


@pytest.mark.parametrize("uri", ["htp://tracking", "file:///tmp/mlruns", "mlruns"])
def test_an_address_that_mlflow_does_not_know_is_a_usage_error(uri):
    with pytest.raises(UsageError, match=r"Give sqlite:///path/to/mlflow\.db or the http"):
        open_store(uri)


@pytest.mark.parametrize("code", [401, 403])
def test_refused_credentials_fail_at_once_and_are_not_repeated(serve, code):
    asked = []

    def refuse(request):
        asked.append(request.path)
        request.send_response(code)
        request.end_headers()

    uri = f"http://anna:geheim@127.0.0.1:{serve(refuse)}"
    with pytest.raises(UsageError, match="refuses these credentials") as raised:
        open_store(uri)

    assert len(asked) == 1
    assert "geheim" not in str(raised.value)


def test_passwords_are_taken_out_of_addresses():
    assert (
        redact("at https://anna:geheim@host/x and s3://b/c") == "at https://***@host/x and s3://b/c"
    )


def test_metric_names_become_ones_that_mlflow_takes():
    assert metric_key("eval/Pearson CD14+ (IFN@b)") == "eval/Pearson CD14_ _IFN_b_"


# The run


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        (None, "FINISHED"),
        (SystemExit(0), "FINISHED"),
        (SystemExit(3), "FAILED"),
        (SystemExit("a message"), "FAILED"),
        (ValueError("a bug"), "FAILED"),
        (UsageError("a wrong flag"), "FAILED"),
        (KeyboardInterrupt(), "KILLED"),
        (Terminated(), "KILLED"),
        (Preempted("time is up"), "KILLED"),
        (SystemExit(143), "KILLED"),
    ],
)
def test_a_run_ends_with_the_status_of_the_way_it_ended(tracking_uri, ending, status):
    def verb():
        with driver_run("train") as run:
            refs.append(run.ref)
            assert status_and_tags(run.ref)[0] == "RUNNING"
            if ending is not None:
                raise ending

    refs = []
    if ending is None:
        verb()
    else:
        with pytest.raises(type(ending)):
            verb()

    assert status_and_tags(refs[0])[0] == status


def test_a_plain_kill_ends_the_run_as_killed(tracking_uri, tmp_path):
    code = (
        "import sys, time\n"
        "from pipelines.command_line import entry\n"
        "from pipelines.tracking import driver_run\n"
        "@entry\n"
        "def main(argv):\n"
        f"    with driver_run('train', experiment_dir={str(tmp_path / 'e')!r}) as run:\n"
        "        print(run.ref.run_id, flush=True)\n"
        "        time.sleep(100)\n"
        "sys.exit(main())\n"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    run_id = driver.stdout.readline().strip()

    driver.send_signal(signal.SIGTERM)

    assert driver.wait(timeout=60) == 143
    driver.stdout.close()
    assert connect(tracking_uri).get_run(run_id).info.status == "KILLED"
    assert json.loads((tmp_path / "e" / "tracking.json").read_text())["status"] == "KILLED"


def test_the_run_that_mlflow_run_made_is_used_and_hidden_from_workers(tracking_uri, monkeypatch):
    client = connect(tracking_uri)
    experiment_id = client.create_experiment("given by mlflow run")
    made = client.create_run(experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", made)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment_id)

    with driver_run("train") as run:
        assert run.ref == RunRef(
            tracking_uri=tracking_uri, experiment_id=experiment_id, run_id=made
        )
        assert "MLFLOW_RUN_ID" not in os.environ
        assert "MLFLOW_EXPERIMENT_ID" not in os.environ

    assert status_and_tags(run.ref)[0] == "FINISHED"


def test_a_run_id_of_another_store_is_a_usage_error(tracking_uri, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "f" * 32)

    with pytest.raises(UsageError, match=r"MLFLOW_RUN_ID=ffff.* absolute address"):
        driver_run("train").__enter__()


def test_training_again_in_a_folder_goes_on_in_its_run(tracking_uri, tmp_path):
    with driver_run("train", experiment_dir=tmp_path / "it's mine") as first:
        pass
    with driver_run("train", experiment_dir=tmp_path / "other") as other:
        pass
    with driver_run("train", experiment_dir=tmp_path / "it's mine") as second:
        assert status_and_tags(second.ref)[0] == "RUNNING"

    assert second.ref == first.ref
    assert other.ref != first.ref


def test_a_failed_evaluation_does_not_fail_the_training_it_joined(tracking_uri, tmp_path):
    with driver_run("train", experiment_dir=tmp_path / "e") as training:
        pass

    def evaluate():
        with driver_run("evaluate", experiment_dir=tmp_path / "e") as evaluation:
            assert evaluation.ref == training.ref
            evaluation.log_metrics({"eval/energy_distance": 0.7})
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011  (the very one from above)
        evaluate()

    assert status_and_tags(training.ref)[0] == "FINISHED"
    assert [p[:2] for p in stored_points(training.ref, "eval/energy_distance")] == [(0, 0.7)]


def test_mlflow_run_over_an_interrupted_training_closes_the_old_run(
    tracking_uri, tmp_path, monkeypatch
):
    folder = tmp_path / "e"
    with driver_run("train", experiment_dir=folder) as first:
        pass
    client = connect(tracking_uri)
    client.update_run(first.ref.run_id, status="RUNNING")
    new = client.create_run(first.ref.experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", new)

    with driver_run("train", experiment_dir=folder) as second:
        pass

    status, tags = status_and_tags(first.ref)
    assert (status, tags["sedd.continued_by"]) == ("KILLED", new)
    with driver_run("train", experiment_dir=folder) as third:
        pass
    assert third.ref == second.ref


def test_a_parent_shows_its_verbs_under_itself(tracking_uri, tmp_path):
    with (
        driver_run("demo") as demo,
        driver_run("train", experiment_dir=tmp_path / "e", parent=demo.ref) as training,
    ):
        pass

    assert status_and_tags(training.ref)[1]["mlflow.parentRunId"] == demo.ref.run_id
    assert training.ref.experiment_id == demo.ref.experiment_id


def test_a_child_that_is_gone_on_with_moves_to_its_new_parent(tracking_uri, tmp_path):
    opened = []
    for _ in range(2):
        with (
            driver_run("tune") as sweep,
            driver_run("train", experiment_dir=tmp_path / "trial", parent=sweep.ref) as trial,
        ):
            opened.append((sweep.ref.run_id, trial.ref.run_id))

    (first, child), (second, again) = opened
    assert first != second
    assert child == again
    assert status_and_tags(trial.ref)[1]["mlflow.parentRunId"] == second


def test_a_note_too_long_for_mlflow_keeps_its_whole_first_lines(tracking_uri):
    rows = [f"| method {row} | 0.{row:04} |" for row in range(400)]

    with driver_run("evaluate") as run:
        run.describe("short")
        run.describe("\n".join(rows))

    note = status_and_tags(run.ref)[1]["mlflow.note.content"]
    kept = note.removesuffix("\n…").splitlines()
    assert 4900 < len(note) <= 5000
    assert kept == rows[: len(kept)]


def test_config_data_and_figures_arrive(tracking_uri, tmp_path):
    figure = tmp_path / "figures" / "shift.txt"
    figure.parent.mkdir()
    figure.write_text("a figure")
    config = {
        "training": {"learning_rate": 3e-4, "note": None},
        "split": {"cell_types": ["CD14+ Monocytes", "B cells"]},
        "model": {"genes_per_token": 8},
        "tracking": {"api_token": "geheim", "uri": "https://anna:geheim@host"},
    }

    with driver_run("train") as run:
        run.log_config(config, text="training: {}\n")
        run.log_dataset("kang", digest="a" * 64, source="/data/kang.h5ad", context="training")
        run.log_artifacts(figure.parent, "evaluation")
        run.log_artifacts(figure)

    client = connect(tracking_uri)
    recorded = client.get_run(run.ref.run_id)
    (dataset,) = recorded.inputs.dataset_inputs
    assert recorded.data.params == {
        "cfg.training.learning_rate": "0.0003",
        "cfg.training.note": "null",
        "cfg.split.cell_types": '["CD14+ Monocytes", "B cells"]',
        "cfg.model.genes_per_token": "8",
        "cfg.tracking.api_token": "***",
        "cfg.tracking.uri": "https://***@host",
    }
    assert (dataset.dataset.name, dataset.dataset.digest) == ("kang", "a" * 36)
    assert {f.path for f in client.list_artifacts(run.ref.run_id)} == {
        "config.yaml",
        "evaluation",
        "shift.txt",
    }
    assert (tmp_path / "mlartifacts" / run.ref.run_id / "artifacts" / "shift.txt").exists()


def test_a_value_changed_on_resume_becomes_a_tag(tracking_uri, tmp_path):
    for steps in (100, 200):
        with driver_run("train", experiment_dir=tmp_path / "e") as run:
            run.log_config({"training": {"max_steps": steps, "seed": 0}})

    recorded = connect(tracking_uri).get_run(run.ref.run_id).data
    assert recorded.params == {"cfg.training.max_steps": "100", "cfg.training.seed": "0"}
    assert recorded.tags["cfg.training.max_steps"] == "200"
    assert "cfg.training.seed" not in recorded.tags


# The mirror of the journal


def test_the_mirror_brings_every_point_while_the_block_runs(tracking_uri, tmp_path):
    with (
        driver_run("train", experiment_dir=tmp_path) as run,
        mirror(run.ref, tmp_path / "metrics.jsonl", interval_s=0.05),
    ):
        write_steps(tmp_path, [1, 2, 3])
        deadline = time.monotonic() + 20
        while not stored_points(run.ref, "train/loss"):
            assert time.monotonic() < deadline, "nothing arrived while the block ran"
            time.sleep(0.05)
        write_steps(tmp_path, range(4, 1500))

    assert stored_points(run.ref, "train/loss") == journal_points(tmp_path, "train/loss")


def test_syncing_twice_adds_nothing(tracking_uri, tmp_path):
    with driver_run("train", experiment_dir=tmp_path) as run:
        write_steps(tmp_path, range(1, 51))

    first, second = sync(tmp_path), sync(tmp_path)

    assert (first.points, first.sent, second.sent) == (50, 50, 0)
    assert stored_points(run.ref, "train/loss") == journal_points(tmp_path, "train/loss")


def test_a_sync_fills_the_gaps_that_a_dying_server_left(tracking_uri, tmp_path):
    with driver_run("train", experiment_dir=tmp_path) as run:
        with mirror(run.ref, tmp_path / "metrics.jsonl"):
            write_steps(tmp_path, [1, 2, 3])
        write_steps(tmp_path, [4, 5])

    report = sync(tmp_path)

    assert report.sent == 2
    assert stored_points(run.ref, "train/loss") == journal_points(tmp_path, "train/loss")


def test_steps_repeated_after_a_crash_appear_once(tracking_uri, tmp_path):
    path = tmp_path / "metrics.jsonl"
    with driver_run("train", experiment_dir=tmp_path) as run:
        with mirror(run.ref, path):
            write_steps(tmp_path, range(1, 9))
            write_steps(tmp_path, range(1, 9), key="speed/cells")
            write_steps(tmp_path, range(1, 9), key="system/gpu_memory_gb")
        truncate_after(path, 5)
        with mirror(run.ref, path), Journal(path) as journal:
            for step in range(6, 11):
                machine = {"speed/cells": 77.0, "system/gpu_memory_gb": 7.7}
                journal.append(step, {"train/loss": 1 / step, **machine})

    for key in ("train/loss", *machine):
        assert [p[0] for p in stored_points(run.ref, key)] == list(range(1, 11))


def test_a_step_repeated_with_another_result_is_shown(tracking_uri, tmp_path):
    path = tmp_path / "metrics.jsonl"
    with driver_run("train", experiment_dir=tmp_path) as run:
        write_steps(tmp_path, [1, 2])
        sync(tmp_path)
        truncate_after(path, 1)
        with Journal(path) as journal:
            journal.append(2, {"train/loss": 0.25})
        sync(tmp_path)

    assert [p[:2] for p in stored_points(run.ref, "train/loss")] == [(1, 1.0), (2, 0.25), (2, 0.5)]


def test_a_journal_truncated_under_a_running_mirror_is_followed(tracking_uri, tmp_path):
    path = tmp_path / "metrics.jsonl"
    with (
        driver_run("train", experiment_dir=tmp_path) as run,
        mirror(run.ref, path, interval_s=0.05),
    ):
        write_steps(tmp_path, [1, 2, 3])
        while len(stored_points(run.ref, "train/loss")) < 3:
            time.sleep(0.05)
        truncate_after(path, 2)
        write_steps(tmp_path, [3, 4])

    assert [p[0] for p in stored_points(run.ref, "train/loss")] == [1, 2, 3, 4]


def test_nan_and_infinity_are_synced_once(tracking_uri, tmp_path):
    with (
        driver_run("train", experiment_dir=tmp_path) as run,
        Journal(tmp_path / "metrics.jsonl") as journal,
    ):
        journal.append(1, {"a": math.nan, "b": math.inf, "c": -math.inf})

    assert (sync(tmp_path).sent, sync(tmp_path).sent) == (3, 0)
    assert len(stored_points(run.ref, "b")) == 1


# A tracking server that is not there


@pytest.mark.usefixtures("short_waits")
def test_without_a_server_training_runs_and_a_later_sync_makes_the_run(
    tracking_uri, dead_port, tmp_path, capsys, monkeypatch
):
    folder = tmp_path / "my run"
    dead = f"http://anna:geheim@127.0.0.1:{dead_port}"

    with driver_run("train", experiment_dir=folder, tracking_uri=dead) as run:
        assert run.ref is None
        run.log_config({"training": {"seed": 1}})
        run.log_metrics({"val/nelbo": 1.0})
        with mirror(run.ref, folder / "metrics.jsonl"):
            write_steps(folder, range(1, 21))
    (folder / "config.yaml").write_text("training:\n  seed: 1\n")

    said = capsys.readouterr().err
    assert said.count("warning:") == 1
    assert f"pipelines.tracking sync --experiment_dir '{folder}'" in said
    assert "geheim" not in said + (folder / "tracking.json").read_text()
    with pytest.raises(TrackingUnavailableError):
        sync(folder, tracking_uri=dead)
    report = sync(folder, tracking_uri=tracking_uri)
    assert (report.sent, sync(folder, tracking_uri=tracking_uri).sent) == (20, 0)
    recorded = connect(tracking_uri).get_run(report.run_id)
    assert recorded.info.status == "FINISHED"
    assert recorded.data.params == {"cfg.training.seed": "1"}
    ref = RunRef(tracking_uri=tracking_uri, experiment_id="", run_id=report.run_id)
    assert stored_points(ref, "train/loss") == journal_points(folder, "train/loss")


@pytest.mark.usefixtures("short_waits")
def test_a_server_that_died_costs_one_warning_and_no_point(
    tracking_uri, dead_port, tmp_path, capsys
):
    folder = tmp_path / "my run"
    with driver_run("train", experiment_dir=folder) as run:
        gone = RunRef(
            tracking_uri=f"http://127.0.0.1:{dead_port}",
            experiment_id=run.ref.experiment_id,
            run_id=run.ref.run_id,
        )
        with mirror(gone, folder / "metrics.jsonl", interval_s=0.01):
            began = time.monotonic()
            write_steps(folder, range(1, 301))
            took = time.monotonic() - began
            time.sleep(0.5)  # several attempts, all in vain

    said = capsys.readouterr().err
    assert took < 2, "the loop waited for the server"
    assert said.count("MLflow does not take metrics") == 1
    assert said.count("MLflow lacks the last metrics") == 1
    assert f"pipelines.tracking sync --experiment_dir '{folder}'" in said
    assert len(read_journal(folder / "metrics.jsonl")) == 300
    assert sync(folder).sent == 300


@pytest.mark.usefixtures("short_waits")
def test_a_server_that_never_answers_holds_up_the_end_for_the_patience_only(
    tracking_uri, serve, tmp_path, capsys
):
    let_go = threading.Event()
    port = serve(lambda request: let_go.wait(30))
    silent = RunRef(tracking_uri=f"http://127.0.0.1:{port}", experiment_id="1", run_id="a" * 32)

    with driver_run("train", experiment_dir=tmp_path):
        began = time.monotonic()
        with mirror(silent, tmp_path / "metrics.jsonl", interval_s=0.01, patience_s=0.5):
            write_steps(tmp_path, [1, 2, 3])
        took = time.monotonic() - began
    let_go.set()

    assert took < 1.5
    assert "did not answer within 0.5 s" in capsys.readouterr().err
    assert len(read_journal(tmp_path / "metrics.jsonl")) == 3


@pytest.fixture
def server(empty_store, tmp_path):
    """A real MLflow server that a test may kill and start again on the same port."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shutil.copy(empty_store, tmp_path / "server.db")
    command = [sys.executable, "-m", "mlflow", "server", "--workers", "1", "--port", str(port)]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path / 'server.db'}"]
    command += ["--artifacts-destination", str(tmp_path / "artifacts")]
    running = []

    def start():
        running.append(
            subprocess.Popen(
                command,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )
        )
        deadline = time.monotonic() + 90
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                    return f"http://127.0.0.1:{port}"
            except OSError:
                assert time.monotonic() < deadline, "the MLflow server did not come up"
                time.sleep(0.5)

    def stop():
        os.killpg(running[-1].pid, signal.SIGKILL)
        running.pop().wait()

    yield start, stop
    while running:
        stop()


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_after_a_server_s_death_and_return_each_point_is_there_once(
    server, tmp_path, monkeypatch, capsys
):
    start, stop = server
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    uri = start()
    folder = tmp_path / "e"

    with (
        driver_run("train", experiment_dir=folder, tracking_uri=uri) as run,
        mirror(run.ref, folder / "metrics.jsonl", interval_s=0.2),
    ):
        write_steps(folder, range(1, 101))
        while len(stored_points(run.ref, "train/loss")) < 100:
            time.sleep(0.2)
        stop()
        began = time.monotonic()
        write_steps(folder, range(101, 201))
        took = time.monotonic() - began
        time.sleep(5)
        start()
        write_steps(folder, range(201, 301))

    assert took < 2, "the loop waited for the server"
    assert sync(folder).sent == 0
    assert stored_points(run.ref, "train/loss") == journal_points(folder, "train/loss")
    assert status_and_tags(run.ref)[0] == "FINISHED"
    assert "MLflow does not take metrics" in capsys.readouterr().err


# The command


def test_the_sync_command_says_what_it_sent(tracking_uri, tmp_path, capsys):
    with driver_run("train", experiment_dir=tmp_path) as run:
        write_steps(tmp_path, [1, 2])

    code = tracking_main(["sync", "--experiment_dir", str(tmp_path)])

    assert code == 0
    assert f"2 of 2 metric values sent to run {run.ref.run_id}" in capsys.readouterr().out


def test_a_folder_without_a_run_is_a_usage_error(tmp_path, capsys):
    code = tracking_main(["sync", "--experiment_dir", str(tmp_path)])

    assert code == 2
    assert "holds no tracked run" in capsys.readouterr().err
