"""The laws that cells are drawn from: what the network says, made safe for types it never saw.

Three corrections of the perturbed law, one on top of the other, each a setting of the section
`inference`:

guidance (classifier-free, arXiv:2207.12598) extrapolates from what the network says without being
told the perturbation. *Shrinking* moves the law towards that of control where the effect is hardly
more than noise. The *anchor* then draws the mean effect towards the expected one: for a cell type
that was never seen perturbed, the network's mean shift is one estimate and the expected shift of
`sedd.data.effects` another, with errors of their own, and their mean is better than either. Of a
perturbation that no training cell shows the network knows nothing, and the expected shift decides.

All laws end where values become unheard of (`support`): what smoothing leaves to the highest bins
of a gene is small, but a large effect multiplies it, and one such count outweighs a cell.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sedd.checkpoint import Trained
from sedd.data.effects import log1p_of_bins
from sedd.data.reference import Reference
from sedd.data.tilt import tilt_to_mean
from sedd.errors import UsageError
from sedd.inference import InferenceConfig
from sedd.model.inputs import Condition, Contexts
from sedd.model.transformer import Denoiser

NUM_DEPTHS = 32
"""Quantiles of the control cells' depths over which laws are averaged."""

NEARLY_CERTAIN = 0.99
"""Effects more reliable than this are not shrunk: it costs a further network evaluation."""

BEYOND = 2.0
"""How many times the largest value that training cells show of a gene it may have elsewhere."""

NEVER = -1e3
"""A logit that leaves a bin without probability whatever tilts it, and means of logits finite."""


@dataclass(frozen=True, eq=False)
class Law:
    """Logits of a denoiser for one condition; what a sampler calls."""

    denoiser: Denoiser
    condition: Condition
    contexts: Contexts
    support: Bool[Tensor, "genes bins"]
    """Bins that each gene may take."""

    def __call__(
        self, tokens: Int[Tensor, "batch genes"], genes: Int[Tensor, "batch some"] | None
    ) -> Float[Tensor, "batch some bins"]:
        """Logits at `genes`, given the visible tokens."""
        logits = self.denoiser(tokens, self.condition, self.contexts, genes)
        support = self.support if genes is None else self.support[genes]
        return logits.masked_fill(~support, NEVER)


@dataclass(frozen=True, eq=False)
class PerturbedLaw:
    """Logits of a perturbed cell: guided, then shrunk towards control, then anchored."""

    told: Law
    untold: Law | None
    """Without being told the perturbation; None without guidance."""
    control: Law | None
    """As if not perturbed; None where nothing is shrunk."""
    guidance: float
    share: float
    """How much of the effect is kept: 0 is control."""
    anchor: Float[Tensor, "genes bins"] | None = None
    """Added to the logits of each gene; None without anchor."""

    def __call__(
        self, tokens: Int[Tensor, "batch genes"], genes: Int[Tensor, "batch some"] | None
    ) -> Float[Tensor, "batch some bins"]:
        """Logits at `genes`, given the visible tokens."""
        logits = self.told(tokens, genes)
        if self.untold is not None:
            logits = torch.lerp(self.untold(tokens, genes), logits, self.guidance)
        if self.control is not None:
            logits = torch.lerp(self.control(tokens, genes), logits, self.share)
        if self.anchor is not None:
            logits = logits + (self.anchor if genes is None else self.anchor[genes])
        return logits


def perturbed_law(
    trained: Trained, condition: Condition, config: InferenceConfig
) -> Law | PerturbedLaw:
    """The law under the perturbation of `condition`, the same for all of its cells.

    Raises:
        UsageError: Guidance was asked of a model that was always told the perturbation.
    """
    if int(condition.perturbation[0]) == 0:
        return control_law(trained, condition)
    if config.guidance != 1:
        _require_guidable(trained, config)
    law = _corrected(trained, condition, config)
    if config.effect_anchor == 0:
        return law
    return replace(law, anchor=_anchor(trained, condition, config))


def control_law(trained: Trained, condition: Condition) -> Law:
    """The law of these cells had they not been perturbed."""
    device = trained.denoiser.basis.device
    contexts = trained.contexts.to(device)
    return Law(
        trained.denoiser, condition.as_control(), contexts, support(trained.reference).to(device)
    )


def support(reference: Reference) -> Bool[Tensor, "genes bins"]:
    """Bins of values up to `BEYOND` times the largest one of a gene among training cells.

    A gene that no training cell shows stays silent.
    """
    shown, tokenizer = reference.controls.global_histogram > 0, reference.tokenizer
    highest = np.where(shown, np.arange(tokenizer.num_bins), 0).max(axis=-1)
    largest = tokenizer.edges[highest]
    most = largest * BEYOND if tokenizer.kind == "counts" else largest + np.log(BEYOND)
    return torch.from_numpy(tokenizer.edges <= np.where(largest > 0, most, 0)[:, None])


def _corrected(trained: Trained, condition: Condition, config: InferenceConfig) -> PerturbedLaw:
    """The law guided and shrunk, not anchored."""
    told = replace(control_law(trained, condition), condition=condition)
    untold = None
    if config.guidance != 1:
        everyone = torch.ones_like(condition.perturbation, dtype=torch.bool)
        num_perturbations = trained.denoiser.sizes.num_perturbations
        hidden = condition.with_hidden_perturbations(everyone, num_perturbations)
        untold = replace(told, condition=hidden)
    share = _share(trained, condition, config)
    control = control_law(trained, condition) if share < NEARLY_CERTAIN else None
    return PerturbedLaw(told, untold, control, guidance=config.guidance, share=share)


def _share(trained: Trained, condition: Condition, config: InferenceConfig) -> float:
    """How much of the network's effect is believed."""
    if not config.shrink_effects:
        return 1.0
    return float(trained.reference.effects.reliability[int(condition.perturbation[0])])


@torch.no_grad()
def _anchor(
    trained: Trained, condition: Condition, config: InferenceConfig
) -> Float[Tensor, "genes bins"]:
    """The tilt that draws the mean shift of the corrected law to the expected one.

    The mean shift becomes

        (1 - w) expected + w network,     w = (1 - effect_anchor) share shown,

    where the corrected law's own shift stands for share x network, and `shown` is 1 or 0. Both
    laws are measured in cells with nothing revealed, at the depths of the type's control cells;
    the exponential tilt that moves one mean to the other then holds at every step.
    """
    cell_type, perturbation = int(condition.cell_type[0]), int(condition.perturbation[0])
    depth = trained.reference.control_cells.of_type(cell_type).depth
    level = log1p_of_bins(trained.reference.tokenizer, depth)
    typical = _typical_cells(depth, condition, trained.denoiser.sizes.num_batches)
    control = _marginal(control_law(trained, typical))
    perturbed = _marginal(_corrected(trained, typical, config))
    say = (1 - config.effect_anchor) * bool(trained.reference.effects.shown[perturbation])
    of_network = say * ((perturbed - control) @ level)
    of_expected = 1 - say * _share(trained, condition, config)
    shift = of_network + of_expected * _expected_shift(trained, cell_type, perturbation, level)
    target = np.clip(control @ level + shift, 1e-5, 0.95 * level[-1])
    direction = trained.reference.effects.direction.astype(np.float64)
    tilt = tilt_to_mean(target, perturbed, direction=direction, statistic=level)
    return torch.from_numpy(np.outer(tilt, direction)).to(trained.denoiser.basis)


def _expected_shift(
    trained: Trained, cell_type: int, perturbation: int, level: Float[np.ndarray, " bins"]
) -> Float[np.ndarray, " genes"]:
    """The shift that training cells lead to expect, by its tilt of the output prior."""
    effects = trained.reference.effects
    prior = trained.contexts.log_prior[cell_type].double().softmax(-1).cpu().numpy()
    tilt, direction = (
        each.astype(np.float64)
        for each in (effects.tilt[cell_type, perturbation], effects.direction)
    )
    tilted = prior * np.exp(tilt[:, None] * (direction - direction[0]))
    return (tilted / tilted.sum(-1, keepdims=True) - prior) @ level


def _typical_cells(
    depth: Float[np.ndarray, " cells"], condition: Condition, num_batches: int
) -> Condition:
    """The condition at `NUM_DEPTHS` quantiles of the depths, in no told batch.

    What they measure is a difference of laws, from which the batch falls out to first order.
    """
    quantiles = np.quantile(np.log(depth), (np.arange(NUM_DEPTHS) + 0.5) / NUM_DEPTHS)
    return Condition(
        perturbation=condition.perturbation[:1].expand(NUM_DEPTHS),
        cell_type=condition.cell_type[:1].expand(NUM_DEPTHS),
        label=condition.label[:1].expand(NUM_DEPTHS),
        log_depth=torch.from_numpy(quantiles.astype(np.float32)).to(condition.log_depth.device),
        batch=torch.full_like(condition.batch[:1], num_batches).expand(NUM_DEPTHS),
    )


def _marginal(law: Law | PerturbedLaw) -> Float[np.ndarray, "genes bins"]:
    """Law of each gene in a cell with nothing revealed, averaged over the cells."""
    told = law if isinstance(law, Law) else law.told
    sizes, num_cells = told.denoiser.sizes, len(told.condition.perturbation)
    masked = torch.full(
        (num_cells, sizes.num_genes), sizes.num_bins, device=told.condition.perturbation.device
    )
    return law(masked, None).double().softmax(-1).mean(0).cpu().numpy()


def _require_guidable(trained: Trained, config: InferenceConfig) -> None:
    if trained.denoiser.config.condition_dropout == 0:
        message = (
            f"inference.guidance is {config.guidance:g}, but this model was always told the "
            "perturbation. Train with e.g. --set model.condition_dropout=0.1, or leave guidance "
            "at 1."
        )
        raise UsageError(message)
