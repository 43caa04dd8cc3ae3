"""What MLflow could not be told waits in the folder, and arrives once."""

import contextlib
import json
import socket
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.journal import Journal
from pipelines.tracking import DriverRun, RunRef, driver_run, sync
from pipelines.tracking.__main__ import main as tracking_main
from pipelines.tracking.children import Children
from pipelines.tracking.log import Artifact, Dataset, Log
from pipelines.tracking.record import Ledger, Record
from pipelines.tracking.store import Metric, connect
from sedd.errors import UsageError
from tests.pipelines.servers import free_port

NOTE = "mlflow.note.content"


@pytest.fixture
def dead(monkeypatch):
    """An address where no server answers, asked once."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    return f"http://127.0.0.1:{free_port()}"


def run_of(uri: str, run_id: str):
    return connect(uri).get_run(run_id)


def missing_of(folder: Path) -> Log:
    return Record.load(folder / "tracking.json").missing


def train_in(folder: Path, uri: str, **options) -> RunRef | None:
    """What `train` tells MLflow, without the training."""
    with driver_run("train", experiment_dir=folder, tracking_uri=uri, **options) as run:
        run.log_config({"training": {"seed": 1}}, text="training:\n  seed: 1\n")
        run.log_dataset("cells.h5ad", digest="c" * 36, source="/cells.h5ad", context="training")
        run.set_tags({"sedd.split": "abc"})
        run.describe("Held out: B cells × IFNb.")
        with Journal(folder / "metrics.jsonl") as journal:
            for step in range(1, 6):
                journal.append(step, {"train/loss": 1 / step})
        run.log_metrics({"n_params": 3.0}, step=5)
        folder.joinpath("training.png").write_bytes(b"a figure")
        run.log_artifacts(folder / "training.png", "figures")
    return run.ref


def evaluate_in(folder: Path, uri: str) -> RunRef | None:
    """What `evaluate` tells MLflow."""
    with driver_run("evaluate", experiment_dir=folder, tracking_uri=uri) as run:
        run.log_metrics({"eval/pearson": 0.9})
        run.describe("| method | Pearson |")
        folder.joinpath("evaluation").mkdir(exist_ok=True)
        folder.joinpath("evaluation", "report.html").write_text("<p>report</p>")
        run.log_artifacts(folder / "evaluation", "evaluation")
    return run.ref


def assert_whole(uri: str, run_id: str, *, evaluated: bool = False) -> None:
    client = connect(uri)
    run = client.get_run(run_id)
    assert run.data.params == {"cfg.training.seed": "1"}
    assert run.data.tags["sedd.split"] == "abc"
    assert [(i.dataset.name, i.tags[0].value) for i in run.inputs.dataset_inputs] == [
        ("cells.h5ad", "training")
    ]
    history = {key: client.get_metric_history(run_id, key) for key in run.data.metrics}
    assert {key: len(points) for key, points in history.items()} == {
        "train/loss": 5,
        "n_params": 1,
        **({"eval/pearson": 1} if evaluated else {}),
    }
    assert run.data.tags[NOTE] == (
        "| method | Pearson |" if evaluated else "Held out: B cells × IFNb."
    )
    assert {f.path for f in client.list_artifacts(run_id)} == {
        "config.yaml",
        "figures",
        *(["evaluation"] if evaluated else []),
    }
    assert run.info.status == "FINISHED"


# A server that was away


def test_a_run_that_mlflow_never_heard_of_is_made_whole(tracking_uri, dead, tmp_path):
    folder = tmp_path / "e"
    assert train_in(folder, dead) is None
    assert evaluate_in(folder, dead) is None
    record = Record.load(folder / "tracking.json")

    report, again = (sync(folder, tracking_uri=tracking_uri) for _ in range(2))

    assert_whole(tracking_uri, report.run_id, evaluated=True)
    assert (report.sent, again.sent, again.run_id) == (5, 0, report.run_id)
    info = run_of(tracking_uri, report.run_id).info
    assert (info.start_time, info.end_time) == (record.started_ms, record.ended_ms)
    assert not missing_of(folder)
    assert len(connect(tracking_uri).search_runs([info.experiment_id])) == 1


def test_an_evaluation_whose_server_was_away_joins_its_training_later(tracking_uri, dead, tmp_path):
    folder = tmp_path / "e"
    ref = train_in(folder, tracking_uri)
    before = run_of(tracking_uri, ref.run_id).info

    assert evaluate_in(folder, dead) is None
    assert "eval/pearson" not in run_of(tracking_uri, ref.run_id).data.metrics
    sync(folder, tracking_uri=tracking_uri)

    sync(folder, tracking_uri=tracking_uri)
    assert_whole(tracking_uri, ref.run_id, evaluated=True)
    assert run_of(tracking_uri, ref.run_id).info.end_time == before.end_time


def test_evaluating_a_training_that_mlflow_never_heard_of_makes_one_run_of_both(
    tracking_uri, dead, tmp_path
):
    folder = tmp_path / "e"
    train_in(folder, dead)

    ref = evaluate_in(folder, tracking_uri)

    assert_whole(tracking_uri, ref.run_id, evaluated=True)
    assert len(connect(tracking_uri).search_runs([ref.experiment_id])) == 1
    assert sync(folder, tracking_uri=tracking_uri).sent == 0


def test_training_that_goes_on_when_the_server_is_back_has_one_run(tracking_uri, dead, tmp_path):
    folder = tmp_path / "e"
    train_in(folder, dead)

    ref = train_in(folder, tracking_uri)
    sync(folder, tracking_uri=tracking_uri)

    assert run_of(tracking_uri, ref.run_id).info.status == "FINISHED"
    assert len(connect(tracking_uri).search_runs([ref.experiment_id])) == 1
    assert not missing_of(folder)


def test_after_one_refusal_to_answer_the_driver_is_not_held_up_again(
    tracking_uri, dead, tmp_path, capsys
):
    folder = tmp_path / "e"
    ref = train_in(folder, tracking_uri)
    ledger = Ledger(folder / "tracking.json")
    gone = DriverRun(replace(ref, tracking_uri=dead), owned=False, ledger=ledger)

    for number in range(50):
        gone.set_tags({f"number.{number}": "told"})
    said = capsys.readouterr().err
    gone.finish("FINISHED")

    assert said.count("did not take a record") == 1
    assert "pipelines.tracking sync --experiment_dir" in capsys.readouterr().err
    assert len(missing_of(folder).tags) == 50
    sync(folder, tracking_uri=tracking_uri)
    tags = run_of(tracking_uri, ref.run_id).data.tags
    assert sum(name.startswith("number.") for name in tags) == 50


def test_a_server_that_hangs_holds_up_one_run_and_not_those_after_it(
    dead, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr("pipelines.tracking.run.PATIENCE_S", 0.3)
    with closing(socket.socket()) as silent:  # takes connections, says nothing
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        took = []
        for name in ("a", "b", "c"):
            began = time.monotonic()
            assert train_in(tmp_path / name, uri) is None
            took.append(time.monotonic() - began)

    assert took[0] > 1.9  # the fixture's time-out
    assert max(took[1:]) < 1
    assert capsys.readouterr().err.count("does not answer") == 3
    assert all(missing_of(tmp_path / name) for name in ("a", "b", "c"))


def test_what_waited_is_sent_at_the_end_when_the_server_is_back(
    tracking_uri, dead, tmp_path, capsys
):
    folder = tmp_path / "e"
    ref = train_in(folder, tracking_uri)
    run = DriverRun(
        replace(ref, tracking_uri=dead), owned=False, ledger=Ledger(folder / "tracking.json")
    )

    run.describe("told to nobody")
    run.ref = ref
    run.finish("FINISHED")

    assert run_of(tracking_uri, ref.run_id).data.tags[NOTE] == "told to nobody"
    assert not missing_of(folder)
    assert "lacks the last" not in capsys.readouterr().err


# What a sync leaves alone


def test_a_note_that_a_person_wrote_survives_a_sync(tracking_uri, tmp_path):
    ref = train_in(tmp_path / "e", tracking_uri)
    connect(tracking_uri).set_tag(ref.run_id, NOTE, "the one of figure 3")

    sync(tmp_path / "e")

    assert run_of(tracking_uri, ref.run_id).data.tags[NOTE] == "the one of figure 3"


@pytest.mark.parametrize(("error", "status"), [(ValueError, "FAILED"), (SystemExit, "KILLED")])
def test_a_run_that_ended_badly_stays_so_when_it_is_evaluated_and_synced(
    tracking_uri, tmp_path, error, status
):
    folder = tmp_path / "e"
    with (
        contextlib.suppress(ValueError, SystemExit),
        driver_run("train", experiment_dir=folder) as run,
    ):
        raise error(143)
    before = run_of(tracking_uri, run.ref.run_id).info

    evaluate_in(folder, tracking_uri)
    sync(folder)

    after = run_of(tracking_uri, run.ref.run_id).info
    assert before.status == status
    assert (after.status, after.end_time) == (before.status, before.end_time)


def test_a_run_deleted_in_mlflow_is_named_and_not_made_again(tracking_uri, tmp_path, capsys):
    ref = train_in(tmp_path / "e", tracking_uri)
    connect(tracking_uri).delete_run(ref.run_id)

    code = tracking_main(["sync", "--experiment_dir", str(tmp_path / "e")])

    assert code == 2
    assert f"mlflow runs restore --run-id {ref.run_id}" in capsys.readouterr().err


def test_what_mlflow_never_takes_and_a_file_that_is_gone_hold_nothing_else_up(
    tracking_uri, dead, tmp_path, capsys
):
    folder = tmp_path / "e"
    with driver_run("train", experiment_dir=folder, tracking_uri=dead) as run:
        run.set_tags({"a name: with a colon?": "refused"})
        run.log_artifacts(folder / "never.png")
        run.log_metrics({"n_params": 3.0})

    report = sync(folder, tracking_uri=tracking_uri)

    said = capsys.readouterr().err
    assert "MLflow refuses a record" in said
    assert "never.png is gone" in said
    assert run_of(tracking_uri, report.run_id).data.metrics == {"n_params": 3.0}
    assert not missing_of(folder)


# Sweeps


def sweep_in(folder: Path, uri: str) -> None:
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text("{}")
    with driver_run("tune", experiment_dir=folder, tracking_uri=uri) as sweep:
        sweep.describe("| trial | NELBO |")
        for name in ("trials/a", "trials/b", "best"):
            train_in(folder / name, uri, parent=sweep.ref)


def test_a_sweep_that_mlflow_never_heard_of_becomes_a_parent_with_its_children(
    tracking_uri, dead, tmp_path, capsys
):
    folder = tmp_path / "sweep"
    sweep_in(folder, dead)

    first, second = (sync(folder, tracking_uri=tracking_uri) for _ in range(2))

    assert (first.runs, first.sent, second.sent) == (4, 15, 0)
    client = connect(tracking_uri)
    parent = client.get_run(first.run_id)
    runs = client.search_runs([parent.info.experiment_id])
    children = {run.info.run_name: run for run in runs if run.info.run_id != first.run_id}
    assert parent.data.tags[NOTE] == "| trial | NELBO |"
    assert sorted(children) == ["a", "b", "best"]
    for child in children.values():
        assert child.data.tags["mlflow.parentRunId"] == first.run_id
        assert_whole(tracking_uri, child.info.run_id)
    assert tracking_main(["sync", "--experiment_dir", str(folder)]) == 0
    assert "and 3 more" in capsys.readouterr().out


def test_a_deleted_trial_does_not_keep_the_others_from_being_synced(tracking_uri, tmp_path, capsys):
    folder = tmp_path / "sweep"
    sweep_in(folder, tracking_uri)
    trial = Record.load(folder / "trials" / "a" / "tracking.json").run_id
    connect(tracking_uri).delete_run(trial)

    report = sync(folder)

    assert (report.runs, report.sent) == (3, 10)
    assert f"{folder / 'trials' / 'a'} is left out" in capsys.readouterr().err


def test_mlflow_run_over_an_earlier_sweep_takes_also_the_children_that_ended(
    tracking_uri, tmp_path, monkeypatch
):
    folder = tmp_path / "sweep"
    sweep_in(folder, tracking_uri)
    client = connect(tracking_uri)
    first = Record.load(folder / "tracking.json").run_id
    client.update_run(first, status="RUNNING")  # as a SIGKILL leaves it
    new = client.create_run(client.get_run(first).info.experiment_id).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", new)

    with driver_run("tune", experiment_dir=folder) as sweep:
        pass

    assert sweep.ref.run_id == new
    assert client.get_run(first).info.status == "KILLED"
    for name in ("trials/a", "trials/b", "best"):
        child = run_of(tracking_uri, Record.load(folder / name / "tracking.json").run_id)
        assert child.data.tags["mlflow.parentRunId"] == new
        assert child.info.status == "FINISHED"


@pytest.mark.parametrize("killed", [False, True])
def test_what_a_stopped_trial_wrote_after_its_run_ended_arrives_also_past_a_killed_driver(
    tracking_uri, tmp_path, killed
):
    parent = driver_run("tune", experiment_dir=tmp_path, tracking_uri=tracking_uri)
    folder = tmp_path / "trials" / "a"
    with parent as sweep, Children(sweep.ref) as last, Journal(folder / "metrics.jsonl") as journal:
        first = Children(sweep.ref) if killed else last  # a killed driver's block never ends
        first.begin("a", folder)
        journal.append(1, {"train/loss": 1.0})
        journal.flush()
        first.end("a", "stopped", reason="others were better", metrics={}, config={}, text="")
        journal.append(2, {"train/loss": 0.5})
        journal.flush()
        if killed:
            last.expect_rest(folder)

    run_id = Record.load(folder / "tracking.json").run_id
    history = connect(tracking_uri).get_metric_history(run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(1, 1.0), (2, 0.5)]
    assert run_of(tracking_uri, run_id).info.status == "KILLED"


# The record


def test_a_log_is_what_was_added_less_what_was_taken():
    first = Log(
        params={"a": "1"},
        tags={"note": "old", "kept": "x"},
        datasets=(Dataset(name="d", digest="1", source="s", context="training"),),
        metrics=(Metric(key="m", value=1.0, step=0, timestamp_ms=5),),
        artifacts=(Artifact(path="x.png"),),
    )
    second = Log(
        tags={"note": "new"},
        metrics=(Metric(key="m", value=float("nan"), step=0, timestamp_ms=6),),
        texts={"config.yaml": "a: 1"},
    )

    both = Log.from_json(json.loads(json.dumps(_plain(first + second))))

    assert both.tags == {"note": "new", "kept": "x"}
    assert [(m.timestamp_ms, m.step) for m in both.metrics] == [(6, 0)]
    assert (both - first).tags == {"note": "new"}
    assert not both - (first + second)
    assert first + Log() == first - Log() == first
    assert [bool(log) for log in (first, Log())] == [True, False]


def _plain(log: Log):
    from dataclasses import asdict

    return asdict(log)


def test_a_damaged_record_is_a_usage_error(tmp_path):
    (tmp_path / "tracking.json").write_text('{"verb": "train"')

    with pytest.raises(UsageError, match=r"tracking\.json is missing or damaged"):
        sync(tmp_path)


def test_a_moved_folder_still_finds_its_files(tracking_uri, dead, tmp_path):
    train_in(tmp_path / "here", dead)
    (tmp_path / "here").rename(tmp_path / "there")

    report = sync(tmp_path / "there", tracking_uri=tracking_uri)

    assert_whole(tracking_uri, report.run_id)
