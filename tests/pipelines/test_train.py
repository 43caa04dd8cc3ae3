"""What `train` says before it trains."""

import pytest

from pipelines import train
from sedd.data.cells import write_h5ad
from sedd.data.splits import SplitConfig
from sedd.errors import Preempted
from tests.tiny_experiment import tiny_config
from tests.worlds import a_cell_type_without_controls, one_strong_perturbation


@pytest.fixture
def said_before_training(tmp_path, tracking_uri, monkeypatch, capsys):
    """A function that trains on cells up to the first step and returns what stands on stderr."""

    def workers(*_: object) -> bool:
        raise Preempted("the workers start")

    def said(cells) -> str:
        monkeypatch.setattr(train, "_fit", workers)
        write_h5ad(cells, tmp_path / "cells.h5ad")
        with pytest.raises(Preempted, match="the workers start"):
            train.run(
                tiny_config(tmp_path, SplitConfig(), num_genes="all"), tracking_uri=tracking_uri
            )
        return capsys.readouterr().err

    return said


def test_cell_types_that_can_train_but_not_be_generated_are_named(said_before_training):
    assert said_before_training(a_cell_type_without_controls()) == (
        "warning: 1 of 2 cell types have no 'control' cell: 'B cell'. They are trained on, but "
        "cells can only be generated for types with controls: leave the others out of the file, or "
        "name the types to generate with --cell_types.\n"
    )


def test_nothing_is_said_where_every_cell_type_has_controls(said_before_training):
    assert said_before_training(one_strong_perturbation()) == ""
