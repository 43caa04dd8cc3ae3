"""A lab's MLflow server and a PostgreSQL of a test's own, started and killed by tests."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ADMIN_PASSWORD = "correct-horse-battery"


def free_port() -> int:
    """A port of this machine where nobody listens."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class LabServer:
    """`python -m pipelines.tracking serve` in a folder, on one port for its whole life."""

    def __init__(self, folder: Path, backend_store_uri: str, *flags: str) -> None:
        self.folder, self.port = folder, free_port()
        self._flags = ("--backend_store_uri", backend_store_uri, "--port", str(self.port), *flags)
        self._process: subprocess.Popen[bytes] | None = None
        self.log = folder / "server.log"

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Wait until it answers; nothing where it runs already."""
        if self._process is not None:
            return
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.tracking", "serve", *self._flags],
                cwd=self.folder,
                env=os.environ
                | {"PYTHONPATH": str(ROOT), "MLFLOW_AUTH_ADMIN_PASSWORD": ADMIN_PASSWORD},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + 120
        while True:
            try:
                with urllib.request.urlopen(f"{self.uri}/health", timeout=2):
                    return
            except OSError:
                said = self.log.read_text(errors="replace")[-3000:]
                assert self._process.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.3)

    def kill(self) -> None:
        """As a machine that loses its power: nothing is closed."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


@contextmanager
def postgres() -> Iterator[str]:
    """A PostgreSQL server with one empty database; skips where none is installed."""
    found = shutil.which("initdb"), shutil.which("postgres")
    if None in found:
        pytest.skip("initdb and postgres are not on PATH: no PostgreSQL to test with")
    initdb, server = (Path(name).resolve() for name in found if name)
    user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    if user:
        shutil.chown(folder, user)
    port, data, password = free_port(), folder / "data", folder / "password"
    password.write_text("p@ss 100%\n")
    subprocess.run(
        [initdb, "-D", data, "-U", "lab", "-A", "scram-sha-256", "--pwfile", password, "-N"],
        user=user,
        cwd=folder,
        check=True,
        capture_output=True,
    )
    running = subprocess.Popen(
        [server, "-D", data, "-p", str(port), "-k", folder, "-c", "listen_addresses=127.0.0.1"],
        user=user,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            with closing(socket.socket()) as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < deadline, "PostgreSQL did not come up"
            time.sleep(0.1)
        yield f"postgresql://lab:p%40ss%20100%25@127.0.0.1:{port}/postgres"
    finally:
        running.send_signal(signal.SIGQUIT)
        running.wait()
        shutil.rmtree(folder, ignore_errors=True)
