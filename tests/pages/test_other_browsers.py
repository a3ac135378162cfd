"""The core of the list that Chromium is held to, in Firefox and in WebKit; at 500 and 447 pixels instead of a phone's 390.

Debian has no driver of Firefox: it is asked over Marionette, its own protocol of lengths and JSON on a local port.
WebKit, which has no mode without a window, is asked over WebDriver, and shows its window to Xvfb.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Protocol

import httpx
import pytest

from tests.pages.test_look import ADAPTERS, crowd
from tests.registry.running import Running
from tests.support.page_checks import FONT_PX, NARROW, WIDE
from tests.support.programs import needs

pytestmark = [pytest.mark.slow, pytest.mark.exhaustive]
__all__ = ["crowd"]
PATHS = ("/", "/sign-in", "/acme/legal-qa", "/acme/legal-qa/1.0.0", "/compare?a=acme/legal-qa&b=acme/signed@main")
LEAST = {"firefox": 500, "webkit": 447}
"""Pixels of the narrowest page that a window of each shows here: neither is as narrow as the phone of the list, 390."""
PAPER = {"light": "rgb(255, 255, 255)", "dark": "rgb(15, 20, 26)"}
LOOK = """
const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
const shown = [...document.querySelectorAll('.tabs > .panel')].filter(one => one.checkVisibility()).length;
const line = document.querySelector('.head .line');
return {wide, font: getComputedStyle(document.body).fontSize, shown, tabs: document.querySelectorAll('.tabs').length,
  scripted: document.documentElement.classList.contains('scripted'), paper: getComputedStyle(document.documentElement).backgroundColor,
  below: line ? Math.max(0, line.getBoundingClientRect().bottom - innerHeight) : 0};
"""
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


class Driven(Protocol):
    """A browser; `ask` sends one command of WebDriver by its name in Marionette."""

    def ask(self, command: str, **parameters: Any) -> Any: ...


class Firefox:
    """A Firefox without a window."""

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
        self.ask("NewSession", capabilities={"alwaysMatch": {}})

    def ask(self, command: str, **parameters: Any) -> Any:
        text = json.dumps([0, 1, f"WebDriver:{command}", parameters]).encode()
        self._socket.sendall(b"%d:%s" % (len(text), text))
        _, _, problem, answer = self._read()
        assert problem is None, problem
        return answer["value"] if isinstance(answer, dict) and "value" in answer else answer

    def _read(self) -> Any:
        length = b""
        while (digit := self._file.read(1)) != b":":
            length += digit
        return json.loads(self._file.read(int(length)))


class WebKit:
    """A WebKit with a window on a display."""

    PLACES: ClassVar = {
        "Navigate": "url",
        "ExecuteScript": "execute/sync",
        "SetWindowRect": "window/rect",
        "FindElement": "element",
        "ElementClick": "element/{id}/click",
    }

    def __init__(self, port: int) -> None:
        self._client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120)
        until = time.monotonic() + 120
        while True:
            try:
                made = self._client.post("/session", json={"capabilities": {"alwaysMatch": {}}})
                break
            except httpx.ConnectError:
                assert time.monotonic() < until, "the driver of WebKit does not listen"
                time.sleep(0.1)
        self._place = f"/session/{made.raise_for_status().json()['value']['sessionId']}"

    def ask(self, command: str, **parameters: Any) -> Any:
        place = self.PLACES[command].format(**parameters)
        answer = self._client.post(f"{self._place}/{place}", json=parameters)
        assert answer.is_success, answer.text
        return answer.json()["value"]

    def close(self) -> None:
        self._client.delete(self._place)
        self._client.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


@contextmanager
def started(command: list[str], **environ: str) -> Iterator[None]:
    surroundings = {**os.environ, **environ}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=surroundings) as running:
        try:
            yield
        finally:
            running.terminate()


@contextmanager
def display() -> Iterator[str]:
    """The name of a display that no one sees."""
    command = [needs("Xvfb"), "-displayfd", "1", "-screen", "0", "1600x1200x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        assert running.stdout is not None
        try:
            yield f":{running.stdout.readline().strip()}"
        finally:
            running.terminate()


@contextmanager
def browser_of(kind: str, scheme: str, folder: Path) -> Iterator[Driven]:
    port = free_port()
    with ExitStack() as stack:
        if kind == "firefox":
            settings = {"marionette.port": port, "layout.css.prefers-color-scheme.content-override": scheme == "light"}
            lines = (f'user_pref("{name}", {int(value)});\n' for name, value in settings.items())
            (folder / "user.js").write_text("".join(lines))
            command = [needs("firefox-esr"), "-headless", "-marionette", "-no-remote", "-profile", str(folder)]
            stack.enter_context(started(command, HOME=str(folder)))
            yield Firefox(port)
        else:
            surroundings = {"HOME": str(folder), "DISPLAY": stack.enter_context(display()), "WEBKIT_FORCE_SANDBOX": "0"}
            theme = "Adwaita:dark" if scheme == "dark" else "Adwaita"
            command = [needs("WebKitWebDriver"), f"--port={port}"]
            stack.enter_context(started(command, GTK_THEME=theme, **surroundings))
            webkit = WebKit(port)
            stack.callback(webkit.close)
            yield webkit


def give_size(driven: Driven, size: dict[str, int]) -> int:
    """Make the page of this size, as far as the browser's least width allows; the width that it has."""
    more = {"width": 0, "height": 0}
    for _ in range(2):  # what is around a page is known once there is a window
        driven.ask("SetWindowRect", **{name: size[name] + more[name] for name in size})
        time.sleep(1)
        width, height = driven.ask("ExecuteScript", script="return [innerWidth, innerHeight]", args=[])
        more = {"width": more["width"] + size["width"] - width, "height": more["height"] + size["height"] - height}
    return int(width)


def looked_at(driven: Driven, url: str) -> dict[str, Any]:
    driven.ask("Navigate", url=url)
    found: dict[str, Any] = driven.ask("ExecuteScript", script=LOOK, args=[])
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("kind", ["firefox", "webkit"])
def test_the_pages_hold_the_core_of_the_list(
    kind: str, scheme: str, world: Any, crowd: Running, tmp_path: Path
) -> None:
    with browser_of(kind, scheme, tmp_path) as driven:
        for size, font in ((WIDE, FONT_PX[1280]), (NARROW, FONT_PX[390])):
            driven.ask("Navigate", url=world.url)
            width = give_size(driven, size)
            assert width == size["width"] or (size is NARROW and size["width"] < width <= LEAST[kind]), width
            found = {path: looked_at(driven, world.url + path) for path in PATHS}
            assert {(one["wide"], one["font"], one["scripted"]) for one in found.values()} == {(0, f"{font}px", True)}
            assert {one["paper"] for one in found.values()} == {PAPER[scheme]}
            assert all(one["shown"] == one["tabs"] for one in found.values()), found  # `:has` shows one panel of each
            assert found["/acme/legal-qa"]["below"] == 0

        give_size(driven, WIDE)
        driven.ask("Navigate", url=crowd.url)
        whole = (
            "return [...document.querySelectorAll('.hit')].filter(o => o.getBoundingClientRect().bottom <= innerHeight)"
        )
        assert len(driven.ask("ExecuteScript", script=whole, args=[])) >= min(8, ADAPTERS)

        driven.ask("Navigate", url=f"{world.url}/acme/legal-qa")
        button = driven.ask("FindElement", using="css selector", value=".head .line .copy")
        driven.ask("ElementClick", id=button[ELEMENT])
        said = "return document.getElementById('said').textContent"
        until = time.monotonic() + 20
        while driven.ask("ExecuteScript", script=said, args=[]) != "Copied to the clipboard":
            assert time.monotonic() < until, "nothing was copied"
