"""What `generate` finds again, what it draws anew, and what it refuses before it draws."""

from dataclasses import fields, replace
from pathlib import Path

import anndata
import pytest

from pipelines import command_line, generate
from pipelines.fanout import Source
from sedd.config import Config
from sedd.data.splits import SplitConfig
from sedd.errors import DataError, OutputExistsError
from sedd.flags import FLAGS
from sedd.generation import Unit
from sedd.inference import InferenceConfig
from tests.tiny_experiment import tiny_config, tiny_experiment
from tests.worlds import a_cell_type_without_controls, tiny_cells

pytestmark = pytest.mark.usefixtures("without_ray")

ASKED = InferenceConfig(mode="population")
OTHER = {
    "cell_type": "T cell",
    "cell_types": ("T cell",),
    "perturbations": ("lower",),
    "num_samples_per_condition": 7,
    "num_steps": 64,
    "block_schedule": "measured",
    "temperature": 0.5,
    "sampler": "euler",
    "mode": "counterfactual",
    "shrink_effects": False,
    "guidance": 1.5,
    "effect_anchor": 0.25,
    "shard_size": 7,
    "seed": 1,
}
"""Another value of every setting of the section `inference`."""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("generate")
    return tiny_experiment(folder, tiny_cells(), tiny_config(folder, num_steps=2))


def b_cells(config: Config, folder: Path, **inference: object) -> anndata.AnnData:
    asked = replace(config.inference, cell_types=("B cell",), **inference)
    (path,) = generate.run(replace(config, inference=asked), generate.Output(folder=folder))
    return anndata.read_h5ad(path)


# Cells that are there already.


@pytest.mark.parametrize("name", [field.name for field in fields(InferenceConfig)])
def test_the_record_changes_with_exactly_the_settings_that_change_a_unit_s_key(name, tmp_path):
    unit = Unit("B cell", "raise", 0, 20)
    source = Source(checkpoint=tmp_path / "best", model=Config().model, digest="digest")
    settings = (ASKED, replace(ASKED, **{name: OTHER[name]}))

    keys = {unit.key("digest", inference) for inference in settings}
    records = [
        generate._record(
            Config(inference=inference), source, [unit], generate.Output(folder=tmp_path)
        )
        for inference in settings
    ]

    assert (records[0] != records[1]) == (len(keys) == 2)


def test_equal_settings_find_the_cells_again_and_others_are_refused(trained, tmp_path):
    first = b_cells(trained, tmp_path)

    again = b_cells(trained, tmp_path)

    assert (first.X != again.X).nnz == 0
    assert (first.uns["sedd"]["guidance"], first.uns["sedd"]["effect_anchor"]) == (1.0, 0.5)
    for setting in ({"guidance": 1.5}, {"effect_anchor": 0.0}):
        with pytest.raises(OutputExistsError, match="another model or other settings"):
            b_cells(trained, tmp_path, **setting)


# Cell types without controls.


def test_a_type_without_controls_is_named_before_a_cell_is_drawn_or_a_folder_made(tmp_path):
    config = tiny_config(tmp_path, SplitConfig(), num_steps=2, num_genes="all")
    config = tiny_experiment(tmp_path, a_cell_type_without_controls(), config)
    folder = tmp_path / "cells"

    with pytest.raises(
        DataError,
        match=r"no 'control' cell of 'B cell'.*--cell_types 'T cell'.* or add 'control' cells of",
    ):
        generate.run(config, generate.Output(folder=folder))

    assert not folder.exists()
    asked = replace(config, inference=replace(config.inference, cell_types=("T cell",)))
    (path,) = generate.run(asked, generate.Output(folder=folder))
    assert set(anndata.read_h5ad(path).obs["cell_type"]) == {"T cell"}


# What the environment says to training alone.


def test_vectors_that_the_environment_names_for_training_are_nothing_to_generation(
    trained, monkeypatch
):
    parser = command_line.verb_parser("generate", "")
    command_line.add_config_flags(parser, FLAGS)
    monkeypatch.setenv("CELLTYPE_LABELS_PT_PATH", "types.pt")
    monkeypatch.setenv("COND_LABELS_PT_PATH", "perturbations.pt")

    _, config = generate.read_arguments(parser, ["--experiment_dir", trained.experiment_dir])

    assert config.data == trained.data
