"""All that a model must remember of its data in order to generate, in one object.

Vocabulary, tokenizer, control statistics, some real control cells, effects of the training types
and the scales of the inputs. Measured once on training cells, stored in every checkpoint, so that
a checkpoint generates without the data it came from.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from jaxtyping import Float, Shaped, UInt8
from safetensors.numpy import load_file, save_file

from sedd.data.controls import ControlCells, ControlStatistics
from sedd.data.effects import PerturbationEffects
from sedd.data.tokens import Tokenizer
from sedd.data.vocabulary import Vocabulary
from sedd.errors import StorageError


@dataclass(frozen=True)
class Scales:
    """Location, spread and main directions of the training cells, in log1p of bin means."""

    gene_mean: Float[np.ndarray, " genes"]
    gene_std: Float[np.ndarray, " genes"]
    components: Float[np.ndarray, "genes factors"]
    log_depth: Float[np.ndarray, " 2"]
    """Mean and standard deviation of log depth."""


@dataclass(frozen=True)
class Reference:
    """What the model knows of its training data."""

    vocabulary: Vocabulary
    tokenizer: Tokenizer
    controls: ControlStatistics
    control_cells: ControlCells
    effects: PerturbationEffects
    scales: Scales
    control_names: Shaped[np.ndarray, " controls"]
    """Name in the training file (obs_names) of each of the control cells, as str objects."""
    perturbation_vectors: Float[np.ndarray, "parts given"] | None = None
    """One row for each of `vocabulary.parts().names`."""
    cell_type_vectors: Float[np.ndarray, "types given_for_types"] | None = None

    def save(self, folder: Path) -> None:
        """Write `vocabulary.json` and `reference.safetensors` into `folder`."""
        self.vocabulary.save(folder / "vocabulary.json")
        tensors = {
            f"{part.name}.{field.name}": getattr(getattr(self, part.name), field.name)
            for part in fields(self)
            if part.name in ("controls", "control_cells", "effects", "scales")
            for field in fields(getattr(self, part.name))
        }
        if not self.vocabulary.batches:
            del tensors["control_cells.batch"]
        tensors["tokenizer.edges"] = self.tokenizer.edges
        tensors["tokenizer.means"] = self.tokenizer.means
        tensors["control_names"] = _as_bytes(self.control_names)
        for name in ("perturbation_vectors", "cell_type_vectors"):
            if getattr(self, name) is not None:
                tensors[name] = getattr(self, name)
        save_file(
            {name: np.ascontiguousarray(value) for name, value in tensors.items()},
            folder / "reference.safetensors",
            metadata={"kind": self.tokenizer.kind},
        )

    @classmethod
    def load(cls, folder: Path) -> "Reference":
        """Read what `save` wrote; StorageError if it is not there, is damaged or too old."""
        path = folder / "reference.safetensors"
        try:
            tensors = load_file(path)
            kind = "log1p" if _metadata(path)["kind"] == "log1p" else "counts"
            text = (folder / "vocabulary.json").read_text(encoding="utf-8")
        except Exception as error:
            raise StorageError(f"{path} cannot be read: {error}.") from error
        missing = [name for name in ("control_names", "effects.shown") if name not in tensors]
        if missing:
            message = (
                f"{path} was written by an earlier version of this program: it lacks "
                f"{' and '.join(missing)}, and its weights learned beside other expected effects. "
                "Train again; the data and configuration can stay."
            )
            raise StorageError(message)
        return cls(
            vocabulary=Vocabulary.from_json(text),
            tokenizer=Tokenizer(kind, tensors["tokenizer.edges"], tensors["tokenizer.means"]),
            controls=ControlStatistics(**_part(tensors, "controls")),
            control_cells=_control_cells(_part(tensors, "control_cells")),
            effects=PerturbationEffects(**_part(tensors, "effects")),
            scales=Scales(**_part(tensors, "scales")),
            control_names=_as_names(tensors["control_names"]),
            perturbation_vectors=tensors.get("perturbation_vectors"),
            cell_type_vectors=tensors.get("cell_type_vectors"),
        )


def measure_scales(
    levels: Float[np.ndarray, "cells genes"],
    depth: Float[np.ndarray, " cells"],
    *,
    num_factors: int,
    seed: int = 0,
    max_cells: int = 5000,
) -> Scales:
    """Mean and spread per gene, and principal directions by randomised subspace iteration."""
    rng = np.random.default_rng(seed)
    rows = np.sort(rng.permutation(len(levels))[:max_cells])
    mean, std = levels.mean(0), levels.std(0).clip(0.05)
    standardised = ((levels[rows] - mean) / std).astype(np.float32)
    num_factors = min(num_factors, *standardised.shape)
    basis = rng.standard_normal((standardised.shape[1], num_factors + 8)).astype(np.float32)
    for _ in range(6):
        basis, _ = np.linalg.qr(standardised.T @ (standardised @ basis))
    _, _, directions = np.linalg.svd(standardised @ basis, full_matrices=False)
    components = (basis @ directions.T)[:, :num_factors]
    log_depth = np.log(depth)
    return Scales(
        mean.astype(np.float32),
        std.astype(np.float32),
        components.astype(np.float32),
        np.array([log_depth.mean(), max(log_depth.std(), 1e-3)], np.float32),
    )


def _control_cells(part: Mapping[str, np.ndarray]) -> ControlCells:
    """Control cells as they were written; without batches, all have the number 0, "not told"."""
    return ControlCells(**{"batch": np.zeros(len(part["row"]), np.int64), **part})


def _as_bytes(names: Shaped[np.ndarray, " names"]) -> UInt8[np.ndarray, " bytes"]:
    """Names as a tensor: the UTF-8 of a JSON list."""
    return np.frombuffer(json.dumps(names.tolist(), ensure_ascii=False).encode(), np.uint8)


def _as_names(text: UInt8[np.ndarray, " bytes"]) -> Shaped[np.ndarray, " names"]:
    return np.array(json.loads(text.tobytes()), dtype=object)


def _metadata(path: Path) -> Mapping[str, str]:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return json.loads(file.read(size))["__metadata__"]


def _part(tensors: Mapping[str, np.ndarray], name: str) -> dict[str, np.ndarray]:
    prefix = name + "."
    return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}
