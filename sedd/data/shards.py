"""Token shards: the folder training reads, made once per (data, split, settings).

    tokens.u8              cells x genes, one byte each, C order
    rows.parquet           source row, labels, depth and role of each cell
    vocabulary.json        names
    reference.safetensors  bins, control statistics, effects, scales
    MANIFEST.json          hash of every file

The folder is named by a fingerprint of everything it was made from, so unchanged input is found
again and changed input is never mixed with old shards.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Int, UInt8

from sedd.data.reference import Reference
from sedd.errors import StorageError
from sedd.storage import verify_folder, whole_folder

SCHEMA = 2
"""Raised when the layout of a shard folder changes."""


@dataclass(frozen=True, eq=False)
class Shards:
    """Training and validation cells as tokens, and what is known of them.

    Attributes:
        reference: Vocabulary, bins, statistics.
        tokens: One byte per cell and gene; memory-mapped when read from disk.
        perturbation: Number of each cell's perturbation.
        cell_type: Number of each cell's type.
        depth: Library size.
        validation: Cells kept back to choose the best step.
        row: Row of each cell in the input file.
        batch: Number of each cell's batch; the number of batches where it is not told.
    """

    reference: Reference
    tokens: UInt8[np.ndarray, "cells genes"]
    perturbation: Int[np.ndarray, " cells"]
    cell_type: Int[np.ndarray, " cells"]
    depth: Float[np.ndarray, " cells"]
    validation: Bool[np.ndarray, " cells"]
    row: Int[np.ndarray, " cells"]
    batch: Int[np.ndarray, " cells"]

    def __len__(self) -> int:
        """Number of cells."""
        return len(self.row)

    @property
    def condition(self) -> Int[np.ndarray, " cells"]:
        """Number of each cell's (cell type, perturbation)."""
        return self.cell_type * len(self.reference.vocabulary.perturbations) + self.perturbation

    def save(self, folder: Path) -> None:
        """Write the shard folder in one step."""
        with whole_folder(folder) as temporary:
            np.ascontiguousarray(self.tokens).tofile(temporary / "tokens.u8")
            names = (*ROW_COLUMNS, "batch") if self.reference.vocabulary.batches else ROW_COLUMNS
            columns = {name: getattr(self, name) for name in names}
            pq.write_table(pa.table(columns), temporary / "rows.parquet")
            self.reference.save(temporary)

    @classmethod
    def load(cls, folder: Path) -> "Shards":
        """Read a shard folder; StorageError if a file is missing or was changed."""
        verify_folder(folder)
        reference = Reference.load(folder)
        try:
            table = pq.read_table(folder / "rows.parquet")
            shape = (table.num_rows, len(reference.vocabulary.genes))
            tokens = np.memmap(folder / "tokens.u8", np.uint8, mode="r", shape=shape)
        except (OSError, ValueError, pa.ArrowInvalid) as error:
            raise StorageError(f"{folder} cannot be read: {error}.") from error
        columns = {"batch": np.zeros(len(tokens), np.int64)}
        for name in table.column_names:
            columns[name] = table[name].to_numpy(zero_copy_only=False)
        return cls(reference, np.asarray(tokens), **columns)


ROW_COLUMNS = ("perturbation", "cell_type", "depth", "validation", "row")
"""Columns of `rows.parquet`; `batch` is one more where batches are told."""


def fingerprint(*, data_digest: str, split_digest: str, settings: Mapping[str, object]) -> str:
    """Name of the shard folder for these cells, this split and these settings."""
    content = {"schema": SCHEMA, "data": data_digest, "split": split_digest, **settings}
    text = json.dumps(content, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
