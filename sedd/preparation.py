"""From cells to what training reads: genes chosen, counts tokenised, controls summarised.

Only training and validation cells go in. A held-out cell never reaches a gene choice, a bin, a
statistic or a file written here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from sedd.data.cells import Cells
from sedd.data.choices import DataConfig
from sedd.data.controls import ControlCells, ControlStatistics, control_statistics
from sedd.data.effects import (
    ControlLaw,
    PerturbationEffects,
    expected_shifts,
    measure_reliability,
    measure_shifts,
)
from sedd.data.genes import choose_genes
from sedd.data.kriging import correlation_distance
from sedd.data.reference import Reference, Scales, measure_scales
from sedd.data.shards import Shards
from sedd.data.splits import Split
from sedd.data.tokens import Tokenizer
from sedd.data.vectors import read_vectors
from sedd.data.vocabulary import Parts, Vocabulary
from sedd.errors import UsageError
from sedd.model.config import ModelConfig
from sedd.storage import file_digest


def prepare(
    cells: Cells, split: Split, config: DataConfig, model: ModelConfig, *, seed: int = 0
) -> Shards:
    """Choose genes and bins, tokenise, and measure what the model starts from.

    Everything measured uses `split.train` alone; validation cells are only tokenised.
    """
    genes = choose_genes(cells, split, config)
    vocabulary = Vocabulary.of(
        genes=genes,
        perturbations=cells.perturbation,
        cell_types=cells.cell_type,
        control_name=config.control_name,
        separator=config.combination_separator,
        batches=() if cells.batch is None else cells.batch[split.train],
    )
    _require_meaning(vocabulary, cells, split, config)
    row = np.sort(np.concatenate([split.train, split.validation]))
    kept = cells.select(row, genes)
    validation = np.isin(row, split.validation)
    train = kept.select(~validation)
    tokenizer = Tokenizer.fit(
        train.expression.toarray(),
        kind=cells.kind,
        exact=config.exact_counts,
        ratio=config.bin_ratio,
    )
    measured = _TrainingCells(train, row[~validation], vocabulary, tokenizer, config, model, seed)
    reference = measured.reference()
    return Shards(
        reference,
        tokenizer.encode(kept.expression.toarray()),
        vocabulary.perturbation_ids(kept.perturbation),
        vocabulary.cell_type_ids(kept.cell_type),
        kept.depth,
        validation,
        row,
        vocabulary.batch_ids(kept.batch_labels()),
    )


def _require_meaning(
    vocabulary: Vocabulary, cells: Cells, split: Split, config: DataConfig
) -> None:
    """Refuse perturbations with a part that no training cell shows and no vector describes."""
    if config.cond_labels_pt_path is not None:
        return
    parts = vocabulary.parts()
    shown = vocabulary.perturbation_ids(set(cells.perturbation[split.train]))
    known = set(parts.of[shown].ravel().tolist()) | {-1}
    unseen = [
        name
        for name, row in zip(vocabulary.perturbations, parts.of.tolist(), strict=True)
        if not known.issuperset(row)
    ]
    if unseen:
        message = (
            f"No training cell shows {len(unseen)} of the perturbations (or a part of them), e.g. "
            f"{unseen[:3]}, so the model cannot know what they mean. Give vectors of the "
            "perturbations with --cond_labels_pt_path, or hold out fewer."
        )
        raise UsageError(message)


def shard_settings(data: DataConfig, model: ModelConfig, *, seed: int) -> dict[str, Any]:
    """Every setting that changes what `prepare` writes; part of the shards' fingerprint."""
    settings = {
        name: getattr(data, name)
        for name in ("num_genes", "gene_list", "combination_separator", "layer", "depth_col",
                     "input_kind", "exact_counts", "bin_ratio", "control_cells_per_type",
                     "control_name")
    }  # fmt: skip
    for name in ("gene_list", "cond_labels_pt_path", "celltype_labels_pt_path"):
        path = getattr(data, name)
        settings[name] = file_digest(Path(path)) if path and Path(path).is_file() else path
    model_settings = ("global_share", "output_prior", "ordinal_rank", "token_encoder")
    return settings | {name: getattr(model, name) for name in model_settings} | {"seed": seed}


@dataclass(frozen=True, eq=False)
class _TrainingCells:
    """Training cells over the chosen genes, and how they are to be measured."""

    cells: Cells
    row: Int[np.ndarray, " cells"]
    """Row of each in the training file."""
    vocabulary: Vocabulary
    tokenizer: Tokenizer
    data: DataConfig
    model: ModelConfig
    seed: int

    def reference(self) -> Reference:
        """Everything the model starts from."""
        values = self.cells.expression.toarray()
        tokens = self.tokenizer.encode(values)
        controls = control_statistics(
            tokens,
            self.log1p,
            cell_type=self.cell_type,
            is_control=self.perturbation == 0,
            num_types=len(self.vocabulary.cell_types),
            num_bins=self.tokenizer.num_bins,
        )
        law = ControlLaw.of(
            controls.log_prior(
                global_share=self.model.global_share if self.model.output_prior else 1.0
            ),
            self.tokenizer,
            depth=self.cells.depth,
            cell_type=self.control_type,
        )
        vectors = _vectors(
            self.data.cond_labels_pt_path,
            self.vocabulary.parts().names,
            zero=self.vocabulary.control_name,
        )
        chosen = _some_controls(
            self.perturbation, self.cell_type, self.data.control_cells_per_type, self.seed
        )
        return Reference(
            self.vocabulary,
            self.tokenizer,
            controls,
            ControlCells(
                self.cell_type[chosen],
                self.row[chosen],
                self.cells.depth[chosen],
                values[chosen],
                self.vocabulary.batch_ids(self.cells.select(chosen).batch_labels()),
            ),
            self._effects(controls, law, vectors),
            self._scales(tokens),
            self.cells.names[chosen],
            perturbation_vectors=vectors,
            cell_type_vectors=_vectors(
                self.data.celltype_labels_pt_path, self.vocabulary.cell_types
            ),
        )

    @cached_property
    def log1p(self) -> Float[np.ndarray, "cells genes"]:
        """Expression of every cell, log1p of counts per 10k."""
        return self.cells.log1p_cp10k()

    @cached_property
    def perturbation(self) -> Int[np.ndarray, " cells"]:
        """Number of each cell's perturbation."""
        return self.vocabulary.perturbation_ids(self.cells.perturbation)

    @cached_property
    def cell_type(self) -> Int[np.ndarray, " cells"]:
        """Number of each cell's type."""
        return self.vocabulary.cell_type_ids(self.cells.cell_type)

    @property
    def control_type(self) -> Int[np.ndarray, " cells"]:
        """Number of the type of each control cell, -1 for perturbed ones."""
        return np.where(self.perturbation == 0, self.cell_type, -1)

    def _effects(
        self,
        controls: ControlStatistics,
        law: ControlLaw,
        vectors: Float[np.ndarray, "parts given"] | None,
    ) -> PerturbationEffects:
        shifts = measure_shifts(
            self.log1p,
            cell_type=self.cell_type,
            perturbation=self.perturbation,
            num_types=len(self.vocabulary.cell_types),
            num_perturbations=len(self.vocabulary.perturbations),
        )
        combinations = self.vocabulary.combinations()
        expected = expected_shifts(
            shifts,
            correlation_distance(controls.mean_log1p),
            combinations=combinations,
            vectors=None if vectors is None else _of_wholes(vectors, self.vocabulary.parts()),
        )
        return PerturbationEffects(
            law.tilts(expected),
            law.direction.astype(np.float32),
            measure_reliability(shifts, combinations),
            shifts.shown,
        )

    def _scales(self, tokens: UInt8[np.ndarray, "cells genes"]) -> Scales:
        level = self.tokenizer.expected(tokens)
        return measure_scales(
            np.log1p(level) if self.tokenizer.kind == "counts" else level,
            self.cells.depth,
            num_factors=max(1, self.model.token_encoder),
            seed=self.seed,
        )


def _vectors(
    path: str | None, names: Sequence[str], *, zero: str | None = None
) -> Float[np.ndarray, "names given"] | None:
    return None if path is None else read_vectors(Path(path), names, zero=zero)


def _of_wholes(
    vectors: Float[np.ndarray, "parts given"], parts: Parts
) -> Float[np.ndarray, "perturbations given"]:
    """Vector of each perturbation: the sum over its parts."""
    return (vectors[parts.of] * (parts.of >= 0)[..., None]).sum(1)


def _some_controls(
    perturbation: Int[np.ndarray, " cells"],
    cell_type: Int[np.ndarray, " cells"],
    most: int,
    seed: int,
) -> Int[np.ndarray, " chosen"]:
    """At most `most` control cells of each type, ordered by type."""
    rng = np.random.default_rng(seed)
    chosen = []
    for number in np.unique(cell_type):
        rows = np.flatnonzero((perturbation == 0) & (cell_type == number))
        chosen.append(np.sort(rng.permutation(rows)[:most]))
    return np.concatenate(chosen)
