"""Aliases over time, who is found by what, and stores that cannot be used."""

import shutil
import sqlite3

import pytest

from pipelines import register
from pipelines.tracking import open_store
from pipelines.tracking.reach import reachable
from pipelines.tracking.registry import REPLACED, ROLLED_BACK, Entry, Registry, require_name
from pipelines.tracking.store import TrackingUnavailableError, connect
from sedd.errors import StorageError, UsageError

NAME = "tiny"


@pytest.fixture
def registry(tracking_uri: str) -> Registry:
    """Nothing is registered yet; what is need not be a model."""
    return Registry(open_store(tracking_uri), NAME)


def add(registry: Registry, *, crowned: bool) -> int:
    client = connect(registry.store.tracking_uri)
    model = client.create_logged_model(registry.store.experiment_id, name="model")
    client.finalize_logged_model(model.model_id, "READY")
    entry = Entry(run_id=None, tags={"kept": "yes"}, description="a card")
    return registry.add(model.model_id, entry, crowned=crowned).number


def aliases(registry: Registry) -> dict[str, int]:
    found = connect(registry.store.tracking_uri).get_registered_model(NAME).aliases
    return {alias: int(version) for alias, version in found.items()}


# Champions one after another


def test_rolling_back_goes_through_the_champions_that_there_were(registry: Registry) -> None:
    crowned = [add(registry, crowned=crowned) for crowned in (True, False, True, True)]
    assert crowned == [1, 2, 3, 4]

    steps = [registry.roll_back() for _ in range(2)]

    assert [(step.before and step.before.number, step.after.number) for step in steps] == [
        (4, 3), (3, 1)
    ]  # fmt: skip
    assert aliases(registry) == {"challenger": 4, "champion": 1}
    assert registry.find("4").tags[ROLLED_BACK] == "3"
    assert registry.find("3").tags[ROLLED_BACK] == "1"
    with pytest.raises(UsageError, match=r"no champion of 'tiny' to go back to \(now version 1"):
        registry.roll_back()
    assert aliases(registry)["champion"] == 1


def test_a_version_or_an_alias_can_be_named_and_the_way_back_is_remembered(
    registry: Registry,
) -> None:
    for crowned in (True, False, True):
        add(registry, crowned=crowned)

    assert registry.roll_back("2").after.number == 2
    assert registry.find("2").tags[REPLACED] == "3"
    assert registry.roll_back().after.number == 3
    assert registry.find("3").tags[REPLACED] == "1"
    assert registry.roll_back().after.number == 1


def test_a_promotion_after_a_rollback_replaces_who_is_champion_then(registry: Registry) -> None:
    for _ in range(2):
        add(registry, crowned=True)
    registry.roll_back()

    add(registry, crowned=True)

    assert registry.find("champion").tags[REPLACED] == "1"
    assert registry.roll_back().after.number == 1


@pytest.mark.parametrize("which", ["1", "champion"])
def test_rolling_back_to_the_champion_itself_is_refused(registry: Registry, which: str) -> None:
    add(registry, crowned=True)

    with pytest.raises(UsageError, match="Version 1 of 'tiny' is the champion already"):
        registry.roll_back(which)


def test_a_deleted_champion_before_is_not_gone_back_to(registry: Registry) -> None:
    for _ in range(2):
        add(registry, crowned=True)
    connect(registry.store.tracking_uri).delete_model_version(NAME, "1")

    with pytest.raises(UsageError, match=r"before: 1\)\. Name a version.* Versions: 2\."):
        registry.roll_back()

    assert aliases(registry)["champion"] == 2


# Finding


def test_what_is_not_there_is_answered_with_what_is(registry: Registry) -> None:
    with pytest.raises(UsageError, match=r"no alias 'champion'\. Nothing is registered"):
        registry.find("champion")
    add(registry, crowned=True)
    add(registry, crowned=False)

    there = r"Versions: 1, 2\. Aliases: challenger \(version 2\), champion \(version 1\)\."
    with pytest.raises(UsageError, match=rf"no version 7\. {there}"):
        registry.find("7")
    with pytest.raises(UsageError, match=rf"no alias 'best'\. {there}"):
        registry.find("best")
    with pytest.raises(UsageError, match=r"no alias 'champion'\. Registered there: tiny\."):
        Registry(registry.store, "other").find("champion")


def test_a_version_has_its_tags_and_its_card_from_the_beginning(registry: Registry) -> None:
    add(registry, crowned=False)

    found = connect(registry.store.tracking_uri).get_model_version(NAME, "1")

    assert (found.tags, found.description) == ({"kept": "yes"}, "a card")
    assert registry.find("1").source.startswith("models:/m-")
    assert registry.find("1").uri == "models:/tiny/1"


def test_the_store_of_the_process_is_left_as_it_was(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    import mlflow

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////elsewhere.db")
    add(registry, crowned=True)

    assert os.environ["MLFLOW_TRACKING_URI"] == "sqlite:////elsewhere.db"
    assert mlflow.get_tracking_uri() == "sqlite:////elsewhere.db"


# The command


def test_the_command_rolls_back_and_says_so(
    registry: Registry, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        add(registry, crowned=True)

    code = register.main(["--rollback", "--name", NAME])

    assert code == 0
    assert capsys.readouterr().out == "tiny: champion is version 1, no longer version 2\n"
    assert register.main(["--rollback", "2", "--name", NAME]) == 0
    assert register.main(["--rollback", "previous", "--name", NAME]) == 0
    assert aliases(registry)["champion"] == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rollback", "best", "--name", NAME], "no alias 'best'"),
        (["--rollback", "--name", "a/b"], "cannot be the name"),
        (["--rollback", "--force"], "leave out --experiment_dir and --force"),
        (["--rollback", "--experiment_dir", "e"], "leave out --experiment_dir and --force"),
        ([], "Give the evaluated one with --experiment_dir"),
        (["--experiment_dir", "nowhere"], "is not a trained experiment"),
        (["--experiment_dirr", "e"], "Did you mean --experiment_dir?"),
        (["--force", "perhaps"], "wanted true or false"),
    ],
)
def test_a_wrong_command_is_one_message_and_exit_code_2(
    registry: Registry,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path,
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    add(registry, crowned=True)

    code = register.main(arguments)

    said = capsys.readouterr().err
    assert code == 2
    assert message in said
    assert said.startswith("error: ")
    assert said.count("\n") == 1


# Stores that cannot be used


@pytest.mark.parametrize("revision", ["ffffffffffff", "451aebb31d03"])
def test_a_store_of_another_mlflow_is_named_and_left_alone(
    empty_store, tmp_path, capsys: pytest.CaptureFixture[str], monkeypatch, revision: str
) -> None:
    path = tmp_path / "mlflow.db"
    shutil.copy(empty_store, path)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE alembic_version SET version_num = ?", (revision,))
    database.close()
    before = path.read_bytes()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{path}")

    code = register.main(["--rollback"])

    said = capsys.readouterr().err
    assert code == 74
    age = "a newer" if revision == "ffffffffffff" else "an older"
    assert f"was written by {age} MLflow" in said
    assert path.read_bytes() == before


def test_a_server_that_is_away_is_a_message_and_not_a_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://anna:geheim@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")

    code = register.main(["--rollback"])

    said = capsys.readouterr().err
    assert code == 74
    assert "does not answer" in said
    assert "geheim" not in said


def test_errors_that_are_not_of_the_store_pass_as_they_are() -> None:
    for error in (KeyError("a bug"), UsageError("a wrong flag")):
        with pytest.raises(type(error)), reachable("sqlite:///x.db"):
            raise error
    with pytest.raises(StorageError, match="does not answer: gone"), reachable("sqlite:///x.db"):
        raise TrackingUnavailableError("gone")


@pytest.mark.parametrize("name", ["sedd-perturbation", "A.b_c-1", "x" * 100])
def test_plain_names_are_taken(name: str) -> None:
    assert require_name(name) == name
