"""What no reviewer should have to check: the parts that must agree with each other do."""

import ast
import re
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 300
HELPERS = {"command_line", "cluster", "journal", "progress", "tracking"}

MODULES = sorted(
    path.relative_to(ROOT)
    for package in ("sedd", "pipelines", "benchmarks")
    for path in (ROOT / package).rglob("*.py")
)


def project_file():
    return yaml.safe_load((ROOT / "MLproject").read_text())


def verbs_with_a_main():
    found = set()
    for path in (ROOT / "pipelines").glob("*.py"):
        if path.stem in HELPERS or path.stem == "__init__":
            continue
        if any(getattr(node, "name", "") == "main" for node in ast.parse(path.read_text()).body):
            found.add(path.stem)
    return found


def in_a_fresh_python(code):
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


# Modules


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_no_module_is_longer_than_a_reader_s_patience(module):
    lines = (ROOT / module).read_text().count("\n")

    assert lines <= MAX_LINES, f"{module} has {lines} lines; look for the missing noun"


def test_the_import_contract_holds():
    answer = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )

    assert answer.returncode == 0, answer.stdout


@pytest.mark.parametrize("module", ["sedd", "sedd.config", "pipelines", "pipelines.tracking"])
def test_importing_the_front_doors_imports_nothing_heavy(module):
    heavy = {"torch", "ray", "mlflow", "pandas", "anndata", "scanpy", "matplotlib"}

    loaded = in_a_fresh_python(
        f"import sys, {module}; print(*sorted({heavy!r} & set(sys.modules)))"
    )

    assert loaded == ""


def test_ray_is_started_in_one_place_and_stopped_by_nobody():
    code = {path: (ROOT / path).read_text() for path in MODULES}

    assert {str(path) for path, text in code.items() if re.search(r"\bray\.init\(", text)} == {
        "pipelines/cluster.py"
    }
    assert not [path for path, text in code.items() if re.search(r"\"ray\", \"stop\"", text)]


def test_no_hyperparameter_lives_where_jobs_are_placed():
    settings = re.compile(
        r"\b(learning_rate|batch_size|num_epochs|hidden_dim|num_layers|dropout)\b"
    )
    files = [path for path in (ROOT / "cluster").rglob("*") if path.is_file()]

    assert not [str(path.relative_to(ROOT)) for path in files if settings.search(path.read_text())]


# Configs and entry points


CONFIGS = sorted(set((ROOT / "configs").rglob("*.yaml")) - {ROOT / "configs" / "search.yaml"})


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_every_config_builds(path):
    from sedd.config import resolve

    config = resolve(file=path)

    assert config == resolve(file=path)


def test_there_are_configs_to_build():
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_the_search_file_searches_every_config(path):
    from pipelines.tuning.search import read_search
    from sedd.config import resolve

    source = ROOT / "configs" / "search.yaml"
    space = read_search(source).read_space(resolve(file=path), source=str(source))

    assert {"model.hidden_dim", "training.learning_rate"} <= set(space.names)


def test_every_entry_point_is_a_verb_and_every_verb_an_entry_point():
    entry_points = set(project_file()["entry_points"])

    assert entry_points == verbs_with_a_main()


@pytest.mark.parametrize("verb", sorted(project_file()["entry_points"]))
def test_an_entry_point_hands_every_parameter_to_the_flag_of_its_name(verb):
    entry_point = project_file()["entry_points"][verb]
    handed = re.findall(r"--(\w+) \{(\w+)\}", entry_point["command"])

    assert entry_point["command"].startswith(f"python -m pipelines.{verb} --")
    assert handed == [(name, name) for name in entry_point["parameters"]]
    assert {p["default"] for p in entry_point["parameters"].values()} == {""}


@pytest.mark.parametrize("verb", sorted(project_file()["entry_points"]))
def test_help_answers_at_once_and_lists_the_entry_point_s_parameters(verb):
    parameters = project_file()["entry_points"][verb]["parameters"]
    code = (
        "import contextlib, io, sys, time\n"
        f"from pipelines.{verb} import main\n"
        "said = io.StringIO()\n"
        "with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):\n"
        "    main(['--help'])\n"
        "heavy = {'torch', 'ray', 'mlflow', 'pandas', 'anndata'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert time.process_time() < 1, time.process_time()\n"
        "print(said.getvalue())\n"
    )

    said = in_a_fresh_python(code)

    assert {f"--{name}" for name in parameters} <= set(re.findall(r"--\w+", said))


# Dependencies


def test_mlflow_installs_what_the_package_depends_on():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    environment = yaml.safe_load((ROOT / "python_env.yaml").read_text())

    assert environment["dependencies"] == ["-c constraints.txt", *project["dependencies"]]
    assert environment["python"].startswith(project["requires-python"].split(",")[0].strip(">="))


def test_every_dependency_is_pinned_by_name_and_version_alone():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(chain(project["dependencies"], *project["optional-dependencies"].values()))
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]

    assert all(re.fullmatch(r"[a-z0-9-]+==[\w.]+", pin) for pin in pins)
    names = {pin.partition("==")[0] for pin in pins}
    assert {re.match(r"[\w-]+", line)[0].lower() for line in wanted} <= names
