"""A bundle as an MLflow model: a pyfunc from code, its weights as safetensors, pinned packages.

The model is written beside the run that trained it, by the client alone: the run is neither opened
again nor does its end move.
"""

import importlib.metadata
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.journal import now_ms
from pipelines.tracking.origin import TAG_KEY, TAG_VERB, folder_tags
from pipelines.tracking.record import RECORD_NAME, Record
from pipelines.tracking.store import RunRef, Store, connect, metric_key, quietly
from sedd.errors import UsageError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import Model, ModelSignature

    from sedd.inference import InferenceConfig

PACKAGES = (
    "h5py", "jaxtyping", "mlflow", "numpy", "pandas", "pydantic", "pyyaml", "safetensors", "scipy",
    "torch",
)  # fmt: skip
"""What generating needs, and no more; a test builds an environment of these alone."""

ENTRY = Path(__file__).with_name("registered_model.py")
LIBRARY = Path(__file__).resolve().parents[2] / "sedd"
NOT_NEEDED = ("evaluation", "__pycache__")
"""Parts of the library that generating does not import."""

ABSENT = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"}
"""How a store says that it has no run of an id; the second, that the id is none ("None")."""

EXAMPLE_CELLS = 2
INSIDE = "artifacts/experiment"
"""Where the bundle is in the files of a model."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """What is said about a model, in its files and in MLflow."""

    bundle: Path
    cell_types: Sequence[str]
    perturbations: Sequence[str]
    """Control first."""
    genes: Sequence[str]
    kind: str
    """counts or log1p."""
    inference: "InferenceConfig"
    tags: Mapping[str, str]
    params: Mapping[str, str]
    metrics: Mapping[str, float]
    dataset: tuple[str, str]
    """Name and digest of the cells that the metrics are from."""


def training_run(store: Store, folder: Path) -> RunRef | None:
    """The run that `train` made for an experiment directory; None if the store has none."""
    client = connect(store.tracking_uri)
    try:
        run = client.get_run(str(Record.load(folder / RECORD_NAME).run_id))
    except Exception as error:
        if getattr(error, "error_code", "") not in ABSENT and not isinstance(error, UsageError):
            raise
        key = folder_tags(folder)[TAG_KEY]
        found = client.search_runs(
            [store.experiment_id],
            f"tags.`{TAG_KEY}` = '{key}' and tags.`{TAG_VERB}` = 'train'",
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
        if not found:
            return None
        run = found[0]
    return RunRef(
        tracking_uri=store.tracking_uri,
        experiment_id=run.info.experiment_id,
        run_id=run.info.run_id,
    )


def log_model(run: RunRef, said: Description) -> str:
    """Write the model's files into the store, linked to the run; returns the model's id.

    A model that could not be written whole is taken out again.
    """
    from mlflow.models import Model

    client = connect(run.tracking_uri)
    made = client.create_logged_model(
        run.experiment_id,
        name="model",
        source_run_id=run.run_id,
        tags=dict(said.tags),
        params=dict(said.params),
        model_type="pyfunc",
    )
    try:
        with quietly(), tempfile.TemporaryDirectory(prefix="sedd-model-") as work:
            model = Model(
                artifact_path=made.artifact_location,
                model_uuid=made.model_id,
                run_id=run.run_id,
                model_id=made.model_id,
            )
            target = Path(work) / "model"
            save_model(target, said, model)
            client.log_model_artifacts(made.model_id, str(target))
        client.finalize_logged_model(made.model_id, "READY")
        _link(client, run, made.model_id, said)
    except BaseException:
        client.delete_logged_model(made.model_id)
        raise
    return made.model_id


def forget_model(run: RunRef, model_id: str) -> None:
    """Take out a model that no version will point to."""
    connect(run.tracking_uri).delete_logged_model(model_id)


def save_model(target: Path, said: Description, model: "Model | None" = None) -> None:
    """Write the files of the model: entry, library, bundle, signature, requirements, example."""
    import mlflow.pyfunc
    import pandas as pd

    example = pd.DataFrame({
        "cell_type": [said.cell_types[0]], "perturbation": [said.perturbations[-1]]
    })  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="sedd-code-") as work:
        library = Path(work) / "sedd"
        shutil.copytree(LIBRARY, library, ignore=shutil.ignore_patterns(*NOT_NEEDED))
        mlflow.pyfunc.save_model(
            str(target),
            python_model=str(ENTRY),
            artifacts={"experiment": str(said.bundle)},
            code_paths=[str(library)],
            signature=signature(said),
            pip_requirements=requirements(),
            input_example=(example, {**_params(said.inference), "n": EXAMPLE_CELLS}),
            metadata=_metadata(said),
            mlflow_model=model,
        )


def signature(said: Description) -> "ModelSignature":
    """Conditions in, cells out, and what may be asked beside."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import Map

    number = DataType.long if said.kind == "counts" else DataType.double
    labels = [ColSpec("string", "cell_type"), ColSpec("string", "perturbation")]
    types = {"n": "long", "steps": "long", "seed": "long", "temperature": "double"}
    return ModelSignature(
        inputs=Schema([*labels]),
        outputs=Schema([
            *labels,
            ColSpec("long", "cell"),
            ColSpec("string", "control_cell"),
            ColSpec("double", "depth"),
            ColSpec(Map(number), said.kind),
        ]),
        params=ParamSchema([
            ParamSpec(name, types.get(name, "string"), value)
            for name, value in _params(said.inference).items()
        ]),
    )  # fmt: skip


def requirements() -> list[str]:
    """The packages that generating imports, as they are here, without a build's local suffix."""
    return [f"{name}=={importlib.metadata.version(name).partition('+')[0]}" for name in PACKAGES]


def _params(inference: "InferenceConfig") -> dict[str, Any]:
    """What a request may set, with what it is otherwise: as the model was evaluated."""
    return {
        "n": inference.num_samples_per_condition,
        "steps": inference.num_steps,
        "seed": inference.seed,
        "temperature": inference.temperature,
        "mode": inference.mode,
    }


def _metadata(said: Description) -> dict[str, Any]:
    return {
        **said.tags,
        "genes": list(said.genes),
        "cell_types": list(said.cell_types),
        "perturbations": list(said.perturbations),
    }


def _link(client: "MlflowClient", run: RunRef, model_id: str, said: Description) -> None:
    """Show the model at its run, and its scores at the model."""
    from mlflow.entities import LoggedModelOutput, Metric

    name, digest = said.dataset
    now = now_ms()
    metrics = [
        Metric(
            metric_key(key), value, now, 0, model_id=model_id,
            dataset_name=name, dataset_digest=digest[:36], run_id=run.run_id,
        )
        for key, value in said.metrics.items()
    ]  # fmt: skip
    client.log_batch(run.run_id, metrics=metrics)
    client.log_outputs(run.run_id, models=[LoggedModelOutput(model_id, step=0)])
