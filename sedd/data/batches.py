"""Which rows make the batch of a step: a pure function of (seed, step), never a state."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int


@dataclass(frozen=True)
class BatchOrder:
    """Rows of each global batch.

    With `balance` 1 every cell comes exactly once in an epoch. Below 1, small conditions come
    more often: a condition of n cells is drawn in proportion to n ** balance, stratified over the
    batch, and a cell uniformly within its condition.
    """

    group: Int[np.ndarray, " cells"]
    """Number of the condition of each training cell."""
    batch_size: int
    seed: int
    balance: float = 1.0

    def __call__(self, step: int) -> Int[np.ndarray, " batch"]:
        """Rows of the global batch of `step`."""
        return self._in_epochs(step) if self.balance == 1 else self._balanced(step)

    def _in_epochs(self, step: int) -> Int[np.ndarray, " batch"]:
        num_cells = len(self.group)
        positions = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, within = np.divmod(positions, num_cells)
        rows = np.empty(self.batch_size, np.int64)
        for epoch in np.unique(epochs):
            order = np.random.default_rng([self.seed, 1, int(epoch)]).permutation(num_cells)
            rows[epochs == epoch] = order[within[epochs == epoch]]
        return rows

    def _balanced(self, step: int) -> Int[np.ndarray, " batch"]:
        rng = np.random.default_rng([self.seed, 2, step])
        by_group = np.argsort(self.group, kind="stable")
        _, first, size = np.unique(self.group[by_group], return_index=True, return_counts=True)
        weight = condition_weights(size, self.balance)
        slices = rng.permutation(self.batch_size)
        uniform = (slices + rng.random(self.batch_size)) / self.batch_size
        chosen = np.searchsorted(weight.cumsum(), uniform).clip(max=len(size) - 1)
        within = (rng.random(self.batch_size) * size[chosen]).astype(np.int64)
        return by_group[first[chosen] + within]


def condition_weights(
    sizes: Int[np.ndarray, " conditions"], balance: float
) -> Float[np.ndarray, " conditions"]:
    """Share of the batch of each condition: n ** balance, normalised."""
    weight = sizes.astype(np.float64) ** balance
    return weight / weight.sum()
