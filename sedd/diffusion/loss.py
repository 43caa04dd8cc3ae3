"""What a denoiser is trained on, and the score-entropy view of the same number.

With exactly k of G genes masked and k uniform in 1..G, the mean cross-entropy over the masked
genes is an unbiased estimate of NELBO / G: nats per gene, no time weights, no truncation. It
*equals* the score entropy of SEDD (arXiv:2310.16834) for the normalised score
s = p / (exp(sigma) - 1); `score_entropy` and `log_score` are here so that a test can show it.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional


def nelbo_per_gene(
    logits: Float[Tensor, "batch genes bins"],
    clean: Int[Tensor, "batch genes"],
    masked: Bool[Tensor, "batch genes"],
) -> Float[Tensor, " batch"]:
    """Mean cross-entropy of each cell over its masked genes, in nats.

    Unbiased for NELBO / G when the number of masked genes is uniform in 1..G (RADD,
    arXiv:2406.03736). Half-precision logits are raised to float32 first: a bfloat16 softmax
    biases the bound.
    """
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    entropy = functional.cross_entropy(logits.flatten(0, 1), clean.flatten(), reduction="none")
    entropy = entropy.view(clean.shape)
    return torch.where(masked, entropy, 0.0).sum(1) / masked.sum(1).clamp(min=1)


def log_score(
    logits: Float[Tensor, "batch genes bins"], sigma: Float[Tensor, " batch"]
) -> Float[Tensor, "batch genes bins"]:
    """Logarithm of the concrete score p(bin) / (exp(sigma) - 1) at a masked gene."""
    return logits.log_softmax(-1) - torch.expm1(sigma).log()[:, None, None]


def score_entropy(
    log_score: Float[Tensor, "batch genes bins"],
    clean: Int[Tensor, "batch genes"],
    masked: Bool[Tensor, "batch genes"],
    sigma: Float[Tensor, " batch"],
) -> Float[Tensor, "batch genes"]:
    """Score entropy of each gene, in nats; zero where a gene is visible, never negative.

    At a masked gene the true ratio p(bin) / p(MASK) is r = 1 / (exp(sigma) - 1) at the clean bin
    and 0 elsewhere: sum_bins score - r * log_score[clean] + r * (log r - 1).
    """
    ratio = 1 / torch.expm1(sigma)[:, None]
    at_clean = log_score.gather(-1, clean[..., None]).squeeze(-1)
    entropy = log_score.exp().sum(-1) - ratio * at_clean + ratio * (ratio.log() - 1)
    return torch.where(masked, entropy, 0.0)
