"""The law nearest to a given one that has a wanted mean: an exponential tilt."""

import numpy as np
from jaxtyping import Float

LARGEST = 100.0
"""Largest absolute tilt, in nats per unit of `direction`."""


def tilt_to_mean(
    target: Float[np.ndarray, " genes"],
    law: Float[np.ndarray, "genes bins"],
    *,
    direction: Float[np.ndarray, " bins"],
    statistic: Float[np.ndarray, " bins"],
    num_iterations: int = 60,
) -> Float[np.ndarray, " genes"]:
    """Coefficient a of each gene such that law x exp(a direction) has the mean `target`.

    Of all laws with that mean of `direction`, the tilted one is nearest to `law` in
    Kullback-Leibler divergence (Csiszar 1975). Solved by Newton steps, and by bisection where
    they would leave the bracket (on laws of two far modes they may circle); a target beyond what
    the bins can reach is approached up to a tilt of `LARGEST`.

    Args:
        target: Wanted mean of `statistic`.
        law: Probabilities of the bins, rows sum to 1.
        direction: What the tilt multiplies, growing over the bins.
        statistic: What the mean is taken of, growing over the bins.
        num_iterations: Most steps.
    """
    tilt = np.zeros(len(law))
    low, high = np.full(len(law), -LARGEST), np.full(len(law), LARGEST)
    active = np.arange(len(law))
    for _ in range(num_iterations):
        tilted = law[active] * np.exp(tilt[active, None] * (direction - direction[0]))
        tilted /= tilted.sum(-1, keepdims=True)
        mean = tilted @ statistic
        slope = tilted @ (statistic * direction) - mean * (tilted @ direction)
        miss = target[active] - mean
        going = np.abs(miss) > 1e-5
        active, miss, slope = active[going], miss[going], slope[going]
        if len(active) == 0:
            break
        low[active] = np.where(miss > 0, tilt[active], low[active])
        high[active] = np.where(miss < 0, tilt[active], high[active])
        newton = tilt[active] + miss / np.maximum(slope, 1e-9)
        inside = (low[active] < newton) & (newton < high[active])
        tilt[active] = np.where(inside, newton, (low[active] + high[active]) / 2)
    return tilt.astype(np.float32)
