"""The demo replaces what a demo wrote, and nothing else."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.demo import BUILT_IN_HOLD_OUT, _free_folder, fetch, with_hold_out
from sedd.config import Config, resolve
from sedd.errors import OutputExistsError, UsageError


def on_a_file() -> Config:
    return resolve(flags={"train_data_path": "cells.h5ad"})


def test_a_folder_that_no_demo_wrote_is_refused_twice_and_keeps_everything(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("mine")

    for _ in range(2):
        with pytest.raises(OutputExistsError, match="EXPERIMENT_DIR"):
            _free_folder(tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.yaml"]


def test_an_earlier_demo_goes_but_files_beside_it_stay(tmp_path: Path) -> None:
    _free_folder(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.yaml").write_text("old")
    (tmp_path / "cells.h5ad").write_text("input")

    _free_folder(tmp_path)

    assert not (tmp_path / "checkpoints").exists()
    assert not (tmp_path / "config.yaml").exists()
    assert (tmp_path / "cells.h5ad").read_text() == "input"


def test_built_in_cells_have_a_type_to_hold_out_and_a_file_needs_one() -> None:
    assert with_hold_out(resolve(), None).split.cell_types == (BUILT_IN_HOLD_OUT,)
    assert with_hold_out(on_a_file(), "NK cells").split.cell_types == ("NK cells",)
    with pytest.raises(UsageError, match="--hold_out"):
        with_hold_out(on_a_file(), None)


def test_another_kind_of_split_needs_no_type_to_hold_out() -> None:
    config = on_a_file()
    random = replace(config, split=replace(config.split, kind="random_cells"))

    assert with_hold_out(random, None) == random


def test_an_unknown_data_set_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="simulated or kang_2018"):
        fetch("pbmc", tmp_path)
