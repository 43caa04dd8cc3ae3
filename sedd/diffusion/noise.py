"""How fast genes are masked as diffusion time runs from 0 (a whole cell) to 1 (all masked)."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class LogLinearNoise:
    """Noise under which a gene is masked with probability (1 - eps) t (SEDD, arXiv:2310.16834)."""

    eps: float = 1e-3

    def total(self, t: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """Accumulated noise sigma(t) = -log(1 - (1 - eps) t)."""
        return -(-(1 - self.eps) * t).log1p()

    def rate(self, t: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """The derivative of `total` in t."""
        return (1 - self.eps) / (1 - (1 - self.eps) * t)
