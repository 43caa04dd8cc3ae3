import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from pipelines.command_line import (
    add_config_flags,
    add_switch,
    entry,
    find_mendable,
    given,
    listed,
    read_config,
    verb_parser,
    warn,
)
from pipelines.signals import Terminated
from sedd.errors import ConfigError, DataError, OutputExistsError, Preempted, UsageError


@dataclass(frozen=True)
class Flag:
    name: str
    key: str
    help: str = "what it does, 100 % of it"
    env: str | None = None
    nargs: str | None = None


FLAGS = (
    Flag("gene", "data.gene"),
    Flag("cell_type_col", "data.cell_type_col", env="CELL_TYPE_COL"),
    Flag("cell_types", "inference.cell_type", nargs="+"),
)


def parse(*argv):
    parser = verb_parser("train", "Train.")
    add_config_flags(parser, FLAGS)
    return given(parser.parse_args(argv), FLAGS)


def ending_with(error):
    @entry
    def main(argv):
        raise error

    return main


# What is given


def test_only_what_was_given_reaches_the_config():
    found = parse("--gene", "perturbation", "--config", "a.yaml")

    assert (found.config, found.flags, found.settings) == (
        "a.yaml",
        {"gene": "perturbation"},
        (),
    )


def test_the_empty_values_of_mlflow_run_count_as_not_given():
    found = parse("--config", "", "--gene", "", "--cell_types", "", "--set", "")

    assert (found.config, found.flags, found.settings) == (None, {}, ())


def test_labels_keep_their_spaces_and_signs():
    found = parse("--cell_types", "CD14+ Monocytes", "B cell's; 100%")

    assert found.flags == {"cell_types": ["CD14+ Monocytes", "B cell's; 100%"]}


def test_several_labels_may_come_as_one_list():
    found = parse("--cell_types", '["CD14+ Monocytes", "T; cell"]')

    assert found.flags == {"cell_types": ["CD14+ Monocytes", "T; cell"]}
    assert listed(["", " ", "a"]) == listed(["[a]"]) == ["a"]


@pytest.mark.parametrize(
    ("words", "on"),
    [
        ([], False),
        (["--sweep"], True),
        (["--sweep", "true"], True),
        (["--sweep", "True"], True),
        (["--sweep", ""], False),
        (["--sweep", "false"], False),
        (["--sweep", "--debug"], True),
    ],
)
def test_a_switch_is_on_where_it_stands_alone_or_is_true(words, on):
    parser = verb_parser("evaluate", "Score.")
    add_switch(parser, "sweep", help_text="draw more")

    assert parser.parse_args(words).sweep is on


def test_a_switch_is_true_or_false_and_nothing_else():
    parser = verb_parser("evaluate", "Score.")
    add_switch(parser, "sweep", help_text="draw more")

    with pytest.raises(UsageError, match=r"--sweep: invalid value 'yse', wanted true or false"):
        parser.parse_args(["--sweep", "yse"])


@pytest.mark.parametrize("label", ["[a] cell", "[", "all"])
def test_a_label_that_only_looks_like_a_list_stays_a_label(label):
    assert parse("--cell_types", label).flags == {"cell_types": [label]}


@pytest.mark.parametrize(
    ("texts", "settings"),
    [
        (["model.dropout=0.1"], ("model.dropout=0.1",)),
        (["a.b=1", "c.d=2"], ("a.b=1", "c.d=2")),
        (["a.b=1; c.d=2;e.f.g = 3"], ("a.b=1", "c.d=2", "e.f.g = 3")),
        (['split.cell_types=["B; T cells", "x=y"]'], ('split.cell_types=["B; T cells", "x=y"]',)),
    ],
)
def test_settings_may_be_repeated_or_listed(texts, settings):
    assert parse(*[word for text in texts for word in ("--set", text)]).settings == settings


def test_help_names_key_and_environment(capsys):
    with pytest.raises(SystemExit) as left:
        parse("--help")

    assert left.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "100 % of it [data.cell_type_col] (environment: CELL_TYPE_COL)" in said


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--cell_typ_col", "x"],
            r"Did you mean --cell_type_col\? `python -m pipelines.train --help`",
        ),
        (["--cell-type-col", "x"], r"Did you mean --cell_type_col\?"),
        (["--zzz"], r"unrecognized arguments: --zzz\. `python"),
        (["--gene"], "expected one argument"),
    ],
)
def test_a_wrong_flag_is_a_usage_error_with_the_nearest_name(argv, message):
    with pytest.raises(UsageError, match=message):
        parse(*argv)


def test_a_flag_is_never_guessed_from_its_beginning():
    with pytest.raises(UsageError):
        parse("--gen", "x")


def test_a_flag_beats_the_environment_which_beats_the_file(tmp_path, monkeypatch):
    from sedd import flags as sedd_flags

    (tmp_path / "a.yaml").write_text(
        "data: {gene: of the file, cell_type_col: of the file, control_name: of the file}"
    )
    monkeypatch.setenv("CONFIG", str(tmp_path / "a.yaml"))
    monkeypatch.setenv("CELL_TYPE_COL", "of the environment")
    parser = verb_parser("train", "Train.")
    add_config_flags(parser, sedd_flags.FLAGS)

    config = read_config(
        parser.parse_args(["--gene", "of the flag", "--set", "training.seed=7", "--config", ""]),
        sedd_flags.FLAGS,
    )

    assert config.data.gene == "of the flag"
    assert config.data.cell_type_col == "of the environment"
    assert config.data.control_name == "of the file"
    assert config.training.seed == 7


# How a verb ends


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError("no such key"), 2),
        (DataError("no controls"), 65),
        (OutputExistsError("is there"), 73),
        (Preempted("time is up"), 75),
        (FileNotFoundError(2, "No such file or directory", "cells.h5ad"), 74),
        (OSError(28, "No space left on device"), 74),
        (KeyboardInterrupt(), 130),
        (Terminated(), 143),
    ],
)
def test_an_error_ends_with_its_exit_code_and_no_traceback(error, code, capsys):
    assert ending_with(error)([]) == code

    said = capsys.readouterr()
    assert said.out == ""
    assert "Traceback" not in said.err


def test_the_message_is_the_error_s_own_words(capsys):
    ending_with(DataError("12 cells have no label.\nDrop them."))([])

    assert capsys.readouterr().err == "error: 12 cells have no label.\nDrop them.\n"


def test_a_file_error_names_the_file(capsys):
    ending_with(FileNotFoundError(2, "No such file or directory", "cells.h5ad"))([])

    assert capsys.readouterr().err == "error: No such file or directory: cells.h5ad.\n"


def test_debug_shows_the_traceback_as_well(capsys):
    assert ending_with(DataError("no controls"))(["--debug"]) == 65

    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.endswith("error: no controls\n")


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        ending_with(ZeroDivisionError())([])


def test_the_exit_code_of_main_is_kept():
    assert entry(lambda argv: None)([]) == 0
    assert entry(lambda argv: 1)([]) == 1


def test_an_error_that_ray_wrapped_is_found():
    class RayTaskError(Exception):
        def __init__(self, cause):
            self.cause = cause

    class WorkerGroupError(Exception):
        def __init__(self, worker_failures):
            self.worker_failures = worker_failures

    training_failed = RuntimeError("training failed")
    training_failed.__cause__ = WorkerGroupError({1: RayTaskError(DataError("from rank 1"))})

    assert str(find_mendable(training_failed)) == "from rank 1"


def test_a_bug_caused_by_a_file_error_stays_a_bug():
    bug = RuntimeError("a bug")
    bug.__cause__ = FileNotFoundError(2, "No such file or directory", "x")

    assert find_mendable(bug) is None


@pytest.mark.parametrize("lines", [1, 100_000])
def test_a_reader_that_goes_away_is_no_error(lines):
    code = (
        "import sys\n"
        "from pipelines.command_line import entry\n"
        "@entry\n"
        "def main(argv):\n"
        "    sys.stdin.readline()\n"
        f"    for line in range({lines}):\n"
        "        print('a table', line)\n"
        "sys.exit(main())\n"
    )
    pipe = subprocess.PIPE
    verb = subprocess.Popen(
        [sys.executable, "-c", code], stdin=pipe, stdout=pipe, stderr=pipe, text=True
    )
    verb.stdout.close()
    verb.stdin.write("the reader is gone\n")
    verb.stdin.close()

    said = verb.stderr.read()
    verb.stderr.close()

    assert verb.wait(timeout=30) == 141
    assert said == ""


def test_a_warning_goes_to_stderr(capsys):
    warn("slow disk")

    assert capsys.readouterr().err == "warning: slow disk\n"


def test_a_usage_error_on_the_command_line_exits_with_2():
    answer = subprocess.run(
        [sys.executable, "-m", "pipelines.tracking", "sinc"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )

    assert answer.returncode == 2
    assert answer.stderr.startswith("error: argument command: invalid choice: 'sinc'")
