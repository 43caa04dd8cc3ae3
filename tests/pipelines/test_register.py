"""Registering, end to end on tiny models: the gate both ways, what is written, what is refused."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipelines import register
from pipelines.bundle import open_evaluated
from pipelines.evaluation_record import EvaluationRecord, read_scores
from pipelines.tracking import open_store
from pipelines.tracking.registry import Registry
from pipelines.tracking.store import connect
from sedd.data.splits import SplitConfig
from sedd.errors import StorageError, UsageError
from tests.evaluated_lab import Lab, evaluated_experiment, generate_and_evaluate, lab_config

pytestmark = pytest.mark.usefixtures("without_ray")
NAME = register.NAME


def registry(uri: str, name: str = NAME) -> Registry:
    return Registry(open_store(uri), name)


def aliases(uri: str, name: str = NAME) -> dict[str, int]:
    found = connect(uri).get_registered_model(name).aliases
    return {alias: int(version) for alias, version in found.items()}


def what_is_there(uri: str) -> tuple[list[str], list[str]]:
    """Names of registered models, and ids of logged models."""
    client, store = connect(uri), open_store(uri)
    return (
        sorted(model.name for model in client.search_registered_models()),
        sorted(m.model_id for m in client.search_logged_models([store.experiment_id])),
    )


# The gate


def test_a_good_model_becomes_champion_and_a_worse_one_after_it_does_not(
    lab: Lab, registry_uri: str
) -> None:
    good, bad = (register.run(folder) for folder in (lab.good, lab.bad))

    assert (good.promoted, bad.promoted) == (True, False)
    assert aliases(registry_uri) == {"champion": 1, "challenger": 2}
    tags = registry(registry_uri).find("2").tags
    own, their = (
        read_scores(folder / "evaluation")["population"]["energy_distance"]
        for folder in (lab.bad, lab.good)
    )
    (interval,) = their.values()
    assert tags["gate.decision"] == "challenger"
    assert tags["gate.forced"] == "false"
    assert tags["gate.champion_version"] == "1"
    numbers = {key: float(tags[f"gate.energy_distance.{key}"]) for key in ("candidate", "champion")}
    assert numbers == {
        "candidate": pytest.approx(next(iter(own.values())).estimate, rel=1e-5),
        "champion": pytest.approx(interval.estimate, rel=1e-5),
    }
    margin = float(tags["gate.energy_distance.champion.margin"])
    assert margin == pytest.approx((interval.high - interval.low) / 2, rel=1e-5)
    assert "energy distance is worse than champion" in tags["gate.reason"]


def test_a_model_that_does_not_beat_additive_is_never_the_first_champion(
    lab: Lab, registry_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code = register.main(["--experiment_dir", str(lab.bad)])

    said = capsys.readouterr().out
    assert code == 0
    assert "not champion: energy distance does not beat additive" in said
    assert "--force" in said
    assert aliases(registry_uri) == {"challenger": 1}


def test_force_makes_a_champion_and_is_recorded(
    lab: Lab, registry_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    register.run(lab.good)

    register.main(["--experiment_dir", str(lab.bad), "--force"])

    tags = registry(registry_uri).find("champion").tags
    assert aliases(registry_uri) == {"champion": 2, "challenger": 2}
    assert tags["gate.forced"] == "true"
    assert tags["gate.passed"] == "false"
    assert tags["gate.decision"] == "champion"
    assert "forced to be champion; the gate said no: " in capsys.readouterr().out


def test_a_champion_of_another_evaluation_set_is_judged_again_on_this_one(
    lab: Lab, registry_uri: str, tmp_path: Path
) -> None:
    """Other cells are held out, so the champion's old scores say nothing: it is drawn anew."""
    other = SplitConfig(kind="unseen_cell_type", cell_types=("CD4 T cells",))
    genes = tmp_path / "genes.txt"
    genes.write_text("\n".join(open_evaluated(lab.good).vocabulary.genes), encoding="utf-8")
    config = lab_config(tmp_path / "other", other, gene_list=str(genes))
    folder = evaluated_experiment(lab.cells, config, registry_uri)
    register.run(lab.good, force=True)

    done = register.run(folder)

    (condition,) = read_scores(folder / "evaluation")["population"]["pearson"]
    assert condition[0] == "CD4 T cells"
    assert "both were judged anew" in done.verdict.sentence
    assert "held-out cells, which favours it" in done.verdict.sentence
    numbers = done.verdict.numbers
    champion = registry(registry_uri).find("1")
    assert numbers["pearson.champion"] != pytest.approx(
        float(champion.tags["gate.pearson.candidate"])
    )
    assert numbers["pearson.additive"] == pytest.approx(
        read_scores(folder / "evaluation")["additive"]["pearson"][condition].estimate, abs=0.05
    )
    assert not list(folder.glob(".rematch*"))


def test_the_candidate_scores_the_same_when_it_is_judged_anew(lab: Lab, tmp_path: Path) -> None:
    from pipelines import rematch

    good = open_evaluated(lab.good)

    again = rematch.play(good, good, tmp_path)

    there = read_scores(lab.good / "evaluation")
    for ours, theirs in (
        (rematch.CANDIDATE, "population"), (rematch.CHAMPION, "population"), ("additive",) * 2
    ):  # fmt: skip
        for measure, by_condition in there[theirs].items():
            for condition, interval in by_condition.items():
                found = again.scores[ours][measure][condition]
                assert found.estimate == pytest.approx(interval.estimate, rel=1e-6)
                assert found.low == pytest.approx(interval.low, rel=1e-3)


def test_a_champion_that_does_not_know_the_conditions_stays_unless_forced(
    lab: Lab, registry_uri: str, tmp_path: Path
) -> None:
    old = lab.cells.cell_type
    named = replace(lab.cells, cell_type=np.where(old == "CD4 T cells", "other T cells", old))
    split = SplitConfig(kind="unseen_cell_type", cell_types=("other T cells",))
    folder = evaluated_experiment(named, lab_config(tmp_path / "named", split), registry_uri)
    register.run(lab.good)

    done = register.run(folder)

    assert not done.promoted
    assert "does not know the held-out conditions" in done.verdict.sentence
    assert "'other T cells'" in registry(registry_uri).find("challenger").tags["gate.reason"]
    assert aliases(registry_uri) == {"champion": 1, "challenger": 2}


# What is written


def test_a_version_says_what_it_is_and_its_scores_are_linked_to_it(
    lab: Lab, registry_uri: str
) -> None:
    client = connect(registry_uri)
    run_id = json.loads((lab.good / "tracking.json").read_text())["run_id"]
    before = client.get_run(run_id)

    done = register.run(lab.good)

    version = client.get_model_version(NAME, "1")
    record = EvaluationRecord.load(lab.good / "evaluation")
    assert version.run_id == run_id
    assert version.tags["sedd.dataset_digest"] == record.data_digest
    assert version.tags["sedd.split_hash"] == record.split_digest
    assert version.tags["sedd.model_digest"] == record.model_digest
    assert version.tags["sedd.git_commit"]
    assert version.tags["sedd.held_out"] == "CD14+ Monocytes × IFNb"
    card = (lab.good / "evaluation/model_card.md").read_text(encoding="utf-8")
    assert version.description.splitlines()[0] == card.splitlines()[0]
    assert len(version.description) <= register.MAX_DESCRIPTION
    model = client.get_logged_model(done.version.source.rpartition("/")[2])
    linked = {m.key: m for m in model.metrics}
    (score,) = read_scores(lab.good / "evaluation")["population"]["pearson"].values()
    assert linked["eval/pearson"].value == pytest.approx(score.estimate)
    assert linked["eval/pearson"].dataset_digest == record.data_digest[:36]
    assert linked["eval/additive/pearson"].value < score.estimate
    assert model.params["cfg.data.num_genes"] == "60"
    after = client.get_run(run_id)
    assert (after.info.status, after.info.end_time) == ("FINISHED", before.info.end_time)
    assert [m.model_id for m in after.outputs.model_outputs] == [model.model_id]


def test_the_files_are_weights_and_text_and_no_more_than_generating_needs(
    lab: Lab, registry_uri: str, tmp_path: Path
) -> None:
    done = register.run(lab.good)

    root = registry(registry_uri).download(done.version, "", tmp_path / "files")

    files = [path.relative_to(root) for path in root.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {
        "", ".csv", ".json", ".md", ".py", ".safetensors", ".txt", ".yaml"
    }  # fmt: skip
    assert not [path for path in files if "evaluation" in path.parts and "code" in path.parts]
    weights = {path.name for path in files if path.suffix == ".safetensors"}
    assert weights == {"average.safetensors", "reference.safetensors"}
    wanted = {line.partition("==")[0] for line in (root / "requirements.txt").read_text().split()}
    assert {"torch", "safetensors", "mlflow"} <= wanted
    assert not {"ray", "scanpy", "anndata"} & wanted


def test_a_card_that_is_too_long_is_cut_after_a_line_and_says_so() -> None:
    card = "\n".join(f"line {number}" for number in range(1000))

    short = register.shortened(card)

    assert len(short) <= register.MAX_DESCRIPTION
    first, rest = short.split("\n\n…")
    assert card.startswith(first + "\n")
    assert "artifacts/experiment/evaluation" in rest
    assert register.shortened("# A card") == "# A card"


# Refused, with nothing registered


def copy_of(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


@pytest.mark.parametrize(
    "name", ["", "a/b", "a b", "a@champion", "a:1", "../up", "-flag", "é", "x" * 101, "a'; --"]
)
def test_a_name_that_cannot_stand_in_an_address_is_refused(
    lab: Lab, registry_uri: str, name: str
) -> None:
    with pytest.raises(UsageError, match="cannot be the name of a registered model"):
        register.run(lab.good, name)

    assert what_is_there(registry_uri) == ([], [])


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda e: shutil.rmtree(e / "evaluation"), "holds no evaluation that can be compared"),
        (lambda e: (e / "evaluation/evaluation.json").write_text("[]"), "holds no evaluation"),
        (lambda e: (e / "evaluation/model_card.md").unlink(), r"lacks model_card\.md"),
        (lambda e: (e / "evaluation/per_condition.csv").write_text("a,b\n"), "of another eval"),
        (lambda e: (e / "config.yaml").unlink(), "is not a trained experiment"),
    ],
)
def test_an_experiment_that_was_not_evaluated_as_it_stands_is_refused(
    lab: Lab, registry_uri: str, tmp_path: Path, spoil, message: str
) -> None:
    folder = copy_of(lab.good, tmp_path / "my e")
    spoil(folder)

    with pytest.raises(UsageError, match=message) as refused:
        register.run(folder)

    assert f"--experiment_dir '{folder}'." in str(refused.value) or "not a trained" in message
    assert what_is_there(registry_uri) == ([], [])


def test_a_model_that_was_trained_on_since_its_evaluation_is_refused(
    lab: Lab, registry_uri: str, tmp_path: Path
) -> None:
    folder = copy_of(lab.good, tmp_path / "e")
    shutil.rmtree(folder / "checkpoints")
    shutil.copytree(lab.bad / "checkpoints", folder / "checkpoints")
    text = (lab.bad / "config.yaml").read_text(encoding="utf-8")
    (folder / "config.yaml").write_text(text, encoding="utf-8")

    with pytest.raises(UsageError, match="is of another model"):
        register.run(folder)

    assert what_is_there(registry_uri) == ([], [])


def test_an_experiment_that_the_store_does_not_know_is_refused(lab: Lab, tracking_uri: str) -> None:
    with pytest.raises(UsageError, match=r"holds no training run of .*sync --experiment_dir"):
        register.run(lab.good)

    assert what_is_there(tracking_uri) == ([], [])


@pytest.mark.parametrize("step", ["create_model_version", "set_registered_model_alias"])
@pytest.mark.parametrize("first", [True, False])
def test_a_registration_that_breaks_off_leaves_what_was_there(
    lab: Lab, registry_uri: str, monkeypatch: pytest.MonkeyPatch, step: str, *, first: bool
) -> None:
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    if not first:
        register.run(lab.good)
    before = what_is_there(registry_uri)
    named = {} if first else aliases(registry_uri)
    real = MlflowClient.set_registered_model_alias

    def fail(self, name, alias="champion", *rest, **more):
        if step == "set_registered_model_alias" and (alias != "champion" or monkeypatched_twice):
            return real(self, name, alias, *rest)
        monkeypatched_twice.append(1)
        message = "the disk is full"
        raise MlflowException(message)

    monkeypatched_twice: list[int] = []
    monkeypatch.setattr(MlflowClient, step, fail)

    with pytest.raises(StorageError, match="the disk is full"):
        register.run(lab.good)

    assert what_is_there(registry_uri) == before
    if not first:
        assert aliases(registry_uri) == named
        assert len(connect(registry_uri).search_model_versions(f"name = '{NAME}'")) == 1


@pytest.mark.slow
def test_two_at_once_under_one_name_are_two_versions_and_one_champion(
    lab: Lab, registry_uri: str
) -> None:
    command = [sys.executable, "-m", "pipelines.register", "--experiment_dir"]
    root = Path(__file__).resolve().parents[2]

    both = [
        subprocess.Popen([*command, str(folder)], cwd=root, stdout=subprocess.PIPE, text=True)
        for folder in (lab.good, lab.bad)
    ]
    said = [process.communicate(timeout=170)[0] for process in both]

    assert [process.returncode for process in both] == [0, 0], said
    champion = aliases(registry_uri)["champion"]
    found = registry(registry_uri).find(str(champion))
    assert found.tags["sedd.experiment"] == "e"
    assert found.tags["sedd.model_digest"] == open_evaluated(lab.good).source.digest
    versions = connect(registry_uri).search_model_versions(f"name = '{NAME}'")
    assert sorted(int(version.version) for version in versions) == [1, 2]


def test_settings_of_the_evaluation_are_those_of_the_version(
    lab: Lab, registry_uri: str, tmp_path: Path
) -> None:
    """What was evaluated is what is registered, not what the configuration says by default."""
    folder = copy_of(lab.good, tmp_path / "e")
    config = replace(lab.config, experiment_dir=str(folder))
    generate_and_evaluate(
        config, registry_uri, temperature=0.7, seed=3, num_samples_per_condition=45
    )

    done = register.run(folder)

    from pipelines.borrowed import borrowed

    with borrowed(done.version.uri, tmp_path / "home") as found:
        how = found.config.inference
    assert (how.temperature, how.seed, how.num_samples_per_condition) == (0.7, 3, 45)
    assert how.cell_types == ()
    assert how.mode == "population"
