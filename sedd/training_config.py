"""How the denoiser is fitted: the section `training` of a configuration."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How the denoiser is fitted."""

    __pydantic_config__ = {"extra": "forbid"}

    batch_size: int = 64
    """Cells per step, over all workers."""
    num_epochs: float = 50.0
    """Passes over the training cells; max_steps overrides it."""
    max_steps: int | None = None
    """Number of steps; the learning rate reaches zero at the last one."""
    max_seconds: float | None = None
    """Stop after this long with a checkpoint, to be resumed (exit status 75)."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW."""
    warmup_steps: int = 50
    """Steps of linear warm-up before the cosine."""
    weight_decay: float = 0.01
    """Decoupled weight decay of matrices; biases have none."""
    gradient_clip: float = 1.0
    """Largest norm of the gradient."""
    ema_decay: float = 0.999
    """Decay of the averaged weights; (1 + step) / (10 + step) while that is smaller."""
    fully_masked: float = 0.1
    """Share of the cells of each batch whose genes are all masked."""
    balance: float = 0.5
    """A condition with n cells is drawn in proportion to n ** balance; 1 means every cell alike."""
    validate_every: int = 100
    """Steps between measurements of the validation NELBO."""
    validation_cells: int = 512
    """Most validation cells that are measured."""
    patience: int | None = None
    """Stop after this many validations without improvement; null never stops early."""
    checkpoint_every: int = 200
    """Steps between checkpoints."""
    precision: str = "auto"
    """auto (bfloat16 where the hardware has it), float32 or bfloat16."""
    seed: int = 0
    """Seed of weights, order and noise."""

    def __post_init__(self) -> None:
        """Check what the types cannot say."""
        problems = []
        positive = ("batch_size", "num_epochs", "max_steps", "max_seconds", "learning_rate",
                    "gradient_clip", "validate_every", "validation_cells", "patience",
                    "checkpoint_every")  # fmt: skip
        for name in positive:
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                problems.append(f"training.{name} is {getattr(self, name)}, wanted more than 0.")
        for name in ("warmup_steps", "weight_decay"):
            if not getattr(self, name) >= 0:
                problems.append(f"training.{name} is {getattr(self, name)}, wanted 0 or more.")
        for name in ("fully_masked", "balance", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                problems.append(f"training.{name} is {getattr(self, name)}, wanted 0 to 1.")
        if self.precision not in ("auto", "float32", "bfloat16"):
            problems.append(
                f"training.precision is {self.precision!r}, wanted auto, float32 or bfloat16."
            )
        if problems:
            raise ValueError("\n  ".join(problems))
