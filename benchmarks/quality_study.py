"""A quality study: which folds, seeds and variants of a configuration are compared."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from pipelines.experiment import load_cells
from sedd.config import Config, from_dict, from_yaml, read_yaml
from sedd.data.cells import Cells
from sedd.data.splits import SplitConfig
from sedd.errors import ConfigError, DataError
from sedd.inference import InferenceConfig
from sedd.storage import file_digest

ROOT = Path(__file__).resolve().parents[1]

TRAINING = (
    "sedd/data", "sedd/diffusion", "sedd/model", "sedd/building.py", "sedd/preparation.py",
    "sedd/training.py",
)  # fmt: skip
"""Sources that shape a trained model; models of other sources are trained anew."""

SHAPING = (*TRAINING, "sedd/generation.py", "sedd/inference.py", "sedd/laws.py")
"""Sources that shape a prediction; predictions of other sources are made anew."""

VECTOR_FILES = ("cond_labels_pt_path", "celltype_labels_pt_path")


@dataclass(frozen=True, kw_only=True)
class Published:
    """Figures that others printed; on other cells and with other code, so never mixed with ours.

    Attributes:
        source: Where they are from, and in what they differ from ours.
        metrics: Names of scores, as in `sedd.evaluation.metrics.Scores`.
        methods: The figures of each method, in the order of `metrics`.
    """

    __pydantic_config__ = {"extra": "forbid"}

    source: str
    metrics: tuple[str, ...]
    methods: dict[str, tuple[float, ...]]


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a YAML file of `benchmarks/configs` says.

    Attributes:
        name: Name of the study; part of its file names.
        question: What it asks, a sentence for the head of its table.
        folds: cell_types holds out one cell type after the other, pairs one third of all (cell
            type, perturbation) pairs after the other, perturbations the lists in `held_out`.
        held_out: Cell types to hold out in turn (all of them if empty), or lists of perturbations.
        only: Cell types of the file that take part, in training too (all of them if empty).
        merged: New names of cell types, each for several of the file that go under one label.
        min_cells: Conditions with fewer control or perturbed cells are not scored.
        seeds: Seeds of weights, order, noise and sampling.
        cells_per_condition: Most cells that are generated for a condition, and never more than
            there are control cells to start from.
        config: Sections of a configuration, as in `configs/`.
        variants: Changes of `config` by name; the first is the model the others are held against.
        targets: What the first variant should reach, names of `benchmarks.quality_targets`.
        published: Figures of other methods on the same question, from elsewhere.
        caution: What was chosen looking at these folds, for the head of every table of them.
    """

    __pydantic_config__ = {"extra": "forbid"}

    name: str
    question: str
    folds: Literal["cell_types", "pairs", "perturbations"]
    held_out: tuple[str | tuple[str, ...], ...] = ()
    only: tuple[str, ...] = ()
    merged: dict[str, tuple[str, ...]] = field(default_factory=dict)
    min_cells: int = 40
    seeds: tuple[int, ...] = (0, 1, 2)
    cells_per_condition: int = 400
    config: dict[str, dict[str, Any]]
    variants: dict[str, dict[str, dict[str, Any]]]
    targets: tuple[str, ...] = ()
    published: Published | None = None
    caution: str | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError where there is nothing to run."""
        if not self.seeds or not self.variants:
            raise ConfigError(f"Study {self.name!r} has no seeds or no variants; give one of each.")


@dataclass(frozen=True)
class Job:
    """One training and all that is predicted from it."""

    study: str
    variant: str
    fold: str
    config: Config
    conditions: tuple[tuple[str, str], ...]
    cells_per_condition: int
    only: tuple[str, ...]
    merged: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """Seed of the training."""
        return self.config.training.seed

    def key(self, data_digest: str) -> str:
        """Hash of all that fixes the prediction: configuration, data, sources."""
        return self._hash(
            self.config, data_digest, source_digest(), self.conditions, self.cells_per_condition
        )

    def training_key(self, data_digest: str) -> str:
        """Hash of all that fixes the trained model, which jobs may share."""
        config = replace(self.config, inference=InferenceConfig())
        return self._hash(config, data_digest, digest_of(TRAINING))

    def _hash(self, config: Config, data_digest: str, sources: str, *more: object) -> str:
        vectors = [_maybe_digest(getattr(config.data, name)) for name in VECTOR_FILES]
        # Files count by what they hold, wherever they lie.
        nowhere = dict.fromkeys(("train_data_path", *VECTOR_FILES))
        text = replace(config, data=replace(config.data, **nowhere)).to_yaml()
        fixed = [text, self.only, data_digest, vectors, sources, *more]
        fixed += [self.merged] if self.merged else []
        return hashlib.sha256(json.dumps(fixed).encode()).hexdigest()[:16]


def read_study(path: Path) -> Study:
    """Read a study; ConfigError lists what is wrong with it."""
    try:
        return TypeAdapter(Study).validate_python(read_yaml(path))
    except ValidationError as error:
        raise ConfigError(f"{path} is not a quality study: {error}") from error


def load_job_cells(
    config: Config, only: Sequence[str], merged: Mapping[str, Sequence[str]] | None = None
) -> Cells:
    """The cells of the types that take part, several under one label where they are merged.

    Raises:
        DataError: The file cannot be learned from, or has no such type.
    """
    cells = load_cells(config)
    names = {name: new for new, types in (merged or {}).items() for name in types}
    missing = sorted({*only, *names} - set(cells.cell_type))
    if missing:
        raise DataError(
            f"{config.data.train_data_path} has no cells of {missing}; see `only` and `merged`."
        )
    cells = cells.select(np.isin(cells.cell_type, only)) if only else cells
    labels = np.array([names.get(name, name) for name in cells.cell_type], dtype=object)
    return replace(cells, cell_type=labels) if names else cells


def plan(study: Study, cells: Cells, data_dir: Path) -> Iterator[Job]:
    """Every job of the study, the seeds of the first variant first."""
    folds = list(_folds(study, cells))
    empty = [fold for fold, _, conditions in folds if not conditions]
    if empty or not folds:
        which = f"nothing to score in the folds {empty}" if empty else "there is no fold"
        raise DataError(
            f"Study {study.name!r}: {which}; no condition has {study.min_cells} control and "
            "perturbed cells. Lower min_cells or name other labels in held_out."
        )
    for variant in study.variants:
        for seed in study.seeds:
            for fold, split, conditions in folds:
                config = replace(
                    configure(study, variant, seed=seed, data_dir=data_dir), split=split
                )
                yield Job(
                    study.name, variant, fold, config, conditions, study.cells_per_condition,
                    study.only, study.merged,
                )  # fmt: skip


def configure(study: Study, variant: str, *, seed: int, data_dir: Path) -> Config:
    """The configuration of a variant, with the files of cells and vectors in `data_dir`."""
    content = {section: dict(values) for section, values in study.config.items()}
    for section, values in study.variants[variant].items():
        content[section] = content.get(section, {}) | values
    config = from_dict(content, source=f"study {study.name}, variant {variant}")
    if config.data.train_data_path is None:
        raise ConfigError(f"study {study.name} names no config.data.train_data_path.")
    named = {name: getattr(config.data, name) for name in ("train_data_path", *VECTOR_FILES)}
    files = {name: str(data_dir / path) for name, path in named.items() if path is not None}
    return replace(
        config,
        data=replace(config.data, **files),
        training=replace(config.training, seed=seed),
        inference=replace(config.inference, seed=seed),
    )


def source_digest() -> str:
    """Hash of the sources that shape a prediction."""
    return digest_of(SHAPING)


def digest_of(sources: Sequence[str]) -> str:
    """Hash of files and of all Python files in folders, by their names in the repository."""
    digest = hashlib.sha256()
    for name in sources:
        path = ROOT / name
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return digest.hexdigest()


def job_to_json(job: Job) -> str:
    """Text that `job_from_json` reads back."""
    content = {
        "study": job.study,
        "variant": job.variant,
        "fold": job.fold,
        "config": job.config.to_yaml(),
        "conditions": job.conditions,
        "cells_per_condition": job.cells_per_condition,
        "only": job.only,
        "merged": dict(job.merged),
    }
    return json.dumps(content, ensure_ascii=False, indent=1)


def job_from_json(text: str) -> Job:
    """Read what `job_to_json` wrote."""
    content: Mapping[str, Any] = json.loads(text)
    return Job(
        content["study"],
        content["variant"],
        content["fold"],
        from_yaml(content["config"]),
        tuple((cell_type, perturbation) for cell_type, perturbation in content["conditions"]),
        content["cells_per_condition"],
        tuple(content["only"]),
        {name: tuple(types) for name, types in content.get("merged", {}).items()},
    )


def _maybe_digest(path: str | None) -> str | None:
    return file_digest(Path(path)) if path is not None and Path(path).is_file() else path


def _folds(
    study: Study, cells: Cells
) -> Iterator[tuple[str, SplitConfig, tuple[tuple[str, str], ...]]]:
    """Name, split and scored conditions of each fold."""
    control = study.config.get("data", {}).get("control_name", "control")
    conditions = _large_conditions(cells, control, study.min_cells)
    if study.folds == "cell_types":
        for name in study.held_out or sorted({cell_type for cell_type, _ in conditions}):
            held_out = tuple(c for c in conditions if c[0] == name)
            split = SplitConfig(kind="unseen_cell_type", cell_types=(str(name),))
            yield str(name), split, held_out
    elif study.folds == "pairs":
        for number, held_out in enumerate(_thirds(conditions)):
            if held_out:
                split = SplitConfig(kind="unseen_pair", pairs=held_out)
                yield f"third {number + 1}", split, held_out
    else:
        for names in study.held_out:
            names = (names,) if isinstance(names, str) else tuple(names)
            held_out = tuple(c for c in conditions if c[1] in names)
            split = SplitConfig(kind="unseen_perturbation", perturbations=names)
            yield ", ".join(names[:3]) + (", …" if len(names) > 3 else ""), split, held_out


def _large_conditions(cells: Cells, control: str, least: int) -> list[tuple[str, str]]:
    labels = list(zip(cells.cell_type, cells.perturbation, strict=True))
    names, counts = np.unique(np.array(labels, dtype=str), axis=0, return_counts=True)
    size = {(str(t), str(p)): int(n) for (t, p), n in zip(names, counts, strict=True)}
    return [
        (cell_type, perturbation)
        for (cell_type, perturbation), number in sorted(size.items())
        if perturbation != control and min(number, size.get((cell_type, control), 0)) >= least
    ]


def _thirds(conditions: Sequence[tuple[str, str]]) -> list[tuple[tuple[str, str], ...]]:
    """Each pair in one third; none holds out all of several types that show a perturbation."""
    thirds: list[list[tuple[str, str]]] = [[], [], []]
    for number, name in enumerate(sorted({perturbation for _, perturbation in conditions})):
        types = sorted(cell_type for cell_type, perturbation in conditions if perturbation == name)
        for place, cell_type in enumerate(types):
            thirds[(place + number) % 3].append((cell_type, name))
    return [tuple(sorted(third)) for third in thirds]
