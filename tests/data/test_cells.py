"""Cells go in and come out whole: every storage and every age of h5ad gives the same cells."""

import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from sedd.data.cells import Cells, read_cells, write_h5ad
from sedd.errors import DataError, StorageError

COLUMNS = {"perturbation_col": "perturbation", "cell_type_col": "cell_type"}
NAMES = {**COLUMNS, "control_name": "control"}
COUNTS = np.array([[0, 3, 1], [2, 0, 0], [0, 0, 7], [1, 1, 1]])
LOG1P = np.log1p(COUNTS / COUNTS.sum(axis=1, keepdims=True) * 1e4).astype(np.float32)
OBS = {"perturbation": ["control", "IFNb", "control", "IFNb"], "cell_type": ["B", "B", "T", "T"]}
GENES = ["CD3E", "ISG15", "MS4A1"]


def written(path: Path, matrix=COUNTS, obs=OBS, genes=GENES, layers=None) -> Path:
    frame = pd.DataFrame(obs, index=[f"cell{row}" for row in range(matrix.shape[0])])
    var = pd.DataFrame(index=pd.Index(genes, dtype=object))
    anndata.AnnData(X=matrix, obs=frame, var=var, layers=layers).write_h5ad(path)
    return path


def small_cells(tmp_path: Path) -> Cells:
    return read_cells(written(tmp_path / "cells.h5ad"), **NAMES)


def test_cells_hold_counts_labels_and_the_total_of_every_cell(tmp_path):
    cells = small_cells(tmp_path)

    assert cells.kind == "counts"
    assert cells.expression.dtype == np.int32
    assert cells.expression.toarray().tolist() == COUNTS.tolist()
    assert cells.genes == ("CD3E", "ISG15", "MS4A1")
    assert cells.perturbation.tolist() == OBS["perturbation"]
    assert cells.cell_type.tolist() == OBS["cell_type"]
    assert cells.depth.tolist() == [4.0, 2.0, 7.0, 3.0]
    assert cells.names.tolist() == ["cell0", "cell1", "cell2", "cell3"]
    assert cells.source.path == str(tmp_path / "cells.h5ad")


@pytest.mark.parametrize(
    "dtype",
    [
        *("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
        *("float16", "float32", "float64", ">f4", ">i4"),
    ],
)
@pytest.mark.parametrize(
    "storage", [np.asarray, sparse.csr_matrix, sparse.csc_matrix], ids=["dense", "csr", "csc"]
)
def test_equal_counts_have_equal_digests_in_every_storage(tmp_path, dtype, storage):
    reference = small_cells(tmp_path)
    path = written(tmp_path / "other.h5ad", np.zeros(COUNTS.shape, np.float32))
    matrix = storage(COUNTS)
    with h5py.File(path, "r+") as file:
        del file["X"]
        anndata.io.write_elem(file, "X", matrix)
        group, name = (file, "X") if isinstance(matrix, np.ndarray) else (file["X"], "data")
        values, attributes = group[name][()], dict(group[name].attrs)
        del group[name]
        group[name] = values.astype(dtype)
        group[name].attrs.update(attributes)

    cells = read_cells(path, **NAMES)

    assert cells.expression.toarray().tolist() == COUNTS.tolist()
    assert cells.source.digest == reference.source.digest


def test_boolean_matrices_are_counts_of_one(tmp_path):
    matrix = sparse.csr_matrix(COUNTS > 0)

    cells = read_cells(written(tmp_path / "cells.h5ad", matrix), **NAMES)

    assert cells.depth.tolist() == [2.0, 1.0, 1.0, 3.0]


def test_dense_blocks_join_without_a_seam(tmp_path, monkeypatch):
    reference = small_cells(tmp_path)
    monkeypatch.setattr("sedd.data.matrix._BLOCK_BYTES", 1)

    assert small_cells(tmp_path).source.digest == reference.source.digest


def test_unsorted_duplicate_and_explicit_zero_entries_are_normalised(tmp_path):
    reference = small_cells(tmp_path)
    # Row 0 backwards with 3 = 1 + 2 in two entries, row 1 with a stored zero.
    data = np.array([1, 1, 2, 2, 0, 7, 1, 1, 1], dtype=np.int8)
    indices = np.array([2, 1, 1, 0, 1, 2, 0, 1, 2])
    matrix = sparse.csr_matrix((data, indices, [0, 3, 5, 6, 9]), shape=(4, 3))

    cells = read_cells(written(tmp_path / "messy.h5ad", matrix), **NAMES)

    assert cells.expression.has_canonical_format
    assert cells.expression.nnz == 7
    assert cells.source.digest == reference.source.digest


def test_duplicate_entries_of_a_small_type_add_up_without_overflow(tmp_path):
    data, indices = np.array([100, 100], dtype=np.int8), np.array([1, 1])
    matrix = sparse.csr_matrix((data, indices, [0, 2, 2, 2, 2]), shape=(4, 3))
    path = written(tmp_path / "cells.h5ad", matrix)

    cells = read_cells(path, **NAMES, drop_empty_cells=True)

    assert cells.expression.toarray().tolist() == [[0, 200, 0]]


@pytest.mark.parametrize(
    "change",
    [
        {"matrix": COUNTS + 1},
        {"genes": ["CD3E", "ISG15", "CD19"]},
        {"obs": {**OBS, "cell_type": ["B", "B", "T", "NK"]}},
        {"obs": {**OBS, "perturbation": ["control", "IFNb", "IFNb", "control"]}},
    ],
    ids=["counts", "genes", "cell_type", "perturbation"],
)
def test_any_change_of_content_changes_the_digest(tmp_path, change):
    reference = small_cells(tmp_path)

    changed = read_cells(written(tmp_path / "changed.h5ad", **change), **NAMES)

    assert changed.source.digest != reference.source.digest


def test_text_that_moves_between_neighbouring_labels_changes_the_digest(tmp_path):
    one = written(tmp_path / "one.h5ad", genes=["AB", "C", "D"])
    two = written(tmp_path / "two.h5ad", genes=["A", "BC", "D"])

    assert read_cells(one, **NAMES).source.digest != read_cells(two, **NAMES).source.digest


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 1, 0, 1], ["0", "1", "0", "1"]),
        ([0.0, 1.5, 0.0, 1.5], ["0", "1.5", "0", "1.5"]),
        (np.array([0, 0.1, 0, 0.1], np.float32), ["0", "0.1", "0", "0.1"]),
        ([False, True, False, True], ["False", "True", "False", "True"]),
        (pd.Categorical([7, 8, 7, 8]), ["7", "8", "7", "8"]),
        (pd.array([0, 1, 0, 1], dtype="Int64"), ["0", "1", "0", "1"]),
        (pd.array([False, True, False, True], dtype="boolean"), ["False", "True"] * 2),
        (pd.Categorical(["a", "b", "a", "b"], ["c", "b", "a"]), ["a", "b", "a", "b"]),
        (["T", "T ", "T", "T "], ["T", "T ", "T", "T "]),
    ],
)
def test_labels_of_any_type_become_the_same_text_every_time(tmp_path, labels, expected):
    path = written(tmp_path / "cells.h5ad", obs={**OBS, "dose": labels})

    cells = read_cells(
        path, perturbation_col="dose", cell_type_col="cell_type", control_name=expected[0]
    )

    assert cells.perturbation.tolist() == expected


def test_labels_stored_as_bytes_are_text(tmp_path):
    path = written(tmp_path / "cells.h5ad")
    with h5py.File(path, "r+") as file:
        del file["obs/cell_type"]
        file["obs/cell_type"] = np.array(["B", "γδ", "T", "T"], dtype=object).astype("U").tolist()
        del file["obs/perturbation"]
        file["obs/perturbation"] = np.array([b"control", b"IFNb", b"control", b"IFNb"])

    cells = read_cells(path, **NAMES)

    assert cells.cell_type.tolist() == ["B", "γδ", "T", "T"]
    assert cells.perturbation.tolist() == OBS["perturbation"]


def test_unused_categories_leave_no_trace(tmp_path):
    obs = {**OBS, "cell_type": pd.Categorical(OBS["cell_type"], ["NK", "B", "T", "platelet"])}

    cells = read_cells(written(tmp_path / "cells.h5ad", obs=obs), **NAMES)

    assert set(cells.cell_type) == {"B", "T"}
    assert cells.source.digest == small_cells(tmp_path).source.digest


def test_categories_of_anndata_0_7_are_followed(tmp_path):
    path = written(tmp_path / "cells.h5ad")
    with h5py.File(path, "r+") as file:
        obs = file["obs"]
        del obs["cell_type"]
        obs["__categories/cell_type"] = ["B", "T"]
        obs["cell_type"] = np.array([0, 0, 1, 1], dtype=np.int8)
        obs["cell_type"].attrs["categories"] = obs["__categories/cell_type"].ref

    assert read_cells(path, **NAMES).cell_type.tolist() == OBS["cell_type"]


def write_like_2018(path: Path, labels=(0, 1, 0, 1)) -> Path:
    """Tables as records, categories in uns, CSC with `h5sparse` attributes: anndata before 0.7."""
    obs = np.zeros(4, dtype=[("index", "S8"), ("label", "i1"), ("cell_type", "i1"), ("n", "f4")])
    obs["index"], obs["label"] = [b"c0", b"c1", b"c2", b"c3"], labels
    obs["cell_type"], obs["n"] = [0, 0, 1, 1], [10, 20, 30, 40]
    matrix = sparse.csc_matrix(COUNTS.astype(np.float32))
    with h5py.File(path, "w") as file:
        file["obs"] = obs
        file["var"] = np.array([(gene.encode(),) for gene in GENES], dtype=[("index", "S8")])
        file["uns/label_categories"] = [b"ctrl", b"stim"]
        file["uns/cell_type_categories"] = [b"B", b"T"]
        group = file.create_group("X")
        group.attrs["h5sparse_format"], group.attrs["h5sparse_shape"] = b"csc", matrix.shape
        for name in ("data", "indices", "indptr"):
            group[name] = getattr(matrix, name)
    return path


def test_files_older_than_anndata_0_7_are_read(tmp_path):
    path = write_like_2018(tmp_path / "old.h5ad")

    cells = read_cells(
        path, perturbation_col="label", cell_type_col="cell_type", control_name="ctrl",
        depth_col="n",
    )  # fmt: skip

    assert cells.expression.toarray().tolist() == COUNTS.tolist()
    assert cells.genes == tuple(GENES)
    assert cells.names.tolist() == ["c0", "c1", "c2", "c3"]
    assert cells.perturbation.tolist() == ["ctrl", "stim", "ctrl", "stim"]
    assert cells.cell_type.tolist() == ["B", "B", "T", "T"]
    assert cells.depth.tolist() == [10.0, 20.0, 30.0, 40.0]


def test_a_layer_is_read_in_place_of_x(tmp_path):
    path = written(tmp_path / "cells.h5ad", LOG1P, layers={"counts": sparse.csr_matrix(COUNTS)})

    assert read_cells(path, **NAMES).kind == "log1p"
    counts = read_cells(path, **NAMES, layer="counts")
    assert counts.kind == "counts"
    assert counts.source.digest == small_cells(tmp_path).source.digest


def test_log1p_cells_keep_their_values_and_know_the_total_they_were_scaled_to(tmp_path):
    cells = read_cells(written(tmp_path / "cells.h5ad", LOG1P), **NAMES, kind="log1p")

    assert cells.expression.dtype == np.float32
    np.testing.assert_array_equal(cells.log1p_cp10k(), LOG1P)
    np.testing.assert_allclose(cells.depth, 1e4, rtol=1e-5)


def test_log1p_of_counts_is_per_ten_thousand_of_the_depth(tmp_path):
    cells = small_cells(tmp_path)

    np.testing.assert_allclose(cells.log1p_cp10k(), LOG1P, rtol=1e-6)
    assert cells.log1p_cp10k().dtype == np.float32


def test_a_depth_column_replaces_the_sum_over_genes(tmp_path):
    path = written(tmp_path / "cells.h5ad", obs={**OBS, "total": [40, 20, 70, 30]})

    cells = read_cells(path, **NAMES, depth_col="total")

    assert cells.depth.tolist() == [40.0, 20.0, 70.0, 30.0]
    expected = np.log1p(COUNTS / cells.depth[:, None] * 1e4)
    np.testing.assert_allclose(cells.log1p_cp10k(), expected, rtol=1e-6)
    assert cells.source.digest != small_cells(tmp_path).source.digest


def test_a_cell_without_counts_in_these_genes_is_kept_when_its_depth_is_known(tmp_path):
    counts = COUNTS.copy()
    counts[2] = 0
    path = written(tmp_path / "cells.h5ad", counts, obs={**OBS, "total": [40, 20, 70, 30]})

    assert len(read_cells(path, **NAMES, depth_col="total")) == 4


def test_empty_cells_are_dropped_only_when_asked(tmp_path):
    counts = COUNTS.copy()
    counts[2] = 0
    path = written(tmp_path / "cells.h5ad", counts)

    cells = read_cells(path, **NAMES, drop_empty_cells=True)

    assert cells.names.tolist() == ["cell0", "cell1", "cell3"]
    assert cells.depth.tolist() == [4.0, 2.0, 3.0]


def test_selected_genes_stand_in_the_order_asked_and_depth_stays(tmp_path):
    cells = small_cells(tmp_path)

    chosen = cells.select(rows=np.array([3, 0]), genes=["MS4A1", "CD3E"])

    assert chosen.genes == ("MS4A1", "CD3E")
    assert chosen.expression.toarray().tolist() == [[1, 1], [1, 0]]
    assert chosen.expression.has_sorted_indices
    assert chosen.depth.tolist() == [3.0, 4.0]
    assert chosen.names.tolist() == ["cell3", "cell0"]
    assert cells.select(rows=cells.cell_type == "T").names.tolist() == ["cell2", "cell3"]
    np.testing.assert_array_equal(chosen.log1p_cp10k(), cells.log1p_cp10k()[np.ix_([3, 0], [2, 0])])


def test_genes_that_are_not_there_are_named_with_their_neighbours(tmp_path):
    cells = small_cells(tmp_path)

    with pytest.raises(DataError, match=r"1 of 2 genes are not in .*'isg-15'.*mean 'ISG15'"):
        cells.select(genes=["CD3E", "isg-15"])
    with pytest.raises(DataError, match=r"named twice: 'CD3E'"):
        cells.select(genes=["CD3E", "CD3E"])


@pytest.mark.parametrize("matrix", [COUNTS, LOG1P], ids=["counts", "log1p"])
def test_written_cells_come_back_as_they_were(tmp_path, matrix):
    cells = read_cells(written(tmp_path / "cells.h5ad", matrix), **NAMES)
    scaled = replace(cells, depth=cells.depth * 3)

    write_h5ad(scaled, tmp_path / "again.h5ad")
    again = read_cells(tmp_path / "again.h5ad", **NAMES, depth_col="depth")

    assert again.kind == cells.kind
    assert again.depth.tolist() == scaled.depth.tolist()
    assert again.names.tolist() == cells.names.tolist()
    np.testing.assert_array_equal(again.expression.toarray(), cells.expression.toarray())
    without_column = read_cells(tmp_path / "again.h5ad", **NAMES)
    assert without_column.source.digest == cells.source.digest


def test_a_failed_write_leaves_the_older_file_whole(tmp_path, monkeypatch):
    cells = small_cells(tmp_path)
    before = (tmp_path / "cells.h5ad").read_bytes()

    def disk_full(adata, path, **options):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(anndata.AnnData, "write_h5ad", disk_full)

    with pytest.raises(StorageError, match=r"could not be written \(No space left on device\)"):
        write_h5ad(cells, tmp_path / "cells.h5ad")
    assert (tmp_path / "cells.h5ad").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["cells.h5ad"]


def test_a_reader_of_the_older_file_is_not_disturbed_by_a_write(tmp_path):
    cells = small_cells(tmp_path)
    before = (tmp_path / "cells.h5ad").read_bytes()

    with (tmp_path / "cells.h5ad").open("rb") as older:
        write_h5ad(cells, tmp_path / "cells.h5ad")

        assert older.read() == before
    assert (tmp_path / "cells.h5ad").read_bytes() != before


def test_writing_into_a_missing_folder_says_so(tmp_path):
    with pytest.raises(StorageError, match=r"Check that the folder exists"):
        write_h5ad(small_cells(tmp_path), tmp_path / "nowhere" / "cells.h5ad")


def test_reading_needs_neither_anndata_nor_torch(tmp_path):
    path = written(tmp_path / "cells.h5ad")
    program = (
        "import sys; from sedd.data.cells import read_cells; "
        f"read_cells({str(path)!r}, perturbation_col='perturbation', cell_type_col='cell_type', "
        "control_name='control'); print(sorted({'anndata', 'torch', 'pandas'} & set(sys.modules)))"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT
    )

    assert done.stdout.strip() == "[]"


ROOT = Path(__file__).parents[2]


@pytest.mark.real_cells
def test_real_blood_cells_have_the_counts_their_readme_tells(real_cells_folder):
    cells = read_cells(real_cells_folder / "kang_pbmc_1176g.h5ad", **NAMES)

    assert cells.kind == "counts"
    assert cells.expression.shape == (5701, 1176)
    assert cells.expression.nnz == 1_980_240
    assert (cells.depth.min(), cells.depth.max()) == (313.0, 6585.0)
    pairs = Counter(zip(cells.cell_type, cells.perturbation, strict=True))
    assert len(pairs) == 16
    assert pairs["CD14+ Monocytes", "control"] == 794
    assert pairs["CD4 T cells", "IFNb"] == 1049
    assert pairs["Megakaryocytes", "IFNb"] == 13


@pytest.mark.real_cells
def test_real_log1p_cells_and_the_counts_in_their_layer_agree(real_cells_folder):
    path = real_cells_folder / "perturbench_devel.h5ad"

    logged = read_cells(path, **NAMES)
    counts = read_cells(path, **NAMES, layer="counts_recovered", depth_col="ncounts")

    assert (logged.kind, counts.kind) == ("log1p", "counts")
    assert logged.expression.shape == counts.expression.shape == (5961, 500)
    assert (logged.expression.indices == counts.expression.indices).all()
    assert len(set(logged.perturbation)) == 34
    with pytest.raises(DataError, match=r"looks like log1p values .*input_kind=counts was"):
        read_cells(path, **NAMES, kind="counts")


@pytest.mark.real_cells
def test_a_depth_column_with_gaps_is_refused_on_real_cells(real_cells_folder):
    with pytest.raises(DataError, match=r"3200 of 5701 cells have no positive number"):
        read_cells(real_cells_folder / "kang_pbmc_1176g.h5ad", **NAMES, depth_col="n_counts_total")
