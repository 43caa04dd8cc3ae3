"""How genes depend on each other in groups of blood cells: covariances, programs, dispersion.

A program raises some genes and lowers others together; each type shows each program in its own
strength. What the programs leave of a gene's variance is its dispersion.
"""

from dataclasses import dataclass

import numpy as np
from scipy import sparse

NUM_PROGRAMS = 8
LARGEST_DISPERSION = 5.0
LARGEST_LOADING = 1.5
MANY_CELLS = 150
"""Types with fewer control cells take the programs of the others, only their strength is fitted."""
LOADING_PRIOR = 0.3
"""Standard deviation of the prior on each loading, the ridge of their fit."""


@dataclass(frozen=True)
class Group:
    """Cells of one type and condition: counts, depths, and the moments taken from them."""

    counts: sparse.csr_matrix
    depth: np.ndarray

    @property
    def totals(self) -> np.ndarray:
        return np.asarray(self.counts.sum(0), dtype=np.float64).ravel()

    def relative_covariance(self, fraction: np.ndarray, genes: np.ndarray) -> np.ndarray:
        """Covariance of expression in units of its mean, with the counting noise removed."""
        counts = self.counts[:, genes].toarray().astype(np.float64)
        expected = self.depth[:, None] * fraction[genes]
        excess = (counts - expected).T @ (counts - expected) - np.diag(counts.sum(0))
        return excess / (np.square(self.depth).sum() * np.outer(fraction[genes], fraction[genes]))


@dataclass(frozen=True)
class Moments:
    """Relative covariance of each type and, per type and gene, what gives its precision."""

    covariance: list[np.ndarray]
    weight: np.ndarray
    num_cells: tuple[int, ...]

    def logged(self) -> list[np.ndarray]:
        """log(1 + covariance) where it is well measured, else as it is; the diagonal is 0."""
        rows = []
        for c, w in zip(self.covariance, self.weight, strict=True):
            solid = np.outer(w, w) > 4
            logged = np.where(solid, np.log1p(np.clip(c, -0.7, None)), np.clip(c, -2, 4))
            np.fill_diagonal(logged, 0.0)
            rows.append(logged)
        return rows


def covariances(groups: list[Group], fraction: np.ndarray, genes: np.ndarray) -> list[np.ndarray]:
    return [group.relative_covariance(f, genes) for group, f in zip(groups, fraction, strict=True)]


def covariance_weights(groups: list[Group], fraction: np.ndarray) -> np.ndarray:
    """Square roots of the precision of a relative covariance, per type and gene.

    The standard error of entry (g, h) is 1 / (weight_g weight_h), from counting noise 1 / mean and
    a dispersion of 0.3.
    """
    rows = []
    for group, f in zip(groups, fraction, strict=True):
        mean = f * np.sqrt(np.square(group.depth).mean())
        rows.append(len(group.depth) ** 0.25 / np.sqrt(1 / mean + 0.3))
    return np.array(rows)


def fit_programs(
    control: Moments, treated: Moments, sweeps: int = 100
) -> tuple[np.ndarray, np.ndarray]:
    """Loadings [genes, programs] and the strength of each program in each type.

    Weighted alternating least squares on covariance_t = sum_k scale_tk^2 w_k w_k', off the
    diagonal, started from the leading eigenvectors of the two largest types. Treated cells count
    too, since the genes that respond are hardly seen in controls.
    """
    pairs = list(zip(control.logged(), treated.logged(), strict=True))
    weights = list(zip(control.weight, treated.weight, strict=True))
    starts = []
    for t in range(2):
        values, vectors = np.linalg.eigh(pairs[t][0] * np.outer(weights[t][0], weights[t][0]))
        lead = values.argsort()[::-1][: NUM_PROGRAMS // 2]
        starts.append(vectors[:, lead] * np.sqrt(values[lead]) / (weights[t][0][:, None] + 1))
    loadings = np.concatenate(starts, axis=1)
    large = [t for t, size in enumerate(control.num_cells) if size >= MANY_CELLS]
    for _ in range(sweeps):
        power = np.array([program_power(pairs[t], weights[t], loadings) for t in large])
        loadings = update_loadings(
            [pairs[t] for t in large], [weights[t] for t in large], loadings, power
        )
    strongest = power.max(0)
    scaled = loadings * np.sqrt(strongest)
    order = np.argsort(-np.square(scaled).sum(0))
    scaled = np.clip(scaled[:, order], -LARGEST_LOADING, LARGEST_LOADING)
    power = np.array([program_power(c, w, scaled) for c, w in zip(pairs, weights, strict=True)])
    return scaled, np.sqrt(np.minimum(power, 1.5))


def program_power(
    targets: tuple[np.ndarray, ...], weights: tuple[np.ndarray, ...], loadings: np.ndarray
) -> np.ndarray:
    """Non-negative least squares of a type's covariances on the programs' outer products."""
    gram = np.zeros((NUM_PROGRAMS, NUM_PROGRAMS))
    response = np.zeros(NUM_PROGRAMS)
    for target, weight in zip(targets, weights, strict=True):
        scaled = np.square(weight)[:, None] * loadings
        gram += np.square(loadings.T @ scaled) - np.square(scaled).T @ np.square(loadings)
        response += np.einsum("gk,gh,hk->k", scaled, target, scaled, optimize=True)
    power = np.ones(NUM_PROGRAMS)
    for _ in range(200):
        for k in range(NUM_PROGRAMS):
            rest = response[k] - gram[k] @ power + gram[k, k] * power[k]
            power[k] = max(rest / gram[k, k], 1e-4)
    return power


def update_loadings(
    pairs: list[tuple[np.ndarray, ...]],
    weights: list[tuple[np.ndarray, ...]],
    loadings: np.ndarray,
    power: np.ndarray,
) -> np.ndarray:
    """Each gene's loadings given those of the others, half a step to keep symmetry stable."""
    normal = np.zeros((len(loadings), NUM_PROGRAMS, NUM_PROGRAMS))
    response = np.zeros_like(loadings)
    for targets, rows, p in zip(pairs, weights, power, strict=True):
        for c, w in zip(targets, rows, strict=True):
            precision = np.square(w)
            scaled = p * loadings
            gram = (precision[:, None] * scaled).T @ scaled
            own = np.einsum("gk,gl->gkl", scaled, scaled) * precision[:, None, None]
            normal += precision[:, None, None] * (gram - own)
            response += precision[:, None] * (c @ (precision[:, None] * scaled))
    ridge = np.eye(NUM_PROGRAMS) / LOADING_PRIOR**2
    fitted = np.linalg.solve(normal + ridge, response[..., None])[..., 0]
    return 0.5 * loadings + 0.5 * fitted


def dispersions(
    control: Moments, treated: Moments, loadings: np.ndarray, scale: np.ndarray
) -> np.ndarray:
    """Gamma dispersion beside the programs [types, genes], pulled to the gene's mean over types."""
    programs = np.exp(np.einsum("gk,tk->tg", np.square(loadings), np.square(scale)))
    weighted, precision = np.zeros_like(programs), np.zeros_like(programs)
    for moments in (control, treated):
        own = np.array([np.diag(c) for c in moments.covariance])
        weighted += moments.weight**4 * np.clip((1 + own) / programs - 1, -0.5, LARGEST_DISPERSION)
        precision += moments.weight**4
    prior_precision = 4.0
    gene = weighted.sum(0) / precision.sum(0)
    gene = (precision.sum(0) * gene + prior_precision * np.median(gene)) / (
        precision.sum(0) + prior_precision
    )
    found = (weighted + prior_precision * gene) / (precision + prior_precision)
    return np.clip(found, 0.02, None)
