"""Which MLflow run a verb writes to: the given one, the folder's, or a new one."""

import getpass
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.tracking import store as mlflow_store
from pipelines.tracking.facts import git_commit
from pipelines.tracking.record import KEEPERS
from pipelines.tracking.store import RunRef, Store
from sedd.errors import UsageError

if TYPE_CHECKING:
    from mlflow import MlflowClient

TAG_VERB = "sedd.verb"
TAG_KEY = "sedd.experiment_key"
TAG_PARENT = "mlflow.parentRunId"


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a verb's run comes from."""

    verb: str
    name: str
    folder: Path | None
    given_id: str | None
    parent: RunRef | None

    @property
    def tags(self) -> dict[str, str]:
        """Where the run belongs, as MLflow tags."""
        tags = folder_tags(self.folder) if self.folder is not None else {}
        return tags | ({TAG_PARENT: self.parent.run_id} if self.parent else {})


@dataclass(frozen=True, kw_only=True)
class Claim:
    """The run that a verb writes to, and whether the run's status is its own to set."""

    ref: RunRef
    owned: bool


def claim_run(store: Store, origin: Origin) -> Claim:
    """Find the run or make it, and mark it RUNNING if its status is this verb's to set.

    Raises:
        UsageError: MLFLOW_RUN_ID names a run that the store does not hold.
        TrackingUnavailableError: The server stopped answering.
    """
    with mlflow_store.opening(store.tracking_uri):
        client = mlflow_store.connect(store.tracking_uri)
        if origin.given_id is not None:
            return _adopt(client, store, origin)
        if origin.parent is not None:
            store = replace(store, experiment_id=origin.parent.experiment_id)
        own = (origin.verb,)
        for verb in own if origin.verb in KEEPERS else KEEPERS + own:
            found = _find(client, store, verb, origin.folder)
            if found is None:
                continue
            ref = RunRef(
                tracking_uri=store.tracking_uri, experiment_id=store.experiment_id, run_id=found
            )
            if verb == origin.verb:
                client.update_run(found, status="RUNNING")
                if origin.parent is not None:
                    client.set_tag(found, TAG_PARENT, origin.parent.run_id)
            return Claim(ref=ref, owned=verb == origin.verb)
        ref = create_run(store, verb=origin.verb, name=origin.name, tags=origin.tags)
        return Claim(ref=ref, owned=True)


def create_run(
    store: Store,
    *,
    verb: str,
    name: str,
    tags: Mapping[str, str],
    started_ms: int | None = None,
) -> RunRef:
    """Make a run with the tags that every run of ours carries.

    Args:
        store: Where.
        verb: What runs.
        name: The run's name.
        tags: Those of this run alone.
        started_ms: When it began, in milliseconds since 1970; now if not given.
    """
    tags = {
        TAG_VERB: verb,
        "mlflow.source.name": f"pipelines.{verb}",
        "mlflow.source.type": "LOCAL",
        "mlflow.user": getpass.getuser(),
        **({"mlflow.source.git.commit": commit} if (commit := git_commit()) else {}),
        **tags,
    }
    client = mlflow_store.connect(store.tracking_uri)
    made = client.create_run(store.experiment_id, started_ms, tags, name)
    return RunRef(
        tracking_uri=store.tracking_uri,
        experiment_id=store.experiment_id,
        run_id=made.info.run_id,
    )


def folder_tags(folder: Path) -> dict[str, str]:
    """The tags by which the run of an experiment directory is found again."""
    return {TAG_KEY: _key(folder), "sedd.experiment_dir": str(folder)}


def _adopt(client: "MlflowClient", store: Store, origin: Origin) -> Claim:
    """Take the run that `mlflow run` made; an earlier run of the folder is closed."""
    run_id = str(origin.given_id)
    try:
        info = client.get_run(run_id).info
    except Exception as error:
        if getattr(error, "error_code", "") != "RESOURCE_DOES_NOT_EXIST":
            raise
        message = (
            f"MLFLOW_RUN_ID={run_id} is not in {mlflow_store.redact(store.tracking_uri)}. "
            "Where `mlflow run` is started in another folder than the project's, set "
            "MLFLOW_TRACKING_URI to an absolute address first; else unset MLFLOW_RUN_ID."
        )
        raise UsageError(message) from error
    earlier = _find(client, store, origin.verb, origin.folder) if origin.verb in KEEPERS else None
    if earlier is not None and earlier != run_id:
        _hand_over(client, info.experiment_id, earlier, run_id)
    mlflow_store.send_tags(client, run_id, {TAG_VERB: origin.verb, **origin.tags})
    client.update_run(run_id, status="RUNNING", name=origin.name)
    ref = RunRef(tracking_uri=store.tracking_uri, experiment_id=info.experiment_id, run_id=run_id)
    return Claim(ref=ref, owned=True)


def _hand_over(client: "MlflowClient", experiment_id: str, earlier: str, later: str) -> None:
    """Close the folder's earlier run and move its children, also those that ended, to the later."""
    run = client.get_run(earlier)
    for experiment in dict.fromkeys((run.info.experiment_id, experiment_id)):
        for child in children_of(client, experiment, earlier):
            client.set_tag(child, TAG_PARENT, later)
    client.set_tag(earlier, "sedd.continued_by", later)
    if run.info.status == "RUNNING":
        client.set_terminated(earlier, "KILLED")


def children_of(client: "MlflowClient", experiment_id: str, run_id: str) -> list[str]:
    """The ids of the runs that are shown under this one."""
    found: list[str] = []
    token = None
    while True:
        page = client.search_runs(
            [experiment_id],
            f"tags.`{TAG_PARENT}` = '{run_id}'",
            page_token=token,
        )
        found += [run.info.run_id for run in page]
        token = page.token
        if not token:
            return found


def _find(client: "MlflowClient", store: Store, verb: str, folder: Path | None) -> str | None:
    """The newest run that this verb made for the folder."""
    if folder is None:
        return None
    found = client.search_runs(
        [store.experiment_id],
        f"tags.`{TAG_KEY}` = '{_key(folder)}' and tags.`{TAG_VERB}` = '{verb}'",
        max_results=1,
        order_by=["attributes.start_time DESC"],
    )
    return found[0].info.run_id if found else None


def _key(folder: Path) -> str:
    """A short name for a path, free of the quotes that a search would stumble over."""
    return hashlib.sha256(str(folder).encode()).hexdigest()[:16]
