"""Strangers at the edge of a registry: smuggled requests, heads and bodies that never end, and places for uploads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from adapterhub_registry.access.telemetry import RequestRecord
from adapterhub_registry.api import edge
from adapterhub_registry.api.bodies import UploadSlots
from adapterhub_registry.errors import HttpRefusal
from adapterhub_registry.settings import ServerLimits

from tests.attacks.raw_http import Line, head_of, line_to
from tests.registry.pushing import Push
from tests.registry.running import Running, running

HEADER = b'{"key":"header","value":{"summary":"x"}}\n'
SHORT_S = 0.3


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("registry")) as server:
        yield server


# ------------------------------------------------------------ smuggling
CHUNKS = b"5\r\nhello\r\n0\r\n\r\n"
AMBIGUOUS = {
    "length, coding": ["Content-Length: 15", "Transfer-Encoding: chunked"],
    "coding, length": ["Transfer-Encoding: chunked", "Content-Length: 15"],
    "length 0, coding": ["Content-Length: 0", "Transfer-Encoding: chunked"],
    "capitals": ["CONTENT-LENGTH: 15", "TRANSFER-ENCODING: CHUNKED"],
    "tab before the coding": ["Content-Length: 15", "Transfer-Encoding:\tchunked"],
    "tab after the coding": ["Content-Length: 15", "Transfer-Encoding: chunked\t"],
    "coding in a second line": ["Transfer-Encoding:", " chunked"],
    "coding in a second line beside a length": ["Content-Length: 15", "Transfer-Encoding:", "\tchunked"],
    "coding hidden in the line of another field": ["X-A: b", " Transfer-Encoding: chunked", "Content-Length: 15"],
    "length in a second line": ["Content-Length:", " 15"],
    "space before the colon": ["Content-Length: 15", "Transfer-Encoding : chunked"],
    "two codings": ["Transfer-Encoding: chunked", "Transfer-Encoding: chunked"],
    "chunked, identity": ["Transfer-Encoding: chunked, identity"],
    "identity, chunked": ["Transfer-Encoding: identity, chunked"],
    "gzip, chunked": ["Transfer-Encoding: gzip, chunked"],
    "xchunked": ["Transfer-Encoding: xchunked"],
    "quoted": ['Transfer-Encoding: "chunked"'],
    "vertical tab": ["Transfer-Encoding: \x0bchunked"],
    "empty": ["Transfer-Encoding:", "Content-Length: 15"],
    "two lengths": ["Content-Length: 15", "Content-Length: 0"],
    "a length twice": ["Content-Length: 15", "Content-Length: 15"],
    "a list of lengths": ["Content-Length: 15, 15"],
    "a list of unequal lengths": ["Content-Length: 15, 0"],
    "length +15": ["Content-Length: +15"],
    "length 0x0f": ["Content-Length: 0x0f"],
    "length 1_5": ["Content-Length: 1_5"],
    "length with another after it": ["Content-Length: 15 0"],
}


@pytest.mark.parametrize("method", ["POST", "GET", "HEAD"])
@pytest.mark.parametrize("case", AMBIGUOUS)
def test_a_request_with_two_ends_is_refused_and_nothing_after_it_is_answered(
    server: Running, case: str, method: str
) -> None:
    smuggled = json.dumps({"organization": "smuggled", "name": "x"}).encode()
    fields = (f"Authorization: Bearer {server.token}", f"Content-Length: {len(smuggled)}")
    with line_to(server.url) as line:
        line.send(head_of(method, "/api/models", *AMBIGUOUS[case]) + CHUNKS)
        line.send(head_of("POST", "/api/repos/create", *fields) + smuggled)
        said = line.rest()

    assert said.startswith(b"HTTP/1.1 400 ")
    assert said.count(b"HTTP/1.1 ") == 1
    assert b"connection: close\r\n" in said
    assert b"x-error-code: BadRequest\r\n" in said
    assert server.get("/api/models?author=smuggled").json() == []


def test_an_old_request_cannot_be_chunked(server: Running) -> None:
    with line_to(server.url) as line:
        line.send(b"POST /api/models HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + CHUNKS)

        assert line.rest().startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "fields", [["Content-Length: 15"], ["Transfer-Encoding: chunked"], ["transfer-encoding:chunked"]]
)
def test_a_request_with_one_end_is_answered_and_so_is_the_next(server: Running, fields: list[str]) -> None:
    with line_to(server.url) as line:
        line.send(head_of("GET", "/api/adapt/v1/info", *fields) + CHUNKS + head_of("GET", "/api/adapt/v1/healthz"))

        assert [line.answer().status, line.answer().json()] == [200, {"status": "ok"}]


def test_fields_of_a_body_are_no_fields_of_the_head(server: Running) -> None:
    body = b"Content-Length: 3\r\n folded\r\n\r\nTransfer-Encoding: chunked\r\n"
    with line_to(server.url) as line:
        line.send(head_of("GET", "/api/adapt/v1/info", f"Content-Length: {len(body)}") + body)

        assert line.answer().status == 200


@pytest.mark.parametrize("chunk", [b"5\nhello\r\n0\r\n\r\n", b"5\r\nhelloXX0\r\n\r\n", b"-5\r\nhello\r\n", b"zz\r\n"])
def test_a_body_that_breaks_off_its_framing_ends_the_connection(server: Running, chunk: bytes) -> None:
    with line_to(server.url) as line:
        line.send(head_of("POST", "/api/validate-yaml", "Transfer-Encoding: chunked") + chunk)
        line.send(head_of("GET", "/api/adapt/v1/healthz"))

        assert line.rest().count(b"HTTP/1.1 ") == 1


# ------------------------------------------------------------ what is asked
def test_an_absolute_target_is_answered_for_the_host_that_it_names(server: Running) -> None:
    body = b'{"organization":"acme","name":"absolute"}'
    fields = (f"Authorization: Bearer {server.token}", f"Content-Length: {len(body)}")
    with line_to(server.url) as line:
        line.send(head_of("GET", "http://adapters.example/api/adapt/v1/healthz"))
        health = line.answer()
        line.send(head_of("POST", "HTTP://adapters.example:8000/api/repos/create", *fields) + body)
        made = line.answer()

    assert (health.status, health.json()) == (200, {"status": "ok"})
    assert made.json()["url"] == "http://adapters.example:8000/acme/absolute"


@pytest.mark.parametrize("authority", ["ann@adapters.example", "", "a b", "adapters.example:99999x"])
def test_an_absolute_target_names_a_host(server: Running, authority: str) -> None:
    with line_to(server.url) as line:
        line.send(head_of("GET", f"http://{authority}/api/models"))

        assert line.answer().status == 400


@pytest.mark.parametrize("target", ["*", "adapters.example:443", "//adapters.example/api/models", "ftp://x/api/models"])
def test_other_targets_are_nothing_here(server: Running, target: str) -> None:
    with line_to(server.url) as line:
        line.send(head_of("GET", target))

        assert line.answer().status == 404


@pytest.mark.parametrize("path", ["/healthz/", "/metrics/", "/api/models/acme/x/", "/api/models/", "//healthz"])
def test_no_request_is_redirected_to_the_host_that_it_names(server: Running, path: str) -> None:
    with line_to(server.url) as line:
        line.send(head_of("GET", path))
        answer = line.answer()

    assert (answer.status, "location" in answer.headers) == (404, False)


@pytest.mark.parametrize("version", ["2.0", "1.2", "0.9", "9.9"])
def test_other_versions_of_http_are_refused(server: Running, version: str) -> None:
    with line_to(server.url) as line:
        line.send(f"GET /api/models HTTP/{version}\r\nHost: x\r\n\r\n".encode())

        assert line.rest().startswith(b"HTTP/1.1 400 ")


def test_a_websocket_is_not_opened(server: Running) -> None:
    key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    with line_to(server.url) as line:
        line.send(head_of("GET", "/healthz", "Connection: Upgrade", "Upgrade: websocket", key))

        assert line.answer().status == 200


def test_two_credentials_are_refused(server: Running) -> None:
    with line_to(server.url) as line:
        line.send(head_of("GET", "/api/models", f"Authorization: Bearer {server.token}", "Authorization: Bearer x"))

        assert line.answer().status == 400


def test_a_packed_body_is_refused_unread(server: Running) -> None:
    with line_to(server.url) as line:
        line.send(head_of("POST", "/api/repos/create", "Content-Encoding: gzip", "Content-Length: 1000"))

        assert line.rest().startswith(b"HTTP/1.1 415 ")


@pytest.mark.parametrize(
    "body",
    [
        b'{"user":"bob","role":"read","user":"eve"}',
        b'{"user":"bob","role":"read","days":NaN}',
        b'{"user":"bob","role":"read","days":' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"user":' * 5000,
        b"\xff",
    ],
)
def test_json_that_two_programs_read_differently_is_refused(server: Running, body: bytes) -> None:
    before = len(server.registry.tokens.records())
    headers = {"Authorization": f"Bearer {server.token}", "Content-Type": "application/json"}

    answer = httpx.post(f"{server.url}/api/adapt/v1/tokens", content=body, headers=headers)

    assert (answer.status_code, answer.headers["x-error-code"]) == (400, "BadRequest")
    assert answer.json()["error"].startswith("body: ")
    assert len(server.registry.tokens.records()) == before


# ------------------------------------------------------------ heads
def test_a_head_is_waited_for_ten_seconds_at_most() -> None:
    assert ServerLimits().head_s <= 10


def test_half_sent_heads_are_closed_and_others_are_answered(tmp_path: Path) -> None:
    halves = [b"", b"G", b"GET / HTTP/1.1\r\n", b"GET /api/models HTTP/1.1\r\nHost: x\r\nX-A: "] * 25
    with running(tmp_path, limits=ServerLimits(head_s=SHORT_S)) as server, ExitStack() as lines:
        opened = []
        for half in halves:  # at once: the server closes a connection that says nothing in time
            opened.append(lines.enter_context(line_to(server.url)))
            opened[-1].send(half)
        said = [line.rest() for line in opened]

        assert server.get("/api/adapt/v1/healthz").status_code == 200
    assert [bool(text) for text in said] == [bool(half) for half in halves]
    assert {text.partition(b" ")[2][:4] for text in said if text} == {b"408 "}


def test_a_head_that_drips_gets_no_more_time_for_it(tmp_path: Path) -> None:
    with running(tmp_path, limits=ServerLimits(head_s=SHORT_S)) as server, line_to(server.url) as line:
        line.send(b"GET /api/models HTTP/1.1\r\nHost: x\r\nX-A: ")
        for _ in range(1000):
            line.send(b"a")
            if not line.is_open_after(0.02):
                break

        assert b" 408 " in line.rest()


def test_a_second_head_is_no_more_patient_than_the_first(tmp_path: Path) -> None:
    with running(tmp_path, limits=ServerLimits(head_s=SHORT_S)) as server, line_to(server.url) as line:
        line.send(head_of("GET", "/api/adapt/v1/healthz"))
        first = line.answer()
        line.send(b"GET /api")

        assert (first.status, line.answer().status, line.rest()) == (200, 408, b"")


def test_a_head_that_came_with_the_request_before_it_is_waited_for_too(tmp_path: Path) -> None:
    with running(tmp_path, limits=ServerLimits(head_s=SHORT_S)) as server, line_to(server.url) as line:
        line.send(head_of("GET", "/api/adapt/v1/healthz") + b"GET /api")

        assert (line.answer().status, line.answer().status, line.rest()) == (200, 408, b"")


def test_a_connection_between_two_requests_may_be_quiet_for_longer(tmp_path: Path) -> None:
    with running(tmp_path, limits=ServerLimits(head_s=SHORT_S)) as server, line_to(server.url) as line:
        line.send(head_of("GET", "/api/adapt/v1/healthz"))
        first = line.answer()

        assert line.is_open_after(4 * SHORT_S)
        line.send(head_of("GET", "/api/adapt/v1/healthz"))
        assert (first.status, line.answer().status) == (200, 200)


def test_a_head_without_end_is_refused(server: Running) -> None:
    with line_to(server.url) as line:
        line.send(b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X-A: b\r\n" * 10_000)

        assert line.rest().startswith(b"HTTP/1.1 431 ")


# ------------------------------------------------------------ bodies
def slow_commit(server: Running, repo: str, token: str) -> Line:
    """A commit of which the server has begun to read the body, or has said why not."""
    line = Line(server.url)
    fields = (f"Authorization: Bearer {token}", "Expect: 100-continue", "Content-Length: 1000")
    line.send(head_of("POST", f"/api/models/{repo}/commit/main", *fields))
    line.until(b"HTTP/1.1 ")
    return line


def status_of(line: Line) -> int:
    return int(line.until(b" "))


def commit(server: Running, repo: str, token: str) -> int:
    return server.send(
        "POST", f"/api/models/{repo}/commit/main", {"key": "header", "value": {}}, token=token
    ).status_code


def test_one_token_with_slow_uploads_leaves_room_for_others(tmp_path: Path) -> None:
    with running(tmp_path, limits=ServerLimits(uploads_at_once=8)) as server, ExitStack() as lines:
        for name in ("ann", "bob"):
            assert server.post("/api/repos/create", {"organization": name, "name": "x"}).status_code == 200
        ann, bob = (server.registry.tokens.create(name, "write") for name in ("ann", "bob"))
        statuses = []
        for _ in range(64):
            line = slow_commit(server, "ann/x", ann)
            lines.callback(line.close)
            statuses.append(status_of(line))
        refused = line.until(b"\r\n\r\n")

        assert statuses == [100] * 4 + [429] * 60
        assert b"retry-after: 2\r\n" in refused
        assert commit(server, "bob/x", bob) == 200


def test_slow_bodies_are_given_up_and_their_places_are_free_again(tmp_path: Path) -> None:
    with (
        running(tmp_path, limits=ServerLimits(uploads_at_once=2, body_grace_s=SHORT_S)) as server,
        ExitStack() as lines,
    ):
        server.post("/api/repos/create", {"organization": "ann", "name": "x"})
        line = slow_commit(server, "ann/x", server.token)
        lines.callback(line.close)
        line.send(HEADER[:1])
        said = line.rest()

        assert said.startswith(b"100 ")
        assert b"HTTP/1.1 408 " in said
        assert b"x-error-code: TooSlow\r\n" in said
        assert commit(server, "ann/x", server.token) == 200
        assert [path for path in (tmp_path / "uploads").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/api/repos/create"), ("POST", "/api/adapt/v1/tokens"), ("PUT", "/_lfs/object/{link}")],
)
def test_every_body_must_come_in_time(tmp_path: Path, method: str, path: str) -> None:
    with running(tmp_path, limits=ServerLimits(body_grace_s=SHORT_S)) as server, line_to(server.url) as line:
        server.post("/api/repos/create", {"organization": "ann", "name": "x"})
        asked = {"operation": "upload", "objects": [{"oid": "0" * 64, "size": 1000}]}
        batch = server.post("/ann/x.git/info/lfs/objects/batch", asked).json()
        link = batch["objects"][0]["actions"]["upload"]["href"].rpartition("/")[2]
        fields = (f"Authorization: Bearer {server.token}", "Content-Type: application/json", "Content-Length: 1000")
        line.send(head_of(method, path.format(link=link), *fields) + b"{")

        assert line.rest().startswith(b"HTTP/1.1 408 ")


def test_the_rest_of_a_body_that_is_not_needed_is_not_waited_for(tmp_path: Path) -> None:
    with running(tmp_path, limits=ServerLimits(body_grace_s=SHORT_S)) as server, line_to(server.url) as line:
        line.send(head_of("GET", "/api/adapt/v1/healthz", "Content-Length: 1000") + b"{")
        first = line.answer()
        for _ in range(1000):
            line.send(b"a")
            if not line.is_open_after(0.02):
                break

        assert (first.status, line.rest()) == (200, b"")


def read_body(pieces: list[bytes], seconds_each: float, monkeypatch: pytest.MonkeyPatch, **limits: float) -> int:
    """How many pieces the application gets of a body for each of which the server waits so long."""
    now, got = [0.0], 0
    monkeypatch.setattr(edge.time, "monotonic", lambda: now[0])

    async def receive() -> Any:
        now[0] += seconds_each
        return {"type": "http.request", "body": pieces[got], "more_body": got + 1 < len(pieces)}

    async def read() -> None:
        nonlocal got
        bounded = edge._bounded(receive, 1 << 30, ServerLimits(**limits), RequestRecord())
        while got < len(pieces):
            await bounded()
            got += 1

    asyncio.run(read())
    return got


def test_a_body_at_the_least_rate_may_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_body([b"a" * 10_000] * 100, 9.0, monkeypatch, body_bytes_per_second=1000, body_grace_s=10) == 100


@pytest.mark.parametrize(
    ("piece", "limits"),
    [
        (b"a" * 5_000, {"body_bytes_per_second": 1000, "body_grace_s": 10}),
        (b"a" * 10_000, {"body_bytes_per_second": 1000, "body_grace_s": 10, "body_s": 60}),
    ],
)
def test_a_body_below_the_least_rate_or_beyond_the_longest_time_is_given_up(
    monkeypatch: pytest.MonkeyPatch, piece: bytes, limits: dict[str, float]
) -> None:
    with pytest.raises(HttpRefusal) as refused:
        read_body([piece] * 100, 9.0, monkeypatch, **limits)

    assert refused.value.status == 408


def test_places_are_shared_by_halves() -> None:
    slots = UploadSlots(64)

    def take_all(token: int) -> int:
        for number in range(100):
            try:
                held.enter_context(slots.hold(token))
            except HttpRefusal:
                return number
        return 100

    with ExitStack() as held:
        assert [take_all(token) for token in range(8)] == [32, 16, 8, 4, 2, 1, 1, 0]
    with ExitStack() as held:
        assert take_all(1) == 32


# ------------------------------------------------------------ answers
def test_a_client_that_takes_nothing_is_cut_off(tmp_path: Path) -> None:
    with running(tmp_path, limits=ServerLimits(answer_stall_s=SHORT_S)) as server:
        weights = bytes(64 << 20)
        with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.token}"}) as client:
            Push(repo="ann/x", weights=weights).run(client)
        with line_to(server.url) as line:
            line.send(head_of("GET", "/ann/x/resolve/main/adapter_model.safetensors"))
            line.until(b"\r\n\r\n")
            for _ in range(10_000):  # until the server answers nobody but the one who looks
                if "adapterhub_requests_running 1.0" in server.get("/metrics").text:
                    break
            assert len(line.rest()) < len(weights)
