"""A checkpoint is one folder that explains itself.

    config.yaml            the resolved configuration
    vocabulary.json        genes, perturbations, cell types, batches, in order
    reference.safetensors  bins, control statistics, control cells, effects
    model.safetensors      weights
    average.safetensors    their exponential moving average: what generates
    optimizer.safetensors  AdamW's moments
    state.json             step, best validation NELBO, model, data and split digests, versions
    information_profile.json   what visible genes tell of the others; only where measured
    MANIFEST.json          the hash of each file

Nothing in it is ever executed on loading: tensors are safetensors, the rest is text.
"""

import hashlib
import json
import math
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sedd.building import build_contexts, build_denoiser
from sedd.data.reference import Reference
from sedd.diffusion.schedule import InformationProfile
from sedd.errors import StorageError
from sedd.model.config import ModelConfig
from sedd.model.inputs import Contexts
from sedd.model.transformer import Denoiser
from sedd.storage import file_digest, verify_folder, whole_folder
from sedd.training import TrainingState, start
from sedd.training_config import TrainingConfig

BEST = "best"
PROFILE = "information_profile.json"
STEP = re.compile(r"step_(\d{8})")


@dataclass(frozen=True)
class Trained:
    """A model that can generate: averaged weights and all they need."""

    denoiser: Denoiser
    contexts: Contexts
    reference: Reference
    digest: str
    """Hash of the averaged weights and the reference."""
    step: int
    profile: InformationProfile | None = None
    """Measured on validation cells at the end of training, if there were any."""


def save_checkpoint(
    root: Path,
    state: TrainingState,
    reference: Reference,
    *,
    config_yaml: str,
    provenance: Mapping[str, str],
    is_best: bool = False,
    keep: int = 2,
) -> Path:
    """Write `root/step_N`, keep the last `keep` and the best, and return the new folder.

    Older checkpoints are removed only after the new one was read back and verified.

    Raises:
        StorageError: The disk refuses; the checkpoints that were there stay.
    """
    folder = root / f"step_{state.step:08d}"
    for place in (folder, root / BEST) if is_best else (folder,):
        with whole_folder(place) as temporary:
            _write(temporary, state, reference, config_yaml, provenance)
    earlier = sorted((step for step in _steps(root) if step < state.step), reverse=True)
    for old in earlier[keep - 1 :]:
        shutil.rmtree(root / f"step_{old:08d}", ignore_errors=True)
    return folder


def save_profile(folder: Path, profile: InformationProfile) -> None:
    """Put the information profile into a checkpoint; the folder is replaced in one step.

    Raises:
        StorageError: The checkpoint is damaged or the disk refuses; it stays as it was.
    """
    verify_folder(folder)
    with whole_folder(folder) as temporary:
        shutil.copytree(folder, temporary, dirs_exist_ok=True)
        (temporary / PROFILE).write_text(profile.to_json(), encoding="utf-8")


def load_training(
    folder: Path,
    model: ModelConfig,
    training: TrainingConfig,
    *,
    device: torch.device | None = None,
) -> tuple[TrainingState, Reference]:
    """Everything needed to go on as if the run had never stopped.

    Raises:
        StorageError: The folder is damaged, or was written by a model of another shape.
    """
    saved = verified_counters(folder, model)
    reference = Reference.load(folder)
    denoiser, average = (build_denoiser(model, reference).to(device) for _ in range(2))
    denoiser.load_state_dict(load_file(folder / "model.safetensors"))
    state = start(denoiser, average, training)
    state.average.load_state_dict(load_file(folder / "average.safetensors"))
    _load_optimizer(state.optimizer, load_file(folder / "optimizer.safetensors"))
    state.step, state.since_best = saved["step"], saved["since_best"]
    state.best_nelbo = math.inf if saved["best_nelbo"] is None else saved["best_nelbo"]
    return state, reference


def load_trained(folder: Path, model: ModelConfig) -> Trained:
    """The averaged model of a checkpoint, ready to generate, on the CPU.

    Raises:
        StorageError: The folder is damaged, or was written by a model of another shape.
    """
    saved = verified_counters(folder, model)
    reference = Reference.load(folder)
    denoiser = build_denoiser(model, reference)
    denoiser.load_state_dict(load_file(folder / "average.safetensors"))
    names = ("average.safetensors", "reference.safetensors", "vocabulary.json")
    parts = [file_digest(folder / name) for name in names]
    digest = hashlib.sha256("".join(parts).encode()).hexdigest()
    denoiser.eval().requires_grad_(requires_grad=False)
    return Trained(
        denoiser,
        build_contexts(model, reference),
        reference,
        digest,
        saved["step"],
        _load_profile(folder / PROFILE),
    )


def newest_valid(root: Path, *, set_aside: bool = True) -> Path | None:
    """The newest checkpoint that verifies; damaged newer ones are renamed to `*.damaged`.

    With `set_aside=False` nothing is renamed, for processes that only look.
    """
    for step in sorted(_steps(root), reverse=True):
        folder = root / f"step_{step:08d}"
        try:
            verify_folder(folder)
        except StorageError:
            if not set_aside:
                continue
            aside = folder.with_name(folder.name + ".damaged")
            shutil.rmtree(aside, ignore_errors=True)
            folder.rename(aside)
        else:
            return folder
    return None


def rewind_to(root: Path, checkpoint: Path) -> None:
    """Make a checkpoint the newest of `root`: later ones are set aside as `*.superseded`.

    A checkpoint from elsewhere is copied in.

    Raises:
        StorageError: The checkpoint is damaged.
    """
    verify_folder(checkpoint)
    step = int(saved_counters(checkpoint)["step"])
    own = root / f"step_{step:08d}"
    if checkpoint.resolve() != own.resolve():
        with whole_folder(own) as temporary:
            shutil.copytree(checkpoint, temporary, dirs_exist_ok=True)
    later = [root / f"step_{found:08d}" for found in _steps(root) if found > step]
    if (root / BEST).is_dir() and int(saved_counters(root / BEST)["step"]) > step:
        later.append(root / BEST)
    for folder in later:
        aside = folder.with_name(f"{folder.name}.superseded")
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)


def saved_counters(checkpoint: Path) -> dict[str, Any]:
    """What `state.json` of a checkpoint says: step, digests of data and split, versions."""
    return json.loads((checkpoint / "state.json").read_text(encoding="utf-8"))


def has_checkpoints(root: Path) -> bool:
    """Whether any checkpoint stands in `root`."""
    return bool(_steps(root)) or (root / BEST).is_dir()


def best_or_newest(root: Path) -> Path:
    """What `generate` uses: the best checkpoint by validation, else the newest one."""
    if (root / BEST).is_dir():
        verify_folder(root / BEST)
        return root / BEST
    newest = newest_valid(root)
    if newest is None:
        raise StorageError(
            f"There is no checkpoint in {root}. Train first: python -m pipelines.train, "
            "or name the experiment with --experiment_dir."
        )
    return newest


def _steps(root: Path) -> list[int]:
    if not root.is_dir():
        return []
    matches = (STEP.fullmatch(path.name) for path in root.iterdir() if path.is_dir())
    return [int(match[1]) for match in matches if match]


def _write(
    folder: Path,
    state: TrainingState,
    reference: Reference,
    config_yaml: str,
    provenance: Mapping[str, str],
) -> None:
    reference.save(folder)
    (folder / "config.yaml").write_text(config_yaml, encoding="utf-8")
    save_file(_cpu(state.denoiser.state_dict()), folder / "model.safetensors")
    save_file(_cpu(state.average.state_dict()), folder / "average.safetensors")
    save_file(_cpu(_optimizer_tensors(state.optimizer)), folder / "optimizer.safetensors")
    counters = {
        "step": state.step,
        "best_nelbo": state.best_nelbo if math.isfinite(state.best_nelbo) else None,
        "since_best": state.since_best,
        "model": _shape(state.denoiser.config),
        "versions": {"torch": torch.__version__, "numpy": np.__version__},
        **provenance,
    }
    (folder / "state.json").write_text(json.dumps(counters, indent=1, ensure_ascii=False))


def _load_profile(path: Path) -> InformationProfile | None:
    return InformationProfile.from_json(path.read_text()) if path.is_file() else None


def _optimizer_tensors(optimizer: torch.optim.AdamW) -> dict[str, Tensor]:
    return {
        f"{index}.{name}": value
        for index, moments in optimizer.state_dict()["state"].items()
        for name, value in moments.items()
    }


def _load_optimizer(optimizer: torch.optim.AdamW, tensors: Mapping[str, Tensor]) -> None:
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(optimizer.state_dict() | {"state": moments})


def verified_counters(folder: Path, model: ModelConfig) -> dict[str, Any]:
    """Counters of an undamaged checkpoint, once it is sure that `model` is what it holds.

    Names are compared and not only tensors: weights of 4 heads fit 8 heads and mean nothing there.
    """
    verify_folder(folder)
    saved = json.loads((folder / "state.json").read_text())
    differences = [
        f"model.{name} {saved['model'].get(name)!r}, the configuration says {wanted!r}"
        for name, wanted in _shape(model).items()
        if saved["model"].get(name) != wanted
    ]
    if differences:
        message = (
            f"{folder} was written by another model: it has {'; '.join(differences)}. "
            "Use the experiment's own config.yaml."
        )
        raise StorageError(message)
    return saved


def _shape(model: ModelConfig) -> dict[str, Any]:
    """Every switch that the weights depend on."""
    content = asdict(model)
    del content["size"], content["dropout"], content["batch_dropout"]
    sizes = {"hidden_dim": model.width, "num_layers": model.layers, "num_heads": model.heads}
    return content | sizes


def _cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
