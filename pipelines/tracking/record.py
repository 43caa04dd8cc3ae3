"""Plain facts about a run: what its folder remembers of it, its parameters, its commit."""

import json
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipelines.tracking.store import MAX_PARAM_LENGTH, metric_key, redact
from sedd.errors import UsageError

RECORD_NAME = "tracking.json"
SECRET_WORDS = ("password", "secret", "token", "credential")


@dataclass(frozen=True, kw_only=True)
class Record:
    """What an experiment directory remembers of its run, so that `sync` can find or make it."""

    verb: str
    name: str
    experiment: str
    tracking_uri: str
    run_id: str | None
    status: str

    def save(self, folder: Path) -> None:
        """Write `tracking.json`, without the credentials that an address may carry."""
        folder.mkdir(parents=True, exist_ok=True)
        entries = asdict(self) | {"tracking_uri": redact(self.tracking_uri)}
        temporary = folder / f".{RECORD_NAME}.tmp"
        temporary.write_text(json.dumps(entries, indent=2) + "\n")
        temporary.replace(folder / RECORD_NAME)

    @classmethod
    def load(cls, folder: Path) -> "Record":
        """Read `tracking.json`.

        Raises:
            UsageError: The folder has none.
        """
        try:
            return cls(**json.loads((folder / RECORD_NAME).read_text()))
        except (OSError, ValueError, TypeError) as error:
            message = (
                f"{folder} holds no tracked run: {RECORD_NAME} is missing or damaged. "
                "Give the folder that `train` wrote as --experiment_dir."
            )
            raise UsageError(message) from error


def flat_params(config: Mapping[str, Any]) -> dict[str, str]:
    """A config as MLflow parameters: `cfg.section.key` to text.

    The prefix keeps them apart from the parameters that `mlflow run` logs as they were typed.
    """
    return {
        metric_key(f"cfg.{name}"): _as_text(name, value)[:MAX_PARAM_LENGTH]
        for name, value in _leaves(config, "")
    }


def git_commit() -> str | None:
    """The commit of this checkout, with `+changes` where files differ from it; None outside git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    return f"{commit}+changes" if _git(root, "status", "--porcelain") else commit


def _leaves(config: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _as_text(name: str, value: Any) -> str:
    if any(word in name.lower() for word in SECRET_WORDS):
        return "***"
    return redact(value if isinstance(value, str) else json.dumps(value, default=str))


def _git(root: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()
