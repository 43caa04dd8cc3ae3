"""A registered model as an experiment to generate from: fetched for a while, and verified."""

import argparse
import re
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.bundle import Evaluated, open_bundle
from sedd.config import Config, ScalingConfig
from sedd.errors import UsageError

if TYPE_CHECKING:
    from pipelines.tracking.registry import Version

ADDRESS = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[\w-]+)|/(?P<number>\d+))")


@dataclass(frozen=True, kw_only=True)
class Borrowed:
    """A model version whose files are here."""

    uri: str
    """With the version's number, whatever alias it was asked by."""
    home: Path
    """Where results belong."""
    evaluated: Evaluated

    @property
    def config(self) -> Config:
        """The experiment's, with the inference that was evaluated, for this machine.

        How many processes and GPUs trained it says nothing about where it generates.
        """
        return replace(
            self.evaluated.config,
            inference=self.evaluated.record.inference,
            scaling=ScalingConfig(),
        )


def lender(arguments: argparse.Namespace) -> AbstractContextManager[Borrowed | None]:
    """Fetches the registered model that `generate` was asked for, if it was asked for one.

    Raises:
        UsageError: A checkpoint was named as well.
    """
    if not arguments.model:
        return nullcontext()
    if arguments.checkpoint_dir:
        message = "--model brings its own checkpoint: leave out --checkpoint_dir, or --model."
        raise UsageError(message)
    home = arguments.experiment_dir
    return borrowed(arguments.model, Path(home) if home else None)


@contextmanager
def borrowed(
    address: str, home: Path | None, tracking_uri: str | None = None
) -> Iterator[Borrowed]:
    """Fetch a registered model; its files go when the block ends.

    They lie in `home` meanwhile, since all processes that generate have to see them.

    Args:
        address: models:/NAME@ALIAS or models:/NAME/VERSION.
        home: A folder for results; experiments/NAME_vVERSION if not given.
        tracking_uri: The store; MLFLOW_TRACKING_URI or ./mlflow.db if not given.

    Raises:
        UsageError: The address is none, there is no such version, or `home` is an experiment.
        StorageError: MLflow does not answer, or the files are not those that were registered.
    """
    from pipelines.tracking import open_store
    from pipelines.tracking.logged_model import INSIDE
    from pipelines.tracking.reach import reachable
    from pipelines.tracking.registry import Registry
    from pipelines.tracking.store import resolve_uri

    name, which = parse_address(address)
    with reachable(resolve_uri(tracking_uri)):
        registry = Registry(open_store(tracking_uri), name)
        version = registry.find(which)
    home = _home(home, version)
    try:
        home.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".model-", dir=home) as work:
            there = registry.download(version, INSIDE, Path(work))
            folder = there.rename(Path(work) / f"{version.name}_v{version.number}")
            found = open_bundle(folder, version.tags.get("sedd.model_digest"))
            yield Borrowed(uri=version.uri, home=home, evaluated=found)
    finally:
        with suppress(OSError):
            home.rmdir()  # only where nothing was generated


def parse_address(address: str) -> tuple[str, str]:
    """Name, and alias or number, of an address; UsageError if it is none."""
    found = ADDRESS.fullmatch(address.strip())
    if found is None:
        message = (
            f"--model {address!r} is not the address of a registered model. Wanted: "
            "models:/NAME@ALIAS or models:/NAME/VERSION, e.g. models:/sedd-perturbation@champion."
        )
        raise UsageError(message)
    return found["name"], found["alias"] or found["number"]


def _home(given: Path | None, version: "Version") -> Path:
    home = given or Path("experiments") / f"{version.name}_v{version.number}"
    home = home.expanduser().resolve()
    if (home / "config.yaml").exists():
        message = (
            f"{home} is an experiment of its own. With --model, --experiment_dir names the folder "
            "for the cells; choose another, or leave it out for experiments/"
            f"{version.name}_v{version.number}."
        )
        raise UsageError(message)
    return home
