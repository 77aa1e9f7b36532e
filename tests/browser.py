"""A real headless browser, driven over the DevTools protocol: what it asked for, said and drew."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 120


class Page:
    """One page: commands go out and their answers come back; events in between are kept."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._number = 0
        self.events: list[dict[str, Any]] = []

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=SECONDS))
            if message.get("id") == self._number:
                assert "error" not in message, (method, message["error"])
                return message["result"]
            self.events.append(message)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression; promises are awaited."""
        answer = self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, expression: str) -> Any:
        """Wait until an expression is true, and return it."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            value = self.evaluate(expression)
            if value:
                return value
            time.sleep(0.05)
        raise AssertionError(f"not within {SECONDS} s: {expression}")

    def press(self, key: str, code: int, shift: bool = False) -> None:
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        self.send("Input.dispatchKeyEvent", type="rawKeyDown", **common)
        self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def resize(self, width: int, height: int, mobile: bool = False) -> None:
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)

    def dark(self, on: bool) -> None:
        features = [{"name": "prefers-color-scheme", "value": "dark" if on else "light"}]
        self.send("Emulation.setEmulatedMedia", features=features)

    def complaints(self) -> list[Any]:
        """Exceptions, console errors and warnings, and dialogs so far."""
        found: list[Any] = []
        for event in self.events:
            method, content = event.get("method"), event.get("params", {})
            loud = {
                "Runtime.exceptionThrown": True,
                "Page.javascriptDialogOpening": True,
                "Runtime.consoleAPICalled": content.get("type") in ("error", "warning", "assert"),
                "Log.entryAdded": content.get("entry", {}).get("level") in ("error", "warning"),
            }
            if loud.get(str(method)):
                found.append(content)
        return found

    def requests(self) -> list[str]:
        """Every address that the page asked for, data and blob URLs apart."""
        asked = [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]
        return [url for url in asked if not url.startswith(("data:", "blob:"))]


class Browser:
    """A running browser; every page that it opens is a new tab."""

    def __init__(self, control: Page, port: str, stack: ExitStack) -> None:
        self._control = control
        self._port = port
        self._stack = stack

    def open(self, path: Path, *, width: int = 1280, height: int = 900, before: str = "", scripts: bool = True) -> Page:
        """A page with a file, loaded.

        Args:
            path: The file.
            width: Of the window, CSS pixels.
            height: Likewise.
            before: Script that runs before the page's own.
            scripts: Whether the page may run scripts.
        """
        target = self._control.send("Target.createTarget", url="about:blank")["targetId"]
        address = f"ws://127.0.0.1:{self._port}/devtools/page/{target}"
        page = Page(self._stack.enter_context(connect(address, max_size=None)))
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.send(f"{domain}.enable")
        page.resize(width, height)
        if before:
            page.send("Page.addScriptToEvaluateOnNewDocument", source=before)
        if not scripts:
            page.send("Emulation.setScriptExecutionDisabled", value=True)
        page.send("Page.navigate", url=path.resolve().as_uri())
        page.until("document.readyState === 'complete'")
        return page


@contextmanager
def browser(folder: Path) -> Iterator[Browser]:
    """A headless Chromium with a profile in ``folder``; skips the test where none is installed."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no browser on this machine: none of {', '.join(NAMES)}")
    command = [found, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--remote-debugging-port=0", f"--user-data-dir={folder}", "--no-first-run", "--disable-extensions"]
    process = subprocess.Popen([*command, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port, path = _port(folder / "DevToolsActivePort", process)
        with ExitStack() as stack:
            control = Page(stack.enter_context(connect(f"ws://127.0.0.1:{port}{path}", max_size=None)))
            yield Browser(control, port, stack)
            control.send("Browser.close")
        process.wait(timeout=SECONDS)
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(timeout=SECONDS)


def _port(path: Path, process: subprocess.Popen[bytes]) -> list[str]:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        assert process.poll() is None, f"the browser ended with status {process.returncode}"
        if path.is_file() and len(lines := path.read_text().split()) == 2:
            return lines
        time.sleep(0.05)
    raise AssertionError("the browser opened no port")
