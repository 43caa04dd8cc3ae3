"""Count the parameters of each preset: python -m benchmarks.parameters

The table stands in the README between markers; a test compares the two.
"""

import torch

from sedd.model.config import PRESETS, ModelConfig
from sedd.model.inputs import Initial, Sizes
from sedd.model.transformer import Denoiser

NUM_GENES, NUM_BINS, NUM_PERTURBATIONS, NUM_CELL_TYPES, RANK = 2000, 32, 100, 8, 5


def denoiser(size: str, genes_per_token: int) -> Denoiser:
    """An untrained denoiser of a preset, for 2000 genes, 32 bins, 100 perturbations."""
    config = ModelConfig(size=size, genes_per_token=genes_per_token)
    parts = torch.arange(NUM_PERTURBATIONS)[:, None]
    initial = Initial(
        basis=torch.zeros(RANK, NUM_BINS),
        levels=torch.linspace(0, 5, NUM_BINS),
        direction=torch.linspace(0, 5, NUM_BINS),
        gene_mean=torch.zeros(NUM_GENES),
        gene_std=torch.ones(NUM_GENES),
        components=torch.zeros(NUM_GENES, config.token_encoder),
        depth_mean=7.0,
        depth_std=0.5,
        parts=parts,
        targets=torch.full_like(parts, -1),
    )
    sizes = Sizes(NUM_GENES, NUM_BINS, NUM_PERTURBATIONS, NUM_CELL_TYPES)
    return Denoiser(config, sizes, initial)


def table() -> str:
    """Markdown table: parameters of the blocks, of the per-gene maps, and in all."""
    rows = [
        "| size | width | layers | heads | blocks | genes | total |",
        "|---|---|---|---|---|---|---|",
    ]
    for size, (width, layers, heads) in PRESETS.items():
        model = denoiser(size, 8)
        total = sum(parameter.numel() for parameter in model.parameters())
        blocks = sum(parameter.numel() for parameter in model.blocks.parameters())
        genes = sum(
            parameter.numel()
            for name, parameter in model.named_parameters()
            if name in ("token_map", "control_map", "head", "head_bias", "components")
        )
        numbers = " | ".join(f"{n / 1e6:.2f} M" for n in (blocks, genes, total))
        rows.append(f"| {size} | {width} | {layers} | {heads} | {numbers} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(table())
