"""A server for a lab starts closed."""

import io
import re
import shlex
import stat

import pytest

from pipelines.tracking import server
from pipelines.tracking.__main__ import _parser
from pipelines.tracking.__main__ import main as tracking_main
from pipelines.tracking.server import ServerSettings, database_uri, prepare_server
from sedd.errors import UsageError
from tests.pipelines.servers import ROOT

PASSWORD = {"MLFLOW_AUTH_ADMIN_PASSWORD": "correct-horse-battery"}


@pytest.fixture(autouse=True)
def everything_installed(monkeypatch):
    """The extra `server` may be absent where tests run."""
    monkeypatch.setattr(server, "_is_installed", lambda module: True)


def settings_in(folder, **changes):
    given = {
        "backend_store_uri": f"sqlite:///{folder / 'lab.db'}",
        "artifacts": str(folder / "files"),
        "auth_dir": folder / "auth",
    }
    return ServerSettings(**given | changes)


def value_after(command, flag):
    return command.arguments[command.arguments.index(flag) + 1]


def test_the_server_asks_for_passwords_runs_no_jobs_and_answers_to_known_names(tmp_path):
    command = prepare_server(settings_in(tmp_path, allowed_hosts=("lab.example",)), PASSWORD)

    assert value_after(command, "--app-name") == "basic-auth"
    assert value_after(command, "--host") == "127.0.0.1"
    assert value_after(command, "--allowed-hosts").split(",") == [
        "lab.example", "lab.example:*", "127.0.0.1", "127.0.0.1:*", "localhost", "localhost:*",
    ]  # fmt: skip
    assert value_after(command, "--artifacts-destination") == str(tmp_path / "files")
    assert command.environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert "--disable-security-middleware" not in command.arguments


def test_no_secret_stands_where_other_users_of_the_machine_see_it(tmp_path):
    there = {**PASSWORD, "OTHER": "kept"}
    address = "postgresql://lab:geh%40eim@db.example/runs"
    command = prepare_server_without_database(
        settings_in(tmp_path, backend_store_uri=address), there
    )

    auth = tmp_path / "auth"
    assert "geh" not in " ".join(command.arguments)
    assert command.environment["MLFLOW_BACKEND_STORE_URI"] == address.replace(
        "postgresql", "postgresql+psycopg"
    )
    assert command.environment["OTHER"] == "kept"
    assert stat.S_IMODE(auth.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in auth.iterdir()} == {0o600}
    assert "geh%%40eim" in (auth / "basic_auth.ini").read_text()  # as configparser reads it
    assert PASSWORD["MLFLOW_AUTH_ADMIN_PASSWORD"] not in (auth / "basic_auth.ini").read_text()


def prepare_server_without_database(settings, environment):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server, "require_known_schema", lambda uri: None)
        return prepare_server(settings, environment)


def test_a_second_start_keeps_key_and_users_and_needs_no_password(tmp_path):
    first = prepare_server(settings_in(tmp_path), PASSWORD)
    users = tmp_path / "auth" / "basic_auth.ini"
    users.write_text(users.read_text().replace("EDIT", "READ"))

    second = prepare_server(settings_in(tmp_path), {})

    key = "MLFLOW_FLASK_SERVER_SECRET_KEY"
    assert len(first.environment[key]) == 64
    assert second.environment[key] == first.environment[key]
    assert "default_permission = READ" in users.read_text()


@pytest.mark.parametrize(
    ("changes", "environment", "message"),
    [
        ({"host": "0.0.0.0", "auth": False}, PASSWORD, "leave out --no_auth"),
        ({"host": "0.0.0.0"}, PASSWORD, "--allowed_hosts mlflow"),
        ({}, {}, "Set MLFLOW_AUTH_ADMIN_PASSWORD"),
        ({}, {"MLFLOW_AUTH_ADMIN_PASSWORD": "elevenchars"}, "12 characters or more"),
        ({"artifacts": "gs://bucket"}, PASSWORD, "neither a folder nor s3://"),
        ({"backend_store_uri": "mysql://anna:geheim@db/x"}, PASSWORD, r"mysql://\*\*\*@db/x is"),
    ],
)
def test_what_would_leave_it_open_or_broken_is_refused_and_leaves_nothing(
    tmp_path, monkeypatch, changes, environment, message
):
    monkeypatch.setattr("sys.stdin", io.StringIO())  # no terminal to ask at

    with pytest.raises(UsageError, match=message):
        prepare_server(settings_in(tmp_path, **changes), environment)

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "package"),
    [
        ({"backend_store_uri": "postgresql://db/x"}, r"'\.\[server\]'"),
        ({}, r"'\.\[server\]'"),
        ({"artifacts": "s3://bucket/x"}, "boto3"),
    ],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, settings, package):
    monkeypatch.setattr(server, "_is_installed", lambda module: False)

    with pytest.raises(UsageError, match=f"pip install {package}"):
        prepare_server(settings_in(tmp_path, **settings), PASSWORD)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("postgresql://u:p@h/d", "postgresql+psycopg://u:p@h/d"),
        ("postgres://u:p@h/d", "postgresql+psycopg://u:p@h/d"),
        ("postgresql+psycopg://u:p@h/d", "postgresql+psycopg://u:p@h/d"),
        ("sqlite:////srv/lab.db", "sqlite:////srv/lab.db"),
    ],
)
def test_postgresql_is_reached_by_the_driver_that_is_installed(given, used):
    assert database_uri(given) == used


def test_the_command_says_what_is_wrong_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    code = tracking_main(["serve", "--host", "0.0.0.0", "--no_auth"])

    assert code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_every_command_of_the_readme_is_understood():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^python -m pipelines\.tracking (.*)$", text, re.MULTILINE)

    understood = [_parser().parse_args(shlex.split(words)) for words in commands]

    assert {found.command for found in understood} == {"serve", "sync"}
