"""Generated cells, and the real ones they started from, as AnnData."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anndata import AnnData

    from sedd.data.reference import Reference
    from sedd.generation import GeneratedCells


def as_anndata(
    reference: "Reference", cells: Sequence["GeneratedCells"], provenance: dict[str, Any]
) -> "AnnData":
    """Generated cells as AnnData: whole counts, labels, the depth each was drawn for.

    Counterfactual cells also name the real control cell they are the twin of (`control_cell`) and
    say how far they moved from it (`effect_size`, in log1p of counts per 10,000). Of a model that
    was told batches, each cell has the batch of the control cell it started from, in the column
    that `provenance` names.
    """
    import anndata
    import numpy as np
    import pandas as pd
    from scipy import sparse

    from sedd.generation import batch_labels, control_names, effect_size

    labels = [
        (unit.perturbation, unit.cell_type, f"{unit.shard}-{index}")
        for unit in (part.unit for part in cells)
        for index in range(unit.num_cells)
    ]
    obs = pd.DataFrame(
        {
            "perturbation": pd.Categorical([perturbation for perturbation, _, _ in labels]),
            "cell_type": pd.Categorical([cell_type for _, cell_type, _ in labels]),
            "depth": np.concatenate([part.depth for part in cells]),
            "control_row": np.concatenate([part.control_row for part in cells]),
            "generated": True,
        },
        index=[f"{perturbation}-{cell_type}-{name}" for perturbation, cell_type, name in labels],
    )
    if provenance["mode"] == "counterfactual":
        obs["control_cell"] = np.concatenate([control_names(reference, part) for part in cells])
        obs["effect_size"] = np.concatenate([effect_size(reference, part) for part in cells])
    if "batch_col" in provenance:
        batches = np.concatenate([batch_labels(reference, part) for part in cells])
        obs[provenance["batch_col"]] = pd.Categorical(batches)
    values = sparse.vstack([sparse.csr_matrix(part.values) for part in cells], format="csr")
    var = pd.DataFrame(index=pd.Index(reference.vocabulary.genes))
    return anndata.AnnData(values, obs=obs, var=var, uns={"sedd": provenance})


def controls_as_anndata(
    reference: "Reference", cell_type: str, provenance: dict[str, Any]
) -> "AnnData":
    """The real control cells of a type that the model kept, marked as not generated."""
    from sedd.generation import GeneratedCells, Unit

    (number,) = reference.vocabulary.cell_type_ids([cell_type])
    real = reference.control_cells.of_type(int(number))
    unit = Unit(cell_type, reference.vocabulary.control_name, 0, len(real.row))
    part = GeneratedCells(unit, real.values, real.depth, real.row)
    data = as_anndata(reference, [part], provenance)
    data.obs["generated"] = False
    return data
