"""Plain facts about a run: its configuration as parameters, the commit it was made from."""

import json
import re
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipelines.tracking.store import MAX_PARAM_LENGTH, metric_key, redact

SECRET = re.compile(r"password|passwd|secret|credential|(?:api|access|auth|refresh)_?(?:key|token)")


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
    if SECRET.search(name.lower()):
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
