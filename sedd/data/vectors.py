"""Given embeddings of perturbations or cell types: a file of name -> vector.

`.pt` files are read with weights_only (nothing in them is executed), `.safetensors` as they are.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from sedd.errors import DataError


def read_vectors(
    path: Path, names: Sequence[str], *, zero: str | None = None
) -> Float[np.ndarray, "names given"]:
    """One row per name, in their order.

    Args:
        path: A `.pt` dict of name to one-dimensional tensor, or a `.safetensors` file.
        names: Labels that need a vector.
        zero: A label that may be absent and is then the zero vector (the control).

    Raises:
        DataError: The file is no such dict, names are missing, or vectors differ in length or are
            not finite.
    """
    table = _load(path)
    missing = [name for name in names if name not in table and name != zero]
    if missing:
        raise DataError(
            f"{path} has no vector for {len(missing)} of {len(names)} labels, e.g. {missing[:3]}. "
            "Add them, or drop the cells with these labels."
        )
    lengths = {len(table[name]) for name in names if name in table}
    if len(lengths) != 1:
        raise DataError(f"{path} holds vectors of different lengths {sorted(lengths)}; wanted one.")
    nothing = torch.zeros(lengths.pop())
    rows = torch.stack([table.get(name, nothing).float() for name in names]).numpy()
    if not np.isfinite(rows).all():
        bad = [name for name, row in zip(names, rows, strict=True) if not np.isfinite(row).all()]
        raise DataError(f"{path} has NaN or infinite values in the vectors of {bad[:3]}.")
    return rows


def _load(path: Path) -> Mapping[str, Tensor]:
    if not path.is_file():
        raise DataError(f"{path} does not exist; wanted a file of label -> vector.")
    try:
        if path.suffix == ".safetensors":
            table = load_file(path)
        else:
            table = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpicklers raise anything; the answer is the same
        raise DataError(
            f"{path} could not be read as tensors only ({type(error).__name__}). Save it as "
            "torch.save({name: torch.tensor(vector) for ...}, path), or as safetensors."
        ) from error
    is_table = isinstance(table, dict) and all(
        isinstance(k, str) and isinstance(v, Tensor) and v.ndim == 1 for k, v in table.items()
    )
    if not is_table or not table:
        raise DataError(f"{path} is not a dict of label -> one-dimensional tensor.")
    return table
