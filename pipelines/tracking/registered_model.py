"""The file that MLflow runs to load a registered model: generated cells for asked conditions.

It lies in the model beside a copy of `sedd` and the experiment's bundle, and imports nothing else
of this project: neither Ray nor `pipelines` has to be there. Nothing is unpickled.

One row of input is one condition, `cell_type` and `perturbation`. One row of output is one cell:

    cell_type  perturbation  as asked
    cell                     number of the cell within its condition, from 0
    control_cell             name, in the training file, of the real control cell whose perturbed
                             twin it is (mode counterfactual), or whose depth it has (population)
    depth                    library size that it was drawn for
    counts                   {gene: raw count}; genes with 0 are left out (`log1p` in place of
                             `counts` for models of log1p values)

The cells of a condition depend on the model, the parameters and the condition alone, and are those
that `generate` makes with the same settings; so the same row twice is the same cells twice.
"""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import BAD_REQUEST
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from sedd.checkpoint import load_trained
from sedd.config import from_dict, from_yaml
from sedd.errors import SeddError, StorageError
from sedd.generation import GeneratedCells, control_names, generate_unit, plan_units
from sedd.inference import InferenceConfig

MAX_CELLS = 10_000
"""Cells in one answer; ask in parts, or use `generate`, for more."""
MAX_STEPS = 1000
"""Steps per cell, unless there are more genes: one a step is all that can help."""
LARGEST_SEED = 2**63 - 1


class RegisteredModel(PythonModel):
    """A trained model that answers with cells."""

    def load_context(self, context: PythonModelContext) -> None:
        """Read the bundle.

        Raises:
            StorageError: The weights are damaged, or not those that were registered.
        """
        folder = Path(context.artifacts["experiment"])
        record = json.loads((folder / "evaluation" / "evaluation.json").read_text("utf-8"))
        config = from_yaml((folder / "config.yaml").read_text("utf-8"), source="config.yaml")
        (checkpoint,) = (folder / "checkpoints").iterdir()
        self._trained = load_trained(checkpoint, config.model)
        if self._trained.digest != record["model_digest"]:
            message = f"{checkpoint} does not hold the weights that were evaluated and registered."
            raise StorageError(message)
        asked = {"inference": record["inference"]}
        self._how = from_dict(asked, source="evaluation.json").inference
        self._only = threading.Lock()

    def predict(
        self,
        context: PythonModelContext,
        model_input: pd.DataFrame,
        params: dict[str, Any] | None = None,
    ) -> pd.DataFrame:
        """Draw the cells of each condition.

        Args:
            context: Unused; the bundle was read on loading.
            model_input: Columns `cell_type` and `perturbation`.
            params: `n` cells per condition, `steps` per cell, `seed`, `temperature` and `mode`.

        Raises:
            MlflowException: With the code BAD_REQUEST (status 400 of a server): an unknown label,
                a parameter out of range, or more than `MAX_CELLS` cells.
        """
        del context
        how = self._asked(params or {})
        rows = [
            (str(cell_type), str(perturbation))
            for cell_type, perturbation in model_input[["cell_type", "perturbation"]].itertuples(
                index=False
            )
        ]
        self._require_answerable(rows, how)
        drawn: dict[tuple[str, str], pd.DataFrame] = {}
        try:
            with self._only, _one_thread():
                for row in dict.fromkeys(rows):
                    drawn[row] = self._draw(*row, how)
        except SeddError as error:
            raise MlflowException(str(error), error_code=BAD_REQUEST) from error
        return pd.concat([drawn[row] for row in rows], ignore_index=True)

    def _asked(self, params: Mapping[str, Any]) -> InferenceConfig:
        seed = int(params.get("seed", self._how.seed))
        if not 0 <= seed <= LARGEST_SEED:
            _refuse(f"seed is {seed}, wanted 0 or more.")
        try:
            return replace(
                self._how,
                num_samples_per_condition=int(params.get("n", self._how.num_samples_per_condition)),
                num_steps=int(params.get("steps", self._how.num_steps)),
                seed=seed,
                temperature=float(params.get("temperature", self._how.temperature)),
                mode=_mode(params.get("mode", self._how.mode)),
            )
        except ValueError as error:
            names = {"num_samples_per_condition": "n", "num_steps": "steps"}
            text = str(error).replace("inference.", "")
            for ours, theirs in names.items():
                text = text.replace(ours, theirs)
            raise MlflowException(text, error_code=BAD_REQUEST) from error

    def _require_answerable(self, rows: list[tuple[str, str]], how: InferenceConfig) -> None:
        """Refuse unknown labels and too many cells before any is drawn."""
        vocabulary = self._trained.reference.vocabulary
        problems = []
        for check, labels in (
            (vocabulary.cell_type_ids, [cell_type for cell_type, _ in rows]),
            (vocabulary.perturbation_ids, [perturbation for _, perturbation in rows]),
        ):
            try:
                check(labels)
            except SeddError as error:
                problems.append(str(error))
        if problems:
            _refuse(" ".join(problems))
        if not rows:
            _refuse("There is no condition: give at least one row of cell_type and perturbation.")
        if len(rows) * how.num_samples_per_condition > MAX_CELLS:
            _refuse(
                f"{len(rows)} conditions of {how.num_samples_per_condition} cells are more than "
                f"{MAX_CELLS} cells in one request. Ask for fewer conditions or a smaller n, or "
                "use `python -m pipelines.generate --model`."
            )
        most = max(MAX_STEPS, len(vocabulary.genes))
        if how.num_steps > most:
            _refuse(f"steps is {how.num_steps}, wanted at most {most}.")

    def _draw(self, cell_type: str, perturbation: str, how: InferenceConfig) -> pd.DataFrame:
        units = plan_units([cell_type], [perturbation], how)
        parts = [self._table(generate_unit(self._trained, unit, how)) for unit in units]
        cells = pd.concat(parts, ignore_index=True)
        cells.insert(0, "cell", np.arange(len(cells)))
        cells.insert(0, "perturbation", perturbation)
        cells.insert(0, "cell_type", cell_type)
        return cells

    def _table(self, part: GeneratedCells) -> pd.DataFrame:
        reference = self._trained.reference
        genes = np.array(reference.vocabulary.genes, dtype=object)
        values = [
            dict(zip(genes[row != 0], row[row != 0].tolist(), strict=True)) for row in part.values
        ]
        return pd.DataFrame(
            {
                "control_cell": control_names(reference, part),
                "depth": part.depth.astype(np.float64),
                reference.tokenizer.kind: values,
            }
        )


def _mode(name: object) -> Any:
    if name not in ("counterfactual", "population"):
        _refuse(f"mode is {name!r}, wanted counterfactual or population.")
    return name


def _refuse(message: str) -> None:
    raise MlflowException(message, error_code=BAD_REQUEST)


@contextmanager
def _one_thread() -> Iterator[None]:
    """As the actors of `generate` do: sums in another order could end in other cells."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


set_model(RegisteredModel())
