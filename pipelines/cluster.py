"""The only `ray.init`: a private Ray on this machine, or the cluster that RAY_ADDRESS names.

Ray is never stopped by `ray stop` (it ends every Ray on the machine), and never joined by
accident: without RAY_ADDRESS a new one is started, whatever else runs here.
"""

import logging
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.signals import sigterm_kept, sigterm_unwinds
from sedd.errors import UsageError

PROJECT_ROOT = Path(__file__).resolve().parents[1]
OBJECT_STORE_BYTES = (
    200 * 2**20
)  # actors hand over numbers and small arrays; cells go through files

TOKEN_LOGGER = "ray._private.authentication.authentication_token_setup"

ENVIRONMENT = {
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray would otherwise build one environment per worker where the driver runs under `uv run`.
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    # Workers keep the driver's folder, so that a relative path means one thing.
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    # Importing torch from a slow disk takes longer than the default minute.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "300",
    # Ctrl-C shall end a sweep as it ends every verb, and what is tried is in the sweep's own files.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Threads sleep while they wait: spinning, the default, makes a training that shares its cores
    # with other programs ten times slower.
    "OMP_WAIT_POLICY": "PASSIVE",
}


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A Ray that is up and large enough for the workers that were asked for."""

    address: str
    num_cpus: float
    num_gpus: float
    num_workers: int
    nodes: tuple[Mapping[str, float], ...] = ()
    """Resources of each node that is alive."""

    @property
    def cpus_per_worker(self) -> int:
        """CPUs for each worker when they share the cluster evenly; Ray gives it as many threads."""
        return max(1, int(self.num_cpus // self.num_workers))


@contextmanager
def connect(
    *,
    num_workers: int = 1,
    use_gpu: bool = False,
    flag: str = "--num_workers",
    log_to_driver: bool = True,
    patience_s: float = 30.0,
) -> Iterator[Cluster]:
    """A Ray with room for the workers, for the length of the block.

    Inside another `connect` the same Ray is used again and left running. SIGTERM raises
    `Terminated` in the block, so that Ray is shut down rather than aborted.

    Args:
        num_workers: Processes that will run at once, each on one CPU (and one GPU) or more.
        use_gpu: Each worker needs a GPU.
        flag: The flag that the message about too few resources names.
        log_to_driver: Show what workers print.
        patience_s: How long a cluster given by RAY_ADDRESS may take until its nodes have joined.

    Raises:
        UsageError: The machine or cluster is too small, or no cluster answers at RAY_ADDRESS.
            Ray would wait for ever instead.
    """
    if num_workers < 1:
        message = f"{flag} is {num_workers}; at least 1 worker is needed."
        raise UsageError(message)
    address = os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        _require(num_workers, _usable_cpus(), "CPU", "this machine", flag)
    _prepare_environment(address)
    import ray

    with sigterm_unwinds():
        started = not ray.is_initialized()
        try:
            if started:
                with sigterm_kept():
                    _start(address, log_to_driver=log_to_driver)
            wait_s = 0.0 if address == "local" else patience_s
            yield _measured(address, num_workers, use_gpu=use_gpu, flag=flag, wait_s=wait_s)
        finally:
            if started:
                ray.shutdown()


def absolute_path(path: str | os.PathLike[str]) -> str:
    """The path as workers on this file system understand it; addresses (s3://...) stay as given."""
    text = os.fspath(path)
    return text if "://" in text else str(Path(text).expanduser().resolve())


def _start(address: str, *, log_to_driver: bool) -> None:
    import ray

    options: dict[str, Any] = {"log_to_driver": log_to_driver, "logging_level": logging.ERROR}
    if address == "local":
        options |= {
            "num_cpus": _usable_cpus(),
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
        }
    else:
        options["runtime_env"] = {
            "env_vars": {
                "PYTHONPATH": _python_path(),
                "OMP_WAIT_POLICY": os.environ["OMP_WAIT_POLICY"],
            }
        }
    try:
        _knock(address)
        ray.init(address=address, **options)
    except OSError as error:
        message = (
            f"No Ray cluster answers at RAY_ADDRESS={address} ({error}). Start it with "
            "`ray start --head`, or unset RAY_ADDRESS to run on this machine alone."
        )
        raise UsageError(message) from error


def _knock(address: str) -> None:
    """Raise OSError at once where nobody listens; Ray itself would try for most of a minute."""
    host, _, port = address.rpartition(":")
    if host and port.isdecimal() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=5.0).close()


def _measured(
    address: str, num_workers: int, *, use_gpu: bool, flag: str, wait_s: float
) -> Cluster:
    """The cluster's size, once it is large enough."""
    import ray

    place = "this machine" if address == "local" else f"the cluster at {address}"
    needed = ["CPU", "GPU"] if use_gpu else ["CPU"]
    deadline = time.monotonic() + wait_s
    resources = ray.cluster_resources()
    while any(resources.get(kind, 0) < num_workers for kind in needed):
        if time.monotonic() >= deadline:
            break
        time.sleep(1.0)
        resources = ray.cluster_resources()
    for kind in needed:
        _require(num_workers, resources.get(kind, 0), kind, place, flag)
    return Cluster(
        address=address,
        num_cpus=resources.get("CPU", 0),
        num_gpus=resources.get("GPU", 0),
        num_workers=num_workers,
        nodes=tuple(node["Resources"] for node in ray.nodes() if node["Alive"]),
    )


def _require(wanted: int, there: float, kind: str, place: str, flag: str) -> None:
    if there >= wanted:
        return
    smaller = f"Use {flag} {int(there)}" if there >= 1 else "Set scaling.use_gpu to false"
    message = (
        f"{flag} {wanted} needs a {kind} for each worker, {wanted} in all, and {place} has "
        f"{there:g}. {smaller}, or name a larger cluster with RAY_ADDRESS."
    )
    raise UsageError(message)


def _usable_cpus() -> int:
    """CPUs this process may use: a scheduler often grants fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _prepare_environment(address: str) -> None:
    """Settings that Ray's processes inherit; what the user has set stays."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if address == "local":
        os.environ["PYTHONPATH"] = _python_path()
        if "RAY_AUTH_MODE" not in os.environ:
            # A local Ray asks for a token by default. This one is known to this process alone; by
            # itself Ray leaves one in the home folder, readable by everybody on the machine. The
            # mode is Ray's to set: it reads that variable only once, when it is imported.
            os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
            logging.getLogger(TOKEN_LOGGER).setLevel(logging.ERROR)


def _python_path() -> str:
    """PYTHONPATH with the project first: workers import `sedd` and `pipelines` from any folder."""
    others = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    root = str(PROJECT_ROOT)
    return os.pathsep.join([root, *(p for p in others if p != root)])
