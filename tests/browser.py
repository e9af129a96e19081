"""A headless Chromium that is told what to do by its DevTools protocol, over a pipe."""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")

# Every node of the page, those in shadow trees and in frames of the same origin too.
_ALL_NODES = """
function* nodes(root) {
  yield root;
  if (root.shadowRoot) yield* nodes(root.shadowRoot);
  if (root.tagName === 'IFRAME' && root.contentDocument) yield* nodes(root.contentDocument);
  if (root.tagName !== 'STYLE' && root.tagName !== 'SCRIPT')
    for (const child of root.childNodes) yield* nodes(child);
}
const all = Array.from(nodes(document));
"""


def find_browser() -> str | None:
    """The program, if one is installed."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One open page. Calls raise `AssertionError` if the browser refuses them or is gone."""

    def __init__(self, ours: int, theirs: int) -> None:
        self._write, self._read = ours, theirs
        self._numbers = itertools.count(1)
        self._heard = b""
        self._session: dict[str, str] = {}
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}

    def open(self, url: str, width: int, height: int) -> None:
        """Goes to `url` in a window of `width` by `height` pixels."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        self._call("Page.navigate", url="about:blank")  # else another fragment loads nothing
        self._call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, in which `all` are the nodes of the page."""
        code = f"(() => {{ {_ALL_NODES} return {expression}; }})()"
        return self._call("Runtime.evaluate", expression=code, returnByValue=True)["result"][
            "value"
        ]

    def text(self) -> str:
        """What stands on the page."""
        return str(self.evaluate("all.filter(n => n.nodeType === 3).map(n => n.data).join(' ')"))

    def wait_for(self, expression: str, limit_sec: float = 60.0) -> None:
        """Returns once `expression` is true."""
        end = time.monotonic() + limit_sec
        while not self.evaluate(expression):
            assert time.monotonic() < end, f"{expression} is not true; the page: {self.text()}"
            time.sleep(0.3)

    def screenshot(self, path: Path) -> Path:
        """Keeps what is to be seen as a PNG file."""
        data = self._call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))
        return path

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters, **self._session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next_message()
            if answer.get("id") == number:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])

    def _next_message(self) -> dict[str, Any]:
        while b"\0" not in self._heard:
            assert select.select([self._read], [], [], 60.0)[0], "the browser does not answer"
            part = os.read(self._read, 1 << 16)
            assert part, "the browser is gone"
            self._heard += part
        message, _, self._heard = self._heard.partition(b"\0")
        return dict(json.loads(message))


@contextmanager
def open_browser(program: str, profile: Path) -> Iterator[Page]:
    """A page of a browser of its own, whose files lie in `profile`."""
    its_in, our_out = os.pipe()
    our_in, its_out = os.pipe()
    options = (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--remote-debugging-pipe", "--hide-scrollbars", f"--user-data-dir={profile}",
    )  # fmt: skip
    # The browser reads its descriptor 3 and writes its descriptor 4.
    script = f'exec "$@" 3<&{its_in} 4>&{its_out}'
    child = subprocess.Popen(
        ["bash", "-c", script, "bash", program, *options],
        pass_fds=(its_in, its_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(its_in)
    os.close(its_out)
    try:
        yield Page(our_out, our_in)
    finally:
        child.terminate()
        child.wait()
        os.close(our_out)
        os.close(our_in)
