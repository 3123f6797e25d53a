"""A headless Chromium, spoken to over a pipe: what a real browser makes of a page."""

from __future__ import annotations

import json
import os
import select
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
_SWITCHES = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking"),
    *("--disable-component-update", "--hide-scrollbars", "--remote-debugging-pipe"),
)


class Browser:
    """One Chromium with a profile in `folder`; commands of the DevTools protocol, and events.

    Args:
        folder: where its profile goes.
    """

    def __init__(self, folder: Path) -> None:
        assert PROGRAM is not None
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        # The protocol runs over the descriptors 3 and 4.
        script = f'exec "$0" "$@" 3<&{to_read} 4>&{to_write}'
        self._process = subprocess.Popen(
            [
                "/bin/bash",
                "-c",
                script,
                PROGRAM,
                *_SWITCHES,
                f"--user-data-dir={folder}",
                "about:blank",
            ],
            pass_fds=(to_read, to_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "HOME": str(folder)},
        )
        os.close(to_read)
        os.close(to_write)
        self._number = 0
        self._left = b""
        self.events: list[dict[str, Any]] = []

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The result of a command; events that come meanwhile are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return dict(answer["result"])
            self.events.append(answer)

    def wait(self, method: str) -> None:
        """Until an event of this name has come."""
        while not any(event.get("method") == method for event in self.events):
            self.events.append(self._next())

    def _next(self, patience: float = 60.0) -> dict[str, Any]:
        end = time.monotonic() + patience
        while b"\0" not in self._left:
            if not select.select([self._read], [], [], max(0.0, end - time.monotonic()))[0]:
                raise TimeoutError("the browser does not answer")
            part = os.read(self._read, 2**16)
            if not part:
                raise RuntimeError("the browser has ended")
            self._left += part
        message, _, self._left = self._left.partition(b"\0")
        return dict(json.loads(message))


class Tab:
    """One page in a browser, shown at a width and in a colour scheme.

    Attributes:
        requests: addresses that the page asked for, itself left out, `data:` ones too.
        complaints: console messages, exceptions and violations of the page's own policy.
    """

    def __init__(self, browser: Browser, path: Path, *, width: int, scheme: str = "light") -> None:
        self._browser = browser
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        attached = browser.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session, self._target = attached["sessionId"], target
        for domain in ("Page", "Network", "Runtime", "Log", "Audits"):
            self._call(f"{domain}.enable")
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=800,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._call("Emulation.setEmulatedMedia", features=features)
        browser.events.clear()
        address = path.as_uri()
        self._call("Page.navigate", url=address)
        browser.wait("Page.loadEventFired")
        self.evaluate("new Promise(done => setTimeout(done, 50))")
        asked = [e["params"] for e in self._of("Network.requestWillBeSent")]
        self.requests = [p["request"]["url"] for p in asked if p["request"]["url"] != address]
        self.requests = [url for url in self.requests if not url.startswith("data:")]
        self.complaints = [
            json.dumps(e["params"])
            for name in (
                "Runtime.consoleAPICalled",
                "Runtime.exceptionThrown",
                "Log.entryAdded",
                "Audits.issueAdded",
                "Page.javascriptDialogOpening",
            )
            for e in self._of(name)
        ]

    def close(self) -> None:
        """Close the page."""
        self._browser.call("Target.closeTarget", targetId=self._target)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page; its policy does not hold here."""
        found = self._call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    def overflow(self) -> list[str]:
        """Elements wider than the page, outside any part that scrolls by itself; [] if none."""
        found: list[str] = self.evaluate(_OVERFLOW)
        return found

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def _of(self, method: str) -> list[dict[str, Any]]:
        return [
            event
            for event in self._browser.events
            if event.get("method") == method and event.get("sessionId") == self._session
        ]


_OVERFLOW = """(() => {
  const width = document.documentElement.clientWidth;
  const found = [];
  if (document.documentElement.scrollWidth > width)
    found.push(`page: ${document.documentElement.scrollWidth} > ${width}`);
  for (const element of document.body.querySelectorAll('*')) {
    if (element.closest('.scroll, pre') || !element.getClientRects().length) continue;
    const box = element.getBoundingClientRect();
    if (box.right > width + 1 || box.left < -1)
      found.push(`${element.tagName}.${element.className}: ${box.left} to ${box.right}`);
  }
  return found;
})()"""
