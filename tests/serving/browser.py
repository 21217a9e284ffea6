"""A headless Chromium, driven by its DevTools protocol: what a person does, and what they then see and hear."""

import base64
import json
import os
import re
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import urllib3
import websocket

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_KEYS = {"Tab": 9, "Enter": 13, " ": 32}


class Browser:
    """`with Browser(folder) as browser`: one window. Whatever it complains about is in `complaints`."""

    def __init__(self, folder: Path, width: int = 1200, height: int = 900) -> None:
        self._folder, self._size = folder, (width, height)
        self._number = 0
        self.events: list[dict[str, Any]] = []
        self.complaints: list[str] = []
        # A pattern of those that belong to what a test does: browsers report every refused request.
        self.expected = ""

    def __enter__(self) -> Self:
        assert CHROMIUM is not None
        size = "{},{}".format(*self._size)
        words = [
            CHROMIUM,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
        ]
        words += ["--remote-debugging-port=0", "--remote-allow-origins=*", f"--window-size={size}", "--hide-scrollbars"]
        words += ["--disable-background-networking", f"--user-data-dir={self._folder}", "about:blank"]
        # A group of its own: Chromium is many processes, and `chromium` may be a script around them.
        with (self._folder.parent / f"{self._folder.name}.log").open("w+") as log:
            self._process = subprocess.Popen(words, stdout=log, stderr=log, start_new_session=True)
        try:
            self._connect()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if socket := getattr(self, "_socket", None):
            with suppress(OSError, websocket.WebSocketException):
                self.call("Browser.close")
            socket.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(10)

    def _connect(self) -> None:
        found, end = self._folder / "DevToolsActivePort", time.monotonic() + 60
        while not (found.exists() and "\n" in found.read_text()):
            assert self._process.poll() is None, "Chromium has ended"
            assert time.monotonic() < end, "Chromium does not start"
            time.sleep(0.05)
        port = found.read_text().splitlines()[0]
        pages = urllib3.request("GET", f"http://127.0.0.1:{port}/json").json()
        (address,) = [page["webSocketDebuggerUrl"] for page in pages if page["type"] == "page"]
        self._socket = websocket.create_connection(address, timeout=30)
        for domain in ("Page", "Runtime", "Log", "DOM", "Audits", "Accessibility", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """A command of the protocol, and its result."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while (told := json.loads(self._socket.recv())).get("id") != self._number:
            self._note(told)
        assert "error" not in told, f"{method}: {told.get('error')}"
        return told["result"]

    def _note(self, event: dict[str, Any]) -> None:
        self.events.append(event)
        told = event["params"]
        if event["method"] == "Runtime.exceptionThrown":
            self.complaints.append(told["exceptionDetails"].get("exception", {}).get("description", str(told)))
        elif event["method"] == "Runtime.consoleAPICalled" and told["type"] in {"error", "warning", "assert"}:
            self.complaints.append(str(told["args"]))
        elif event["method"] == "Log.entryAdded" and told["entry"]["level"] in {"error", "warning"}:
            self.complaints.append(f"{told['entry']['text']} {told['entry'].get('url', '')}")
        elif event["method"] == "Audits.issueAdded":
            self.complaints.append(json.dumps(told["issue"]))

    def show(self, width: int, height: int, *, touch: bool = False, dark: bool = False, still: bool = False) -> None:
        """A screen, and what its user prefers."""
        scale = 2 if touch else 1
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=touch
        )
        self.call("Emulation.setTouchEmulationEnabled", enabled=touch)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        motion = {"name": "prefers-reduced-motion", "value": "reduce" if still else "no-preference"}
        self.call("Emulation.setEmulatedMedia", features=[scheme, motion])

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState == 'complete' && location.href != 'about:blank'")

    def js(self, expression: str) -> Any:
        """The value of an expression; of a promise, what it comes to."""
        told = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    def wait(self, expression: str, seconds: float = 60) -> None:
        """Until the expression is true."""
        end = time.monotonic() + seconds
        while not self.js(f"Boolean({expression})"):
            assert time.monotonic() < end, f"{expression} is not true; the page says:\n{self.text()}"
            time.sleep(0.05)

    def text(self, selector: str = "body") -> str:
        return str(self.js(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    def sees(self, text: str, selector: str = "body") -> None:
        """Wait until a text is there."""
        self.wait(f"(document.querySelector({json.dumps(selector)})?.innerText ?? '').includes({json.dumps(text)})")

    def choose(self, selector: str, *files: Path) -> None:
        """What a file chooser does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def drop(self, *files: Path, at: tuple[int, int] = (300, 200), until: str = "drop") -> None:
        """Drag files in from the desktop and let go, or stop at the step `until`."""
        data = {"items": [], "files": [str(file) for file in files], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            self.call("Input.dispatchDragEvent", type=kind, x=at[0], y=at[1], data=data)
            if kind == until:
                return

    def press(self, key: str, *, control: bool = False, commands: tuple[str, ...] = ()) -> None:
        """A key, down and up; `commands` are what an editor takes it for, such as paste."""
        code = _KEYS.get(key, ord(key[0].upper()))
        told: dict[str, Any] = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 2 if control else 0}
        letters = "" if control else {"Enter": "\r", "Tab": ""}.get(key, key)
        down = {**told, "type": "keyDown", "text": letters} if letters else {**told, "type": "rawKeyDown"}
        self.call("Input.dispatchKeyEvent", **down, commands=list(commands))
        self.call("Input.dispatchKeyEvent", **told, type="keyUp")

    def tab_to(self, selector: str) -> None:
        """Press Tab until the keyboard is there."""
        for _ in range(60):
            if self.js(f"document.activeElement?.matches({json.dumps(selector)}) ?? false"):
                return
            self.press("Tab")
        raise AssertionError(f"no way to {selector} by Tab")

    def controls(self) -> list[tuple[str, str]]:
        """Role and name of all that screen readers let a person use."""
        usable = {"button", "checkbox", "link", "textbox", "DisclosureTriangle", "combobox"}
        nodes = self.call("Accessibility.getFullAXTree")["nodes"]
        named = [
            (node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]
        ]
        return [(role, name) for role, name in named if role in usable]

    def invalid(self) -> list[str]:
        """Names of the fields that screen readers call wrong."""
        found = []
        for node in self.call("Accessibility.getFullAXTree")["nodes"]:
            told = {one["name"]: one["value"].get("value") for one in node.get("properties", [])}
            if told.get("invalid") == "true":
                found.append(node["name"]["value"])
        return found

    def look(self, path: Path, *, whole: bool = True) -> None:
        """A picture of the page, or of what of it is on the screen."""
        told = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(told["data"]))

    def requested(self) -> list[str]:
        """Addresses that were asked for, but those of the browser's own memory."""
        sent = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        return [told["request"]["url"] for told in sent if not re.match(r"(blob|data|about):", told["request"]["url"])]
