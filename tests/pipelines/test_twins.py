"""Generated cells know the real control cell they are the twin of, and nothing of the truth."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import anndata
import numpy as np
import pandas as pd
import pytest

from pipelines import command_line, evaluate, generate
from pipelines.experiment import load_cells
from sedd.config import Config
from sedd.data.choices import GENERATED_COLUMNS
from sedd.errors import DataError, UsageError
from sedd.flags import FLAGS
from sedd.storage import write_text
from tests.tiny_experiment import NUM_CELLS, tiny_config, tiny_experiment
from tests.worlds import tiny_cells, two_donors

pytestmark = pytest.mark.usefixtures("without_ray")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("twins")
    return tiny_experiment(folder, tiny_cells(), tiny_config(folder, num_genes="all"))


def cells_from(
    config: Config, folder: Path, *, include_controls: bool = False, **inference: object
) -> anndata.AnnData:
    """Generated B cells."""
    asked = replace(config.inference, cell_types=("B cell",), **inference)
    output = generate.Output(folder=folder, include_controls=include_controls)
    (path,) = generate.run(replace(config, inference=asked), output)
    return anndata.read_h5ad(path)


def test_each_counterfactual_cell_names_its_control_cell_and_says_how_far_it_moved(
    trained, tmp_path
):
    real = load_cells(trained)

    found = cells_from(trained, tmp_path)

    names = found.obs["control_cell"].astype(str).to_numpy()
    rows = pd.Index(real.names).get_indexer(names)
    np.testing.assert_array_equal(rows, found.obs["control_row"])
    assert set(real.perturbation[rows]) == {"control"}
    assert set(real.cell_type[rows]) == {"B cell"}
    np.testing.assert_array_equal(found.obs["depth"], real.depth[rows])
    controls = real.select(rows, list(found.var_names)).log1p_cp10k()
    moved = np.log1p(found.X.toarray() / found.obs["depth"].to_numpy()[:, None] * 1e4) - controls
    np.testing.assert_allclose(found.obs["effect_size"], np.linalg.norm(moved, axis=1), atol=1e-5)
    # Ten of the genes go from 1 to 6 or back; one log1p step at these depths is about 3.
    assert found.obs["effect_size"].mean() > 3


def test_an_identity_returns_the_named_cells_with_no_effect(trained, tmp_path):
    real = load_cells(trained)

    found = cells_from(trained, tmp_path, perturbations=("control",))

    named = anndata.AnnData(real.expression, var=pd.DataFrame(index=list(real.genes)))
    named.obs_names = real.names
    expected = named[found.obs["control_cell"].astype(str), found.var_names]
    assert (found.X != expected.X).nnz == 0
    assert (found.obs["effect_size"] == 0).all()
    assert len(found) == NUM_CELLS


def test_included_controls_are_their_own_twins_and_population_cells_are_nobody_s(trained, tmp_path):
    real = load_cells(trained)

    twins = cells_from(trained, tmp_path / "c", include_controls=True)
    drawn = cells_from(trained, tmp_path / "p", include_controls=True, mode="population")

    included = twins[~twins.obs["generated"]]
    rows = included.obs["control_row"].to_numpy()
    np.testing.assert_array_equal(included.obs["control_cell"].astype(str), real.names[rows])
    assert (included.obs["effect_size"] == 0).all()
    assert not {"control_cell", "effect_size"} & set(drawn.obs.columns)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """Trained with the donors as batches."""
    folder = tmp_path_factory.mktemp("donors")
    return tiny_experiment(folder, two_donors(), tiny_config(folder, batch_col="batch"))


@pytest.mark.parametrize("mode", ["counterfactual", "population"])
def test_each_cell_is_in_the_batch_of_its_control_cell(told, tmp_path, mode):
    real = load_cells(told)

    found = cells_from(told, tmp_path, include_controls=True, mode=mode)

    rows = found.obs["control_row"].to_numpy()
    np.testing.assert_array_equal(found.obs["batch"].astype(str), real.batch[rows])
    assert set(real.perturbation[rows]) == {"control"}
    assert set(found.obs["batch"][found.obs["generated"]]) == {"donor 1", "donor 2"}
    assert found.uns["sedd"]["batch_col"] == "batch"


def test_without_a_batch_column_nothing_is_said_of_batches(trained, tmp_path):
    found = cells_from(trained, tmp_path)

    assert "batch" not in found.obs
    assert "batch_col" not in found.uns["sedd"]
    (record,) = tmp_path.rglob(generate.RECORD)
    assert "batch" not in record.read_text()


def test_generated_cells_have_no_other_columns_than_those_a_batch_may_not_be(trained, tmp_path):
    found = cells_from(trained, tmp_path, include_controls=True)

    assert set(found.obs.columns) == set(GENERATED_COLUMNS)


@pytest.mark.parametrize("name", ["batch_col=", "num_genes=11"])
def test_generation_refuses_to_change_what_was_trained(told, name):
    parser = command_line.verb_parser("generate", "")
    command_line.add_config_flags(parser, FLAGS)
    argv = ["--experiment_dir", told.experiment_dir, "--set", f"data.{name}"]

    with pytest.raises(UsageError, match="The model cannot be changed after training"):
        generate.read_arguments(parser, argv)


@pytest.mark.parametrize("mode", ["counterfactual", "population"])
def test_cells_are_the_same_where_the_training_file_is_gone_or_nonsense(trained, tmp_path, mode):
    path = Path(str(trained.data.train_data_path))
    before = cells_from(trained, tmp_path / "there", mode=mode)
    kept = path.rename(path.with_suffix(".kept"))
    try:
        gone = cells_from(trained, tmp_path / "gone", mode=mode)
        path.write_bytes(b"this is no h5ad")
        nonsense = cells_from(trained, tmp_path / "nonsense", mode=mode)
    finally:
        kept.rename(path)

    for other in (gone, nonsense):
        assert (before.X != other.X).nnz == 0
        pd.testing.assert_frame_equal(before.obs, other.obs)


# What `evaluate` makes of them, and what it refuses.


@pytest.mark.parametrize(
    ("words", "sweep", "judges"),
    [
        ([], False, ()),
        (["--judges", "", "--sampler_sweep", ""], False, ()),
        (["--judges", "['b', a]", "--sampler_sweep", "true"], True, ("b", "a")),
        (["--judges", "b", "a", "b", "--sampler_sweep"], True, ("b", "a")),
    ],
)
def test_evaluate_takes_judges_and_sweep_as_mlflow_run_and_as_a_shell_give_them(
    trained, monkeypatch, words, sweep, judges
):
    asked = {}
    monkeypatch.setattr(evaluate, "run", lambda config, folder, **given: asked.update(given) or "")

    assert evaluate.main(["--experiment_dir", trained.experiment_dir, *words]) == 0

    assert asked == {"sampler_sweep": sweep, "judges": judges}


@pytest.fixture
def generated(trained: Config, tmp_path: Path) -> Path:
    cells_from(trained, tmp_path / "generated")
    return tmp_path / "generated"


@pytest.mark.parametrize("mode", ["counterfactual", "population"])
def test_evaluate_writes_a_line_for_each_twin_in_either_mode(trained, tmp_path, tracking_uri, mode):
    cells_from(trained, tmp_path / mode, mode=mode)
    real = load_cells(trained)

    evaluate.run(trained, tmp_path / mode, tracking_uri=tracking_uri)

    folder = Path(trained.experiment_dir) / "evaluation"
    table = pd.read_csv(folder / "response.csv")
    assert table.groupby("perturbation").size().to_dict() == {
        "lower": NUM_CELLS, "raise": NUM_CELLS
    }  # fmt: skip
    rows = pd.Index(real.names).get_indexer(table["control_cell"])
    assert set(real.perturbation[rows]) == {"control"}
    assert set(real.cell_type[rows]) == {"B cell"}
    assert (table["projection"] <= table["effect_size"] * (1 + 1e-6)).all()
    assert "B cell × raise: which cells respond" in (folder / "report.html").read_text()
    if mode == "counterfactual":
        found = anndata.read_h5ad(tmp_path / mode / "celltype_B_cell" / "generated_cells.h5ad")
        raised = found.obs[found.obs["perturbation"] == "raise"]
        mine = table[table["perturbation"] == "raise"]
        assert mine["control_cell"].tolist() == raised["control_cell"].astype(str).tolist()
        np.testing.assert_allclose(mine["effect_size"], raised["effect_size"], rtol=1e-6)


def test_a_split_that_was_tampered_with_is_refused(trained, generated, tracking_uri):
    path = Path(trained.experiment_dir) / "split.json"
    before = path.read_text(encoding="utf-8")
    content = json.loads(before)
    content["train"].append(content["test"].pop())
    write_text(path, json.dumps(content))

    try:
        with pytest.raises(DataError, match="was changed after it was written; its hash does not"):
            evaluate.run(trained, generated, tracking_uri=tracking_uri)
    finally:
        write_text(path, before)


def test_other_data_than_those_of_the_split_are_refused(trained, generated, tmp_path, tracking_uri):
    adata = anndata.read_h5ad(str(trained.data.train_data_path))
    adata.X[0, 0] += 1
    adata.write_h5ad(tmp_path / "other.h5ad")
    data = replace(trained.data, train_data_path=str(tmp_path / "other.h5ad"))

    with pytest.raises(
        DataError, match=r"was made for other data .* the experiment was trained on"
    ):
        evaluate.run(replace(trained, data=data), generated, tracking_uri=tracking_uri)


def without_a_gene(adata: anndata.AnnData) -> anndata.AnnData:
    return adata[:, 1:].copy()


def with_another_gene(adata: anndata.AnnData) -> anndata.AnnData:
    adata.var_names = ["OTHER", *adata.var_names[1:]]
    return adata


def with_another_label(adata: anndata.AnnData) -> anndata.AnnData:
    adata.obs["perturbation"] = adata.obs["perturbation"].astype(str).replace("raise", "rise")
    return adata


def with_another_type(adata: anndata.AnnData) -> anndata.AnnData:
    adata.obs["cell_type"] = "B"
    return adata


def without_rows(adata: anndata.AnnData) -> anndata.AnnData:
    del adata.obs["control_row"]
    return adata


def with_rows_of_other_cells(adata: anndata.AnnData) -> anndata.AnnData:
    adata.obs["control_row"] = 10**6
    return adata


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_a_gene, r"other genes than the model: 1 are missing \('GENE\d+'\), 0 are unknown"),
        (with_another_gene, r"1 are missing \('GENE\d+'\), 1 are unknown \('OTHER'\)"),
        (with_another_label, r"no cell of B cell × raise.* holds .*'B cell × rise'.* --overwrite"),
        (with_another_type, r"no cell of B cell × lower.* holds 'B × lower', 'B × raise'"),
        (without_rows, r"no column 'control_row'.*Generate again"),
        (with_rows_of_other_cells, r"no control cell of that type\. Generate them again"),
    ],
)
def test_predictions_with_other_genes_labels_or_controls_are_refused(
    trained, generated, tracking_uri, change: Callable, message: str
):
    path = generated / "celltype_B_cell" / "generated_cells.h5ad"
    change(anndata.read_h5ad(path)).write_h5ad(path)

    with pytest.raises(DataError, match=message):
        evaluate.run(trained, generated, tracking_uri=tracking_uri)


def test_a_held_out_condition_that_was_not_generated_is_asked_for(trained, tmp_path, tracking_uri):
    with pytest.raises(UsageError, match=r"is not there\. Generate it first: .*'B cell'"):
        evaluate.run(trained, tmp_path, tracking_uri=tracking_uri)
