"""Nothing that is made for training, or by generating, ever depends on a held-out cell.

Two worlds differ in their held-out perturbed cells alone: in one they are as they were drawn, in
the other they carry a watermark (a gene that no other cell shows, absurd counts, genes reshuffled,
other library sizes). Everything made from the two must be the same to the last bit.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.experiment import load_cells, load_shards, shards_for, split_cells
from pipelines.scoring import Truth, read_truth
from sedd.building import token_batches, validation_batch
from sedd.checkpoint import Trained, best_or_newest, load_trained
from sedd.config import Config
from sedd.data.cells import Cells
from sedd.data.shards import Shards
from sedd.data.splits import Split, SplitConfig
from sedd.evaluation.baselines import CEILING, baseline_predictions
from sedd.evaluation.metrics import score
from sedd.evaluation.prediction import Prediction
from sedd.generation import generate_unit, plan_units
from sedd.model.inputs import Batch
from tests.tiny_experiment import tiny_config, tiny_experiment
from tests.worlds import cells_of, tiny_cells

MARK = "GENE040"
"""A gene that only watermarked cells express."""

SPLITS = (
    SplitConfig(kind="unseen_cell_type", cell_types=("B cell",)),
    SplitConfig(kind="unseen_pair", pairs=(("T cell", "raise"), ("B cell", "lower"))),
    SplitConfig(kind="unseen_perturbation", perturbations=("lower",)),
    SplitConfig(kind="random_cells", test_fraction=0.5),
)


@dataclass(frozen=True)
class World:
    """One of the two worlds, and all that was made of it."""

    folder: Path
    config: Config
    cells: Cells
    split: Split
    shards: Shards

    @property
    def checkpoint(self) -> Path:
        return best_or_newest(self.config.checkpoints)

    @property
    def trained(self) -> Trained:
        return load_trained(self.checkpoint, self.config.model)

    @property
    def truth(self) -> Truth:
        return read_truth(self.cells, self.split, self.trained, "control")


def with_silent_gene(cells: Cells) -> Cells:
    """The same cells with one more gene, `MARK`, that none of them shows."""
    counts = np.pad(cells.expression.toarray(), ((0, 0), (0, 1)))
    return cells_of(counts, cell_type=cells.cell_type, perturbation=cells.perturbation)


def watermarked(cells: Cells, rows: np.ndarray, seed: int = 0) -> Cells:
    """`rows` reshuffled over genes, up to 20 times larger, and with up to 100,000 of `MARK`."""
    rng = np.random.default_rng(seed)
    counts = cells.expression.toarray()
    counts[rows] = rng.permuted(counts[rows], axis=1) * rng.integers(1, 20, (len(rows), 1))
    counts[rows, cells.genes.index(MARK)] = rng.integers(1, 100_000, len(rows))
    return cells_of(counts, cell_type=cells.cell_type, perturbation=cells.perturbation)


def world_of(folder: Path, split: SplitConfig, *, marked: bool) -> World:
    folder.mkdir()
    vectors = folder.parent / "vectors.pt"
    if not vectors.exists():
        torch.save({"raise": torch.tensor([1.0, 0]), "lower": torch.tensor([0.0, 1])}, vectors)
    given = {"cond_labels_pt_path": str(vectors)} if split.kind == "unseen_perturbation" else {}
    config = tiny_config(folder, split, **given)
    cells = with_silent_gene(tiny_cells())
    if marked:
        cells = watermarked(cells, split_cells(config, cells).test)
    tiny_experiment(folder, cells, config)
    cells = load_cells(config)
    roles = split_cells(config, cells)
    return World(folder, config, cells, roles, load_shards(shards_for(config, cells, roles)))


@pytest.fixture(scope="module", params=SPLITS, ids=lambda split: split.kind)
def worlds(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[World, World]:
    folder = tmp_path_factory.mktemp(request.param.kind)
    return (
        world_of(folder / "plain", request.param, marked=False),
        world_of(folder / "marked", request.param, marked=True),
    )


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_worlds_differ_in_every_held_out_cell_and_in_nothing_else(worlds):
    plain, marked = worlds
    differ = (plain.cells.expression != marked.cells.expression).sum(1) > 0

    assert plain.cells.source.digest != marked.cells.source.digest
    np.testing.assert_array_equal(np.flatnonzero(differ), plain.split.test)
    assert (plain.cells.depth != marked.cells.depth)[plain.split.test].mean() > 0.9
    assert plain.split.digest == marked.split.digest
    assert len(plain.split.test) >= 40


def test_genes_bins_statistics_effects_scales_control_cells_and_shards_are_the_same(worlds):
    plain, marked = (files(shards_for(w.config, w.cells, w.split)) for w in worlds)

    assert set(plain) == {
        "tokens.u8", "rows.parquet", "vocabulary.json", "reference.safetensors", "MANIFEST.json",
    }  # fmt: skip
    assert plain == marked
    assert MARK not in worlds[1].shards.reference.vocabulary.genes


def test_the_shards_hold_no_held_out_row_and_name_real_controls(worlds):
    for world in worlds:
        shards, reference = world.shards, world.shards.reference
        assert not set(shards.row) & set(world.split.test)
        rows = reference.control_cells.row
        assert set(world.cells.perturbation[rows]) == {"control"}
        np.testing.assert_array_equal(reference.control_names, world.cells.names[rows])


def test_training_and_validation_batches_are_the_same(worlds):
    def batches(world: World) -> list[Batch | None]:
        config = world.config.training
        by_step = token_batches(world.shards, config)
        steps = [by_step(step) for step in range(8)]
        return [*steps, validation_batch(world.shards, by_step, config)]

    for one, other in zip(*map(batches, worlds), strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one.tokens, other.tokens)
        for name in ("perturbation", "cell_type", "log_depth"):
            assert torch.equal(getattr(one.condition, name), getattr(other.condition, name))


def test_the_checkpoint_is_the_same(worlds):
    plain, marked = (files(world.checkpoint) for world in worlds)

    assert {"model.safetensors", "average.safetensors", "optimizer.safetensors"} < set(plain)
    assert plain == marked


@pytest.mark.parametrize("mode", ["counterfactual", "population"])
def test_the_cells_are_the_same_but_their_scores_are_not(worlds, mode):
    predictions, scores = [], []
    for world in worlds:
        config = replace(world.config.inference, mode=mode)
        condition = world.split.held_out[0]
        (unit, *_) = plan_units(condition[:1], condition[1:], config)
        cells = generate_unit(world.trained, unit, config)
        prediction = Prediction.of_cells(mode, cells.log1p_cp10k())
        truth = world.truth
        real = truth.log1p[truth.held_out(*condition)]
        predictions.append(cells)
        scores.append(score(prediction, real, truth.controls(condition[0])))

    np.testing.assert_array_equal(predictions[0].values, predictions[1].values)
    np.testing.assert_array_equal(predictions[0].depth, predictions[1].depth)
    assert scores[0].energy_distance != scores[1].energy_distance
    assert scores[0].mse != scores[1].mse


def test_what_baselines_learn_from_is_the_same(worlds):
    plain, marked = (world.truth.training for world in worlds)

    np.testing.assert_array_equal(plain.log1p, marked.log1p)
    for name in ("cell_type", "perturbation"):
        np.testing.assert_array_equal(getattr(plain, name), getattr(marked, name))
    assert len(plain.log1p) == len(worlds[0].cells) - len(worlds[0].split.test)
    assert plain.tokenized is not None
    assert marked.tokenized is not None
    np.testing.assert_array_equal(plain.tokenized.tokens, marked.tokenized.tokens)
    rows = np.arange(len(plain.log1p))
    np.testing.assert_array_equal(
        *(each.decode(each.tokens, rows) for each in (plain.tokenized, marked.tokenized))
    )


def test_every_baseline_is_the_same_and_the_ceiling_alone_is_not(worlds):
    condition = worlds[0].split.held_out[0]

    def predictions(world: World) -> tuple[Prediction, ...]:
        truth = world.truth
        real = truth.log1p[truth.held_out(*condition)]
        return baseline_predictions(truth.training, *condition, real_log1p=real)

    for one, other in zip(*map(predictions, worlds), strict=True):
        assert one.name == other.name
        same = np.array_equal(one.cells_log1p, other.cells_log1p)
        assert same == (one.name != CEILING)


def test_the_same_watermark_on_training_cells_is_found_everywhere(tmp_path):
    """That the comparisons above can fail."""
    plain = world_of(tmp_path / "plain", SPLITS[0], marked=False)
    config = tiny_config(tmp_path / "seen", SPLITS[0])
    (tmp_path / "seen").mkdir()
    treated = plain.split.train[plain.cells.perturbation[plain.split.train] == "raise"]
    tiny_experiment(tmp_path / "seen", watermarked(plain.cells, treated), config)
    cells = load_cells(config)
    split = split_cells(config, cells)
    seen = World(
        tmp_path / "seen", config, cells, split, load_shards(shards_for(config, cells, split))
    )

    assert MARK in seen.shards.reference.vocabulary.genes
    one, other = (files(shards_for(w.config, w.cells, w.split)) for w in (plain, seen))
    assert not {name for name in one if one[name] == other[name]} - {"rows.parquet"}
    one, other = (files(world.checkpoint) for world in (plain, seen))
    for name in ("model.safetensors", "average.safetensors", "reference.safetensors"):
        assert one[name] != other[name]
