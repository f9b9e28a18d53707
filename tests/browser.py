"""A real Chromium, spoken to over a pipe in its own DevTools protocol: no package, no port."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--hide-scrollbars",
    "--no-first-run",
    "--disable-extensions",
    "--disable-background-networking",
    "--disable-dev-shm-usage",
    "--remote-debugging-pipe",
)
PATIENCE = 30.0  # seconds for an answer

Message = dict[str, Any]  # JSON of the protocol


def found() -> str | None:
    """Return the path of a Chromium, from $STEADYGRAD_BROWSER or the usual names."""
    names = (os.environ.get("STEADYGRAD_BROWSER", ""), *NAMES)
    return next((path for name in names if name and (path := shutil.which(name))), None)


class Browser:
    """One page of a browser: `console` and `requests` hold what it said and asked for."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read = write, read
        self._rest = b""
        self._number = 0
        self._session = ""
        self.console: list[str] = []
        self.requests: list[str] = []
        self.loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **given: Any) -> Message:
        """Call a method of the protocol and return its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": given}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        number = self._number
        while True:
            answer = self._next()
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])
            self._hear(answer)

    def _next(self) -> Message:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], PATIENCE)
            assert ready, "the browser did not answer"
            data = os.read(self._read, 1 << 20)
            assert data, "the browser ended"
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(line))

    def _hear(self, event: Message) -> None:
        given = event.get("params", {})
        match event.get("method"):
            case "Runtime.consoleAPICalled":
                self.console.append(str([one.get("value") for one in given["args"]]))
            case "Runtime.exceptionThrown":
                details = given["exceptionDetails"]
                self.console.append(str(details.get("exception", {}).get("description", details)))
            case "Log.entryAdded":
                self.console.append(given["entry"]["text"])
            case "Network.requestWillBeSent":
                self.requests.append(given["request"]["url"])
            case "Page.loadEventFired":
                self.loaded = True

    def open(self, url: str) -> float:
        """Open a page and return the seconds until it was loaded and drawn."""
        self.console.clear()
        self.requests.clear()
        self.loaded = False
        begun = time.perf_counter()
        self.call("Page.navigate", url=url)
        while not self.loaded:
            self._hear(self._next())
        self.run("new Promise((done) => requestAnimationFrame(() => setTimeout(done, 0)))")
        return time.perf_counter() - begun

    def run(self, script: str) -> Any:
        """Evaluate an expression in the page and return its value."""
        asked = {"expression": script, "awaitPromise": True, "returnByValue": True}
        answer = self.call("Runtime.evaluate", **asked)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, script: str) -> None:
        """Wait until an expression is true in the page."""
        ends = time.monotonic() + PATIENCE
        while not self.run(script):
            assert time.monotonic() < ends, f"never true: {script}"

    def size(self, width: int, height: int = 900, *, dark: bool = False, ratio: float = 1) -> None:
        """Set the size of the page, in CSS pixels, and the colors that the reader likes."""
        given = {"deviceScaleFactor": ratio, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, **given)
        likes = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.call("Emulation.setEmulatedMedia", features=likes)

    def middle(self, selector: str) -> tuple[float, float]:
        """Bring an element into view and return where its middle is."""
        box = self.run(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)});"
            "one.scrollIntoView({block: 'center'}); const b = one.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2, b.width]; })()"
        )
        return float(box[0]), float(box[1])

    def mouse(self, kind: str, x: float, y: float) -> None:
        """Move, press, or release the mouse."""
        pressed = kind != "mouseMoved"
        button = {"button": "left", "clickCount": 1} if pressed else {}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **button)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Drag from one place to another."""
        self.mouse("mouseMoved", *start)
        self.mouse("mousePressed", *start)
        held = {"button": "left", "buttons": 1}
        self.call("Input.dispatchMouseEvent", type="mouseMoved", x=end[0], y=end[1], **held)
        self.mouse("mouseReleased", *end)

    def key(self, name: str) -> None:
        """Press a key."""
        text = {"text": name} if len(name) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=name, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=name)

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """Write what the page looks like as a PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        given: Message = {"captureBeyondViewport": True, "clip": clip} if whole else {}
        shot = self.call("Page.captureScreenshot", format="png", **given)
        path.write_bytes(base64.b64decode(shot["data"]))

    def printed(self) -> bytes:
        """Return the page as it would be printed: PDF."""
        return base64.b64decode(self.call("Page.printToPDF")["data"])


@contextmanager
def started(path: str, home: Path) -> Iterator[Browser]:
    """Start a browser with a home of its own, and end it."""
    to_it, mine = os.pipe(), os.pipe()

    def hand_over() -> None:  # the browser reads from 3 and writes to 4
        os.dup2(to_it[0], 3)
        os.dup2(mine[1], 4)

    process = _launched([path, *FLAGS, f"--user-data-dir={home}"], hand_over, (to_it[0], mine[1]))
    os.close(to_it[0])
    os.close(mine[1])
    try:
        yield Browser(to_it[1], mine[0])
    finally:
        process.terminate()
        process.wait(PATIENCE)
        os.close(to_it[1])
        os.close(mine[0])


def _launched(
    words: list[str], hand_over: Callable[[], None], kept: tuple[int, int]
) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        words,
        preexec_fn=hand_over,
        pass_fds=(3, 4, *kept),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
