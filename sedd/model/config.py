"""Size of the denoiser and which of its parts are on: the section `model`."""

from dataclasses import dataclass
from typing import Literal

PRESETS = {"small": (128, 4, 4), "medium": (256, 6, 8), "large": (512, 8, 8)}
"""hidden_dim, num_layers, num_heads of each size."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Size of the denoising transformer and which of its parts are on."""

    __pydantic_config__ = {"extra": "forbid"}

    size: Literal["small", "medium", "large"] = "small"
    """Preset of width, layers and heads; each can be overridden."""
    hidden_dim: int | None = None
    """Width of the residual stream."""
    num_layers: int | None = None
    """Number of transformer blocks."""
    num_heads: int | None = None
    """Attention heads; must divide hidden_dim."""
    dropout: float = 0.0
    """Dropout after attention and feed-forward."""
    genes_per_token: int = 8
    """Genes that share a token of the transformer; 1 is one token per gene."""
    control_features: bool = True
    """Show the model what control cells of the type look like, gene by gene."""
    output_prior: bool = True
    """Start from the control histogram of the type instead of the global one."""
    global_share: float = 0.1
    """Share of the global histogram in the output prior."""
    ordinal_rank: int | None = 5
    """Coefficients per gene on the ordinal basis; null gives each bin its own logit."""
    token_encoder: int = 16
    """Width of the encoder of visible genes; 0 turns it off."""
    effect_prior: bool = True
    """Start from the effect that other cell types lead to expect, instead of none."""
    cell_type_label_dropout: float = 1.0
    """How often training hides the cell-type label; 1 means the model has none."""
    condition_dropout: float = 0.0
    """How often training hides the perturbation; needed for inference.guidance other than 1."""
    batch_dropout: float = 0.1
    """How often training hides the batch; without data.batch_col there is none to hide."""
    time_conditioning: bool = True
    """Tell the model which fraction of the genes is masked."""

    def __post_init__(self) -> None:
        """Check what the types cannot say."""
        problems = []
        for name in ("hidden_dim", "num_layers", "num_heads", "genes_per_token", "ordinal_rank"):
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(f"model.{name} is {value}, wanted a number of at least 1.")
        if self.token_encoder < 0:
            problems.append(f"model.token_encoder is {self.token_encoder}, wanted 0 or more.")
        for name in ("dropout", "global_share", "cell_type_label_dropout", "condition_dropout"):
            if not 0 <= getattr(self, name) <= 1:
                problems.append(f"model.{name} is {getattr(self, name)}, wanted 0 to 1.")
        if not 0 < self.batch_dropout < 1:
            problems.append(
                f"model.batch_dropout is {self.batch_dropout}, wanted more than 0 and less than 1: "
                "the model must learn of cells with and without their batch. To tell it no batch, "
                "leave data.batch_col out."
            )
        if not problems and self.width % self.heads:
            problems.append(
                f"model.hidden_dim {self.width} is not a multiple of model.num_heads {self.heads}."
            )
        if problems:
            raise ValueError("\n  ".join(problems))

    @property
    def width(self) -> int:
        """hidden_dim, from the preset unless given."""
        return self.hidden_dim or PRESETS[self.size][0]

    @property
    def layers(self) -> int:
        """num_layers, from the preset unless given."""
        return self.num_layers or PRESETS[self.size][1]

    @property
    def heads(self) -> int:
        """num_heads, from the preset unless given."""
        return self.num_heads or PRESETS[self.size][2]
