"""Effects at one place predicted from the effects measured at others: kriging (Cressie 1993).

A place is a cell type (or a perturbation, when vectors describe it), an effect the mean shift of
each gene. The effect of gene g is a Gaussian process over the places,

    cov(effect_i, effect_j) = amplitude_g (constant + (1 - constant) exp(-distance_ij / range)),

seen through its sampling error and an idiosyncratic part of its own. The best linear prediction
weighs alike places more, noisy ones less, and shrinks to zero where nothing alike was measured or
everything measured is noise. With an infinite range it is the (shrunk) mean over the places.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import numpy as np
from jaxtyping import Float, Int

SMALLEST_ERROR = 1e-3
"""Squared error (log1p units) below which no measured shift is believed."""

SMALLEST_AMPLITUDE = 1e-4
"""Prior variance of genes whose measured shifts are within their errors."""


MOST_PLACES = 32
"""Places that a prediction uses, the nearest ones (local kriging)."""


@dataclass(frozen=True)
class Kernel:
    """How alike effects are at two places; the defaults suit cell types of one tissue."""

    reach: float = 1.0
    """Distance over which effects stay alike."""
    constant: float = 0.0
    """Share of the effect that all places have in common, whatever their distance."""
    idiosyncrasy: float = 0.0
    """Share of the effect that no other place tells."""

    def covariance(self, distance: Float[np.ndarray, "*places"]) -> Float[np.ndarray, "*places"]:
        """Covariance of effects of unit amplitude, without the idiosyncratic part."""
        return self.constant + (1 - self.constant) * np.exp(-distance / self.reach)


CANDIDATES = tuple(
    Kernel(*numbers) for numbers in product((0.2, 0.5, 1.0, 2.0, 5.0), (0.0, 0.5), (0.0, 0.05, 0.2))
)
"""Kernels among which `likeliest_kernel` chooses."""


@dataclass(frozen=True, eq=False)
class Measured:
    """Effects measured at several places.

    Attributes:
        shift: Mean shift of each gene (log1p units).
        error: Its squared standard error.
        distance: Distance between the places.
    """

    shift: Float[np.ndarray, "places genes"]
    error: Float[np.ndarray, "places genes"]
    distance: Float[np.ndarray, "places places"]

    def at(self, places: Int[np.ndarray, " some"]) -> "Measured":
        """The same at some of the places."""
        return Measured(
            self.shift[places], self.error[places], self.distance[np.ix_(places, places)]
        )

    def amplitude(self) -> Float[np.ndarray, " genes"]:
        """Prior variance of each gene: what its shifts hold beyond their errors."""
        return np.maximum((self.shift**2 - self.error).mean(0), SMALLEST_AMPLITUDE)

    def covariance(self, kernel: Kernel) -> Float[np.ndarray, "genes places places"]:
        """Covariance of the measured shifts of each gene, errors and idiosyncrasy included."""
        amplitude = self.amplitude()
        own = self.error.T + kernel.idiosyncrasy * amplitude[:, None] + SMALLEST_ERROR
        shared = kernel.covariance(self.distance) * amplitude[:, None, None]
        return shared + own[:, None, :] * np.eye(len(self.shift))


def predict(
    measured: Measured, distance: Float[np.ndarray, " places"], kernel: Kernel
) -> Float[np.ndarray, " genes"]:
    """Best linear prediction of the shift at a place that is this far from the measured ones.

    At distance 0 it is a measured place itself, whose idiosyncratic part its own shift tells.
    """
    near = np.sort(np.argsort(distance, kind="stable")[:MOST_PLACES])
    measured = measured.at(near)
    alike = kernel.covariance(distance[near]) + kernel.idiosyncrasy * (distance[near] == 0)
    known = alike * measured.amplitude()[:, None]
    weight = np.linalg.solve(measured.covariance(kernel), known[..., None])[..., 0]
    return np.einsum("gp,pg->g", weight, measured.shift)


def likeliest_kernel(
    measured: Iterable[Measured], candidates: Iterable[Kernel] = CANDIDATES
) -> Kernel:
    """The kernel under which the measured shifts are likeliest, over all genes and sets."""
    sets = [some.at(np.arange(min(len(some.shift), MOST_PLACES))) for some in measured]
    sets = [some for some in sets if len(some.shift) > 1]
    if not sets:
        return Kernel()
    return max(candidates, key=lambda kernel: sum(log_likelihood(some, kernel) for some in sets))


def log_likelihood(measured: Measured, kernel: Kernel) -> float:
    """Mean over genes of the log density of the measured shifts, without constants (nats)."""
    covariance, shift = measured.covariance(kernel), measured.shift.T
    _, log_determinant = np.linalg.slogdet(covariance)
    solved = np.linalg.solve(covariance, shift[..., None])[..., 0]
    return float(-0.5 * (log_determinant + (shift * solved).sum(-1)).mean())


def correlation_distance(rows: Float[np.ndarray, "n features"]) -> Float[np.ndarray, "n n"]:
    """1 - Pearson between rows; a constant row is at distance 1 from every other."""
    centred = rows - rows.mean(1, keepdims=True, dtype=np.float64)
    length = np.linalg.norm(centred, axis=1, keepdims=True)
    unit = np.divide(centred, length, out=np.zeros_like(centred), where=length > 1e-9)
    distance = 1 - unit @ unit.T
    np.fill_diagonal(distance, 0)
    return distance.clip(0)
