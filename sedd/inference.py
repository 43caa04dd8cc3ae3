"""What to generate and how: the section `inference` of a configuration."""

from dataclasses import dataclass
from typing import Literal

Mode = Literal["counterfactual", "population"]
BlockSchedule = Literal["even", "measured"]


@dataclass(frozen=True, kw_only=True)
class InferenceConfig:
    """What to generate and how."""

    __pydantic_config__ = {"extra": "forbid"}

    cell_type: str | None = None
    """One cell type, or null for all."""
    cell_types: tuple[str, ...] = ()
    """Several cell types; ("all",) or none means every type."""
    perturbations: tuple[str, ...] = ()
    """Perturbations to generate; none means every one but control."""
    num_samples_per_condition: int = 100
    """Cells per (cell type, perturbation)."""
    num_steps: int = 4
    """Network evaluations per cell: blocks of genes revealed one after another."""
    block_schedule: BlockSchedule = "even"
    """even: blocks of equal size; measured: by the model's information profile, small where it
    falls steeply."""
    temperature: float = 1.0
    """Divides the logits; 1 is calibrated."""
    sampler: Literal["blocks", "euler", "tweedie"] = "blocks"
    """How genes are revealed (population mode)."""
    mode: Mode = "counterfactual"
    """counterfactual: perturbed twins of real control cells; population: from scratch."""
    shrink_effects: bool = True
    """Shrink predicted effects by their reliability in the training types."""
    guidance: float = 1.0
    """Classifier-free guidance: above 1 moves away from what the model says without being told the
    perturbation; needs model.condition_dropout in training."""
    effect_anchor: float = 0.5
    """Share of the expected effect in the mean effect; the rest is the network's (0 to 1). A
    perturbation that no training cell shows gets the expected effect alone, unless this is 0."""
    shard_size: int = 100
    """Cells per unit of work, over which quantiles are spread evenly; part of what fixes the
    result."""
    seed: int = 0
    """Root seed."""

    def __post_init__(self) -> None:
        """Check what the types cannot say."""
        problems = []
        for name in ("num_samples_per_condition", "num_steps", "temperature", "shard_size"):
            if not getattr(self, name) > 0:
                problems.append(f"inference.{name} is {getattr(self, name)}, wanted more than 0.")
        if not self.guidance >= 0:
            problems.append(f"inference.guidance is {self.guidance}, wanted 0 or more.")
        if not 0 <= self.effect_anchor <= 1:
            problems.append(f"inference.effect_anchor is {self.effect_anchor}, wanted 0 to 1.")
        if self.mode == "counterfactual" and self.sampler != "blocks":
            problems.append(
                f"inference.sampler is {self.sampler!r}, but counterfactual mode reveals blocks; "
                "set inference.mode=population to use it."
            )
        if self.block_schedule == "measured" and self.sampler != "blocks":
            problems.append(
                f"inference.block_schedule is 'measured', but the sampler {self.sampler!r} reveals "
                "no blocks; set inference.sampler=blocks to use it."
            )
        if problems:
            raise ValueError("\n  ".join(problems))
