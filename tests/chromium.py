"""A headless Chromium, spoken to by the Chrome DevTools Protocol."""

from __future__ import annotations

import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

from websockets.sync.client import connect

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--no-first-run",
    "--disable-background-networking",
    "--use-gl=angle",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
    "--use-fake-ui-for-media-stream",
    "--use-fake-device-for-media-stream",
    "--remote-debugging-port=0",
)
PHONE = (390, 844)
START_S = 60


class Chromium:
    """A browser of its own profile, to be used by `with`.

    Args:
        profile: an empty folder.
        voice: a WAV that the microphone hears, again and again; None = Chromium's own beeps.
        camera: a Y4M that the camera sees, likewise; None = Chromium's own clock.
    """

    def __init__(
        self, profile: Path, voice: Path | None = None, camera: Path | None = None
    ) -> None:
        self._profile = profile
        self._feeds = [f"--use-file-for-fake-audio-capture={voice}"] if voice else []
        self._feeds += [f"--use-file-for-fake-video-capture={camera}"] if camera else []
        self._pages: list[Page] = []

    def __enter__(self) -> Chromium:
        assert CHROMIUM, "no Chromium on PATH"
        command = [CHROMIUM, *FLAGS, *self._feeds, f"--user-data-dir={self._profile}"]
        self._process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        written = self._profile / "DevToolsActivePort"
        until = time.monotonic() + START_S
        while not written.exists() or "\n" not in written.read_text():
            assert self._process.poll() is None, "Chromium ended before it was ready"
            assert time.monotonic() < until, f"Chromium was not ready after {START_S} s"
            time.sleep(0.05)
        self._port = int(written.read_text().splitlines()[0])
        return self

    def __exit__(self, *_: object) -> None:
        self.close_pages()
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def close_pages(self) -> None:
        while self._pages:
            self._pages.pop().close()

    def open(
        self,
        url: str,
        size: tuple[int, int] = (1280, 800),
        dark: bool = False,
        apart: bool = False,
    ) -> Page:
        """A page in a new tab, of a size in CSS pixels; up to 500 wide it is a telephone's.

        With `apart` it is another person's: it shares no window, storage or connection with others.
        """
        page = Page(self._apart() if apart else self._debugger("json/new?about:blank", "PUT"))
        self._pages.append(page)
        for domain in ("Page", "Network", "Runtime", "Log"):
            page.ask(f"{domain}.enable")
        phone = size[0] <= 500
        page.ask(
            "Emulation.setDeviceMetricsOverride",
            width=size[0],
            height=size[1],
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.ask("Emulation.setEmulatedMedia", features=[theme])
        page.ask("Page.navigate", url=url)
        page.wait_for("document.readyState === 'complete'")
        return page

    def _debugger(self, path: str, method: str = "GET") -> str:
        """Of what the browser answers with."""
        ask = urllib.request.Request(f"http://127.0.0.1:{self._port}/{path}", method=method)
        with urllib.request.urlopen(ask) as answer:
            return json.load(answer)["webSocketDebuggerUrl"]

    def _apart(self) -> str:
        """The debugger of a tab in a browser context of its own."""
        browser = Page(self._debugger("json/version"))
        context = browser.ask("Target.createBrowserContext")["browserContextId"]
        made = browser.ask("Target.createTarget", url="about:blank", browserContextId=context)
        browser.leave()
        return f"ws://127.0.0.1:{self._port}/devtools/page/{made['targetId']}"


class Page:
    """A tab, or the browser itself.

    Args:
        url: of its debugger.
    """

    def __init__(self, url: str) -> None:
        self._open = contextlib.ExitStack()
        self._socket = self._open.enter_context(connect(url, max_size=None, ping_interval=None))
        self._numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []

    def close(self) -> None:
        self.ask("Page.close")
        self.leave()

    def leave(self) -> None:
        """Ask no more; what was asked stays as it is."""
        self._open.close()

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """What the browser answers; events that come before it are kept."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return message["result"]
            self.events.append(message)

    def value(self, expression: str) -> Any:
        """What JavaScript comes to, as JSON; a promise is waited for."""
        answer = self.ask(
            "Runtime.evaluate",
            expression=expression,
            returnByValue=True,
            awaitPromise=True,
            userGesture=True,
        )
        assert "exceptionDetails" not in answer, f"{expression}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def wait_for(self, expression: str, seconds: float = 60, every: float = 0.05) -> Any:
        """The expression's value, as soon as it is true; looked at `every` so many seconds."""
        until = time.monotonic() + seconds
        while not (value := self.value(expression)):
            assert time.monotonic() < until, f"not within {seconds} s: {expression}"
            time.sleep(every)
        return value

    def click(self, selector: str) -> None:
        self.value(f"document.querySelector({json.dumps(selector)}).click()")

    def choose_file(self, selector: str, path: Path) -> None:
        root = self.ask("DOM.getDocument")["root"]["nodeId"]
        node = self.ask("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.ask("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def screenshot(self, path: Path) -> None:
        """What is seen now, as PNG."""
        path.write_bytes(base64.b64decode(self.ask("Page.captureScreenshot")["data"]))

    @property
    def urls(self) -> list[str]:
        """Of all requests and sockets so far."""
        self.ask("Runtime.evaluate", expression="0")  # takes in what has come meanwhile
        of_requests = [
            event["params"]["request"]["url"]
            for event in self.events
            if event["method"] == "Network.requestWillBeSent"
        ]
        of_sockets = [
            event["params"]["url"]
            for event in self.events
            if event["method"] == "Network.webSocketCreated"
        ]
        return of_requests + of_sockets

    @property
    def complaints(self) -> list[str]:
        """Exceptions that nobody caught, and errors of the log: what the CSP forbids is there."""
        self.ask("Runtime.evaluate", expression="0")
        thrown = [
            event["params"]["exceptionDetails"].get("exception", {}).get("description", "thrown")
            for event in self.events
            if event["method"] == "Runtime.exceptionThrown"
        ]
        entries = [
            event["params"]["entry"] for event in self.events if event["method"] == "Log.entryAdded"
        ]
        return thrown + [entry["text"] for entry in entries if entry["level"] == "error"]
