"""A model that is told the batch of a cell uses it; a model that is not is what it always was."""

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Generator

from sedd.building import build_contexts, build_denoiser, labelled_batch, token_batches
from sedd.checkpoint import Trained, load_trained, load_training, save_checkpoint
from sedd.data.cells import Cells, read_cells, write_h5ad
from sedd.data.choices import DataConfig
from sedd.data.reference import Reference
from sedd.data.shards import Shards
from sedd.data.splits import Split, SplitConfig, make_split
from sedd.diffusion.graph import AbsorbingGraph
from sedd.generation import batch_labels, generate_unit, plan_units
from sedd.inference import InferenceConfig
from sedd.laws import PerturbedLaw, perturbed_law
from sedd.model.config import ModelConfig
from sedd.model.inputs import Condition
from sedd.preparation import prepare
from sedd.training import TrainingState, Workers, _noised, held_out_nelbo, start, train
from sedd.training_config import TrainingConfig
from tests.tiny_training import TINY_MODEL, tiny_shards
from tests.worlds import two_donors

TRAINING = TrainingConfig(batch_size=32, max_steps=150, warmup_steps=10, learning_rate=1e-2)
COUNTERFACTUAL = InferenceConfig(num_samples_per_condition=50, shard_size=50, num_steps=4)
POPULATION = replace(COUNTERFACTUAL, mode="population")


def split_of(cells: Cells) -> Split:
    """The treated B cells are held out, a fifth of the others validates."""
    return make_split(
        SplitConfig(kind="unseen_cell_type", cell_types=("B cell",), validation_fraction=0.2),
        perturbation=cells.perturbation,
        cell_type=cells.cell_type,
        control_name="control",
    )


@cache
def shards_of(*, told: bool) -> Shards:
    cells = two_donors() if told else replace(two_donors(), batch=None)
    return prepare(cells, split_of(cells), DataConfig(), TINY_MODEL)


def fresh(shards: Shards, model: ModelConfig = TINY_MODEL) -> TrainingState:
    denoiser, average = (build_denoiser(model, shards.reference) for _ in range(2))
    return start(denoiser, average, TRAINING)


@cache
def trained(*, told: bool) -> Trained:
    shards = shards_of(told=told)
    state, contexts = fresh(shards), build_contexts(TINY_MODEL, shards.reference)
    batches = token_batches(shards, TRAINING)
    for _ in train(state, batches, TRAINING, contexts, max_steps=150):
        pass
    return Trained(state.average.eval(), contexts, shards.reference, "digest", state.step)


def validation_cells() -> Cells:
    cells = two_donors()
    return cells.select(split_of(cells).validation)


def nelbo(model: Trained, cells: Cells) -> np.ndarray:
    batch = labelled_batch(model.reference, cells)
    return held_out_nelbo(model.denoiser, batch, model.contexts, num_draws=8).numpy()


def means_of_marked_genes(values: np.ndarray, donor: np.ndarray) -> np.ndarray:
    """Mean of the genes that are high in donor 1, then in donor 2, in cells of each donor."""
    return np.array(
        [
            [values[donor == name, :5].mean(), values[donor == name, 5:10].mean()]
            for name in ("donor 1", "donor 2")
        ]
    )


# Without a column.


def test_without_a_column_no_tensor_and_no_file_knows_of_batches(tmp_path):
    shards = shards_of(told=False)
    shards.save(tmp_path / "shards")
    state = fresh(shards)

    assert not [name for name in state.denoiser.state_dict() if "batch" in name]
    folder = tmp_path / "shards"
    assert not [name for name in load_file(folder / "reference.safetensors") if "batch" in name]
    assert "batches" not in json.loads((folder / "vocabulary.json").read_text())
    assert Shards.load(folder).batch.tolist() == [0] * len(shards)


def test_before_training_a_told_batch_says_nothing():
    told, untold = (build_denoiser(TINY_MODEL, shards_of(told=t).reference) for t in (True, False))
    batch = labelled_batch(shards_of(told=True).reference, two_donors())
    noised = batch.tokens.long()[:, torch.randperm(30, generator=Generator().manual_seed(0))]

    weights = told.state_dict()
    extra = weights.pop("batch_label.weight")
    assert extra.shape == (3, 16)
    assert not extra.any()
    for name, weight in untold.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    contexts = build_contexts(TINY_MODEL, shards_of(told=True).reference)
    assert torch.equal(
        told(noised, batch.condition, contexts), untold(noised, batch.condition, contexts)
    )


def test_hiding_batches_moves_no_other_draw():
    """Masks, hidden labels and hidden perturbations are those of a model without batches."""
    model = replace(TINY_MODEL, cell_type_label_dropout=0.5, condition_dropout=0.3)
    found = []
    for told in (True, False):
        shards = shards_of(told=told)
        state = fresh(shards, model)
        graph = AbsorbingGraph(state.denoiser.sizes.num_bins)
        batch = token_batches(shards, TRAINING)(3)
        found.append(_noised(batch, graph, TRAINING, state, Workers()))

    (noised, told), (expected, untold) = found
    assert torch.equal(noised, expected)
    for name in ("perturbation", "label", "cell_type", "log_depth"):
        assert torch.equal(getattr(told.condition, name), getattr(untold.condition, name))


# What is learned.


def test_a_model_that_is_told_the_batch_is_less_surprised_by_new_cells():
    difference = nelbo(trained(told=False), validation_cells()) - nelbo(
        trained(told=True), validation_cells()
    )

    # Two equally likely donors are ln 2 nats a cell to an exact model, .023 a gene; a short run
    # without them learns little of how the marked genes go together and loses .043 (s.e. .004).
    assert difference.mean() > np.log(2) / 30


def test_the_wrong_donor_and_no_donor_cost_more_than_the_right_one():
    cells, model = validation_cells(), trained(told=True)
    other = np.where(cells.batch == "donor 1", "donor 2", "donor 1").astype(object)

    right = nelbo(model, cells).mean()
    unknown = nelbo(model, replace(cells, batch=np.full(len(cells), "donor 3", object))).mean()
    wrong = nelbo(model, replace(cells, batch=other)).mean()

    assert right < unknown < wrong
    assert nelbo(model, replace(cells, batch=None)).mean() == unknown


@pytest.mark.parametrize("rate", [0.1, 0.6])
def test_training_hides_the_batch_at_its_rate(rate):
    shards = shards_of(told=True)
    state = fresh(shards, replace(TINY_MODEL, batch_dropout=rate))
    graph, batches = AbsorbingGraph(state.denoiser.sizes.num_bins), token_batches(shards, TRAINING)
    shown = []
    for step in range(100):
        state.step = step
        _, batch = _noised(batches(step), graph, TRAINING, state, Workers())
        kept = batch.condition.batch < 2
        assert torch.equal(batch.condition.batch[kept], batches(step).condition.batch[kept])
        shown.append(kept)

    hidden = 1 - torch.cat(shown).double().mean().item()
    assert hidden == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / 3200))


def test_a_batch_without_training_cells_is_not_in_the_vocabulary():
    cells = two_donors()
    split = split_of(cells)
    cells.batch[split.test] = "only held out"

    shards = prepare(cells, split, DataConfig(), TINY_MODEL)

    assert shards.reference.vocabulary.batches == ("donor 1", "donor 2")
    held_out = labelled_batch(shards.reference, cells.select(split.test))
    assert set(held_out.condition.batch.tolist()) == {2}


# What is generated.


@pytest.mark.parametrize("config", [POPULATION, COUNTERFACTUAL], ids=lambda c: c.mode)
@pytest.mark.parametrize("cell_type", ["B cell", "T cell"])
def test_generated_cells_have_the_mean_of_their_donor(config, cell_type):
    model = trained(told=True)
    (unit,) = plan_units([cell_type], ["drug"], config)

    cells = generate_unit(model, unit, config)

    donor = batch_labels(model.reference, cells)
    np.testing.assert_array_equal(donor, two_donors().batch[cells.control_row])
    # Means of five Poisson genes in at least 20 cells have standard errors of at most .28; the
    # rest is what a short training leaves.
    means = means_of_marked_genes(cells.values, donor)
    np.testing.assert_allclose(means, [[8, 2], [2, 8]], atol=1)


def test_a_model_without_batches_draws_no_donors():
    model = trained(told=False)
    (unit,) = plan_units(["T cell"], ["drug"], POPULATION)

    cells = generate_unit(model, unit, POPULATION)

    # A cell's genes are all of one donor, so that means of 5 vary by 3 from cell to cell: the
    # difference of two donors with 29 and 21 cells has a standard error of .86.
    one, other = means_of_marked_genes(cells.values, two_donors().batch[cells.control_row])
    assert np.abs(one - other).max() < 3 * 0.86


def test_the_anchor_is_measured_where_no_batch_is_told():
    """The tilt is the same whichever donors the control cells are from, and moves as asked."""
    model = trained(told=True)
    (drug,) = model.reference.vocabulary.perturbation_ids(["drug"])
    kept = model.reference.control_cells
    moved = replace(
        model,
        reference=replace(model.reference, control_cells=replace(kept, batch=1 - kept.batch)),
    )
    number = torch.zeros(6, dtype=torch.long)
    told = Condition(number + int(drug), number, number, torch.full((6,), 5.0), number)
    asked = []
    forward = model.denoiser.forward

    def record(tokens, condition, *given):
        asked.append(condition.batch)
        return forward(tokens, condition, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.denoiser, "forward", record)
        laws = [perturbed_law(m, told, COUNTERFACTUAL) for m in (model, moved)]

    anchors = [law.anchor for law in laws if isinstance(law, PerturbedLaw)]
    assert torch.equal(*anchors)
    assert anchors[0].abs().max() > 0.01
    assert {number for batch in asked for number in batch.tolist()} == {2}


# What is kept.


def test_batches_come_back_from_shards_and_checkpoints(tmp_path):
    shards = shards_of(told=True)
    shards.save(tmp_path / "shards")
    loaded = Shards.load(tmp_path / "shards")
    np.testing.assert_array_equal(loaded.batch, shards.batch)
    np.testing.assert_array_equal(
        two_donors().batch[loaded.row], np.array(["donor 1", "donor 2"], object)[loaded.batch]
    )

    state = fresh(shards)
    with torch.no_grad():
        state.average.batch_label.weight.normal_(generator=Generator().manual_seed(1))
    folder = save_checkpoint(tmp_path / "c", state, loaded.reference, config_yaml="", provenance={})
    again = load_trained(folder, TINY_MODEL)

    assert again.reference.vocabulary == shards.reference.vocabulary
    assert torch.equal(again.denoiser.batch_label.weight, state.average.batch_label.weight)
    np.testing.assert_array_equal(
        again.reference.control_cells.batch, shards.reference.control_cells.batch
    )
    resumed, _ = load_training(folder, replace(TINY_MODEL, batch_dropout=0.5), TRAINING)
    assert resumed.step == 0


def test_what_was_saved_before_batches_were_known_still_loads(tmp_path):
    run = fresh(tiny_shards())
    folder = save_checkpoint(tmp_path, run, tiny_shards().reference, config_yaml="", provenance={})

    saved = json.loads((folder / "state.json").read_text())["model"]
    loaded = Reference.load(folder)

    assert "batch_dropout" not in saved
    assert loaded.vocabulary.batches == ()
    assert set(loaded.control_cells.batch.tolist()) == {0}


def test_batches_are_read_as_they_are_written_and_change_the_digest(tmp_path):
    cells = two_donors()
    write_h5ad(cells, tmp_path / "cells.h5ad")
    names = {
        "perturbation_col": "perturbation", "cell_type_col": "cell_type", "control_name": "control",
    }  # fmt: skip

    told = read_cells(tmp_path / "cells.h5ad", **names, batch_col="batch")
    untold = read_cells(tmp_path / "cells.h5ad", **names)

    np.testing.assert_array_equal(told.batch, cells.batch)
    np.testing.assert_array_equal(told.select(np.arange(9)[::-1]).batch, cells.batch[8::-1])
    assert untold.batch is None
    assert untold.source.digest == cells.source.digest != told.source.digest
