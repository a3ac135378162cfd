"""Firefox, of which Debian has no driver: over Marionette, its own protocol of lengths and JSON on a local port."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.programs import needs

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]
PATHS = ("/", "/sign-in", "/acme/legal-qa", "/compare?a=acme/legal-qa&b=acme/signed@main")
LOOK = """
const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
const shown = [...document.querySelectorAll('.tabs > .panel')].filter(one => one.checkVisibility()).length;
return {wide, font: getComputedStyle(document.body).fontSize, shown, tabs: document.querySelectorAll('.tabs').length,
  scripted: document.documentElement.classList.contains('scripted')};
"""


class Firefox:
    """A Firefox without a window; `ask` sends one command of WebDriver."""

    def __init__(self, port: int) -> None:
        until = time.monotonic() + 120
        while True:
            try:
                self._socket = socket.create_connection(("127.0.0.1", port), timeout=120)
                break
            except ConnectionRefusedError:
                assert time.monotonic() < until, "Firefox does not listen"
                time.sleep(0.1)
        self._file = self._socket.makefile("rb")
        self._read()
        self.ask("WebDriver:NewSession", {"capabilities": {"alwaysMatch": {}}})

    def ask(self, command: str, parameters: dict[str, Any]) -> Any:
        text = json.dumps([0, 1, command, parameters]).encode()
        self._socket.sendall(b"%d:%s" % (len(text), text))
        _, _, problem, answer = self._read()
        assert problem is None, problem
        return answer.get("value") if isinstance(answer, dict) else answer

    def _read(self) -> Any:
        length = b""
        while (digit := self._file.read(1)) != b":":
            length += digit
        return json.loads(self._file.read(int(length)))


@pytest.fixture
def firefox(tmp_path: Path) -> Iterator[Firefox]:
    program = needs("firefox-esr")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (tmp_path / "user.js").write_text(f'user_pref("marionette.port", {port});\n')
    command = [program, "-headless", "-marionette", "-no-remote", "-profile", str(tmp_path)]
    environ = {**os.environ, "HOME": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environ) as running:
        try:
            yield Firefox(port)
        finally:
            running.terminate()


def test_firefox_shows_the_pages_as_chromium_does(firefox: Firefox, world: Any) -> None:
    found = {}
    for path in PATHS:
        firefox.ask("WebDriver:Navigate", {"url": world.url + path})
        found[path] = firefox.ask("WebDriver:ExecuteScript", {"script": LOOK, "args": []})

    assert all((one["wide"], one["font"], one["scripted"]) == (0, "15px", True) for one in found.values()), found
    assert all(one["shown"] == one["tabs"] for one in found.values()), found  # `:has` shows one panel of each
