"""From what is known of the data to a denoiser, its contexts and its batches."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Int, UInt8

from sedd.data.batches import BatchOrder
from sedd.data.cells import Cells
from sedd.data.reference import Reference
from sedd.data.shards import Shards
from sedd.data.vocabulary import Parts
from sedd.model.config import ModelConfig
from sedd.model.embeddings import ordinal_basis
from sedd.model.inputs import Batch, Condition, Contexts, Initial, Sizes
from sedd.model.transformer import Denoiser
from sedd.training_config import TrainingConfig


def build_denoiser(config: ModelConfig, reference: Reference, *, seed: int = 0) -> Denoiser:
    """An untrained denoiser that says what the reference says; weights drawn from `seed`."""
    tokenizer, scales = reference.tokenizer, reference.scales
    sizes = Sizes(
        num_genes=len(reference.vocabulary.genes),
        num_bins=tokenizer.num_bins,
        num_perturbations=len(reference.vocabulary.perturbations),
        num_cell_types=len(reference.vocabulary.cell_types),
        num_batches=len(reference.vocabulary.batches),
    )
    parts = reference.vocabulary.parts()
    initial = Initial(
        basis=torch.from_numpy(ordinal_basis(tokenizer.centers, config.ordinal_rank)),
        levels=torch.from_numpy(tokenizer.levels),
        direction=torch.from_numpy(reference.effects.direction),
        gene_mean=torch.from_numpy(scales.gene_mean),
        gene_std=torch.from_numpy(scales.gene_std),
        components=torch.from_numpy(scales.components),
        depth_mean=float(scales.log_depth[0]),
        depth_std=float(scales.log_depth[1]),
        parts=torch.from_numpy(parts.of),
        targets=torch.from_numpy(_targets(parts, reference.vocabulary.genes)),
        perturbation_vectors=_maybe_tensor(reference.perturbation_vectors),
        cell_type_vectors=_maybe_tensor(reference.cell_type_vectors),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Denoiser(config, sizes, initial)


def build_contexts(config: ModelConfig, reference: Reference) -> Contexts:
    """Control features and output prior of every cell type; effects as expected of any type.

    The network is told the mean effect over the types, not that expected of each: how types differ
    is what it has to learn from their control cells, to know it of a type that was held out.
    """
    share = config.global_share if config.output_prior else 1.0
    tilt = torch.from_numpy(reference.effects.tilt.mean(0))
    return Contexts(
        torch.from_numpy(reference.controls.features()),
        torch.from_numpy(reference.controls.log_prior(global_share=share)),
        tilt if config.effect_prior else torch.zeros_like(tilt),
    )


def token_batches(shards: Shards, config: TrainingConfig) -> "TokenBatches":
    """Training batches of prepared shards, in the order that `config` asks for."""
    rows = np.flatnonzero(~shards.validation)
    order = BatchOrder(shards.condition[rows], config.batch_size, config.seed, config.balance)
    log_depth = np.log(shards.depth).astype(np.float32)
    return TokenBatches(
        shards.tokens, shards.perturbation, shards.cell_type, shards.batch, log_depth, order, rows
    )


def labelled_batch(reference: Reference, cells: Cells) -> Batch:
    """Any labelled cells over the model's genes; of batches it does not know it is told none."""
    values = cells.select(None, reference.vocabulary.genes).expression.toarray()
    cell_type = torch.from_numpy(reference.vocabulary.cell_type_ids(cells.cell_type))
    return Batch(
        torch.from_numpy(reference.tokenizer.encode(values)),
        Condition(
            perturbation=torch.from_numpy(
                reference.vocabulary.perturbation_ids(cells.perturbation)
            ),
            cell_type=cell_type,
            label=cell_type,
            log_depth=torch.from_numpy(np.log(cells.depth).astype(np.float32)),
            batch=torch.from_numpy(reference.vocabulary.batch_ids(cells.batch_labels())),
        ),
    )


def validation_batch(
    shards: Shards, batches: "TokenBatches", config: TrainingConfig
) -> Batch | None:
    """At most `validation_cells` of the cells that were kept back, or None if there are none."""
    rows = np.flatnonzero(shards.validation)
    if len(rows) == 0:
        return None
    chosen = np.random.default_rng(config.seed).permutation(rows)[: config.validation_cells]
    return batches.of(np.sort(chosen))


@dataclass(frozen=True, eq=False)
class TokenBatches:
    """Batches by step from token rows, on disk or in memory."""

    tokens: UInt8[np.ndarray, "cells genes"]
    perturbation: Int[np.ndarray, " cells"]
    cell_type: Int[np.ndarray, " cells"]
    batch: Int[np.ndarray, " cells"]
    log_depth: np.ndarray
    order: BatchOrder
    rows: Int[np.ndarray, " training"]
    """Rows of the training cells; the order counts among them."""

    def __call__(self, step: int) -> Batch:
        """The global batch of a step."""
        return self.of(self.rows[self.order(step)])

    def of(self, rows: Int[np.ndarray, " batch"]) -> Batch:
        """A batch of given rows."""
        cell_type = torch.from_numpy(self.cell_type[rows])
        return Batch(
            torch.from_numpy(self.tokens[rows]),
            Condition(
                perturbation=torch.from_numpy(self.perturbation[rows]),
                cell_type=cell_type,
                label=cell_type,
                log_depth=torch.from_numpy(self.log_depth[rows].astype(np.float32)),
                batch=torch.from_numpy(self.batch[rows]),
            ),
        )


def _targets(parts: Parts, genes: Sequence[str]) -> Int[np.ndarray, "perturbations most"]:
    """Number of the gene that has the name of each part; -1 where none has."""
    number = {name: index for index, name in enumerate(genes)}
    gene = np.array([number.get(name, -1) for name in parts.names])
    return np.where(parts.of >= 0, gene[parts.of], -1)


def _maybe_tensor(vectors: np.ndarray | None) -> torch.Tensor | None:
    return None if vectors is None else torch.from_numpy(vectors)
