"""Attacks on the LFS routes: what a small request may cost the server, and bytes that the server only believes it has."""

from __future__ import annotations

import asyncio
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from adapterhub_registry.app import create_app
from adapterhub_registry.hub_lfs import DIRECT_BYTES, MAX_LINKS
from adapterhub_registry.settings import Limits, load_settings

from tests.hub.running import Running, running

TIB = 1 << 40
MEMORY = 20_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("registry")) as server:
        server.post("/api/repos/create", {"organization": "acme", "name": "x"})
        yield server


def asked(*sizes: int) -> dict[str, Any]:
    objects = [{"oid": f"{number:064x}", "size": size} for number, size in enumerate(sizes)]
    return {"operation": "upload", "transfers": ["multipart"], "objects": objects, "hash_algo": "sha256"}


def links_in(answer: dict[str, Any]) -> list[int]:
    """The number of links to parts of each object."""
    headers = [item.get("actions", {}).get("upload", {}).get("header", {}) for item in answer["objects"]]
    return [sum(name.isdecimal() for name in header) for header in headers]


@pytest.mark.parametrize("count", [1, 15, 40, 1000])
def test_a_batch_of_giants_costs_little_memory(server: Running, count: int) -> None:
    path, body = "/acme/x.git/info/lfs/objects/batch", asked(*[TIB] * count)
    server.post(path, asked(1))  # what is loaded once

    tracemalloc.start()
    answer = server.post(path, body)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()

    assert peak < MEMORY
    if count * TIB > MAX_LINKS * DIRECT_BYTES:
        assert (answer.status_code, answer.headers["X-Error-Code"]) == (413, "TooLarge")
        assert "fewer files" in answer.json()["error"]
    else:
        assert answer.status_code == 200
        assert sum(links_in(answer.json())) <= MAX_LINKS + count


def test_parts_of_a_large_batch_grow_and_cover_every_byte(server: Running) -> None:
    sizes = [TIB, 300 << 20, 7 * (1 << 30) + 1, 5]

    answer = server.post("/acme/x.git/info/lfs/objects/batch", asked(*sizes)).json()

    headers = [item["actions"]["upload"]["header"] for item in answer["objects"]]
    assert sum(links_in(answer)) <= MAX_LINKS + len(sizes)
    for size, header in zip(sizes[:3], headers, strict=False):
        part = int(header["chunk_size"])
        assert part >= Limits().part_bytes
        assert -(-size // part) == len(header) - 1


def test_a_size_over_the_limit_is_refused_for_its_object_alone(server: Running) -> None:
    answer = server.post("/acme/x.git/info/lfs/objects/batch", asked(TIB + 1, 5))

    first, second = answer.json()["objects"]
    assert answer.status_code == 200
    assert first["error"]["code"] == 422
    assert str(TIB) in first["error"]["message"]
    assert "actions" not in first
    assert "upload" in second["actions"]


def test_no_link_is_signed_for_a_client_that_has_left(tmp_path: Path) -> None:
    """The application itself, without a network: the connection ends as soon as the body is read."""
    settings = load_settings(tmp_path)
    app = create_app(settings)
    token = app.state.registry.tokens.create("ann", "admin")

    async def call(method: str, path: str, body: dict[str, Any], *, stays: bool) -> int:
        raw, status = json.dumps(body).encode(), [0]
        messages = [{"type": "http.request", "body": raw, "more_body": False}]

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            if stays:
                await asyncio.Event().wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            status[0] = message.get("status", status[0])

        headers = [(b"host", b"h"), (b"authorization", f"Bearer {token}".encode())]
        scope = {"type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b""}
        more = {"headers": headers, "scheme": "http", "client": ("127.0.0.1", 1), "http_version": "1.1"}
        await app(scope | more, receive, send)
        return status[0]

    async def attack() -> tuple[int, int]:
        await call("POST", "/api/repos/create", {"organization": "acme", "name": "x"}, stays=True)
        path = "/acme/x.git/info/lfs/objects/batch"
        return await call("POST", path, asked(TIB), stays=True), await call("POST", path, asked(TIB), stays=False)

    stayed, left = asyncio.run(attack())
    app.state.registry.db.close()

    assert (stayed, left) == (200, 400)
