"""What a method says about one condition: cells, and their mean."""

from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int

Cells = Float[np.ndarray, "cells genes"]


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predicted cells of one condition under the name of the method.

    `mean_log1p` is what the method says about the mean, which need not be the mean of its cells
    (the additive baseline clips cells at 0, not its mean). `against_log1p` are the real cells to
    score it on when it may not be scored on all of them (the ceiling has seen half).
    `control_row` is the row, in the training file, of the control cell that each cell started from,
    where cells started from one. `unit` says which cells were drawn together: those of a unit
    spread over the law more evenly than independent draws do.
    """

    name: str
    cells_log1p: Cells
    mean_log1p: Float[np.ndarray, " genes"]
    against_log1p: Float[np.ndarray, "unseen genes"] | None = None
    control_row: Int[np.ndarray, " cells"] | None = None
    unit: Int[np.ndarray, " cells"] | None = None

    @classmethod
    def of_cells(
        cls,
        name: str,
        cells_log1p: Cells,
        control_row: Int[np.ndarray, " cells"] | None = None,
        unit: Int[np.ndarray, " cells"] | None = None,
    ) -> "Prediction":
        """A prediction whose mean is the mean of its cells."""
        mean_log1p = cells_log1p.mean(axis=0, dtype=np.float64)
        return cls(name, cells_log1p, mean_log1p, control_row=control_row, unit=unit)

    def as_twins(
        self,
        own_log1p: Cells,
        control_log1p: Float[np.ndarray, "control genes"],
    ) -> "Prediction":
        """The same cells, with the mean that twins state: control mean + mean(twin - its control).

        Twins of some of the control cells differ from all of them by who was chosen as well; their
        effect does not. The additive baseline states its mean in the same way.

        Args:
            own_log1p: The control cell that each cell started from.
            control_log1p: All control cells of the type.
        """
        effect = np.subtract(self.cells_log1p, own_log1p, dtype=np.float64).mean(axis=0)
        return replace(self, mean_log1p=control_log1p.mean(axis=0, dtype=np.float64) + effect)
