"""The laws that cells are drawn from: what the network says, made safe for types it never saw.

Three corrections of the perturbed law, each a setting of the section `inference`:

guidance (classifier-free, arXiv:2207.12598) extrapolates from what the network says without being
told the perturbation. The *anchor* draws the mean effect towards the expected one: for a cell type
that was never seen perturbed, the network's mean shift is one estimate and the expected shift of
`sedd.data.effects` another, with errors of their own, and their mean is better than either.
*Shrinking* moves the law towards that of control where the effect is hardly more than noise.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sedd.checkpoint import Trained
from sedd.data.effects import log1p_of_bins
from sedd.data.tilt import tilt_to_mean
from sedd.errors import UsageError
from sedd.inference import InferenceConfig
from sedd.model.inputs import Condition, Contexts
from sedd.model.transformer import Denoiser

NUM_DEPTHS = 32
"""Quantiles of the control cells' depths over which laws are averaged."""

NEARLY_CERTAIN = 0.99
"""Effects more reliable than this are not shrunk: it costs a further network evaluation."""


@dataclass(frozen=True, eq=False)
class Law:
    """Logits of a denoiser for one condition; what a sampler calls."""

    denoiser: Denoiser
    condition: Condition
    contexts: Contexts

    def __call__(
        self, tokens: Int[Tensor, "batch genes"], genes: Int[Tensor, "batch some"] | None
    ) -> Float[Tensor, "batch some bins"]:
        """Logits at `genes`, given the visible tokens."""
        return self.denoiser(tokens, self.condition, self.contexts, genes)


@dataclass(frozen=True, eq=False)
class PerturbedLaw:
    """Logits of a perturbed cell: guided, then shrunk towards control."""

    told: Law
    untold: Law | None
    """Without being told the perturbation; None without guidance."""
    control: Law | None
    """As if not perturbed; None where nothing is shrunk."""
    guidance: float
    share: float
    """How much of the effect is kept: 0 is control."""

    def __call__(
        self, tokens: Int[Tensor, "batch genes"], genes: Int[Tensor, "batch some"] | None
    ) -> Float[Tensor, "batch some bins"]:
        """Logits at `genes`, given the visible tokens."""
        logits = self.told(tokens, genes)
        if self.untold is not None:
            logits = torch.lerp(self.untold(tokens, genes), logits, self.guidance)
        if self.control is not None:
            logits = torch.lerp(self.control(tokens, genes), logits, self.share)
        return logits


def perturbed_law(
    trained: Trained, condition: Condition, config: InferenceConfig
) -> Law | PerturbedLaw:
    """The law under the perturbation of `condition`, the same for all of its cells.

    Raises:
        UsageError: Guidance was asked of a model that was always told the perturbation.
    """
    cell_type, perturbation = int(condition.cell_type[0]), int(condition.perturbation[0])
    contexts = trained.contexts.to(trained.denoiser.basis.device)
    if perturbation == 0:
        return Law(trained.denoiser, condition, contexts)
    anchored = anchored_contexts(trained, cell_type, perturbation, anchor=config.effect_anchor)
    told = Law(trained.denoiser, condition, anchored)
    reliability = float(trained.reference.effects.reliability[perturbation])
    shrunk = config.shrink_effects and reliability < NEARLY_CERTAIN
    untold = None
    if config.guidance != 1:
        _require_guidable(trained, config)
        everyone = torch.ones_like(condition.perturbation, dtype=torch.bool)
        hidden = condition.with_hidden_perturbations(
            everyone, trained.denoiser.sizes.num_perturbations
        )
        untold = Law(trained.denoiser, hidden, contexts)
    return PerturbedLaw(
        told,
        untold,
        Law(trained.denoiser, condition.as_control(), contexts) if shrunk else None,
        guidance=config.guidance,
        share=reliability,
    )


@torch.no_grad()
def anchored_contexts(
    trained: Trained, cell_type: int, perturbation: int, *, anchor: float
) -> Contexts:
    """Contexts under which the mean effect is `anchor` parts expected and the rest the network's.

    Both are measured in a cell with nothing revealed, averaged over the depths of the type's
    control cells; the tilt that moves one to the other then holds at every step.

    Args:
        trained: The model.
        cell_type: Number of the type; it needs control cells.
        perturbation: Number of the perturbation; that of control changes nothing.
        anchor: 0 (the network alone) to 1 (the expected shift alone).
    """
    contexts = trained.contexts.to(trained.denoiser.basis.device)
    if anchor == 0 or perturbation == 0:
        return contexts
    depth = trained.reference.control_cells.of_type(cell_type).depth
    control, perturbed = (
        _marginal_law(trained, depth, cell_type, number) for number in (0, perturbation)
    )
    level = log1p_of_bins(trained.reference.tokenizer, depth)
    shift = anchor * _expected_shift(trained, cell_type, perturbation, level)
    shift += (1 - anchor) * ((perturbed - control) @ level)
    target = np.clip(control @ level + shift, 1e-5, 0.95 * level[-1])
    direction = trained.reference.effects.direction.astype(np.float64)
    more = tilt_to_mean(target, perturbed, direction=direction, statistic=level)
    tilt = contexts.tilt.clone()
    tilt[cell_type, perturbation] += torch.from_numpy(more).to(tilt)
    return replace(contexts, tilt=tilt)


def _expected_shift(
    trained: Trained, cell_type: int, perturbation: int, level: Float[np.ndarray, " bins"]
) -> Float[np.ndarray, " genes"]:
    """Mean shift of an untrained model: that of the training cells, by its tilt of the prior."""
    contexts = trained.contexts
    prior = contexts.log_prior[cell_type].double().softmax(-1).cpu().numpy()
    tilt = contexts.tilt[cell_type, perturbation].double().cpu().numpy()
    direction = trained.reference.effects.direction.astype(np.float64)
    tilted = prior * np.exp(tilt[:, None] * (direction - direction[0]))
    return (tilted / tilted.sum(-1, keepdims=True) - prior) @ level


def _marginal_law(
    trained: Trained, depth: Float[np.ndarray, " cells"], cell_type: int, perturbation: int
) -> Float[np.ndarray, "genes bins"]:
    """Law of each gene in a cell with nothing revealed, averaged over the depths."""
    denoiser = trained.denoiser
    device = denoiser.basis.device
    quantiles = np.quantile(np.log(depth), (np.arange(NUM_DEPTHS) + 0.5) / NUM_DEPTHS)
    number = torch.full((NUM_DEPTHS,), cell_type, device=device)
    condition = Condition(
        perturbation=torch.full_like(number, perturbation),
        cell_type=number,
        label=number,
        log_depth=torch.from_numpy(quantiles.astype(np.float32)).to(device),
    )
    masked = torch.full(
        (NUM_DEPTHS, denoiser.sizes.num_genes), denoiser.sizes.num_bins, device=device
    )
    logits = denoiser(masked, condition, trained.contexts.to(device))
    return logits.double().softmax(-1).mean(0).cpu().numpy()


def _require_guidable(trained: Trained, config: InferenceConfig) -> None:
    if trained.denoiser.config.condition_dropout == 0:
        message = (
            f"inference.guidance is {config.guidance:g}, but this model was always told the "
            "perturbation. Train with e.g. --set model.condition_dropout=0.1, or leave guidance "
            "at 1."
        )
        raise UsageError(message)
