"""A job is one MLflow run that holds all that is known of it, however often it is scored."""

import json
from pathlib import Path

import pytest

from benchmarks.quality_results import ASKED_BY, JUDGED, judging_digest, scoring_digest
from benchmarks.quality_score import score_job
from benchmarks.quality_tracking import track_job


def files(client, run) -> set[str]:
    return {file.path for file in client.list_artifacts(run.info.run_id)}


@pytest.fixture
def scored(predicted) -> Path:
    """The folder of a job that was scored."""
    score_job(predicted, baselines=False)
    return predicted


def test_a_run_holds_configuration_costs_origin_and_every_score(scored, tracking_uri, client, runs):
    track_job(scored, tracking_uri)

    (run,) = runs()
    facts = json.loads((scored / "facts.json").read_text())
    content = json.loads((scored / "scores.json").read_text())
    params, tags, metrics = run.data.params, run.data.tags, run.data.metrics
    assert run.info.status == "FINISHED"
    assert (params["cfg.model.hidden_dim"], params["cfg.training.seed"]) == ("16", "0")
    assert params["cfg.split.cell_types"] == '["B cell"]'
    expected = {"study": "tiny", "variant": "full", "fold": "B cell", "seed": "0"}
    expected |= {name: facts[name] for name in ("commit", "machine", "data_digest")}
    assert {name: tags[name] for name in expected} == expected
    assert tags["scoring"] == scoring_digest()
    assert metrics["cost/cpu_seconds_training"] == facts["cpu_seconds_training"]
    assert metrics["cost/peak_rss_mb"] == facts["peak_rss_mb"]
    for record in content["records"]:
        path = f"{record['method']}/{record['perturbation']}/{record['cell_type']}"
        logged = {name.split("/")[1] for name in metrics if name.endswith(path)}
        numbers = {name for name, value in record.items() if isinstance(value, float | int)}
        assert logged == {name for name in numbers if record[name] == record[name]}
        assert metrics[f"quality/mse/{path}"] == record["mse"]
    apart = content["separation"][0]
    logged = metrics[f"quality/discrimination_l1/{apart['method']}/B cell"]
    assert logged == apart["discrimination_l1"]
    assert files(client, run) == {"config.yaml", "scores.json"}


def test_a_later_sitting_goes_on_with_the_run_of_the_job(
    scored, tracking_uri, client, runs, monkeypatch
):
    track_job(scored, tracking_uri)
    (first,) = runs()
    content = json.loads((scored / "scores.json").read_text())
    content["records"][0]["mse"] = 9.0
    (scored / "scores.json").write_text(json.dumps(content))
    (scored / ASKED_BY).write_text(judging_digest())
    for name in JUDGED:
        (scored / name).write_text("judge\n")
    monkeypatch.chdir(scored.parent)

    track_job(Path(scored.name), tracking_uri)

    (run,) = runs()
    record = content["records"][0]
    path = f"{record['method']}/{record['perturbation']}/{record['cell_type']}"
    assert run.info.run_id == first.info.run_id
    assert run.info.status == "FINISHED"
    assert run.data.metrics[f"quality/mse/{path}"] == 9.0
    assert files(client, run) == {"config.yaml", "scores.json", *JUDGED}


def test_a_run_that_the_environment_names_is_left_alone(
    scored, tracking_uri, client, runs, monkeypatch
):
    other = client.create_run("0", run_name="another's").info.run_id

    for _ in range(2):
        monkeypatch.setenv("MLFLOW_RUN_ID", other)
        track_job(scored, tracking_uri)

    (run,) = runs()
    assert run.info.run_id != other
    assert not client.get_run(other).data.metrics
