"""A real browser for the pages that we write: Chromium without a screen, driven through its debugging socket.

Where there is no Chromium the tests are skipped, but fail where the environment says CI: there it must be.
"""

import base64
import io
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import pytest
import websocket
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--force-color-profile=srgb",
    "--remote-debugging-port=0",
)  # fmt: skip
PATIENCE = 30  # seconds


class Tab:
    """One tab: what a person does in it, and what went wrong meanwhile."""

    def __init__(self, address: str):
        self.socket = websocket.create_connection(address, timeout=PATIENCE, suppress_origin=True)
        self.events: list[dict[str, Any]] = []
        self.calls = 0
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send("Emulation.setFocusEmulationEnabled", enabled=True)  # or nothing in it ever has the focus
        self.window(1280, 900)

    def send(self, method: str, **parameters: object) -> dict[str, Any]:
        """Call the browser, and keep the events that come before its answer."""
        self.calls += 1
        self.socket.send(json.dumps({"id": self.calls, "method": method, "params": parameters}))
        while (said := json.loads(self.socket.recv())).get("id") != self.calls:
            if said.get("method") == "Page.javascriptDialogOpening":  # "Leave the page?" would hold up everything
                self.socket.send(
                    json.dumps({"id": 0, "method": "Page.handleJavaScriptDialog", "params": {"accept": True}})
                )
            self.events.append(said)
        if "error" in said:
            raise RuntimeError(f"{method}: {said['error']}")
        return said["result"]

    def open(self, page: Path | str) -> None:
        """Open a file, or an address, and wait until it is loaded."""
        self.events.clear()
        address = page.as_uri() if isinstance(page, Path) else page
        self.run("window.left = true")  # the page that is left stays whole until the next one comes
        self.send("Page.navigate", url=address)
        here = f"location.protocol === '{address.split(':')[0]}:'"
        self.until(f"!window.left && document.readyState === 'complete' && {here}")

    def run(self, script: str) -> Any:
        """Return the value of an expression in the page."""
        said = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in said:
            raise RuntimeError(said["exceptionDetails"]["exception"].get("description"))
        return said["result"].get("value")

    def until(self, script: str, patience: float = PATIENCE, every: float = 0.02) -> None:
        """Wait until an expression is true."""
        end = time.monotonic() + patience
        while not self.run(script):
            if time.monotonic() > end:
                raise TimeoutError(script)
            time.sleep(every)

    def settle(self) -> None:
        """Wait until the page has been painted twice, so that what just changed is there."""
        self.run("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def of(self, selector: str, what: str) -> Any:
        """Return a property of the first match."""
        return self.run(f"document.querySelector({json.dumps(selector)}).{what}")

    def box(self, selector: str) -> list[float]:
        """Return left, top, width and height of the first match in the window."""
        sides = self.of(selector, "getBoundingClientRect().toJSON()")
        return [sides[name] for name in ("x", "y", "width", "height")]

    def place(self, selector: str) -> list[float]:
        """Return the same, once there is a match and it is scrolled into sight."""
        self.until(f"document.querySelector({json.dumps(selector)}) !== null")  # the page builds what comes near
        self.of(selector, "scrollIntoView({ block: 'center' })")
        self.settle()
        return self.box(selector)

    def hover(self, selector: str) -> tuple[float, float]:
        """Move the mouse to the middle of the first match."""
        left, top, width, height = self.place(selector)
        x, y = left + width / 2, top + height / 2
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
        self.settle()
        return x, y

    def click(self, selector: str) -> None:
        """Click in the middle of the first match."""
        x, y = self.hover(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        self.settle()

    def press(self, key: str, code: int = 0) -> None:
        """Press a key: a letter, or the name of another key with its code."""
        letter = {"text": key} if len(key) == 1 else {}
        code = code or ord(key.upper())
        self.send("Input.dispatchKeyEvent", type="keyDown", key=key, windowsVirtualKeyCode=code, **letter)
        self.send("Input.dispatchKeyEvent", type="keyUp", key=key, windowsVirtualKeyCode=code)
        self.settle()

    def write(self, text: str) -> None:
        """Type a text into what has the focus."""
        self.send("Input.insertText", text=text)
        self.settle()

    def window(self, width: int, height: int, scheme: str = "light", medium: str = "screen") -> None:
        """Set the size of the window, light or dark, and screen or print."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", media=medium, features=features)

    def picture(self) -> np.ndarray:
        """Return what the window shows, (height, width, 3), 8 bits a channel."""
        self.settle()
        data = base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))

    def complaints(self, own: str = "") -> list[str]:
        """Return the errors since the page was opened, and every address that it asked for outside itself.

        An address of the host `own`, such as "127.0.0.1:8888", is no complaint; an error that names it is.
        """
        self.send("Runtime.evaluate", expression="0")  # what came before has been heard
        found = []
        for event in self.events:
            name, facts = event.get("method", ""), event.get("params", {})
            if name == "Runtime.exceptionThrown":
                found.append(str(facts["exceptionDetails"]))
            elif (name == "Runtime.consoleAPICalled" and facts["type"] in ("error", "warning", "assert")) or (
                name == "Log.entryAdded" and facts["entry"]["level"] in ("error", "warning")
            ):
                found.append(str(facts))
            elif name == "Network.requestWillBeSent" and facts["type"] != "Document":
                address = facts["request"]["url"]
                inside = address.startswith(("data:", "blob:")) or (own and urlparse(address).netloc == own)
                found += [] if inside else [address]
        return found


def _browser() -> str:
    for name in NAMES:
        if path := shutil.which(name):
            return path
    missing = f"there must be a browser, got none of {', '.join(NAMES)} (Debian: apt-get install chromium)"
    if os.environ.get("CI"):
        pytest.fail(missing)
    pytest.skip(missing)


@pytest.fixture(scope="session")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    """An empty tab of a browser with a fresh profile."""
    profile = tmp_path_factory.mktemp("profile")
    command = [_browser(), *FLAGS, f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            one = Tab(_address(profile, process))
            yield one
            one.socket.close()
        finally:
            process.terminate()
            process.wait(PATIENCE)


def _address(profile: Path, process: subprocess.Popen) -> str:
    """Return the socket of the first tab, once the browser listens."""
    port, end = profile / "DevToolsActivePort", time.monotonic() + PATIENCE
    while not (port.is_file() and len(lines := port.read_text().split()) == 2):
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"the browser must start, got exit code {process.poll()}")
        time.sleep(0.05)
    browser = websocket.create_connection(f"ws://127.0.0.1:{lines[0]}{lines[1]}", suppress_origin=True)
    browser.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
    said = json.loads(browser.recv())
    browser.close()
    page = next(target for target in said["result"]["targetInfos"] if target["type"] == "page")
    return f"ws://127.0.0.1:{lines[0]}/devtools/page/{page['targetId']}"
