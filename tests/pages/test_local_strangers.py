"""`adapt ui` beside strangers on the same machine: idle connections, numbers that are none, and what counts as unused."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

import adapterhub
from tests.support.command_line import Adapt
from tests.support.docs_sandbox import make_sandbox


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("strangers")
    make_sandbox(folder, filled=True)
    return folder


@pytest.fixture(scope="module")
def ui(folder: Path) -> Iterator[Any]:
    with adapterhub.Library(folder / "home").ui() as ui:
        yield ui


@pytest.fixture
def client(ui: Any) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=f"http://127.0.0.1:{ui.port}",
        headers={"Accept": "text/html"},
        timeout=60,
        limits=httpx.Limits(max_keepalive_connections=0),
    ) as client:
        client.get(ui.url)
        yield client


@pytest.mark.parametrize("count", [100, 400])
@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX: "], ids=["silent", "half a request"])
def test_it_answers_beside_idle_connections(ui: Any, client: httpx.Client, count: int, sent: bytes) -> None:
    with ExitStack() as stack:
        for _ in range(count):
            stranger = stack.enter_context(socket.create_connection(("127.0.0.1", ui.port)))
            stranger.sendall(sent)

        assert [client.get("/projects").status_code for _ in range(5)] == [200] * 5


@pytest.mark.parametrize(
    "wish",
    [
        {"do": "save-²"},
        {"do": "save-٣"},
        {"do": "save-"},
        {"do": "save-1" + "0" * 5000},
        {"tokens": "²"},
        {"tokens": "٣"},
    ],
)
def test_a_number_that_is_none_is_refused_and_no_error_of_the_server(
    client: httpx.Client, wish: dict[str, str]
) -> None:
    page = client.get("/playground").text
    token = re.search(r'name="form_token" value="(\w+)"', page)
    assert token is not None

    answer = client.post("/playground", data={"form_token": token[1], "base": "base-7b", "prompt": "x"} | wish)

    assert answer.status_code < 500, answer.text
    assert 'role="alert"' in answer.text


def test_what_it_calls_unused_is_what_gc_would_remove(folder: Path, client: httpx.Client) -> None:
    adapt = Adapt(folder)
    adapt.ok("install", "summarize@base-7b", "--from", "published")
    for made in ("held", "loose"):
        adapt.ok("merge", "legal-qa", "summarize", "-o", made, "--weights", f"1,{len(made)}")
    adapt.ok("alias", "set", "prod", "held")
    adapt.ok("add", "out/tables", "--name", "tables")

    removed = {row["name"] for row in adapt.json("cache", "clean", "--unused", "--dry-run")["removed"]}

    token = re.search(r'name="form_token" value="(\w+)"', client.get("/").text)
    page = client.post("/", data={"form_token": token[1]}).text.partition("<h2>Unused</h2>")[2]
    assert {name.split("==")[0] for name in re.findall(r"<bdi>([^<]+)</bdi>", page)} == removed == {"loose", "tables"}
    assert "adapt cache clean --unused" in page
