"""A headless Chromium that opens pages and tells what a person would read there.

It is driven by the DevTools protocol over one web socket, so that nothing but Chromium is needed.
"""

import base64
import json
import os
import shutil
import subprocess
import tempfile
import time
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
READ = "document.body ? document.body.innerText : ''"
ROWS = """[...document.querySelectorAll("tr")].map(
  (row) => [...row.querySelectorAll("th, td")].map((cell) => cell.innerText.trim()))"""

# MLflow 3.17 opens the panel of its assistant at a first visit, over a third of the page.
WITHOUT_ASSISTANT = """
localStorage.setItem("mlflow.assistant.fab.autoOpenedOnFirstLoad_v1", "true");
localStorage.setItem("mlflow.assistant.panelOpen_v1", "false");
"""


class ProtocolError(Exception):
    """What the browser says when it cannot do what it was asked."""


class Browser:
    """One page of one browser; a context manager that ends the browser.

    Args:
        width: Of the window, in pixels.
        height: Of the window, in pixels.
        login: Name and password for servers that ask for them.
    """

    def __init__(
        self, *, width: int = 1400, height: int = 900, login: tuple[str, str] | None = None
    ) -> None:
        self._size, self._login = (width, height), login
        self._calls = 0

    def __enter__(self) -> Self:
        program = next((found for name in NAMES if (found := shutil.which(name))), None)
        if program is None:
            pytest.skip(f"no Chromium is on PATH (looked for {', '.join(NAMES)})")
        from websockets.sync.client import connect

        with ExitStack() as stack:
            self._profile = Path(
                stack.enter_context(
                    tempfile.TemporaryDirectory(prefix="chromium", ignore_cleanup_errors=True)
                )
            )
            self._process = subprocess.Popen(
                [program, *self._flags(), "about:blank"],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            stack.callback(self._end)
            page = self._page_address()
            self._socket = stack.enter_context(connect(page, max_size=None))
            self._prepare()
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stack.close()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol and wait for its answer."""
        self._calls += 1
        number = self._calls
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv(timeout=60))
            if answer.get("id") == number:
                if "error" in answer:
                    raise ProtocolError(f"{method}: {answer['error']['message']}")
                return answer["result"]

    def open(self, address: str) -> None:
        """Go to an address."""
        self.call("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        return answer["result"].get("value")

    def text(self) -> str:
        """What stands on the page, and in its frames, also those that scripts may not look into."""
        said = [self.run(READ) or ""]
        for frame in _frames(self.call("Page.getFrameTree")["frameTree"])[1:]:
            try:
                world = self.call("Page.createIsolatedWorld", frameId=frame)
                answer = self.call(
                    "Runtime.evaluate",
                    expression=READ,
                    contextId=world["executionContextId"],
                    returnByValue=True,
                )
            except ProtocolError:  # the frame went away meanwhile
                continue
            said.append(answer["result"].get("value") or "")
        return "\n".join(said)

    def rows(self) -> list[list[str]]:
        """The cells of every row of every table."""
        return self.run(ROWS)

    def wait_for(self, *texts: str, timeout_s: float = 60) -> str:
        """The page's text, once all of these stand in it."""
        deadline = time.monotonic() + timeout_s
        while True:
            said = self.text()
            absent = [text for text in texts if text not in said]
            if not absent:
                return said
            assert time.monotonic() < deadline, f"{absent} not on the page:\n{said[:3000]}"
            time.sleep(0.2)

    def wait_for_element(self, selector: str, timeout_s: float = 60) -> None:
        """Wait until the page has an element."""
        deadline = time.monotonic() + timeout_s
        while not self.run(f"document.querySelector({json.dumps(selector)}) !== null"):
            assert time.monotonic() < deadline, f"no {selector} on the page:\n{self.text()[:3000]}"
            time.sleep(0.2)

    def click(self, selector: str) -> bool:
        """Click the first element, if there is one."""
        found = f"document.querySelector({json.dumps(selector)})"
        return bool(
            self.run(f"(() => {{ const it = {found}; if (it) it.click(); return !!it }})()")
        )

    def picture(self, path: Path, *, height: int | None = None) -> Path:
        """Save what the window shows as PNG, down to a height in pixels if one is given."""
        time.sleep(0.5)  # the last animation
        width, whole = self._size
        clip = {"x": 0, "y": 0, "width": width, "height": height or whole, "scale": 1}
        data = self.call("Page.captureScreenshot", format="png", clip=clip)["data"]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(data))
        return path

    def _flags(self) -> list[str]:
        return [
            "--headless=new",
            "--remote-debugging-port=0",
            f"--user-data-dir={self._profile}",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--hide-scrollbars",
            # Frames stay in the page's process, where their text can be read.
            "--disable-features=IsolateSandboxedIframes",
            "--disable-site-isolation-trials",
            *(["--no-sandbox"] if os.geteuid() == 0 else []),
        ]

    def _prepare(self) -> None:
        width, height = self._size
        self.call("Page.enable")
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call("Page.addScriptToEvaluateOnNewDocument", source=WITHOUT_ASSISTANT)
        if self._login is not None:
            word = base64.b64encode(":".join(self._login).encode()).decode()
            self.call("Network.enable")
            self.call("Network.setExtraHTTPHeaders", headers={"Authorization": f"Basic {word}"})

    def _end(self) -> None:
        """End the browser, and wait until it has let go of its folder."""
        self._process.terminate()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _page_address(self) -> str:
        """The web socket of the first page."""
        announced = self._profile / "DevToolsActivePort"
        deadline = time.monotonic() + 60
        while not announced.exists() or not announced.read_text().strip():
            assert self._process.poll() is None, "Chromium did not start"
            assert time.monotonic() < deadline, "Chromium does not answer"
            time.sleep(0.1)
        port = announced.read_text().split()[0]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as answer:
            pages = json.loads(answer.read())
        return next(page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page")


def _frames(tree: dict[str, Any]) -> list[str]:
    """Ids of a frame and all inside it."""
    inner = [name for child in tree.get("childFrames", []) for name in _frames(child)]
    return [tree["frame"]["id"], *inner]
