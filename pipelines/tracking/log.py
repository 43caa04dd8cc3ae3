"""What a driver tells MLflow of its run, as data: it can be kept until MLflow takes it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.command_line import warn
from pipelines.tracking import store as mlflow_store
from pipelines.tracking.faults import explain, is_refusal
from pipelines.tracking.store import Metric, RunRef

if TYPE_CHECKING:
    from mlflow import MlflowClient


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Cells that a verb read: `digest` is of their content, `context` e.g. training."""

    name: str
    digest: str
    source: str
    context: str


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file or folder that goes into the run's artifact folder `to` (None: the top)."""

    path: str
    to: str | None = None


@dataclass(frozen=True, kw_only=True)
class Log:
    """Parameters, tags, data sets, final numbers and files of a run; all empty by default."""

    params: Mapping[str, str] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    datasets: tuple[Dataset, ...] = ()
    metrics: tuple[Metric, ...] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    artifacts: tuple[Artifact, ...] = ()

    def __add__(self, newer: "Log") -> "Log":
        """Both; where they speak of the same thing, the newer one counts."""
        return Log(
            params={**self.params, **newer.params},
            tags={**self.tags, **newer.tags},
            datasets=tuple(dict.fromkeys((*self.datasets, *newer.datasets))),
            metrics=tuple({(m.key, m.step): m for m in (*self.metrics, *newer.metrics)}.values()),
            texts={**self.texts, **newer.texts},
            artifacts=tuple(dict.fromkeys((*self.artifacts, *newer.artifacts))),
        )

    def __sub__(self, taken: "Log") -> "Log":
        """What is left when MLflow took the other; what has changed since stays."""
        sent = {(m.key, m.step, m.timestamp_ms) for m in taken.metrics}
        return Log(
            params=_without(self.params, taken.params),
            tags=_without(self.tags, taken.tags),
            datasets=tuple(d for d in self.datasets if d not in taken.datasets),
            metrics=tuple(m for m in self.metrics if (m.key, m.step, m.timestamp_ms) not in sent),
            texts=_without(self.texts, taken.texts),
            artifacts=tuple(a for a in self.artifacts if a not in taken.artifacts),
        )

    def __bool__(self) -> bool:
        """Whether there is anything to tell."""
        return any(getattr(self, part.name) for part in fields(self))

    def pieces(self) -> Iterator["Log"]:
        """One of each kind, so that a piece that MLflow refuses takes no other with it."""
        for part in fields(self):
            if value := getattr(self, part.name):
                yield replace(Log(), **{part.name: value})

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Log":
        """The log that `dataclasses.asdict` and JSON made into plain data."""
        return cls(
            params=dict(content["params"]),
            tags=dict(content["tags"]),
            datasets=tuple(Dataset(**entry) for entry in content["datasets"]),
            metrics=tuple(Metric(**entry) for entry in content["metrics"]),
            texts=dict(content["texts"]),
            artifacts=tuple(Artifact(**entry) for entry in content["artifacts"]),
        )


def deliver(ref: RunRef, log: Log, *, folder: Path | None) -> None:
    """Bring a log to its run; doing it twice changes nothing.

    What MLflow will never take (a wrong value) is named in a warning and left out, as is a file
    that is gone.

    Args:
        ref: The run.
        log: What to tell it.
        folder: The folder that relative paths of artifacts start from.

    Raises:
        Exception: What MLflow's client raises where the server does not answer.
    """
    client = mlflow_store.connect(ref.tracking_uri)
    for piece in log.pieces():
        try:
            _send(client, ref.run_id, piece, folder or Path())
        except Exception as error:
            if not is_refusal(error):
                raise
            warn(f"MLflow refuses a record, which is left out: {explain(error)}.")


def _send(client: "MlflowClient", run_id: str, piece: Log, folder: Path) -> None:
    if piece.params:
        mlflow_store.send_params(client, run_id, piece.params)
    if piece.tags:
        mlflow_store.send_tags(client, run_id, piece.tags)
    for dataset in piece.datasets:
        mlflow_store.send_dataset(
            client,
            run_id,
            name=dataset.name,
            digest=dataset.digest,
            source=dataset.source,
            context=dataset.context,
        )
    # A metric keeps the moment at which it was logged, so MLflow knows a repetition.
    mlflow_store.send_metrics(client, run_id, piece.metrics)
    for name, text in piece.texts.items():
        client.log_text(run_id, text, name)
    for artifact in piece.artifacts:
        _send_files(client, run_id, folder / artifact.path, artifact.to)


def _send_files(client: "MlflowClient", run_id: str, path: Path, to: str | None) -> None:
    if path.is_dir():
        client.log_artifacts(run_id, str(path), to)
    elif path.exists():
        client.log_artifact(run_id, str(path), to)
    else:
        warn(f"{path} is gone, so MLflow will not show it.")


def _without(there: Mapping[str, str], taken: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in there.items() if taken.get(name) != value}
