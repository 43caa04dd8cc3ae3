"""What a training cost: size, cells, seconds and memory, so that quality can be set against it."""

import resource
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.journal import Point
from sedd.config import Config

if TYPE_CHECKING:
    import torch


def training_cost(config: Config, shards: Path, points: Iterable[Point]) -> dict[str, float]:
    """Numbers of a training so far, under the names that MLflow shows.

    `n_params` counts trained numbers, `cells_seen` the cells of all steps. `wall_s` are the seconds
    that the steps of the journal took, with validations and checkpoints, over all attempts;
    start-ups, and steps that a crash took back, are left out.

    Args:
        config: What was trained.
        shards: Folder of the token shards.
        points: The journal.
    """
    from pipelines.experiment import load_shards
    from sedd.building import build_denoiser

    denoiser = build_denoiser(config.model, load_shards(shards).reference)
    steps = [point.metrics for point in points if "speed/cells_per_s" in point.metrics]
    batch = config.training.batch_size
    return {
        "n_params": float(sum(parameter.numel() for parameter in denoiser.parameters())),
        "cells_seen": max((step["train/cells_seen"] for step in steps), default=0.0),
        "wall_s": sum(batch / step["speed/cells_per_s"] for step in steps),
    }


def peak_memory(device: "torch.device") -> dict[str, float]:
    """Most memory that this process has held, in GB (1e9 bytes); of the GPU only where it is one.

    Args:
        device: Where the process computes.
    """
    import torch

    unit = 1 if sys.platform == "darwin" else 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    figures = {"system/host_memory_gb": peak / 1e9}
    if device.type == "cuda":
        figures["system/gpu_memory_gb"] = torch.cuda.max_memory_allocated(device) / 1e9
    return figures
