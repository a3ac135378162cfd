"""What a request may name: every parameter and path is bounded before it reaches a database."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
from adapterhub_registry.app import create_app
from adapterhub_registry.settings import load_settings
from fastapi.routing import APIRoute, iter_route_contexts

from tests.attacks.raw_http import head_of, line_to
from tests.registry.running import Running, running

LONG = "a" * 50_010


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("registry")) as server:
        server.post("/api/repos/create", {"organization": "acme", "name": "x"}).raise_for_status()
        yield server


def refused(server: Running, method: str, target: str) -> tuple[int, str]:
    """Status and code of the answer to a request whose target goes as it is given."""
    with line_to(server.url) as line:
        line.send(head_of(method, target, f"Authorization: Bearer {server.token}", "Content-Length: 0"))
        answer = line.answer(has_body=method != "HEAD")
    return answer.status, answer.code


TARGETS = [
    "/api/models?search=",
    "/api/models?author=",
    "/api/models?filter=",
    "/api/models?pipeline_tag=",
    "/api/models?apps=",
    "/api/models?num_parameters=",
    "/api/models?cursor=",
    "/api/models?sort=",
    "/api/models?expand=",
    "/api/models?limit=",
    "/api/models?no_such_parameter=",
    "/api/models?",
    "/api/models/acme/x?expand=",
    "/api/models/acme/x/tree/main?cursor=",
    "/api/models/acme/x/commits/main?after=",
    "/api/adapt/v1/adapters?q=",
    "/api/adapt/v1/adapters?base=",
    "/api/adapt/v1/adapters?task=",
    "/api/adapt/v1/adapters?cursor=",
    "/api/adapt/v1/blobs/",
    "/api/adapt/v1/adapters/acme/x/versions?x=",
    "/api/models/acme/",
    "/api/models/",
    "/api/models/acme/x/revision/",
    "/api/models/acme/x/tree/",
    "/api/models/acme/x/tree/main/",
    "/api/models/acme/x/commits/",
    "/api/models/acme/x/xet-write-token/",
    "/api/organizations/",
    "/acme/x/resolve/main/",
    "/acme/x/resolve/",
    "/",
]


@pytest.mark.parametrize("target", TARGETS)
def test_a_text_that_is_too_long_is_refused(server: Running, target: str) -> None:
    assert refused(server, "GET", target + LONG) == (422, "BadRequest")


@pytest.mark.parametrize("target", [target for target in TARGETS if "=" in target])
@pytest.mark.parametrize("character", ["\0", "\n", "\x7f"])
def test_a_control_character_is_refused_wherever_it_stands(server: Running, target: str, character: str) -> None:
    assert refused(server, "GET", f"{target}a{quote(character)}b") == (422, "BadRequest")


def test_many_parameters_are_refused(server: Running) -> None:
    assert refused(server, "GET", "/api/models?" + "&".join(["filter=x"] * 5000)) == (422, "BadRequest")


def test_every_route_is_bounded(server: Running, tmp_path: Path) -> None:
    app = create_app(load_settings(tmp_path))
    routes = [context.route for context in iter_route_contexts(app.routes)]
    targets = [
        (method, re.sub(r"\{\w+(?::path)?\}", "a", route.path))
        for route in routes
        if isinstance(route, APIRoute)
        for method in sorted(route.methods)
    ]
    app.state.registry.db.close()

    assert len(targets) > 50
    answers = {target: refused(server, *target[:1], f"{target[1]}?x={LONG}") for target in targets}
    assert {target: answer for target, answer in answers.items() if answer != (422, "BadRequest")} == {}


def test_what_clients_send_is_within_the_bounds(server: Running) -> None:
    path = "/".join(["d" * 255] * 4)[:1024]
    for target in (
        f"/api/models?search={'a' * 200}&author={'b' * 96}&filter={'t' * 256}",
        f"/api/models/acme/x/tree/main?cursor={quote('é' * 512, safe='')}",
        f"/api/adapt/v1/adapters?q={'w' * 256}",
    ):
        assert server.get(target).status_code == 200, target
    deep = quote("/".join(["d"] * 512), safe="")
    for target in (
        f"/api/models/acme/x/tree/{'r' * 200}/{deep}",
        f"/acme/x/resolve/{'r' * 200}/{path}",
        f"/acme/x/resolve/main/{quote('ü' * 127, safe='')}",
    ):
        assert server.get(target).status_code == 404, target
    assert httpx.put(f"{server.url}/_lfs/object/{'a' * 4096}").status_code == 403


def test_a_database_that_answers_is_never_said_to_be_away(server: Running) -> None:
    for words in ("%" * 1000, "_" * 1000, "\\" * 1000, " ".join(["a" * 60] * 16)):
        answer = httpx.get(f"{server.url}/api/models", params={"search": words})
        also = httpx.get(f"{server.url}/api/adapt/v1/adapters", params={"q": words[:250]})

        assert (answer.status_code, also.status_code) == (200, 200)
