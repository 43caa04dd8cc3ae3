"""Whatever is wrong with a file is one message with the fix, before it can crash anything."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import anndata
import h5py
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from sedd.data.cells import read_cells
from sedd.errors import DataError, StorageError

ROOT = Path(__file__).parents[2]
NAMES = {
    "perturbation_col": "perturbation",
    "cell_type_col": "cell_type",
    "control_name": "control",
}
COUNTS = np.array([[0, 3, 1], [2, 0, 0], [0, 0, 7], [1, 1, 1]], dtype=np.float32)
OBS = {"perturbation": ["control", "IFNb", "control", "IFNb"], "cell_type": ["B", "B", "T", "T"]}
GENES = ["CD3E", "ISG15", "MS4A1"]


def written(path: Path, matrix=COUNTS, obs=OBS, genes=GENES, **parts) -> Path:
    frame = pd.DataFrame(obs, index=[f"cell{row}" for row in range(matrix.shape[0])])
    var = pd.DataFrame(index=pd.Index(genes, dtype=object))
    anndata.AnnData(X=matrix, obs=frame, var=var, **parts).write_h5ad(path)
    return path


@pytest.fixture
def path(tmp_path) -> Path:
    return written(tmp_path / "cells.h5ad", sparse.csr_matrix(COUNTS))


def replace_dataset(path: Path, name: str, values: object) -> None:
    with h5py.File(path, "r+") as file:
        attributes = dict(file[name].attrs)
        del file[name]
        file[name] = values
        file[name].attrs.update(attributes)


# The file itself: I1, I2, S3, S4.


def test_a_missing_file_is_named_beside_those_that_are_there(path):
    with pytest.raises(DataError, match=r"cell\.h5ad does not exist \(in .*: 'cells\.h5ad'\)"):
        read_cells(path.with_name("cell.h5ad"), **NAMES)


def test_a_folder_is_not_a_file(path):
    with pytest.raises(DataError, match=r"is a folder\. Give the path of an \.h5ad"):
        read_cells(path.parent, **NAMES)


def test_an_empty_file_is_said_to_be_empty(tmp_path):
    (tmp_path / "cells.h5ad").touch()

    with pytest.raises(DataError, match=r"is empty \(0 bytes\)"):
        read_cells(tmp_path / "cells.h5ad", **NAMES)


def test_text_is_not_hdf5(tmp_path):
    (tmp_path / "cells.h5ad").write_text("cell,gene\n" * 1000)

    with pytest.raises(DataError, match=r"is not an HDF5 file"):
        read_cells(tmp_path / "cells.h5ad", **NAMES)


def test_hdf5_without_obs_and_var_is_not_an_h5ad(tmp_path):
    with h5py.File(tmp_path / "tenx.h5", "w") as file:
        file["matrix/data"] = [1, 2]

    with pytest.raises(DataError, match=r"it has 'matrix' and no 'obs', 'var'.*read_10x_h5"):
        read_cells(tmp_path / "tenx.h5", **NAMES)


@pytest.mark.parametrize("share", [0.01, 0.3, 0.7, 0.999])
def test_a_truncated_file_is_said_to_be_truncated(path, share):
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])

    with pytest.raises(DataError, match=r"is truncated \(.*Copy or download the file again"):
        read_cells(path, **NAMES)


def test_a_damaged_compressed_block_is_an_error_not_a_wrong_number(tmp_path):
    path = written(tmp_path / "cells.h5ad", sparse.csr_matrix(COUNTS))
    with h5py.File(path, "r+") as file:
        data = file["X/data"][()]
        del file["X/data"]
        stored = file["X"].create_dataset("data", data=data, compression="gzip", chunks=True)
        block = stored.id.get_chunk_info(0)
    whole = bytearray(path.read_bytes())
    whole[block.byte_offset + block.size // 2] ^= 0xFF
    path.write_bytes(bytes(whole))

    with pytest.raises(DataError, match=r"truncated or damaged"):
        read_cells(path, **NAMES)


def test_a_file_without_permission_is_a_storage_error(path, monkeypatch):
    def refuse(self, *args, **options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)

    with pytest.raises(StorageError, match=r"may not be read by this user"):
        read_cells(path, **NAMES)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError(13, "Permission denied"), r"may not be read by this user"),
        (BlockingIOError(11, "unable to lock file"), r"is locked: another program has it open"),
    ],
)
def test_a_file_that_hdf5_may_not_open_is_a_storage_error(path, monkeypatch, error, message):
    def refuse(*args, **options):
        raise error

    monkeypatch.setattr(h5py, "File", refuse)

    with pytest.raises(StorageError, match=message):
        read_cells(path, **NAMES)


def test_an_external_link_is_refused_wherever_it_stands(path, tmp_path):
    secret = written(tmp_path / "secret.h5ad")
    with h5py.File(path, "r+") as file:
        file["uns/deep/other"] = h5py.ExternalLink(str(secret), "/X")

    with pytest.raises(DataError, match=r"'uns/deep/other' is an external link to '.*secret"):
        read_cells(path, **NAMES)


def test_a_soft_link_to_nowhere_is_refused_and_one_inside_is_followed(path):
    with h5py.File(path, "r+") as file:
        file.move("X", "matrix")
        file["X"] = h5py.SoftLink("/matrix")
    assert read_cells(path, **NAMES).expression.nnz == 7

    with h5py.File(path, "r+") as file:
        del file["matrix"]
    with pytest.raises(DataError, match=r"'X' is a soft link to '/matrix', which is not"):
        read_cells(path, **NAMES)


def test_a_virtual_dataset_is_refused(path, tmp_path):
    with h5py.File(tmp_path / "elsewhere.h5", "w") as file:
        file["values"] = COUNTS
    layout = h5py.VirtualLayout(shape=COUNTS.shape, dtype=COUNTS.dtype)
    layout[:] = h5py.VirtualSource(tmp_path / "elsewhere.h5", "values", shape=COUNTS.shape)
    with h5py.File(path, "r+") as file:
        del file["X"]
        file.create_virtual_dataset("X", layout)

    with pytest.raises(DataError, match=r"'X' lie in other files"):
        read_cells(path, **NAMES)


def test_external_storage_is_refused(path, tmp_path):
    (tmp_path / "raw.bin").write_bytes(COUNTS.tobytes())
    with h5py.File(path, "r+") as file:
        del file["X"]
        where = [(str(tmp_path / "raw.bin"), 0, COUNTS.nbytes)]
        file.create_dataset("X", COUNTS.shape, COUNTS.dtype, external=where)

    with pytest.raises(DataError, match=r"'X' lie in other files"):
        read_cells(path, **NAMES)


def run_reader(path: Path, *, memory: int | None = None) -> subprocess.CompletedProcess[str]:
    """Reads in a process of its own, where a crash shows as a negative return code."""
    program = (
        "import sys; from sedd.data.cells import read_cells; from sedd.errors import SeddError\n"
        f"try: read_cells(sys.argv[1], **{NAMES})\n"
        "except SeddError as error: print(error); sys.exit(error.exit_code)"
    )

    def limit() -> None:
        if memory is not None:
            resource.setrlimit(resource.RLIMIT_AS, (memory, memory))

    return subprocess.run(
        [sys.executable, "-c", program, str(path)],
        capture_output=True, text=True, cwd=ROOT, preexec_fn=limit, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip


def test_a_small_file_that_declares_terabytes_is_refused_before_allocation(path):
    with h5py.File(path, "r+") as file:
        del file["X"]
        file.create_dataset("X", (4, 10**11), np.float32, chunks=(1, 10**6))

    done = run_reader(path, memory=2 << 30)

    assert done.returncode == 65
    assert "'X' declares 1.6 TB (shape (4, 100000000000), float32)" in done.stdout
    assert "damaged or made to exhaust memory" in done.stdout


def test_more_than_the_memory_of_the_machine_is_refused(path, monkeypatch):
    monkeypatch.setattr("os.sysconf", lambda name: 8)

    with pytest.raises(DataError, match=r"X needs 76 bytes of memory and this machine has 64"):
        read_cells(path, **NAMES)


def test_an_unknown_compression_is_named(path):
    with h5py.File(path, "r+") as file:
        del file["X"]
        properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        properties.set_chunk(COUNTS.shape)
        properties.set_filter(32015, h5py.h5z.FLAG_OPTIONAL, (3,))
        space = h5py.h5s.create_simple(COUNTS.shape)
        h5py.h5d.create(file.id, b"X", h5py.h5t.NATIVE_FLOAT, space, properties)

    with pytest.raises(DataError, match=r"HDF5 filter 32015\), which h5py cannot read here"):
        read_cells(path, **NAMES)


# Columns and labels: I6, I7, I8, I13.


def test_a_wrong_perturbation_column_lists_the_columns_and_the_flag(path):
    message = r"no column 'perturbaton'\. Did you mean 'perturbation'\? Columns: .*with --gene\."
    with pytest.raises(DataError, match=message):
        read_cells(path, **{**NAMES, "perturbation_col": "perturbaton"})


def test_a_wrong_cell_type_column_lists_the_columns_and_the_flag(path):
    with pytest.raises(DataError, match=r"no column 'CellType'.*'cell_type'.*--cell_type_col"):
        read_cells(path, **{**NAMES, "cell_type_col": "CellType"})


def test_one_column_cannot_be_perturbation_and_cell_type(path):
    with pytest.raises(DataError, match=r"both as perturbation \(--gene\) and"):
        read_cells(path, **{**NAMES, "perturbation_col": "cell_type"})


@pytest.mark.parametrize(
    "labels",
    [
        pd.Categorical(["control", None, "control", None]),
        ["control", "", "control", "  "],
        ["control", "nan", "control", "<NA>"],
        [0.0, np.nan, 1.0, np.inf],
        pd.array(["control", None, "control", None], dtype="string"),
        pd.array([1, None, 2, None], dtype="Int64"),
    ],
    ids=["missing category", "blank", "nan as text", "nan", "nullable text", "nullable integer"],
)
def test_missing_labels_are_counted_and_the_first_rows_named(tmp_path, labels):
    with anndata.settings.override(allow_write_nullable_strings=True):
        path = written(tmp_path / "cells.h5ad", obs={**OBS, "perturbation": labels})

    message = (
        r"2 of 4 cells have no label in obs\['perturbation'\].*rows \[1, 3\] \('cell1', 'cell3'"
    )
    with pytest.raises(DataError, match=message):
        read_cells(path, **NAMES)


def test_a_missing_batch_names_the_column_and_the_flag(tmp_path):
    obs = {**OBS, "donor": ["1", None, "2", None]}

    with pytest.raises(
        DataError, match=r"2 of 4 cells have no label in obs\['donor'\].*\[1, 3\].*--batch_col"
    ):
        read_cells(written(tmp_path / "cells.h5ad", obs=obs), **NAMES, batch_col="donor")


def test_a_wrong_batch_column_lists_the_columns_and_the_flag(path):
    with pytest.raises(DataError, match=r"no column 'donor'.*'cell_type'.*--batch_col"):
        read_cells(path, **NAMES, batch_col="donor")


@pytest.mark.parametrize("name", ["perturbation", "cell_type"])
def test_a_batch_cannot_be_another_label_too(path, name):
    with pytest.raises(DataError, match=rf"'{name}' is named both as .* as batch \(--batch_col\)"):
        read_cells(path, **NAMES, batch_col=name)


def test_a_column_of_something_else_than_labels_is_refused(path):
    replace_dataset(path, "obs/cell_type/codes", np.zeros((4, 2), dtype=np.int8))

    with pytest.raises(DataError, match=r"obs\['cell_type'\] cannot be used: .*shape \(4, 2\)"):
        read_cells(path, **NAMES)


def test_text_that_is_not_utf8_is_refused(path):
    with h5py.File(path, "r+") as file:
        del file["obs/cell_type"]
        file["obs/cell_type"] = np.array([b"B", b"\xff", b"T", b"T"])

    with pytest.raises(DataError, match=r"obs\['cell_type'\] holds text that is not UTF-8"):
        read_cells(path, **NAMES)


@pytest.mark.parametrize("code", [2, -2])
def test_a_code_outside_the_categories_is_refused(path, code):
    replace_dataset(path, "obs/cell_type/codes", np.array([0, 0, 1, code], dtype=np.int8))

    with pytest.raises(DataError, match=rf"2 categories, but row 3 points at category {code} "):
        read_cells(path, **NAMES)


def test_a_column_of_another_length_is_refused(path):
    replace_dataset(path, "obs/cell_type/codes", np.array([0, 0, 1], dtype=np.int8))

    with pytest.raises(DataError, match=r"obs\['cell_type'\] has 3 rows and obs has 4"):
        read_cells(path, **NAMES)


def test_a_misspelt_control_label_names_the_near_ones_and_the_flag(path):
    message = r"labelled 'Contrl'.*mean 'control'\? Labels: 'IFNb', 'control'\..*--control_name"
    with pytest.raises(DataError, match=message):
        read_cells(path, **{**NAMES, "control_name": "Contrl"})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0, np.nan, 0.0, 3.0], r"2 of 4 cells have no positive number .*rows \[1, 2\]"),
        (["a", "b", "c", "d"], r"holds text, but data.depth_col needs numbers"),
        ([True, True, True, True], r"holds booleans, but data.depth_col needs numbers"),
    ],
    ids=["gaps", "text", "booleans"],
)
def test_a_depth_column_must_be_positive_numbers(tmp_path, values, message):
    path = written(tmp_path / "cells.h5ad", obs={**OBS, "total": values})

    with pytest.raises(DataError, match=message):
        read_cells(path, **NAMES, depth_col="total")


def test_a_depth_column_must_exist(path):
    with pytest.raises(DataError, match=r"no column 'total'.*data.depth_col, or leave it out"):
        read_cells(path, **NAMES, depth_col="total")


# Shapes and names: I11, I20, I26.


@pytest.mark.parametrize(
    "shape", [(0, 3), (1, 3), (4, 0)], ids=["no cells", "one cell", "no genes"]
)
def test_too_few_cells_or_genes_are_refused(tmp_path, shape):
    obs = {name: values[: shape[0]] for name, values in OBS.items()}
    path = written(tmp_path / "cells.h5ad", np.ones(shape), obs, GENES[: shape[1]])

    with pytest.raises(DataError, match=rf"has {shape[0]} cells and {shape[1]} genes"):
        read_cells(path, **NAMES)


@pytest.mark.filterwarnings("ignore:Variable names are not unique")
def test_repeated_gene_names_are_refused(tmp_path):
    path = written(tmp_path / "cells.h5ad", genes=["CD3E", "ISG15", "CD3E"])

    with pytest.raises(DataError, match=r"1 gene names occur more than once: 'CD3E'.*make_unique"):
        read_cells(path, **NAMES)


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_repeated_cell_names_are_allowed(path):
    replace_dataset(path, "obs/_index", ["same"] * 4)

    assert read_cells(path, **NAMES).names.tolist() == ["same"] * 4


def test_cells_without_counts_are_counted_and_named(tmp_path):
    path = written(tmp_path / "cells.h5ad", COUNTS * [[1], [0], [1], [0]])

    with pytest.raises(DataError, match=r"2 of 4 cells have no counts.*rows \[1, 3\] \('cell1'"):
        read_cells(path, **NAMES)


def test_a_matrix_of_another_shape_than_its_tables_is_refused(path):
    with h5py.File(path, "r+") as file:
        file["X"].attrs["shape"] = [4, 30]
    with pytest.raises(DataError, match=r"X has shape \(4, 30\), but obs has 4 cells and var 3"):
        read_cells(path, **NAMES)

    with h5py.File(path, "r+") as file:
        del file["X"]
        file["X"] = COUNTS[:, :2]
    with pytest.raises(DataError, match=r"X has shape \(4, 2\), but obs has 4 cells and var 3"):
        read_cells(path, **NAMES)


# Values: I14, I15, I16, I19.


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize(
    "storage", [np.asarray, sparse.csr_matrix, sparse.csc_matrix], ids=["dense", "csr", "csc"]
)
def test_a_value_that_is_no_number_is_located(tmp_path, value, storage):
    matrix = COUNTS.copy()
    matrix[2, 1] = value

    path = written(tmp_path / "cells.h5ad", storage(matrix))

    with pytest.raises(
        DataError, match=r"1 values that are NaN or infinite, .*row 2, gene 'ISG15'"
    ):
        read_cells(path, **NAMES)


@pytest.mark.parametrize("dtype", [np.float32, np.int8])
def test_scaled_values_are_recognised_by_their_sign(tmp_path, dtype):
    matrix = COUNTS.astype(dtype)
    matrix[3, 0] = -2
    layers = {"raw_counts": COUNTS}

    path = written(tmp_path / "cells.h5ad", sparse.csr_matrix(matrix), layers=layers)

    message = r"1 negative values, first in row 3, gene 'CD3E' \(-2.*data.layer=raw_counts"
    with pytest.raises(DataError, match=message):
        read_cells(path, **NAMES)


LOG1P = np.log1p(COUNTS / COUNTS.sum(axis=1, keepdims=True) * 1e4)


def test_log_values_declared_as_counts_are_told_apart(tmp_path):
    path = written(tmp_path / "cells.h5ad", LOG1P, layers={"counts": COUNTS})

    message = (
        r"X looks like log1p values \(max 9\.21044, 0 % of the nonzero values are integers, row "
        r"sums 9\.21044 to 24\.3\d+\), but data.input_kind=counts was expected\. Set "
        r"data.input_kind to log1p, or use another matrix.*data.layer=counts"
    )
    with pytest.raises(DataError, match=message):
        read_cells(path, **NAMES, kind="counts")


def test_counts_declared_as_log_values_are_told_apart(path):
    with pytest.raises(
        DataError, match=r"looks like raw counts .*=log1p was expected\. Set .* to co"
    ):
        read_cells(path, **NAMES, kind="log1p")


@pytest.mark.parametrize("total", [1e6, 1.0], ids=["counts per million", "fractions"])
def test_normalised_values_without_logarithm_are_neither(tmp_path, total):
    path = written(
        tmp_path / "cells.h5ad", COUNTS / COUNTS.sum(axis=1, keepdims=True) * total / 1.7
    )

    with pytest.raises(DataError, match=r"looks like normalised, not logged .*sc.pp.log1p"):
        read_cells(path, **NAMES)


def test_one_fraction_among_counts_is_enough_to_doubt_them(tmp_path):
    matrix = COUNTS * 10
    matrix[0, 1] = 30.5

    with pytest.raises(DataError, match=r"max 70, 85\.7 % of the nonzero values are integers"):
        read_cells(written(tmp_path / "cells.h5ad", matrix), **NAMES)


@pytest.mark.parametrize("dtype", [np.float64, np.uint64, np.int32])
def test_counts_beyond_float32_are_refused(tmp_path, dtype):
    matrix = COUNTS.astype(dtype)
    matrix[1, 0] = 2**24
    assert read_cells(written(tmp_path / "most.h5ad", matrix), **NAMES).depth[1] == 2**24
    matrix[1, 0] += 1

    path = written(tmp_path / "more.h5ad", matrix)

    with pytest.raises(DataError, match=r"a count of 16777217 in row 1, gene 'CD3E'.*2\^24"):
        read_cells(path, **NAMES)


def test_text_in_place_of_numbers_is_refused(path):
    with h5py.File(path, "r+") as file:
        file["X/data_"] = np.array([b"3"] * 7)
        del file["X/data"]
        file.move("X/data_", "X/data")

    with pytest.raises(DataError, match=r"X holds \|S1, not numbers"):
        read_cells(path, **NAMES)


@pytest.mark.parametrize(
    ("layer", "message"),
    [("count", r"no layer 'count'\. Did you mean 'counts'\?"), ("empty", r"no values in empty")],
)
def test_a_layer_that_cannot_be_read_lists_those_that_can(tmp_path, layer, message):
    path = written(tmp_path / "cells.h5ad", layers={"counts": COUNTS})
    with h5py.File(path, "r+") as file:
        file["layers/empty"] = h5py.Empty("f")
        file["layers/empty"].attrs["encoding-type"] = "null"

    with pytest.raises(DataError, match=message):
        read_cells(path, **NAMES, layer=layer)


# Malformed sparse matrices, I18: compiled code would read or write beyond its arrays.


@pytest.mark.parametrize(
    ("array", "values", "message"),
    [
        ("indices", [1, 2, 0, 2, 0, 1, 3_000_000], r"runs from 0 to 3000000, not within 0\.\.2"),
        ("indices", [1, 2, -9, 2, 0, 1, 2], r"runs from -9 to 2"),
        ("indices", [1, 2, 0, 2], r"'indices' has 4 entries of int64, not 7 integers"),
        ("indices", [1.0, 2, 0, 2, 0, 1, 2], r"7 entries of float64, not 7 integers"),
        ("indices", np.array([1, 2, 0, 2, 0, 1, 2**63 + 1], np.uint64), r"9223372036854775809"),
        ("indptr", [0, 2, 3, 4, 7_000_000], r"does not rise from 0 to the 7 stored"),
        ("indptr", [0, 5, 3, 4, 7], r"does not rise"),
        ("indptr", [-4, 2, 3, 4, 7], r"does not rise"),
        ("indptr", [0, 2, 3, 7], r"'indptr' has 4 entries of int64, not 5 integers"),
        ("data", [[1, 2, 3, 4, 5, 6, 7]], r"no one-dimensional 'data'"),
    ],
)
@pytest.mark.parametrize("layout", ["csr", "csc"])
def test_a_malformed_sparse_matrix_is_refused(tmp_path, layout, array, values, message):
    # CSC of the transpose has the same arrays as CSR, and so the same faults.
    path = tmp_path / "cells.h5ad"
    if layout == "csr":
        written(path, sparse.csr_matrix(COUNTS))
    else:
        obs = {name: labels[:3] for name, labels in OBS.items()}
        written(path, sparse.csc_matrix(COUNTS.T), obs, [*GENES, "LYZ"])
    replace_dataset(path, f"X/{array}", values)

    with pytest.raises(DataError, match=message):
        read_cells(path, **NAMES)


@pytest.mark.parametrize(
    ("array", "values"),
    [
        ("indices", [1, 2, 0, 2, 0, 1, 2_000_000_000]),
        ("indptr", [0, 2, 3, 4, 2_000_000_000]),
        ("indptr", [0, -2_000_000_000, 3, 4, 7]),
    ],
)
def test_a_matrix_that_crashes_compiled_code_ends_with_a_message(path, array, values):
    replace_dataset(path, f"X/{array}", np.array(values, dtype=np.int32))

    done = run_reader(path)

    assert done.returncode == 65, done.stderr
    assert "is not a well-formed sparse matrix" in done.stdout


def test_an_unknown_sparse_encoding_is_named(path):
    with h5py.File(path, "r+") as file:
        file["X"].attrs["encoding-type"] = "coo_matrix"

    with pytest.raises(DataError, match=r"its encoding is 'coo_matrix', not csr_matrix or csc"):
        read_cells(path, **NAMES)


def test_a_name_that_is_not_utf8_is_refused(path):
    whole = path.read_bytes()
    assert b"cell_type" in whole
    path.write_bytes(whole.replace(b"cell_type", b"cell\xfftype"))

    with pytest.raises(DataError, match=r"b'cell\\xfftype' in '/obs' is not a UTF-8 name"):
        read_cells(path, **NAMES)


def test_an_error_of_ours_while_a_file_is_open_is_not_blamed_on_the_file(path, monkeypatch):
    def fail(*args, **options):
        raise ZeroDivisionError

    monkeypatch.setattr("sedd.data.cells.find_matrix", fail)

    with pytest.raises(ZeroDivisionError):
        read_cells(path, **NAMES)
