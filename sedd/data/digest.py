"""One hash for equal cells, however they are stored."""

import hashlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Shaped
from scipy import sparse


def content_digest(
    expression: sparse.csr_array,
    genes: Iterable[str],
    labels: Iterable[Shaped[np.ndarray, " cells"]],
    depth: Float[np.ndarray, " cells"],
) -> str:
    """sha256 of what a model learns from: values, gene names, label columns and depths.

    The matrix must be canonical CSR; then path, compression and storage layout leave no trace.
    """
    digest = hashlib.sha256()
    value_type = "<i4" if expression.dtype.kind == "i" else "<f4"
    digest.update(f"{value_type} {expression.shape}".encode())
    digest.update(expression.indptr.astype("<i8").tobytes())
    digest.update(expression.indices.astype("<i4").tobytes())
    digest.update(expression.data.astype(value_type).tobytes())
    digest.update(depth.astype("<f8").tobytes())
    for words in (genes, *labels):
        encoded = [word.encode() for word in words]
        digest.update(np.array([len(word) for word in encoded], dtype="<i8").tobytes())
        digest.update(b"".join(encoded))
    return digest.hexdigest()
