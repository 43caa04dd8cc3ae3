"""How evaluated cells were generated, and the commands that do everything again.

What stands in the experiment's config.yaml needs no flag; what was asked beside it does.
"""

import dataclasses
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.generate import CELLS, RECORD, SETTINGS
from sedd.config import Config
from sedd.errors import UsageError
from sedd.flags import FLAGS
from sedd.inference import InferenceConfig

if TYPE_CHECKING:
    from pipelines.fanout import Source
    from sedd.data.vocabulary import Vocabulary

FLAG_OF = {flag.key: flag.name for flag in FLAGS}


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """What `evaluate` was asked, and how the cells that it scores were generated."""

    config: Config
    experiment: Config
    """What the experiment was trained with; `config` is that under what `evaluate` was asked."""
    drawn: tuple[InferenceConfig, ...]
    """One for all cell types whose cells were generated alike; they differ in number of cells and
    perturbations alone."""
    generated: Path
    """Where the generated cells are."""
    flags: tuple[str, ...] = ()
    """Flags of `evaluate` that stand for no key of a configuration."""

    @property
    def how(self) -> InferenceConfig:
        """The settings that all generated cells share."""
        return self.drawn[0]


def folder_of(generated: Path, vocabulary: "Vocabulary", cell_type: str) -> Path:
    """Where `generate` puts the cells of a type."""
    from sedd.storage import folder_names

    return generated / f"celltype_{folder_names(list(vocabulary.cell_types))[cell_type]}"


def read_how_generated(
    generated: Path,
    cell_types: Iterable[str],
    vocabulary: "Vocabulary",
    source: "Source",
    base: InferenceConfig,
) -> tuple[InferenceConfig, ...]:
    """What the records beside the generated cells say, for each cell type or several alike.

    Args:
        generated: Where the cells are.
        cell_types: Those whose cells are wanted.
        vocabulary: Of the model.
        source: The model.
        base: The section of the experiment; it stands where a record says nothing.

    Raises:
        UsageError: Cells are not there, are of another model, or were not generated alike.
    """
    alike: dict[InferenceConfig, list[str]] = {}
    for cell_type in dict.fromkeys(cell_types):
        record = _read_record(folder_of(generated, vocabulary, cell_type), cell_type, source)
        how = _how(record, base, vocabulary.perturbations[1:])
        alike.setdefault(how, []).append(cell_type)
    _require_equal_settings(generated, alike)
    return tuple(replace(how, cell_types=tuple(labels)) for how, labels in alike.items())


def evaluate_command(evaluated: Evaluated) -> str:
    """The command that does this evaluation again, from the folder where it was done."""
    config, experiment = evaluated.config, evaluated.experiment
    folder = Path(config.experiment_dir)
    words = ["--experiment_dir", _shown(folder)]
    if config.checkpoint_dir != experiment.checkpoint_dir:
        words += ["--checkpoint_dir", _shown(config.checkpoints)]
    if evaluated.generated != folder / "inference_results":
        words += ["--generated_dir", _shown(evaluated.generated)]
    words += [*overrides(experiment, config, "data"), *overrides(experiment, config, "inference")]
    return _command("evaluate", *words, *evaluated.flags)


def train_command(config: Config, *changes: str) -> str:
    """The command that trains again, in a folder beside the experiment.

    Args:
        config: What the experiment was trained with.
        changes: Flags for what shall be otherwise.
    """
    folder = _shown(Path(config.experiment_dir))
    words = ["--config", f"{folder}/config.yaml", "--experiment_dir", f"{folder}_again", *changes]
    if config.checkpoint_dir is not None:
        words += ["--checkpoint_dir", f"{folder}_again/checkpoints"]
    if Path(config.resume or "auto").is_relative_to(config.checkpoints):
        words += ["--set", "resume=null"]  # a checkpoint on its own way, which may be gone by now
    return _command("train", *words)


def repeat_commands(evaluated: Evaluated) -> tuple[str, ...]:
    """The commands that train, generate and evaluate again, in a folder beside the experiment."""
    config, experiment = evaluated.config, evaluated.experiment
    there = ["--experiment_dir", f"{_shown(Path(config.experiment_dir))}_again"]
    drawn = [replace(experiment, inference=how) for how in evaluated.drawn]
    return (
        train_command(experiment, *overrides(experiment, config, "data")),
        *(_command("generate", *there, *overrides(experiment, how, "inference")) for how in drawn),
        _command("evaluate", *there, *overrides(experiment, config, "inference"), *evaluated.flags),
    )


def overrides(base: Config, asked: Config, section: str) -> list[str]:
    """Flags that give one section of `base` the values of `asked`."""
    words: list[str] = []
    there, wanted = getattr(base, section), getattr(asked, section)
    for name in (field.name for field in dataclasses.fields(wanted)):
        value = getattr(wanted, name)
        if value == getattr(there, name):
            continue
        key = f"{section}.{name}"
        texts = [_text(item) for item in (value if isinstance(value, tuple) else (value,))]
        if key in FLAG_OF and value not in (None, ()) and all(map(_is_one_plain_word, texts)):
            words += [f"--{FLAG_OF[key]}", *texts]
        else:
            words += ["--set", f"{key}={json.dumps(value, ensure_ascii=False)}"]
    return words


def _read_record(folder: Path, cell_type: str, source: "Source") -> Mapping[str, Any]:
    command = f"python -m pipelines.generate --cell_types {shlex.quote(cell_type)}"
    if not (folder / CELLS).is_file():
        message = f"{folder / CELLS} is not there. Generate it first: {command}."
        raise UsageError(message)
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    if record["model_digest"] != source.digest:
        message = (
            f"{folder / CELLS} was generated by another model than {source.checkpoint}. Generate "
            f"again: {command} --overwrite."
        )
        raise UsageError(message)
    return record


def _how(
    record: Mapping[str, Any], base: InferenceConfig, treated: Sequence[str]
) -> InferenceConfig:
    """The settings of a record; perturbations only if they are not those that it would be anyway.

    Records of earlier commits do not have all settings.
    """
    counts: Mapping[str, int] = record["cells_per_perturbation"]
    by_default = set(counts) == set(base.perturbations or treated)
    return replace(
        base,
        **{name: record[name] for name in SETTINGS if name in record},
        perturbations=base.perturbations if by_default else tuple(counts),
        num_samples_per_condition=max(counts.values()),
    )


def _require_equal_settings(
    generated: Path, alike: Mapping[InferenceConfig, Sequence[str]]
) -> None:
    """Refuse to score cells together that were drawn in different ways."""
    (first, labels), *others = alike.items()
    for how, other in others:
        different = [name for name in SETTINGS if getattr(how, name) != getattr(first, name)]
        if different:
            told = ", ".join(
                f"inference.{name} is {getattr(first, name)!r} for {labels[0]!r} and "
                f"{getattr(how, name)!r} for {other[0]!r}"
                for name in different
            )
            names = shlex.join(name for each in alike.values() for name in each)
            message = (
                f"The cells in {generated} were not generated alike: {told}. Generate them with "
                f"the same settings: python -m pipelines.generate --cell_types {names} --overwrite."
            )
            raise UsageError(message)


def _command(verb: str, *words: str) -> str:
    return f"python -m pipelines.{verb} {shlex.join(words)}"


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _is_one_plain_word(text: str) -> bool:
    """Whether a flag takes the text as it stands: no option, no YAML list, on one line."""
    return text.isprintable() and not text.lstrip().startswith(("-", "[")) and bool(text.strip())


def _shown(path: Path) -> str:
    """The path from the current folder, if it is inside."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
