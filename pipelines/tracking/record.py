"""What a folder remembers of its run: where it is tracked, and what MLflow still has to be told."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from pipelines.journal import now_ms
from pipelines.tracking.log import Log
from pipelines.tracking.store import redact
from sedd.errors import UsageError

RECORD_NAME = "tracking.json"
KEEPERS = ("train", "tune")  # the verbs whose run is that of the folder; others join it


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a folder remembers of a run, so that `sync` can find or make it and make it whole.

    Times are in milliseconds since 1970.
    """

    verb: str
    name: str
    experiment: str
    tracking_uri: str
    run_id: str | None
    status: str
    started_ms: int = field(default_factory=now_ms)
    ended_ms: int | None = None
    missing: Log = field(default_factory=Log)
    """What the driver logged and MLflow did not take yet; the journal's points come beside it."""

    def save(self, path: Path) -> None:
        """Write the file, without the credentials that an address may carry."""
        path.parent.mkdir(parents=True, exist_ok=True)
        entries = asdict(self) | {"tracking_uri": redact(self.tracking_uri)}
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)

    @classmethod
    def load(cls, path: Path) -> "Record":
        """Read the file.

        Raises:
            UsageError: There is none, or it is damaged.
        """
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            return cls(**content | {"missing": Log.from_json(content["missing"])})
        except (OSError, ValueError, TypeError, KeyError) as error:
            message = (
                f"{path.parent} holds no tracked run: {path.name} is missing or damaged. "
                "Give the folder that `train` or `tune` wrote as --experiment_dir."
            )
            raise UsageError(message) from error


class Ledger:
    """The record of a run on disk; every change is there before MLflow hears of it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def folder(self) -> Path:
        """The experiment directory."""
        return self.path.parent

    def read(self) -> Record | None:
        """The record, or None where there is none that can be read."""
        try:
            return Record.load(self.path)
        except UsageError:
            return None

    def change(self, changed: Callable[[Record], Record]) -> None:
        """Read, change and write the record, alone; nothing where there is no record."""
        from filelock import FileLock

        with FileLock(self.path.with_name(f".{self.path.stem}.lock"), timeout=60):
            if (record := self.read()) is not None:
                changed(record).save(self.path)

    def owe(self, log: Log) -> None:
        """Note what MLflow is to be told."""
        self.change(lambda record: replace(record, missing=record.missing + log))

    def settle(self, log: Log) -> None:
        """Note that MLflow took it."""
        self.change(lambda record: replace(record, missing=record.missing - log))


def ledger_of(folder: Path, verb: str) -> Ledger:
    """The ledger of the run that this verb has of its own in the folder."""
    return Ledger(folder / (RECORD_NAME if verb in KEEPERS else f"tracking-{verb}.json"))


def relative(path: Path, folder: Path | None) -> str:
    """The path from the folder, so that the folder may move; absolute where it lies elsewhere."""
    path = path.expanduser().resolve()
    inside = folder is not None and path.is_relative_to(folder)
    return str(path.relative_to(folder)) if inside and folder is not None else str(path)
