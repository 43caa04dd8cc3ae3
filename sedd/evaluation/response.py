"""Which cells respond to a perturbation, and how much, from generated cells and their controls.

A counterfactual cell is the perturbed twin of a real control cell, so its change has a meaning for
that one cell. Subpopulations are found among the *control* cells: a cluster of generated cells
would be a cluster of responses already. All expression is log1p of counts per 10,000.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int, Shaped
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.metrics import silhouette_score

MAX_SUBPOPULATIONS = 4
MIN_CONTROLS = 10
"""Control cells that a subpopulation needs."""

MIN_SILHOUETTE = 0.15
"""Controls whose best clusters are less apart than this count as one population."""

NUM_COMPONENTS = 10
NULL_QUANTILE = 0.95
NULL_ROUNDS = 20
MIN_STANDARD_ERRORS = 4.0
"""Genes whose responses differ by less than this are left out: the largest of thousands of
differences of noise is nearly as large."""


@dataclass(frozen=True, eq=False)
class Twins:
    """Generated cells of one condition and the control cells of its type.

    Attributes:
        generated_log1p: The perturbed twins.
        controls_log1p: Control cells of the type, also those that no twin started from.
        start: Row of `controls_log1p` that each generated cell is the twin of.
    """

    generated_log1p: Float[np.ndarray, "cells genes"]
    controls_log1p: Float[np.ndarray, "controls genes"]
    start: Int[np.ndarray, " cells"]

    @property
    def change(self) -> Float[np.ndarray, "cells genes"]:
        """Each cell minus its own control cell; exactly 0 where nothing changed."""
        return self.generated_log1p - self.controls_log1p[self.start]


@dataclass(frozen=True)
class Subpopulation:
    """How one cluster of control cells responds.

    Attributes:
        number: 0 for the cluster with most control cells.
        num_controls: Control cells in it.
        num_cells: Generated cells that started from them.
        mean_effect: Mean length of their change; nan without cells, as are the next three.
        effect_spread: Standard deviation of that length.
        mean_projection: Mean signed step along the condition's mean change.
        responder_share: Share of the cells whose step exceeds `Response.threshold`.
    """

    number: int
    num_controls: int
    num_cells: int
    mean_effect: float
    effect_spread: float
    mean_projection: float
    responder_share: float


@dataclass(frozen=True)
class GeneContrast:
    """A gene whose response differs between subpopulations.

    Attributes:
        gene: Its name.
        difference: Largest minus smallest mean change over the subpopulations, in log1p.
        standard_error: Of that difference.
        mean_change: Mean change in each subpopulation, by number; nan without cells.
    """

    gene: str
    difference: float
    standard_error: float
    mean_change: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class Response:
    """The response of one condition, cell by cell, by subpopulation and by gene.

    Attributes:
        effect_size: Euclidean length of each generated cell's change over the genes.
        projection: Signed length of it along the mean change of all cells.
        subpopulation: Number of the subpopulation of each cell's control.
        threshold: Step along the mean change that 95 % of pairs of control cells of one
            subpopulation stay below: a responder moves further than unperturbed cells differ.
        subpopulations: By number.
        contrasts: Genes whose response differs most between them, most different first.
        plane: First two principal components of the control cells.
        start: As in `Twins`.
    """

    effect_size: Float[np.ndarray, " cells"]
    projection: Float[np.ndarray, " cells"]
    subpopulation: Int[np.ndarray, " cells"]
    threshold: float
    subpopulations: tuple[Subpopulation, ...]
    contrasts: tuple[GeneContrast, ...]
    plane: Float[np.ndarray, "controls 2"]
    start: Int[np.ndarray, " cells"]

    @property
    def responds(self) -> Bool[np.ndarray, " cells"]:
        """Whether each cell moves further than the threshold."""
        return self.projection > self.threshold


def measure_response(
    twins: Twins, genes: Sequence[str], *, num_contrasts: int = 10, seed: int = 0
) -> Response:
    """Effect of every cell, heterogeneity over subpopulations and the genes behind it.

    Raises:
        ValueError: There is no generated cell or no control cell.
    """
    if len(twins.start) == 0 or len(twins.controls_log1p) == 0:
        msg = (
            f"{len(twins.start)} generated and {len(twins.controls_log1p)} control cells; a "
            "response needs at least one of both. Leave this condition out."
        )
        raise ValueError(msg)
    change = twins.change
    direction = _direction(change)
    components = _components(twins.controls_log1p, seed)
    member = find_subpopulations(components, seed=seed)
    threshold = _null_threshold(twins.controls_log1p @ direction, member, seed)
    size, step = np.linalg.norm(change.astype(np.float64), axis=1), change @ direction
    own = member[twins.start]
    return Response(
        effect_size=size,
        projection=step,
        subpopulation=own,
        threshold=threshold,
        subpopulations=tuple(
            _summary(number, member, size[own == number], step[own == number], threshold)
            for number in range(int(member.max()) + 1)
        ),
        contrasts=_contrasts(change, own, int(member.max()) + 1, genes)[:num_contrasts],
        plane=np.pad(components, ((0, 0), (0, 2)))[:, :2],
        start=twins.start,
    )


def find_subpopulations(
    components: Float[np.ndarray, "controls components"],
    *,
    most: int = MAX_SUBPOPULATIONS,
    seed: int = 0,
) -> Int[np.ndarray, " controls"]:
    """Number of each control cell's cluster, the largest first; all 0 where there are no clusters.

    k-means for every number of clusters up to `most`; the one with the best silhouette
    (Rousseeuw 1987) is taken if that is clear enough and each cluster has enough cells.
    """
    best, chosen = MIN_SILHOUETTE, np.zeros(len(components), np.int64)
    most = min(most, len(components) // MIN_CONTROLS, len(np.unique(components, axis=0)))
    for number in range(2, most + 1):
        found = KMeans(number, n_init=5, random_state=seed).fit_predict(components)
        if np.bincount(found, minlength=number).min() < MIN_CONTROLS:
            continue
        sample = min(len(components), 2000)
        silhouette = float(
            silhouette_score(components, found, sample_size=sample, random_state=seed)
        )
        if silhouette > best:
            best, chosen = silhouette, found
    rank = np.argsort(np.argsort(-np.bincount(chosen), kind="stable"))
    return rank[chosen].astype(np.int64)


def response_table(
    cell_type: str, perturbation: str, names: Shaped[np.ndarray, " controls"], response: Response
) -> pd.DataFrame:
    """One row per generated cell; `names` are those of the control cells."""
    return pd.DataFrame(
        {
            "cell_type": cell_type,
            "perturbation": perturbation,
            "control_cell": names[response.start],
            "subpopulation": response.subpopulation,
            "effect_size": response.effect_size,
            "projection": response.projection,
            "responds": response.responds,
        }
    )


def _direction(change: Float[np.ndarray, "cells genes"]) -> Float[np.ndarray, " genes"]:
    """Unit vector of the mean change; zero if there is none."""
    mean = change.mean(0, dtype=np.float64)
    length = float(np.linalg.norm(mean))
    return mean / length if length > 0 else mean


def _components(
    controls_log1p: Float[np.ndarray, "controls genes"], seed: int
) -> Float[np.ndarray, "controls components"]:
    if len(controls_log1p) < 2 or not controls_log1p.std(0).any():
        return np.zeros((len(controls_log1p), 1))
    number = min(NUM_COMPONENTS, len(controls_log1p) - 1, controls_log1p.shape[1])
    return PCA(number, random_state=seed).fit_transform(controls_log1p)


def _null_threshold(
    position: Float[np.ndarray, " controls"], member: Int[np.ndarray, " controls"], seed: int
) -> float:
    """Upper quantile of steps from one control cell to another of the same subpopulation.

    `position` is where the cells stand along the mean change. A cell alone gives no pair.
    """
    rng = np.random.default_rng(seed)
    steps = [np.zeros(1)]
    for number in range(int(member.max()) + 1):
        within = position[member == number]
        for _ in range(NULL_ROUNDS if len(within) > 1 else 0):
            shuffled = rng.permutation(within)
            steps.append(np.roll(shuffled, 1) - shuffled)
    return max(0.0, float(np.quantile(np.concatenate(steps), NULL_QUANTILE)))


def _summary(
    number: int,
    member: Int[np.ndarray, " controls"],
    size: Float[np.ndarray, " cells"],
    step: Float[np.ndarray, " cells"],
    threshold: float,
) -> Subpopulation:
    known = len(size) > 0
    return Subpopulation(
        number=number,
        num_controls=int((member == number).sum()),
        num_cells=len(size),
        mean_effect=float(size.mean()) if known else float("nan"),
        effect_spread=float(size.std()) if known else float("nan"),
        mean_projection=float(step.mean()) if known else float("nan"),
        responder_share=float((step > threshold).mean()) if known else float("nan"),
    )


def _contrasts(
    change: Float[np.ndarray, "cells genes"],
    own: Int[np.ndarray, " cells"],
    number: int,
    genes: Sequence[str],
) -> tuple[GeneContrast, ...]:
    """Genes by how much their mean change differs, those above the noise alone."""
    enough = [n for n in range(number) if (own == n).sum() >= 2]
    if len(enough) < 2:
        return ()
    groups = [change[own == n].astype(np.float64) for n in enough]
    mean = np.stack([group.mean(0) for group in groups])
    squared_error = np.stack([group.var(0, ddof=1) / len(group) for group in groups])
    high, low, column = mean.argmax(0), mean.argmin(0), np.arange(len(genes))
    difference = mean[high, column] - mean[low, column]
    error = np.sqrt(squared_error[high, column] + squared_error[low, column])
    clear = np.flatnonzero(difference > np.maximum(MIN_STANDARD_ERRORS * error, 1e-9))
    by_number = np.full((number, len(genes)), np.nan)
    by_number[enough] = mean
    return tuple(
        GeneContrast(
            genes[int(g)], float(difference[g]), float(error[g]), tuple(by_number[:, g].tolist())
        )
        for g in clear[np.argsort(-difference[clear], kind="stable")]
    )
