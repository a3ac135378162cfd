"""Bodies of requests: nobody makes the server read, parse or keep one that they may not send."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from adapterhub_registry.api.bodies import MOST_VALUES, OPEN_BODY_BYTES, GuardedRoute
from adapterhub_registry.app import create_app
from adapterhub_registry.settings import load_settings
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.routing import Route

from adapterhub.core.digests import strict_json
from adapterhub.core.errors import MalformedManifest
from adapterhub.formats.manifest import Manifest
from tests.attacks.raw_http import head_of, line_to
from tests.attacks.test_registry_trees import Memory
from tests.registry.conftest import Served, serving
from tests.registry.pushing import CONFIG
from tests.registry.running import Running, running

MEGABYTE = 1_000_000
MOST_MEMORY = 50 << 20
"""What the documentation promises of a request."""
OPEN = {
    "/api/adapt/v1/publish-token",  # a job has no token yet; it may send 32 KiB
    "/api/adapt/v1/device",  # nor has a person who signs in from the command line, or who accepts an invitation
    "/api/adapt/v1/device/token",
    "/api/adapt/v1/invitations/accept",
    "/api/adapt/v1/tlog/cosignatures",  # the key of a witness counts, not who sends it
    "/api/models/{namespace}/{name}/paths-info/{rev}",
    "/api/validate-yaml",
    *(f"{under}/{{namespace}}/{{name}}/git-upload-pack" for under in ("", "/models")),
    *(f"{under}/{{namespace}}/{{name}}.git/info/lfs/objects/batch" for under in ("", "/models")),
}
"""The routes whose bodies everyone may send who may read."""
UNREAD = {404, 405, 501}
"""The answers of routes that read no body at all."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("registry")) as server:
        server.post("/api/repos/create", {"organization": "acme", "name": "x"}).raise_for_status()
        yield server


def writing_routes(folder: Path) -> list[tuple[str, APIRoute]]:
    app = create_app(load_settings(folder))
    routes = [context.route for context in iter_route_contexts(app.routes)]
    app.state.registry.db.close()
    found = [route for route in routes if isinstance(route, APIRoute)]
    return [(method, route) for route in found for method in sorted(route.methods - {"GET", "HEAD"})]


def place_of(route: APIRoute) -> str:
    given = {"namespace": "acme", "name": "x", "rev": "main"}
    return re.sub(r"\{(\w+)(?::path)?\}", lambda found: given.get(found[1], "1"), route.path)


def announced_only(server: Running, method: str, target: str, *fields: str) -> int:
    """The status of the answer to a request whose body is announced and never sent."""
    length = f"Content-Length: {MEGABYTE}"
    with line_to(server.url) as line:
        line.send(head_of(method, target, "Content-Type: application/json", length, *fields))
        return line.answer(has_body=True).status


def test_no_route_reads_a_body_that_its_sender_may_not_send(server: Running, tmp_path: Path) -> None:
    routes = writing_routes(tmp_path)
    closed = {(method, route.path) for method, route in routes if route.path not in OPEN}
    answers = {
        (method, route.path): announced_only(server, method, place_of(route))
        for method, route in routes
        if route.path not in OPEN
    }

    assert len(closed) > 40
    assert all(isinstance(route, GuardedRoute) for _, route in routes)
    assert {route: status for route, status in answers.items() if status not in {401, 403, *UNREAD}} == {
        (method, "/v1/telemetry"): 200
        for method in ("POST", "PUT")  # discarded unread
    }


def test_no_route_reads_a_body_of_a_token_that_only_reads(server: Running, tmp_path: Path) -> None:
    token = server.registry.tokens.create("bob", "read")
    may_send = {  # as every user may: to ask for access, to send a signed result, to make a token that does no more
        "/api/adapt/v1/tokens",
        "/{namespace}/{name}/ask-access",
        "/api/adapt/v1/adapters/{namespace}/{name}/tests/{version}",
    }
    answers = {
        (method, route.path): announced_only(server, method, place_of(route), f"Authorization: Bearer {token}")
        for method, route in writing_routes(tmp_path)
        if route.path not in OPEN | may_send
    }

    refused = {401, 403, *UNREAD}
    assert {route[1] for route, status in answers.items() if status not in refused} == {"/v1/telemetry"} | {
        # without a body: taking back one's own request, removing one's own token
        route[1]
        for route, status in answers.items()
        if status == 200
    }


def test_pages_read_small_forms_only(server: Running, tmp_path: Path) -> None:
    app = create_app(load_settings(tmp_path))
    app.state.registry.db.close()
    pages = [route for route in app.routes if isinstance(route, Route) and not isinstance(route, APIRoute)]
    forms = [re.sub(r"\{\w+(?::path)?\}", "1", page.path) for page in pages if "POST" in (page.methods or ())]

    assert len(forms) > 3
    for path in forms:
        with line_to(server.url) as line:
            line.send(head_of("POST", path, "Content-Length: 4194304", "Content-Type: multipart/form-data"))
            assert line.answer(has_body=True).status == 413, path


def test_an_open_route_takes_less(server: Running) -> None:
    body = json.dumps({"paths": ["a" * 1000] * (OPEN_BODY_BYTES // 1000)}).encode()
    place = f"{server.url}/api/models/acme/x/paths-info/main"

    assert httpx.post(place, content=body, headers={"Content-Type": "application/json"}).status_code == 413
    assert httpx.post(place, json={"paths": [".gitattributes"]}).status_code == 200

    card = {"repoType": "model", "content": "---\nlicense: mit\n---\n"}  # as `RepoCard.validate`, without a token
    assert httpx.post(f"{server.url}/api/validate-yaml", json=card).status_code == 200
    card["content"] += "x" * OPEN_BODY_BYTES
    assert httpx.post(f"{server.url}/api/validate-yaml", json=card).status_code == 413


@pytest.mark.parametrize("values", [b"{}", b"[]", b"1", b'""', b'{"a":1}', b"[1,1]"])
def test_values_are_counted_before_they_are_made(server: Running, values: bytes) -> None:
    few, many = (b'{"type":[' + b",".join([values] * count) + b"]}" for count in (MOST_VALUES // 4, MOST_VALUES + 1))
    head = {"Authorization": f"Bearer {server.token}", "Content-Type": "application/json"}

    said = [
        httpx.post(f"{server.url}/api/repos/create", content=body, headers=head).json()["error"] for body in (few, many)
    ]

    assert said[0].startswith("type: expected a string")
    assert said[1].startswith(f"body: more than {MOST_VALUES} values; expected one JSON document")


@pytest.mark.parametrize("text", ['","' * 100_000, "\\" * 100_001, '\\"[{,' * 50_000, "{[,]}" * 50_000])
def test_marks_inside_of_a_text_are_no_values(text: str) -> None:
    raw = json.dumps({"text": text}).encode()

    assert strict_json(raw, most_values=2) == {"text": text}
    with pytest.raises(ValueError, match="more than 2 values"):
        strict_json(raw[:-1] + b',"more":{"x":1}}', most_values=2)


def test_a_manifest_of_many_values_is_refused_unparsed() -> None:
    for raw, said in (
        (b'{"files":[' + b"{}," * 100_000 + b"{}]}", "more than"),
        (b'{"files":"' + b"a" * 3 * MEGABYTE + b'"}', "at most"),
    ):
        with pytest.raises(MalformedManifest, match=said):
            Manifest.parse(raw)


# ------------------------------------------------------------ memory and other callers
@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("served"), ()) as server:
        head = {"Authorization": f"Bearer {server.token}"}
        httpx.post(f"{server.url}/api/repos/create", json={"organization": "acme", "name": "x"}, headers=head)
        config = commit_of("adapter_config.json", json.dumps(CONFIG).encode())  # so that a manifest is read
        httpx.post(f"{server.url}/api/models/acme/x/commit/main", content=config, headers=head).raise_for_status()
        yield server


def commit_of(path: str, content: bytes) -> bytes:
    file = {"path": path, "content": base64.b64encode(content).decode(), "encoding": "base64"}
    lines = {"key": "header", "value": {"summary": "\U0001f600"}}, {"key": "file", "value": file}
    return b"\n".join(json.dumps(line, ensure_ascii=False).encode() for line in lines)


LISTS = b"[" + b"{}," * (3 * MEGABYTE // 3) + b"{}]"
ATTACKS: dict[str, tuple[str, bytes, int]] = {
    "a file in a line of 13 MB": ("commit/main", commit_of("big.bin", bytes(9_900_000)), 200),
    "a line of 13 MB of {}": ("commit/main", b'{"key":"file","value":' + LISTS * 4 + b"}", 400),
    "a line of 13 MB of text": (
        "commit/main",
        b'{"key":"file","value":"' + "\U0001f600".encode() * 3_250_000 + b'"}',
        400,
    ),
    "a manifest of 9.9 MB": ("commit/main", commit_of("adapterhub.json", b'{"files":' + LISTS * 3 + b"}"), 200),
    "JSON of 4 MB": ("preupload/main", b'{"files":' + LISTS + b"}", 400),
}


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak memory of a process")
@pytest.mark.parametrize("name", ATTACKS)
def test_no_body_takes_much_memory_whatever_it_holds(served: Served, name: str) -> None:
    place, body, status = ATTACKS[name]
    head = {"Authorization": f"Bearer {served.token}", "Content-Type": "application/json"}
    url, memory, answers = f"{served.url}/api/models/acme/x/{place}", Memory(served.pid), list[httpx.Response]()

    peak = memory.peak_of(lambda: answers.append(httpx.post(url, content=body, headers=head, timeout=600)))

    assert answers[0].status_code == status, answers[0].text
    assert peak < MOST_MEMORY


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak memory of a process")
def test_forty_large_bodies_without_a_token_hold_nobody_up(served: Served) -> None:
    place, memory, waits = f"{served.url}/api/repos/create", Memory(served.pid), list[float]()
    body = LISTS[: 4 << 20]

    def attack(_: int) -> int:
        try:
            head = {"Content-Type": "application/json"}
            return httpx.post(place, content=body, headers=head, timeout=600).status_code
        except httpx.WriteError:  # the connection closed before the body was sent
            return 401

    def all_at_once() -> None:
        with ThreadPoolExecutor(41) as pool:
            attacks = [pool.submit(attack, number) for number in range(40)]
            while not all(one.done() for one in attacks):
                start = time.perf_counter()
                httpx.get(f"{served.url}/api/adapt/v1/healthz", timeout=600).raise_for_status()
                waits.append(time.perf_counter() - start)
            assert {one.result() for one in attacks} == {401}

    peak = memory.peak_of(all_at_once)

    assert peak < MOST_MEMORY
    assert max(waits) < 5  # of a machine that does other things, too; parsing took 27 s
