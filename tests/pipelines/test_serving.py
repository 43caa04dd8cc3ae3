"""Using a registered model: from Python, over HTTP, by `generate`, and where nothing else is."""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import torch

from pipelines import generate, register
from pipelines.borrowed import parse_address
from pipelines.bundle import open_evaluated
from pipelines.tracking import open_store
from pipelines.tracking.registry import Registry
from sedd.checkpoint import load_trained
from sedd.errors import StorageError, UsageError
from sedd.generation import control_names, generate_unit, plan_units
from tests.evaluated_lab import HELD_OUT, Lab, close_store

ROOT = Path(__file__).resolve().parents[2]
NAME = register.NAME
ONE = pd.DataFrame({"cell_type": [HELD_OUT], "perturbation": ["IFNb"]})
TWO = pd.DataFrame({"cell_type": ["B cells", HELD_OUT], "perturbation": ["IFNb", "control"]})


@pytest.fixture(scope="module")
def served(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A store with two versions, and the first of them loaded with pickles forbidden."""
    import mlflow

    folder = tmp_path_factory.mktemp("served")
    shutil.copy(lab.database, folder / "mlflow.db")
    uri = f"sqlite:///{folder / 'mlflow.db'}"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
        for experiment in (lab.good, lab.bad):
            register.run(experiment, tracking_uri=uri)
        before = list(sys.path)
        model = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
        sys.path[:] = before
        yield SimpleNamespace(uri=uri, model=model, folder=folder)
    close_store(uri)


def counts(cells: pd.DataFrame, genes: list[str]) -> np.ndarray:
    """[cells, genes]: what is not named is 0."""
    table = pd.DataFrame(list(cells["counts"]))
    return table.reindex(columns=genes).fillna(0).to_numpy(np.int64)


# Answers


def test_cells_are_those_that_generating_draws_with_the_same_settings(
    lab: Lab, served: SimpleNamespace
) -> None:
    params = {"n": 20, "steps": 3, "seed": 7, "temperature": 0.9, "mode": "counterfactual"}
    good = open_evaluated(lab.good)
    trained = load_trained(good.source.checkpoint, good.config.model)
    how = replace(
        good.record.inference, num_samples_per_condition=20, num_steps=3, seed=7,
        temperature=0.9, mode="counterfactual",
    )  # fmt: skip

    answer = served.model.predict(TWO, params=params)

    genes = served.model.metadata.metadata["genes"]
    parts = [
        generate_unit(trained, unit, how)
        for row in TWO.itertuples(index=False)
        for unit in plan_units([row.cell_type], [row.perturbation], how)
    ]
    assert [part.unit.num_cells for part in parts] == [15, 5, 15, 5]
    np.testing.assert_array_equal(
        counts(answer, genes), np.concatenate([part.values for part in parts])
    )
    np.testing.assert_array_equal(answer["depth"], np.concatenate([p.depth for p in parts]))
    assert list(answer["control_cell"]) == [
        name for part in parts for name in control_names(trained.reference, part)
    ]
    assert list(answer["cell"]) == [*range(20), *range(20)]
    assert list(answer["cell_type"]) == ["B cells"] * 20 + [HELD_OUT] * 20
    assert list(answer["perturbation"]) == ["IFNb"] * 20 + ["control"] * 20


def test_without_parameters_cells_are_drawn_as_they_were_evaluated(
    lab: Lab, served: SimpleNamespace
) -> None:
    (path,) = lab.good.glob("inference_results/*/generated_cells.h5ad")

    answer = served.model.predict(ONE)

    there = anndata.read_h5ad(path)
    np.testing.assert_array_equal(counts(answer, list(there.var_names)), there.X.toarray())


def test_an_answer_depends_on_its_condition_and_seed_and_on_nothing_beside(
    served: SimpleNamespace,
) -> None:
    alone = served.model.predict(ONE, params={"n": 5})
    after = served.model.predict(pd.concat([TWO, ONE, ONE]), params={"n": 5})
    other = served.model.predict(ONE, params={"n": 5, "seed": 1})

    for start in (10, 15):
        pd.testing.assert_frame_equal(alone, after[start : start + 5].reset_index(drop=True))
    assert list(alone["counts"]) != list(other["counts"])


def test_an_answer_changes_nothing_in_the_process(served: SimpleNamespace) -> None:
    torch.set_num_threads(2)
    before = torch.get_rng_state(), torch.is_grad_enabled(), np.random.get_state()[1].copy()  # noqa: NPY002

    served.model.predict(ONE, params={"n": 3})

    assert torch.get_num_threads() == 2
    assert torch.equal(torch.get_rng_state(), before[0])
    assert torch.is_grad_enabled() == before[1]
    np.testing.assert_array_equal(np.random.get_state()[1], before[2])  # noqa: NPY002


def test_the_signature_says_what_may_be_asked_and_how_the_model_was_evaluated(
    lab: Lab, served: SimpleNamespace
) -> None:
    signature = served.model.metadata.signature

    assert {spec.name: spec.default for spec in signature.params} == {
        "n": 60, "steps": 4, "seed": 0, "temperature": 1.0, "mode": "population"
    }  # fmt: skip
    assert signature.inputs.input_names() == ["cell_type", "perturbation"]
    answer = served.model.predict(ONE, params={"n": 1})
    assert signature.outputs.input_names() == list(answer.columns)
    said = served.model.metadata.metadata
    assert said["genes"] == list(open_evaluated(lab.good).vocabulary.genes)
    assert said["sedd.model_digest"] == open_evaluated(lab.good).source.digest


@pytest.mark.parametrize(
    ("asked", "params", "message"),
    [
        (("B cell", "IFNb"), {}, r"Unknown cell type: 'B cell' \(did you mean 'B cells'"),
        (
            ("B cells", "ifnb"),
            {},
            r"Unknown perturbation: 'ifnb' \(did you mean 'IFNb'\?\). Known: ",
        ),
        (("x", "y"), {}, "Unknown cell type: 'x'.* Unknown perturbation: 'y'"),
        (("B cells", "IFNb"), {"n": 0}, "^n is 0, wanted more than 0"),
        (("B cells", "IFNb"), {"n": 10_001}, "more than 10000 cells in one request"),
        (("B cells", "IFNb"), {"steps": 0}, "^steps is 0"),
        (("B cells", "IFNb"), {"steps": 10**9}, "^steps is 1000000000, wanted at most 1000"),
        (("B cells", "IFNb"), {"temperature": 0.0}, "^temperature is 0.0"),
        (("B cells", "IFNb"), {"temperature": float("nan")}, "^temperature is nan"),
        (("B cells", "IFNb"), {"seed": -1}, "^seed is -1, wanted 0 or more"),
        (("B cells", "IFNb"), {"mode": "twins"}, "^mode is 'twins', wanted counterfactual or"),
        (("B cells", "IFNb"), {"n": "many"}, "Invalid parameters found"),
    ],
)
def test_what_cannot_be_answered_is_a_bad_request_that_says_why(
    served: SimpleNamespace, asked: tuple[str, str], params: dict[str, object], message: str
) -> None:
    from mlflow.exceptions import MlflowException

    row = pd.DataFrame([asked], columns=["cell_type", "perturbation"])

    with pytest.raises(MlflowException, match=message) as raised:
        served.model.predict(row, params=params)

    assert raised.value.get_http_status_code() == 400


def test_weights_that_were_changed_are_not_loaded(served: SimpleNamespace, tmp_path: Path) -> None:
    import mlflow

    registry = Registry(open_store(served.uri), NAME)
    root = registry.download(registry.find("1"), "", tmp_path / "files")
    (record,) = root.rglob("evaluation.json")
    record.write_text(record.read_text().replace('"model_digest": "', '"model_digest": "0'))

    with pytest.raises(StorageError, match="does not hold the weights that were evaluated"):
        mlflow.pyfunc.load_model(str(root))


# generate --model


@pytest.fixture
def in_store(
    served: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_ray: None
) -> Path:
    """A working folder whose store is the served one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", served.uri)
    return tmp_path


def test_generate_draws_from_a_registered_model_what_its_experiment_draws(
    lab: Lab, in_store: Path
) -> None:
    code = generate.main(["--model", f"models:/{NAME}@champion", "--cell_types", HELD_OUT])

    home = in_store / "experiments" / f"{NAME}_v1" / "inference_results"
    (made,) = home.glob("*/generated_cells.h5ad")
    (there,) = lab.good.glob("inference_results/*/generated_cells.h5ad")
    record = json.loads(made.with_name("generation_config.json").read_text())
    ours, theirs = anndata.read_h5ad(made), anndata.read_h5ad(there)
    assert code == 0
    assert (ours.X != theirs.X).nnz == 0
    assert list(ours.obs_names) == list(theirs.obs_names)
    assert record["model"] == f"models:/{NAME}/1"
    assert record["experiment"] == f"{NAME}_v1"
    assert record["model_digest"] == open_evaluated(lab.good).source.digest
    assert ours.uns["sedd"]["model"] == record["model"]
    assert not list(home.parent.glob(".model*"))


def test_a_model_of_a_gpu_cluster_generates_on_this_machine(
    lab: Lab, registry_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, without_ray: None
) -> None:
    folder = tmp_path / "e"
    shutil.copytree(lab.good, folder)
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    asked = text.replace("use_gpu: false", "use_gpu: true").replace(
        "num_actors: 2", "num_actors: 99"
    )
    assert asked.count("use_gpu: true") == asked.count("num_actors: 99") == 1
    (folder / "config.yaml").write_text(asked, encoding="utf-8")
    register.run(folder)
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(generate, "run", lambda config, output: seen.append(config.scaling))

    generate.main(["--model", f"models:/{NAME}/1"])

    assert [(scaling.use_gpu, scaling.num_actors) for scaling in seen] == [(False, 2)]


def test_settings_beside_the_model_are_taken_and_the_cells_go_where_they_are_told(
    in_store: Path,
) -> None:
    code = generate.main([
        "--model", f"models:/{NAME}/2", "--experiment_dir", "mine", "--cell_type", "B cells",
        "--num_samples_per_condition", "7", "--set", "inference.seed=5",
    ])  # fmt: skip

    record = json.loads(next((in_store / "mine").rglob("generation_config.json")).read_text())
    assert code == 0
    assert record["model"] == f"models:/{NAME}/2"
    assert (record["cells_per_perturbation"], record["seed"]) == ({"IFNb": 7}, 5)
    assert record["mode"] == "population"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", f"models:/{NAME}@best"], 2, "Aliases: challenger (version 2), champion (ver"),
        (["--model", f"models:/{NAME}/9"], 2, "has no version 9. Versions: 1, 2."),
        (["--model", "models:/nobody@champion"], 2, f"Registered there: {NAME}."),
        (["--model", "champion"], 2, "is not the address of a registered model"),
        (
            ["--model", f"models:/{NAME}/1", "--checkpoint_dir", "c"],
            2,
            "leave out --checkpoint_dir",
        ),
        (["--model", f"models:/{NAME}/1", "--cell_types", "B cell"], 2, "did you mean 'B cells'"),
        (["--model", f"models:/{NAME}/1", "--set", "model.hidden_dim=8"], 2, "cannot be changed"),
    ],
)
def test_a_model_that_cannot_be_used_is_one_message_and_leaves_no_folder(
    in_store: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    before = sorted(in_store.iterdir())

    assert generate.main(arguments) == code

    said = capsys.readouterr().err
    assert message in said
    assert said.startswith("error: ")
    assert sorted(in_store.iterdir()) in (before, [*before, in_store / "experiments"])
    assert not list((in_store / "experiments").glob("*"))


def test_cells_of_a_registered_model_are_not_put_into_another_experiment(
    lab: Lab, in_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = generate.main(["--model", f"models:/{NAME}/1", "--experiment_dir", str(lab.bad)])

    assert code == 2
    assert "is an experiment of its own" in capsys.readouterr().err


def test_files_that_were_changed_in_the_store_are_not_generated_from(
    served: SimpleNamespace, in_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = Registry(open_store(served.uri), NAME)
    version = registry.find("1")
    from pipelines.tracking.store import connect

    model = connect(served.uri).get_logged_model(version.source.rpartition("/")[2])
    path = Path(model.artifact_location.removeprefix("file://"))
    (weights,) = path.rglob("average.safetensors")
    there = weights.read_bytes()
    weights.write_bytes(there[:-1] + bytes([there[-1] ^ 1]))
    try:
        code = generate.main(["--model", version.uri])
    finally:
        weights.write_bytes(there)

    assert code == 74
    assert "average.safetensors is missing or was changed" in capsys.readouterr().err


@pytest.mark.parametrize(
    "address", ["models:/a", "models:/a@", "models:/a/latest", "models:/a/1/x", "runs:/a/1", "a@b"]
)
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(UsageError, match=r"Wanted: models:/NAME@ALIAS or models:/NAME/VERSION"):
        parse_address(address)


# The README


def readme_blocks() -> list[str]:
    """The blocks of code of the section on keeping models."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (section,) = re.findall(r"<!-- keep -->\n(.*?)<!-- /keep -->", text, re.DOTALL)
    return re.findall(r"```(?:python)?\n(.*?)```", section, re.DOTALL)


def test_the_commands_of_the_readme_run_as_they_stand(
    lab: Lab,
    registry_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    without_ray: None,
) -> None:
    commands, _, code = readme_blocks()
    shutil.copytree(lab.good, tmp_path / "experiments" / "mine")
    monkeypatch.chdir(tmp_path)
    register.run(tmp_path / "experiments" / "mine")
    verbs = {"generate": generate.main, "register": register.main}
    *ours, serve = commands.strip().splitlines()

    for line in ours:
        python, flag, module, *arguments = shlex.split(line)
        assert (python, flag) == ("python", "-m")
        assert verbs[module.removeprefix("pipelines.")](arguments) == 0

    assert shlex.split(serve) == serve_command(f"models:/{NAME}@champion", 5001)
    assert len(list(tmp_path.glob(f"experiments/{NAME}_v2/inference_results/celltype_*"))) == 4
    found: dict[str, Any] = {}
    before = list(sys.path)
    exec(code, found)
    sys.path[:] = before
    assert found["counts"].shape == (10, 60)
    assert found["counts"].to_numpy().sum() == sum(
        sum(c.values()) for c in found["cells"]["counts"]
    )


# Other processes


DRAW = """
import sys
import mlflow, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
asked = pd.DataFrame({"cell_type": [sys.argv[2]], "perturbation": ["IFNb"]})
cells = model.predict(asked, params={"n": 4})
import sedd
heavy = sorted({"ray", "pipelines", "anndata", "scanpy", "matplotlib"} & set(sys.modules))
print(model.metadata.metadata["sedd.model_digest"], sum(sum(c.values()) for c in cells["counts"]),
      sedd.__file__, heavy, sep="|")
"""


def draw_elsewhere(python: Path, served: SimpleNamespace, address: str) -> list[str]:
    """What another process draws, where nothing of this checkout can be imported."""
    keep = {key: text for key, text in os.environ.items() if not key.startswith("PYTHON")}
    answer = subprocess.run(
        [python, "-c", DRAW, address, HELD_OUT],
        cwd=served.folder,
        env=keep
        | {"MLFLOW_TRACKING_URI": served.uri, "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip().splitlines()[-1].split("|")


@pytest.mark.slow
def test_two_versions_run_side_by_side_each_with_its_own_code(
    lab: Lab, served: SimpleNamespace
) -> None:
    found = [draw_elsewhere(Path(sys.executable), served, f"models:/{NAME}/{v}") for v in (1, 2)]

    digests = [open_evaluated(folder).source.digest for folder in (lab.good, lab.bad)]
    assert [digest for digest, *_ in found] == digests
    sources = [Path(source).parts for _, _, source, _ in found]
    assert all(parts[-3:] == ("code", "sedd", "__init__.py") for parts in sources)
    assert sources[0] != sources[1]
    expected = served.model.predict(ONE, params={"n": 4})
    assert int(found[0][1]) == sum(sum(cell.values()) for cell in expected["counts"])
    assert [heavy for *_, heavy in found] == ["[]", "[]"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_loads_where_only_its_own_requirements_are_installed(
    served: SimpleNamespace, tmp_path: Path
) -> None:
    registry = Registry(open_store(served.uri), NAME)
    wanted = registry.download(registry.find("1"), "requirements.txt", tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "-r", wanted], check=True, timeout=900)

    digest, total, source, heavy = draw_elsewhere(python, served, f"models:/{NAME}@champion")

    expected = served.model.predict(ONE, params={"n": 4})
    assert int(total) == sum(sum(cell.values()) for cell in expected["counts"])
    assert digest == served.model.metadata.metadata["sedd.model_digest"]
    assert source.endswith("code/sedd/__init__.py")
    assert heavy == "[]"


def serve_command(address: str, port: int) -> list[str]:
    """How a model is served."""
    options = ["-m", address, "-p", str(port), "--env-manager", "local"]
    return ["mlflow", "models", "serve", *options]


@contextmanager
def serving(served: SimpleNamespace, address: str) -> Iterator[str]:
    """`mlflow models serve` on a free port, until it answers, then until the block ends."""
    with closing(socket.socket()) as held:
        held.bind(("127.0.0.1", 0))
        port = held.getsockname()[1]
    scripts = Path(sys.executable).parent
    log = served.folder / "serve.log"
    with log.open("w") as said:
        server = subprocess.Popen(
            [scripts / word if word == "mlflow" else word for word in serve_command(address, port)],
            env=os.environ
            | {
                "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}",
                "MLFLOW_TRACKING_URI": served.uri,
            },
            cwd=served.folder,
            stdout=said,
            stderr=said,
            start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/invocations"
    finally:
        os.killpg(server.pid, 15)
        server.wait(timeout=30)


def post(url: str, body: object) -> tuple[int, str]:
    """Status and text of an answer to JSON."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_a_served_model_answers_with_counts_and_refuses_unknown_labels_by_name(
    served: SimpleNamespace,
) -> None:
    (said,) = re.findall(r"-d '(.*)'", readme_blocks()[1])
    asked = json.loads(said)
    unknown = {"dataframe_records": [{"cell_type": "B cell", "perturbation": "IFNb"}]}
    nameless = {"dataframe_records": [{"cell": "B cells", "perturbation": "IFNb"}]}
    too_many = {"dataframe_records": ONE.to_dict("records"), "params": {"n": 20_000}}

    with serving(served, f"models:/{NAME}@champion") as url:
        status, text = post(url, asked)
        refused = [post(url, body) for body in (unknown, nameless, too_many)]

    conditions = pd.DataFrame(asked["dataframe_records"])
    expected = served.model.predict(conditions, params=asked["params"])
    assert status == 200, text
    assert json.loads(text)["predictions"] == expected.to_dict("records")
    assert [code for code, _ in refused] == [400, 400, 400]
    messages = [json.loads(body)["message"] for _, body in refused]
    assert "Unknown cell type: 'B cell' (did you mean 'B cells'" in messages[0]
    assert "'CD14+ Monocytes'" in messages[0]
    assert "cell_type" in messages[1]
    assert "more than 10000 cells" in messages[2]
    assert "Traceback" not in refused[0][1]
