"""What a training cost, from its journal and its configuration."""

import pytest
import torch

from pipelines.cost import peak_memory, training_cost
from pipelines.experiment import load_cells, shards_for, split_cells
from pipelines.journal import Point
from tests.tiny_experiment import tiny_config, tiny_experiment
from tests.worlds import tiny_cells


def step(number: int, *, seconds: float, batch: int) -> Point:
    metrics = {"train/cells_seen": float(number * batch), "speed/cells_per_s": batch / seconds}
    return Point(step=number, timestamp_ms=number, metrics=metrics)


def test_cost_is_parameters_cells_and_seconds(tmp_path):
    from safetensors.torch import load_file

    config = tiny_experiment(tmp_path, tiny_cells(), tiny_config(tmp_path))
    cells = load_cells(config)
    shards = shards_for(config, cells, split_cells(config, cells))
    batch = config.training.batch_size
    points = [step(1, seconds=3.0, batch=batch), step(2, seconds=0.5, batch=batch)]

    cost = training_cost(config, shards, points)

    moments = load_file(config.checkpoints / "step_00000006" / "optimizer.safetensors")
    trained = sum(t.numel() for name, t in moments.items() if name.endswith("exp_avg"))
    assert cost["n_params"] == trained
    assert cost["cells_seen"] == 2 * batch
    assert cost["wall_s"] == pytest.approx(3.5)
    assert training_cost(config, shards, [])["wall_s"] == 0


def test_memory_of_a_gpu_is_told_only_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 2_500_000_000)

    on_cpu = peak_memory(torch.device("cpu"))
    on_gpu = peak_memory(torch.device("cuda:0"))

    assert set(on_cpu) == {"system/host_memory_gb"}
    assert on_gpu["system/gpu_memory_gb"] == 2.5
    before = torch.ones(40_000_000)  # 0.16 GB, touched
    assert peak_memory(torch.device("cpu"))["system/host_memory_gb"] >= 0.16
    assert before.sum() == 40_000_000
