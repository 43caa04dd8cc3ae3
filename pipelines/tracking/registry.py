"""MLflow's model registry: versions of one name, their aliases, who is champion and who was.

`challenger` is the newest version; `champion` is the one that the gate, or a person, chose. Which
version a champion replaced is a tag of the champion, so that a rollback needs no other memory.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.journal import now_ms
from pipelines.tracking import store as mlflow_store
from pipelines.tracking.reach import global_store
from pipelines.tracking.store import Store, quietly
from sedd.errors import StorageError, UsageError

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHAMPION = "champion"
CHALLENGER = "challenger"
REPLACED = "champion.replaced"
"""Tag of a champion: the number of the version that was champion before, or "none"."""
SINCE = "champion.since_ms"
ROLLED_BACK = "champion.rolled_back_to"
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
ABSENT = {"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"}
LOCK_PATIENCE_S = 3600.0


@dataclass(frozen=True, kw_only=True)
class Version:
    """One registered model."""

    name: str
    number: int
    source: str
    """Where its files are: `models:/m-...`, the logged model."""
    tags: Mapping[str, str]

    @property
    def uri(self) -> str:
        """The address that stays the same whatever aliases do."""
        return f"models:/{self.name}/{self.number}"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What a new version is registered with."""

    run_id: str | None
    tags: Mapping[str, str]
    description: str


@dataclass(frozen=True, kw_only=True)
class Rollback:
    """What a rollback did; `before` is None where there was no champion."""

    before: Version | None
    after: Version


def require_name(name: str) -> str:
    """The name, if it can stand in an address.

    Raises:
        UsageError: It has other characters than letters, digits, dot, dash and underscore.
    """
    if not NAME.fullmatch(name):
        message = (
            f"{name!r} cannot be the name of a registered model. Wanted: 1 to 100 letters, digits, "
            "dots, dashes and underscores, first a letter or digit, e.g. --name sedd-perturbation."
        )
        raise UsageError(message)
    return name


class Registry:
    """The versions of one registered model."""

    def __init__(self, store: Store, name: str) -> None:
        self.store, self.name = store, require_name(name)

    @property
    def client(self) -> "MlflowClient":
        """A client that keeps runs and models in the same store."""
        return mlflow_store.connect(self.store.tracking_uri)

    def champion(self) -> Version | None:
        """The version that has the alias, if any has."""
        return self._by_alias(CHAMPION)

    def find(self, which: str) -> Version:
        """The version of an alias or a number.

        Raises:
            UsageError: There is none; lists the aliases and versions that there are.
        """
        found = self._by_number(int(which)) if which.isdigit() else self._by_alias(which)
        if found is None:
            what = f"version {which}" if which.isdigit() else f"alias {which!r}"
            message = f"The registered model {self.name!r} has no {what}. {self._there_are()}"
            raise UsageError(message)
        return found

    def add(self, model_id: str, entry: Entry, *, crowned: bool) -> Version:
        """Make a logged model the newest version, and champion if `crowned`.

        It has its tags from the beginning; where a later step fails it goes again, and a name that
        was new with it.
        """
        client, before = self.client, self._aliases()
        version = None
        with quietly(), global_store(self.store.tracking_uri):
            try:
                if before is None:
                    client.create_registered_model(self.name)
                made = client.create_model_version(
                    self.name,
                    f"models:/{model_id}",
                    run_id=entry.run_id,
                    tags=dict(entry.tags),
                    description=entry.description,
                    model_id=model_id,
                )
                version = _version(made)
                client.set_registered_model_alias(self.name, CHALLENGER, str(version.number))
                if crowned:
                    self._crown(version)
            except BaseException:
                self._take_back(version, before)
                raise
        return version

    def roll_back(self, which: str | None = None) -> Rollback:
        """Give the alias back to the champion before, or to the version of a number or alias.

        Raises:
            UsageError: There is no such version, or no champion before this one.
        """
        before = self.champion()
        after = self.find(which) if which is not None else self._replaced_by(before)
        if before is not None and before.number == after.number:
            message = f"Version {after.number} of {self.name!r} is the champion already."
            raise UsageError(message)
        if before is not None:
            self._tag(before, {ROLLED_BACK: str(after.number)})
        own = {SINCE: str(now_ms())}
        if REPLACED not in after.tags:  # never a champion so far
            own[REPLACED] = str(before.number) if before else "none"
        self._tag(after, own)
        self.client.set_registered_model_alias(self.name, CHAMPION, str(after.number))
        return Rollback(before=before, after=after)

    def download(self, version: Version, path: str, folder: Path) -> Path:
        """Copy a part of a version's files into a folder.

        Raises:
            StorageError: The files are not there (any more).
        """
        from mlflow.artifacts import download_artifacts

        try:
            with quietly(), global_store(self.store.tracking_uri):
                found = download_artifacts(f"{version.uri}/{path}", dst_path=str(folder))
        except Exception as error:
            message = (
                f"The files of {version.uri} ({path}) cannot be fetched from "
                f"{mlflow_store.redact(version.source)}: {mlflow_store.explain(error)}."
            )
            raise StorageError(message) from error
        return Path(found)

    @contextmanager
    def one_at_a_time(self) -> Iterator[None]:
        """Hold the registry of a SQLite store, so that two verdicts never cross.

        On a server nothing can be held; whoever promotes there looks again who is champion.
        """
        uri = self.store.tracking_uri
        if not uri.startswith("sqlite:///"):
            yield
            return
        import filelock

        path = Path(uri.removeprefix("sqlite:///"))
        lock = filelock.FileLock(path.with_name(f"{path.name}.registry.lock"))
        try:
            lock.acquire(timeout=LOCK_PATIENCE_S)
        except filelock.Timeout as error:
            message = f"Another process has been registering in {path} for an hour; try again."
            raise StorageError(message) from error
        try:
            yield
        finally:
            lock.release()

    def _crown(self, version: Version) -> None:
        """Make a version the champion, and remember in it whom it replaced."""
        before = self.champion()
        tags = {REPLACED: str(before.number) if before else "none", SINCE: str(now_ms())}
        self._tag(version, tags)
        self.client.set_registered_model_alias(self.name, CHAMPION, str(version.number))

    def _take_back(self, version: Version | None, before: dict[str, str] | None) -> None:
        """Leave the name as it was before a version that could not be finished."""
        if before is None:
            if self._aliases() is not None:
                self.client.delete_registered_model(self.name)
        elif version is not None:
            self.client.delete_model_version(self.name, str(version.number))
            for alias, number in before.items():
                self.client.set_registered_model_alias(self.name, alias, number)

    def _tag(self, version: Version, tags: Mapping[str, str]) -> None:
        """Set tags of a version, replacing those of the same names."""
        for key, value in tags.items():
            self.client.set_model_version_tag(self.name, str(version.number), key, value)

    def _replaced_by(self, champion: Version | None) -> Version:
        number = champion.tags.get(REPLACED, "none") if champion is not None else "none"
        found = self._by_number(int(number)) if number.isdigit() else None
        if found is None:
            now = f"version {champion.number}" if champion else "nobody"
            message = (
                f"There is no champion of {self.name!r} to go back to (now {now}, before: "
                f"{number}). Name a version: --rollback VERSION. {self._there_are()}"
            )
            raise UsageError(message)
        return found

    def _aliases(self) -> dict[str, str] | None:
        """The aliases with their versions; None if nothing was ever registered by this name."""
        try:
            return dict(self.client.get_registered_model(self.name).aliases)
        except Exception as error:
            if getattr(error, "error_code", "") not in ABSENT:
                raise
            return None

    def _by_alias(self, alias: str) -> Version | None:
        number = (self._aliases() or {}).get(alias)
        return self._by_number(int(number)) if number is not None else None

    def _by_number(self, number: int) -> Version | None:
        try:
            return _version(self.client.get_model_version(self.name, str(number)))
        except Exception as error:
            if getattr(error, "error_code", "") not in ABSENT:
                raise
            return None

    def _there_are(self) -> str:
        aliases = self._aliases()
        if aliases is None:
            names = sorted(model.name for model in self.client.search_registered_models())
            there = f"Registered there: {', '.join(names)}." if names else "Nothing is registered."
            return f"{there} Register with: python -m pipelines.register --experiment_dir E."
        found = self.client.search_model_versions(f"name = '{self.name}'")
        numbers = ", ".join(map(str, sorted(int(version.version) for version in found)))
        named = ", ".join(f"{alias} (version {number})" for alias, number in aliases.items())
        return f"Versions: {numbers or 'none'}. Aliases: {named or 'none'}."


def _version(found: "ModelVersion") -> Version:
    return Version(
        name=found.name,
        number=int(found.version),
        source=str(found.source),
        tags=dict(found.tags),
    )
