"""Each way in which a store cannot be used has its own advice."""

import shutil
import sqlite3
from contextlib import closing

import pytest

from pipelines.tracking import TrackingUnavailableError, open_store
from pipelines.tracking.__main__ import main as tracking_main
from pipelines.tracking.faults import diagnose, explain, require_known_schema
from sedd.errors import StorageError, UsageError

OLDER = "6f8d9c3b2a1e"  # a revision that MLflow 3.17 can upgrade from


@pytest.fixture
def at_revision(empty_store, tmp_path):
    """Copies of an empty store that say they are of another revision."""

    def make(revision: str) -> str:
        path = tmp_path / "mlflow.db"
        shutil.copy(empty_store, path)
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        return f"sqlite:///{path}"

    return make


@pytest.mark.parametrize("check", [open_store, require_known_schema])
def test_a_store_of_a_newer_mlflow_asks_for_that_mlflow(at_revision, check):
    with pytest.raises(StorageError, match=r"newer MLflow .*ffff0000.* Upgrade MLflow here"):
        check(at_revision("ffff0000"))


@pytest.mark.parametrize("check", [open_store, require_known_schema])
def test_a_store_of_an_older_mlflow_names_the_command_that_upgrades_it(at_revision, check):
    uri = at_revision(OLDER)

    with pytest.raises(
        StorageError, match=f"older MLflow .*copy, then run `mlflow db upgrade {uri}"
    ):
        check(uri)


def test_a_newer_store_ends_the_command_with_one_message(at_revision, capsys):
    code = tracking_main(["open", "--tracking_uri", at_revision("ffff0000")])

    said = capsys.readouterr().err
    assert code == 74
    assert said.startswith("error: sqlite:///")
    assert said.count("\n") == 1


def test_a_store_of_this_mlflow_is_known(empty_store, tmp_path):
    require_known_schema(f"sqlite:///{empty_store}")
    require_known_schema(f"sqlite:///{tmp_path / 'new.db'}")

    assert not (tmp_path / "new.db").exists()


@pytest.mark.parametrize("cut", [None, 40_000])
def test_only_a_damaged_file_is_to_be_moved_away(empty_store, tmp_path, cut):
    path = tmp_path / "mlflow.db"
    path.write_bytes(b"no database " * 100 if cut is None else empty_store.read_bytes()[:cut])

    with pytest.raises(StorageError, match="damaged: bring back a copy, or move it away"):
        open_store(f"sqlite:///{path}")


def test_a_locked_file_is_to_be_waited_for(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"

    error = diagnose(uri, RuntimeError("(sqlite3.OperationalError) database is locked"))

    assert isinstance(error, StorageError)
    assert "Another process holds it" in str(error)
    assert "move" not in str(error).lower()


def test_another_program_s_database_is_left_alone(tmp_path):
    path = tmp_path / "results.db"
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE runs (name TEXT)")

    with pytest.raises(StorageError, match="of something else than MLflow; name another file"):
        open_store(f"sqlite:///{path}")


def test_a_folder_in_place_of_the_file_is_said_at_once(tmp_path):
    with pytest.raises(StorageError, match=r"is a folder; name a file, e\.g\. .*/mlflow\.db"):
        open_store(f"sqlite:///{tmp_path}")


def test_a_foreign_host_name_is_not_told_to_log_in():
    refused = RuntimeError("failed with error code 403. Response body: 'Invalid Host header - …'")

    error = diagnose("http://mlflow.lab.example", refused)

    assert isinstance(error, UsageError)
    assert "--allowed_hosts" in str(error)
    assert "credentials" not in str(error)


def test_a_server_that_says_nothing_is_away():
    error = diagnose("http://mlflow.lab.example", ConnectionError())

    assert isinstance(error, TrackingUnavailableError)
    assert str(error) == "ConnectionError"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError(), "ValueError"),
        (ValueError("\n \n"), "ValueError"),
        (ValueError("first\nsecond"), "ValueError: first"),
        (ValueError("at http://anna:geheim@host"), "ValueError: at http://***@host"),
    ],
)
def test_an_error_is_told_by_its_first_line(error, told):
    assert explain(error) == told
