"""The survey counts what is there and warns of what would surprise, without refusing it."""

import json
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from sedd.data.survey import survey
from sedd.errors import DataError

NAMES = {
    "perturbation_col": "perturbation",
    "cell_type_col": "cell_type",
    "control_name": "control",
}
# Cells per (cell type, perturbation): a world whose table is known.
WORLD = {("T", "control"): 20, ("T", "IFNb"): 30, ("B", "control"): 15, ("B", "IFNb"): 12}


def written(path: Path, world=WORLD, genes=("CD3E", "ISG15"), counts=None, obs=None, **parts):
    labels = [pair for pair, num_cells in world.items() for _ in range(num_cells)]
    frame = pd.DataFrame(labels, columns=["cell_type", "perturbation"]).assign(**(obs or {}))
    frame.index = [f"cell{row}" for row in range(len(labels))]
    if counts is None:
        counts = np.full((len(labels), len(genes)), 2.0)
    var = pd.DataFrame(index=pd.Index(genes, dtype=object))
    anndata.AnnData(X=counts, obs=frame, var=var, **parts).write_h5ad(path)
    return path


def test_the_table_counts_every_pair_with_the_control_first(tmp_path):
    facts = survey(written(tmp_path / "cells.h5ad"), **NAMES)

    assert (facts.num_cells, facts.num_genes, facts.kind) == (77, 2, "counts")
    assert facts.cell_types == ("T", "B")
    assert facts.perturbations == ("control", "IFNb")
    assert facts.table == ((20, 30), (15, 12))
    assert facts.controls == (20, 15)
    assert facts.obs_columns == ("cell_type", "perturbation")
    assert facts.gene_names == "symbols"
    assert facts.warnings == ()


def test_batches_without_controls_are_doubted(tmp_path):
    # 20 control T cells, 30 treated ones, then B cells of plate 1 alone.
    plates = ["plate 1"] * 40 + ["plate 2"] * 10 + ["plate 1"] * 27
    path = written(tmp_path / "cells.h5ad", obs={"plate": plates})

    (warning,) = survey(path, **NAMES, batch_col="plate").warnings

    assert warning.startswith("1 batches have no control cells: 'plate 2'.")
    assert survey(path, **NAMES).warnings == ()


def test_depth_is_told_in_quantiles(tmp_path):
    counts = np.repeat(np.arange(1, 78)[:, None], 2, axis=1)

    depth = survey(written(tmp_path / "cells.h5ad", counts=counts), **NAMES).depth

    assert (depth.minimum, depth.q25, depth.median, depth.maximum) == (2.0, 40.0, 78.0, 154.0)
    assert (depth.q05, depth.q75, depth.q95) == pytest.approx((9.6, 116.0, 146.4))


def test_a_survey_is_json(tmp_path):
    facts = survey(written(tmp_path / "cells.h5ad"), **NAMES)

    content = json.loads(facts.as_json())

    assert content["table"] == [[20, 30], [15, 12]]
    assert content["depth"]["median"] == 4.0
    assert content["digest"] == facts.digest


@pytest.mark.parametrize(
    ("world", "message"),
    [
        ({**WORLD, ("NK", "IFNb"): 11}, "1 cell types have no control cells: 'NK'."),
        ({**WORLD, ("NK", "control"): 9}, "1 pairs have fewer than 10 cells: 'NK / control (9)'."),
        ({("T", "control"): 11, ("T", "IFNb"): 11}, "There is a single cell type: nothing can"),
        ({("T", "control"): 11, ("B", "control"): 11}, "There are only control cells: nothing"),
        ({**WORLD, ("t ", "control"): 10}, "Cell types 'T', 't ' differ only by upper case or"),
        ({**WORLD, ("T", "ifn B"): 10}, "Perturbations 'IFNb', 'ifn B' differ only by upper"),
    ],
)
def test_one_surprise_is_one_warning(tmp_path, world, message):
    facts = survey(written(tmp_path / "cells.h5ad", world), **NAMES)

    assert len(facts.warnings) == 1
    assert facts.warnings[0].startswith(message)


def test_one_cell_per_group_works_and_warns(tmp_path):
    facts = survey(written(tmp_path / "cells.h5ad", dict.fromkeys(WORLD, 1)), **NAMES)

    assert facts.table == ((1, 1), (1, 1))
    assert [warning[:32] for warning in facts.warnings] == [
        "4 pairs have fewer than 10 cells:"[:32]
    ]


def test_empty_cells_are_counted_not_refused(tmp_path):
    counts = np.full((77, 2), 2.0)
    counts[[3, 5, 8]] = 0

    facts = survey(written(tmp_path / "cells.h5ad", counts=counts), **NAMES)

    assert facts.num_empty_cells == 3
    assert facts.depth.minimum == 0.0
    assert facts.warnings[0].startswith("3 cells have no counts at all: training refuses them.")


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_repeated_cell_names_are_counted(tmp_path):
    path = written(tmp_path / "cells.h5ad")
    adata = anndata.read_h5ad(path)
    adata.obs_names = ["same"] * 3 + [f"cell{row}" for row in range(74)]
    adata.write_h5ad(path)

    facts = survey(path, **NAMES)

    assert facts.num_duplicate_names == 2
    assert facts.warnings[0].startswith("2 obs names repeat an earlier one")


@pytest.mark.parametrize(
    ("genes", "kind"),
    [
        (("ENSG00000198851", "ENSMUSG00000032093.2"), "Ensembl"),
        (("CD3E", "ENSA"), "symbols"),
        (("CD3E", "ENSG00000187608"), "mixed"),
    ],
)
def test_gene_names_are_recognised(tmp_path, genes, kind):
    facts = survey(written(tmp_path / "cells.h5ad", genes=genes), **NAMES)

    assert facts.gene_names == kind
    assert bool(facts.warnings) == (kind == "mixed")


def test_counts_beside_log_values_are_pointed_out(tmp_path):
    counts = sparse.random_array((77, 40), density=0.9, rng=0, format="csr")
    counts.data = np.ceil(counts.data * 9)
    genes = [f"G{gene}" for gene in range(40)]
    path = written(
        tmp_path / "cells.h5ad", genes=genes, counts=counts.log1p(), layers={"counts": counts}
    )

    facts = survey(path, **NAMES)

    assert (facts.kind, facts.layers) == ("log1p", ("counts",))
    assert "layers 'counts' has the counts, read it with data.layer" in facts.warnings[0]
    assert survey(path, **NAMES, layer="counts").warnings == ()


def test_a_depth_column_below_the_counts_is_doubted(tmp_path):
    path = written(tmp_path / "cells.h5ad", obs={"total": [3.0] * 7 + [4.0] * 70})

    facts = survey(path, **NAMES, depth_col="total")

    assert facts.warnings[0].startswith("7 cells have a smaller 'total' than the counts")


def test_what_cannot_be_read_is_an_error_here_too(tmp_path):
    path = written(tmp_path / "cells.h5ad")

    with pytest.raises(DataError, match=r"looks like raw counts"):
        survey(path, **NAMES, kind="log1p")
    with pytest.raises(DataError, match=r"Did you mean 'control'"):
        survey(path, **{**NAMES, "control_name": "ctrl"})


@pytest.mark.real_cells
def test_real_blood_cells_survey_without_a_warning(real_cells_folder):
    facts = survey(real_cells_folder / "kang_pbmc_1176g.h5ad", **NAMES)

    assert facts.cell_types[:2] == ("CD4 T cells", "CD14+ Monocytes")
    assert facts.table[0] == (1058, 1049)
    assert facts.controls == (1058, 794, 340, 271, 204, 102, 43, 15)
    assert sum(map(sum, facts.table)) == 5701
    assert facts.warnings == ()
