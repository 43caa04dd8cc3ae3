"""One file, the environment and flags become one frozen `Config`, once.

A flag beats the environment, the environment beats the file, the file beats the defaults. Every
mistake is reported at once, unknown keys with the nearest valid one. Nothing else in the project
reads the environment for a setting or parses YAML.
"""

import dataclasses
import difflib
import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from sedd.data.choices import DataConfig
from sedd.data.splits import SplitConfig
from sedd.errors import ConfigError
from sedd.flags import FLAGS
from sedd.inference import InferenceConfig
from sedd.model.config import ModelConfig
from sedd.training_config import TrainingConfig

MAX_BYTES = 1 << 20
"""Largest configuration file that is read."""


@dataclass(frozen=True, kw_only=True)
class ScalingConfig:
    """How many processes share the work."""

    __pydantic_config__ = {"extra": "forbid"}

    num_workers: int = 1
    """Training workers; they share each batch."""
    use_gpu: bool = False
    """Give every training worker and generating actor a GPU."""
    num_actors: int = 2
    """Processes that generate."""
    cpus_per_worker: float = 1.0
    """CPUs of each worker and actor."""
    gpus_per_actor: float = 1.0
    """GPUs of each generating actor, when use_gpu is set."""

    def __post_init__(self) -> None:
        """Check what the types cannot say."""
        names = ("num_workers", "num_actors", "cpus_per_worker", "gpus_per_actor")
        problems = [
            f"scaling.{name} is {getattr(self, name)}, wanted more than 0."
            for name in names
            if not getattr(self, name) > 0
        ]
        if problems:
            raise ValueError("\n  ".join(problems))


@dataclass(frozen=True, kw_only=True)
class Config:
    """Everything a verb needs to know, and what is written beside its results."""

    __pydantic_config__ = {"extra": "forbid"}

    data: DataConfig = field(default_factory=DataConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    scaling: ScalingConfig = field(default_factory=ScalingConfig)
    experiment_dir: str = "experiments/default"
    """Where everything of this experiment is written."""
    checkpoint_dir: str | None = None
    """Where checkpoints are written; null is experiment_dir/checkpoints."""
    resume: str | None = None
    """auto takes the newest valid checkpoint, a path takes that one, null starts afresh."""

    def __post_init__(self) -> None:
        """Check what one section cannot say alone."""
        path, dropout = self.data.celltype_labels_pt_path, self.model.cell_type_label_dropout
        if path is not None and not dropout < 1:
            message = (
                f"data.celltype_labels_pt_path is {path!r}, but model.cell_type_label_dropout is "
                f"{dropout}, so the model is told no cell-type label and would not read the file; "
                "set e.g. model.cell_type_label_dropout=0.1 to use it, or leave it out."
            )
            raise ValueError(message)

    def to_yaml(self) -> str:
        """Text that `from_yaml` reads back."""
        return yaml.safe_dump(_plain(dataclasses.asdict(self)), sort_keys=False, allow_unicode=True)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return Path(self.checkpoint_dir or Path(self.experiment_dir) / "checkpoints")

    def with_absolute_paths(self, folder: Path) -> "Config":
        """The same with every path made absolute: workers run in folders of their own."""

        def absolute(path: str | None) -> str | None:
            return None if path is None else str((folder / Path(path).expanduser()).resolve())

        names = ("train_data_path", "gene_list", "cond_labels_pt_path", "celltype_labels_pt_path",
                 "prepared_dir")  # fmt: skip
        data = replace(self.data, **{name: absolute(getattr(self.data, name)) for name in names})
        return replace(
            self,
            data=data,
            experiment_dir=str(absolute(self.experiment_dir)),
            checkpoint_dir=absolute(self.checkpoint_dir),
            resume=self.resume if self.resume in (None, "auto") else absolute(self.resume),
        )


def resolve(
    *,
    file: Path | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
    settings: Sequence[str] = (),
    base: Config | None = None,
) -> Config:
    """Merge defaults (or `base`), file, environment, flags and `key=value` settings, in order.

    Args:
        file: YAML file, or None.
        environment: Usually os.environ; the names in `FLAGS` are looked up.
        flags: Value of each flag by name; None and empty strings count as not given.
        settings: Texts such as "model.dropout=0.1"; the value is YAML.
        base: What an experiment was trained with, instead of the defaults.

    Raises:
        ConfigError: Lists every mistake with the nearest valid key.
    """
    content: dict[str, Any] = {} if base is None else _plain(dataclasses.asdict(base))
    _merge(content, read_yaml(file) if file is not None else {})
    environment, flags = environment or {}, flags or {}
    for flag in FLAGS:
        if flag.env is not None and environment.get(flag.env):
            _put(content, flag.key, environment[flag.env])
    for flag in FLAGS:
        if flags.get(flag.name) not in (None, "", [], (), [""]):
            _put(content, flag.key, flags[flag.name])
    for text in settings:
        _put(content, *_setting(text))
    return from_dict(content, source=str(file) if file else "the configuration")


def from_yaml(text: str, *, source: str = "the configuration") -> Config:
    """Read the text of one configuration; ConfigError lists every mistake."""
    return from_dict(_parse(text, source), source=source)


def from_dict(content: Mapping[str, Any], *, source: str) -> Config:
    """Check plain values; ConfigError lists every mistake with the nearest valid key."""
    try:
        return _checker().validate_python(content)
    except ValidationError as error:
        lines = "\n".join(f"  {_explain(dict(item))}" for item in error.errors())
        raise ConfigError(f"{source} is not a valid configuration:\n{lines}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    """Sections and keys of a YAML file; ConfigError if it is missing, huge or not plain data."""
    if not path.is_file():
        near = sorted(str(other) for other in path.parent.glob("*.yaml"))
        raise ConfigError(f"{path} does not exist. YAML files beside it: {near or 'none'}.")
    if path.stat().st_size > MAX_BYTES:
        raise ConfigError(f"{path} has {path.stat().st_size} bytes; a configuration is small.")
    try:
        return _parse(path.read_text(encoding="utf-8"), str(path))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not text in UTF-8: {error}.") from error


@functools.cache
def _checker() -> Any:  # beartype knows no TypeAdapter[Config]
    return TypeAdapter(Config)


class _Loader(yaml.SafeLoader):
    """Plain YAML: no tags that build objects, no repeated keys, no aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not used in configurations")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:  # noqa: FBT001, FBT002
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        repeated = sorted({str(key) for key in keys if keys.count(key) > 1})
        if repeated:
            raise yaml.YAMLError(f"keys given twice: {repeated}{node.start_mark}")
        return super().construct_mapping(node, deep)


def _parse(text: str, source: str) -> dict[str, Any]:
    content = _load(text, source)
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigError(f"{source} holds {type(content).__name__}, wanted sections with keys.")
    return {str(key): value for key, value in content.items() if value is not None}


def _setting(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {text!r} is not of the form section.key=value.")
    return key.strip(), _load(value, f"the value of --set {key.strip()}")


def _load(text: str, source: str) -> Any:
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise ConfigError(f"{source} is nested too deeply for a configuration.") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2024-13-45
        raise ConfigError(f"{source} is not plain YAML: {error}") from error


def _put(content: dict[str, Any], key: str, value: object) -> None:
    *sections, name = key.split(".")
    for section in sections:
        inner = content.setdefault(section, {})
        if not isinstance(inner, dict):
            raise ConfigError(f"{key!r}: {section!r} is a value, not a section.")
        content = inner
    content[name] = value


def _merge(content: dict[str, Any], update: Mapping[str, Any]) -> None:
    for key, value in update.items():
        if isinstance(value, dict) and isinstance(content.get(key), dict):
            content[key] |= value
        else:
            content[key] = value


def _explain(error: Mapping[str, Any]) -> str:
    location = [str(part) for part in error["loc"]]
    # Behind section and key come positions in a list, and pydantic's names for types.
    key = ".".join(location[:2] + [part for part in location[2:] if part.isdigit()])
    if error["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        elsewhere = {
            name: f"{section}.{name}" for section in _sections() for name in _keys([section])
        }
        near = difflib.get_close_matches(location[-1], _keys(location[:-1]), n=1)
        near = near or [
            elsewhere[n] for n in difflib.get_close_matches(location[-1], elsewhere, n=1)
        ]
        return f"{key}: no such key." + (f" Did you mean {near[0]!r}?" if near else "")
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return message.rstrip(".") + "."
    return f"{key}: {message}, got {error['input']!r}."


def _sections() -> Iterable[str]:
    return [f.name for f in dataclasses.fields(Config) if dataclasses.is_dataclass(f.type)]


def _keys(location: Sequence[str]) -> list[str]:
    types = {f.name: f.type for f in dataclasses.fields(Config)}
    owner = types.get(location[0]) if location else Config
    if isinstance(owner, type) and dataclasses.is_dataclass(owner):
        return [f.name for f in dataclasses.fields(owner)]
    return []


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, tuple | list) else value
