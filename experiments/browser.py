"""Drives headless Chromium by the DevTools protocol over a pipe; needs nothing but the browser."""

import base64
import itertools
import json
import os
import pathlib
import select
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--use-fake-device-for-media-stream",  # a camera that films a test pattern
    "--use-fake-ui-for-media-stream",
    "--remote-debugging-pipe",
)


def find() -> str | None:
    """Returns the path of Chromium, or None where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


# the browser reads commands from descriptor 3 and writes answers to 4
_START = (
    "import fcntl, os, sys; read, write = (fcntl.fcntl(int(fd), fcntl.F_DUPFD, 10) for fd in sys.argv[1:3]); "
    "os.dup2(read, 3); os.dup2(write, 4); os.closerange(5, 1024); os.execv(sys.argv[3], sys.argv[3:])"
)


class Browser:
    """One page in a browser of its own, with an empty profile; a context manager."""

    def __init__(self, timeout: float = 120.0) -> None:
        """Sets how long an answer is waited for, in seconds."""
        self.timeout = timeout
        self.events: list[dict] = []
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self._received = b""

    def __enter__(self) -> "Browser":
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        reads, self._write = os.pipe()
        self._read, writes = os.pipe()
        command = [sys.executable, "-c", _START, str(reads), str(writes), find(), *FLAGS]
        command += [f"--user-data-dir={self._profile.name}", "about:blank"]
        self._process = subprocess.Popen(command, pass_fds=(reads, writes), stderr=subprocess.DEVNULL)
        os.close(reads)
        os.close(writes)
        try:
            targets = self.call("Target.getTargets")["targetInfos"]
            page = next(target["targetId"] for target in targets if target["type"] == "page")
            self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
            for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
                self.call(f"{domain}.enable")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._read)
        os.close(self._write)
        self._profile.cleanup()

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Calls a method of the protocol and returns its result; events that come meanwhile go to `events`.

        Raises:
            RuntimeError: when it fails.
        """
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']['message']}")
                return answer["result"]
            self.events.append(answer)

    def evaluate(self, expression: str) -> Any:
        """Returns the value of an expression in the page; a promise is awaited.

        Raises:
            RuntimeError: when it throws.
        """
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    def wait(self, expression: str) -> None:
        """Waits until an expression is true.

        Raises:
            TimeoutError: when it doesn't become so.
        """
        end = time.monotonic() + self.timeout
        while not self.evaluate(expression):
            if time.monotonic() > end:
                raise TimeoutError(f"{expression} is still false after {self.timeout:g} s")
            time.sleep(0.03)

    def choose(self, selector: str, file: str | os.PathLike) -> None:
        """Chooses a file in a file input, as a user does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(pathlib.Path(file).resolve())])

    def screenshot(self, path: pathlib.Path, width: int, height: int, dark: bool = False) -> None:
        """Writes a PNG file of the page in a window of that size, pixels; the window stays so."""
        mobile = width < 600
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        """Returns errors and uncaught exceptions that the page has logged."""
        found = []
        for event in self.events:
            params = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                found.append(json.dumps(params["exceptionDetails"])[:500])
            elif event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
                found.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
        return found

    def requests(self) -> list[str]:
        """Returns the addresses that the page has asked for."""
        sent = (event["params"]["request"]["url"] for event in self.events if event.get("method") == _REQUEST)
        return [url for url in sent if not url.startswith(("blob:", "data:"))]

    def _next(self) -> dict[str, Any]:
        end = time.monotonic() + self.timeout
        while b"\0" not in self._received:
            ready, _, _ = select.select([self._read], [], [], max(0.0, end - time.monotonic()))
            data = os.read(self._read, 1 << 20) if ready else None
            if data is None:
                raise TimeoutError(f"the browser says nothing for {self.timeout:g} s")
            if not data:
                raise RuntimeError(f"the browser ended (exit code {self._process.wait()})")
            self._received += data
        message, _, self._received = self._received.partition(b"\0")
        return json.loads(message)


_REQUEST = "Network.requestWillBeSent"
