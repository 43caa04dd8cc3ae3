"""What a perturbation does in the training types, and how far that can be believed elsewhere.

`tilt`: per gene an exponential tilt of the control law that is shared by the types,
    p(bin | type, perturbation) ~ p(bin | type, control) exp(theta . basis(bin)),
fitted by maximum likelihood. It is the additive baseline in the language of bins, and the place
the denoiser starts from. It is shrunk by how well it transfers: each training type is predicted
from the others, and the share of the tilt that predicts best is kept.

`reliability`: 1 - SE^2 / shift^2 of the mean shift over the training types; near 1 where effects
are real, near 0 where they are noise. Generated effects are shrunk by it.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

from sedd.data.controls import histogram

MIN_CELLS = 30
"""Perturbed cells that a type needs to have a say in what the perturbation does."""

SHARES = np.linspace(0, 1, 11)
"""Shares of a fitted tilt that are tried on a left-out type."""


@dataclass(frozen=True)
class PerturbationEffects:
    """Effects of each perturbation, in vocabulary order; control has none.

    Attributes:
        tilt: Shrunk tilt on the ordinal basis.
        transfer: Share of the tilt that predicts a left-out training type best.
        reliability: How much of the measured shift is not sampling noise.
    """

    tilt: Float[np.ndarray, "perturbations genes rank"]
    transfer: Float[np.ndarray, " perturbations"]
    reliability: Float[np.ndarray, " perturbations"]


def measure_effects(
    tokens: UInt8[np.ndarray, "cells genes"],
    log1p: Float[np.ndarray, "cells genes"],
    *,
    cell_type: Int[np.ndarray, " cells"],
    perturbation: Int[np.ndarray, " cells"],
    log_prior: Float[np.ndarray, "types genes bins"],
    basis: Float[np.ndarray, "rank bins"],
    num_perturbations: int,
) -> PerturbationEffects:
    """Fit tilt, transfer and reliability of every perturbation from training cells."""
    _, num_genes, num_bins = log_prior.shape
    tilt = np.zeros((num_perturbations, num_genes, len(basis)), np.float32)
    transfer = np.zeros(num_perturbations, np.float32)
    reliability = np.ones(num_perturbations, np.float32)
    for number in range(1, num_perturbations):
        treated = perturbation == number
        types = _types_with_enough(cell_type[treated])
        if len(types) == 0:
            continue
        counts = np.stack([histogram(tokens[treated & (cell_type == t)], num_bins) for t in types])
        reliability[number] = _reliability(log1p, cell_type, treated, perturbation == 0, types)
        transfer[number] = (
            _transfer(counts, log_prior[types], basis) if len(types) > 1 else reliability[number]
        )
        tilt[number] = transfer[number] * fit_tilt(counts, log_prior[types], basis)
    return PerturbationEffects(tilt, transfer, reliability)


def fit_tilt(
    counts: Float[np.ndarray, "types genes bins"],
    log_prior: Float[np.ndarray, "types genes bins"],
    basis: Float[np.ndarray, "rank bins"],
    *,
    prior_scale: float = 1.0,
    num_iterations: int = 12,
) -> Float[np.ndarray, "genes rank"]:
    """Maximum a posteriori tilt of each gene by Newton's method; types weigh the same.

    Args:
        counts: Perturbed cells per bin.
        log_prior: Log control law of the same types.
        basis: Rows of order one over the bins.
        prior_scale: Standard deviation of the normal prior on each coefficient.
        num_iterations: Newton steps; the problem is convex.
    """
    total = counts.sum(-1, keepdims=True)
    observed = counts / total.clip(1)
    weight = float(total[:, 0].sum()) / len(counts)
    theta = np.zeros((counts.shape[1], len(basis)))
    ridge = np.eye(len(basis)) / prior_scale**2
    for _ in range(num_iterations):
        law = _tilted(log_prior, theta, basis)
        mean = law @ basis.T
        gradient = weight * ((observed @ basis.T) - mean).sum(0) - theta @ ridge
        second = np.einsum("tgb,kb,lb->gkl", law, basis, basis, optimize=True)
        second -= np.einsum("tgk,tgl->gkl", mean, mean)
        step = np.linalg.solve(weight * second + ridge, gradient[..., None])[..., 0]
        theta += step / np.maximum(1.0, np.abs(step).max(-1, keepdims=True) / 2)
    return theta.astype(np.float32)


def _types_with_enough(cell_type: Int[np.ndarray, " cells"]) -> Int[np.ndarray, " types"]:
    """Types with at least `MIN_CELLS` perturbed cells, or all of them if none has that many."""
    types, counts = np.unique(cell_type, return_counts=True)
    return types[counts >= MIN_CELLS] if (counts >= MIN_CELLS).any() else types


def _tilted(
    log_prior: Float[np.ndarray, "types genes bins"],
    theta: Float[np.ndarray, "genes rank"],
    basis: Float[np.ndarray, "rank bins"],
) -> Float[np.ndarray, "types genes bins"]:
    logits = log_prior + theta @ basis
    logits = np.exp(logits - logits.max(-1, keepdims=True))
    return logits / logits.sum(-1, keepdims=True)


def _transfer(
    counts: Float[np.ndarray, "types genes bins"],
    log_prior: Float[np.ndarray, "types genes bins"],
    basis: Float[np.ndarray, "rank bins"],
) -> float:
    """Share of the other types' tilt under which a left-out type is most likely, on average."""
    gain = np.zeros(len(SHARES))
    for left_out in range(len(counts)):
        others = np.arange(len(counts)) != left_out
        theta = fit_tilt(counts[others], log_prior[others], basis)
        observed = counts[left_out] / counts[left_out].sum(-1, keepdims=True).clip(1)
        for index, share in enumerate(SHARES):
            law = _tilted(log_prior[left_out : left_out + 1], share * theta, basis)[0]
            gain[index] += (observed * np.log(law.clip(1e-30))).sum(-1).mean()
    return float(SHARES[gain.argmax()])


def _reliability(
    log1p: Float[np.ndarray, "cells genes"],
    cell_type: Int[np.ndarray, " cells"],
    treated: Bool[np.ndarray, " cells"],
    control: Bool[np.ndarray, " cells"],
    types: Int[np.ndarray, " types"],
) -> float:
    """1 - (expected squared error) / (squared length) of the mean shift over the types.

    The factor by which a measured mean is best shrunk towards zero (James and Stein 1961).
    """
    shifts, errors = [], []
    for number in types:
        after, before = (log1p[arm & (cell_type == number)] for arm in (treated, control))
        if min(len(after), len(before)) < 2:
            continue
        shifts.append(after.mean(0) - before.mean(0))
        errors.append(after.var(0, ddof=1) / len(after) + before.var(0, ddof=1) / len(before))
    if not shifts:
        return 0.0
    squared_length = float((np.mean(shifts, axis=0) ** 2).sum())
    squared_error = float(np.sum(errors)) / len(shifts) ** 2
    return max(0.0, 1 - squared_error / max(squared_length, 1e-12))
