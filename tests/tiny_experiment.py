"""An experiment directory as `train` leaves it, made in seconds and without Ray."""

from dataclasses import replace
from pathlib import Path

from pipelines.experiment import load_cells, load_shards, shards_for, split_cells
from sedd.building import build_contexts, build_denoiser, token_batches, validation_batch
from sedd.checkpoint import save_checkpoint
from sedd.config import Config
from sedd.data.cells import Cells, write_h5ad
from sedd.data.choices import DataConfig
from sedd.data.splits import SplitConfig
from sedd.inference import InferenceConfig
from sedd.training import start, train
from tests.tiny_training import TINY_MODEL, TINY_TRAINING

HELD_OUT = SplitConfig(kind="unseen_cell_type", cell_types=("B cell",))
NUM_CELLS = 24


def tiny_config(
    folder: Path, split: SplitConfig = HELD_OUT, *, num_steps: int = 6, **data: object
) -> Config:
    """What `tiny_experiment` runs: cells in `folder`, the experiment in `folder/e`."""
    return Config(
        data=replace(DataConfig(train_data_path=str(folder / "cells.h5ad"), num_genes=12), **data),
        split=split,
        model=TINY_MODEL,
        training=replace(TINY_TRAINING, max_steps=num_steps, validate_every=3),
        inference=InferenceConfig(num_samples_per_condition=NUM_CELLS, shard_size=16, num_steps=4),
        experiment_dir=str(folder / "e"),
    )


def tiny_experiment(folder: Path, cells: Cells, config: Config) -> Config:
    """Write the cells, prepare them, train and keep what `generate` and `evaluate` read."""
    write_h5ad(cells, folder / "cells.h5ad")
    experiment = folder / "e"
    cells = load_cells(config)
    split = split_cells(config, cells)
    shards = load_shards(shards_for(config, cells, split))
    (experiment / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
    split.save(experiment / "split.json", data_digest=cells.source.digest)
    shards.reference.vocabulary.save(experiment / "vocabulary.json")
    training, reference = config.training, shards.reference
    batches = token_batches(shards, training)
    state = start(
        build_denoiser(config.model, reference, seed=training.seed),
        build_denoiser(config.model, reference),
        training,
    )
    for _ in train(
        state,
        batches,
        training,
        build_contexts(config.model, reference),
        max_steps=training.max_steps,
        validation=validation_batch(shards, batches, training),
    ):
        pass
    save_checkpoint(config.checkpoints, state, reference, config_yaml="", provenance={})
    return config
