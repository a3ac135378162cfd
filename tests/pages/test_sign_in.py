"""Who sees private adapters in a browser: sessions, cookies, forms from other sites, and what a 404 gives away."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest

from tests.pages.conftest import World
from tests.registry.running import running

HTML = {"Accept": "text/html"}
HIDDEN = ("/acme/hidden", "/acme/hidden/tree/main", "/acme/hidden/blob/main/README.md", "/acme/hidden/commit/main")


@pytest.fixture
def visitor(world: World) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=world.url, headers=HTML) as client:
        yield client


def token_of(visitor: httpx.Client, path: str = "/sign-in") -> str:
    return re.findall(r'name="form_token" value="(\w+)"', visitor.get(path).text)[0]


def sign_in(visitor: httpx.Client, token: str, **more: str) -> httpx.Response:
    return visitor.post("/sign-in", data={"form_token": token_of(visitor), "token": token, **more})


def test_a_token_pasted_once_opens_private_adapters_until_it_is_revoked(world, visitor):
    token = world.server.registry.tokens.create("carl", "read", namespaces=["acme/*"])
    answer = sign_in(visitor, token, then="/acme/hidden")

    assert (answer.status_code, answer.headers["location"]) == (303, "/acme/hidden")
    assert all(visitor.get(path).status_code == 200 for path in HIDDEN)
    assert "acme/hidden" in visitor.get("/").text
    assert visitor.get("/acme/hidden").headers["cache-control"] == "private, no-store"
    record = max(world.server.registry.tokens.records(), key=lambda record: record.id)
    world.server.registry.tokens.revoke(record.id)
    assert {visitor.get(path).status_code for path in HIDDEN} == {404}


def test_a_copy_of_the_cookie_opens_nothing_after_signing_out(world, visitor):
    with httpx.Client(base_url=world.url, headers=HTML) as elsewhere:
        assert sign_in(elsewhere, world.reader).status_code == 303
        sign_in(visitor, world.reader)
        copied = dict(visitor.cookies)
        assert httpx.get(f"{world.url}/acme/hidden", headers=HTML, cookies=copied).status_code == 200

        form = re.findall(r'name="form_token" value="(\w+)"', visitor.get("/").text)[0]
        assert visitor.post("/sign-out", data={"form_token": form}).status_code == 303

        assert httpx.get(f"{world.url}/acme/hidden", headers=HTML, cookies=copied).status_code == 404
        assert elsewhere.get("/acme/hidden").status_code == 200


@pytest.mark.parametrize("page", ["/", "/acme/missing"])
def test_signing_out_ends_the_session(world, visitor, page):
    sign_in(visitor, world.reader)
    assert visitor.get("/acme/hidden").status_code == 200

    answer = visitor.post("/sign-out", data={"form_token": token_of(visitor, page)})

    assert answer.status_code == 303
    assert visitor.get("/acme/hidden").status_code == 404


@pytest.mark.parametrize("token", ["", "hf_x", "hf_adp_" + "a" * 32 + "_00000000", "\u202e", "x" * 5000])
def test_a_wrong_token_says_so_and_sets_no_session(visitor, token):
    answer = sign_in(visitor, token)

    assert "does not know this token" in answer.text
    assert not any("session" in name for name in visitor.cookies)
    assert token not in answer.text or not token


def test_the_cookies_belong_to_this_host_and_no_script_reads_them(world, visitor):
    answer = sign_in(visitor, world.reader)
    cookies = [*visitor.get("/sign-in").headers.get_list("set-cookie"), *answer.headers.get_list("set-cookie")]

    assert cookies
    for cookie in cookies:
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert "Domain" not in cookie
        assert "Path=/" in cookie
        assert world.reader not in cookie


def test_the_session_works_on_pages_alone(world, visitor):
    sign_in(visitor, world.reader)

    assert visitor.get("/acme/hidden").status_code == 200
    for path in (
        "/api/models/acme/hidden",
        "/acme/hidden/resolve/main/README.md",
        "/api/adapt/v1/adapters/acme/hidden/versions",
    ):
        assert visitor.get(path).status_code == 404
    assert visitor.get("/api/whoami-v2").status_code == 401


def test_a_changed_session_counts_as_none(world, visitor):
    sign_in(visitor, world.reader)
    name = next(name for name in visitor.cookies if "session" in name)
    value = visitor.cookies[name]
    for changed in (value[:-2] + ("AA" if value[-2:] != "AA" else "BB"), value + "x", "x", "a.b.c", ""):
        assert httpx.get(f"{world.url}/acme/hidden", headers=HTML, cookies={name: changed}).status_code == 404


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
@pytest.mark.parametrize("path", ["/", "/sign-in", "/sign-out"])
def test_a_form_of_another_site_is_refused(world, visitor, path, headers):
    data = {"form_token": token_of(visitor), "token": world.reader}

    answer = visitor.post(path, data=data, headers=headers)

    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


def test_a_form_needs_the_token_of_this_visitor(world, visitor):
    with httpx.Client(base_url=world.url, headers=HTML) as other:
        foreign = token_of(other)
    for token in ("", "0" * 64, foreign):
        token_of(visitor)
        assert visitor.post("/sign-in", data={"form_token": token, "token": world.reader}).status_code == 403


@pytest.mark.parametrize(
    "then", ["//evil.example", "https://evil.example", "/\\evil.example", "\\\\evil", "/é", "/a\r\nX: y"]
)
def test_signing_in_leads_nowhere_else(world, visitor, then):
    assert sign_in(visitor, world.reader, then=then).headers["location"] == "/"


def test_hidden_and_missing_look_the_same(world):
    def seen(path: str) -> tuple[object, ...]:
        answer = world.get(path, headers=HTML)
        kept = {name: text for name, text in answer.headers.items() if name not in {"date", "x-request-id"}}
        return answer.status_code, kept, answer.text.replace("hidden", "absent")

    for path in HIDDEN:
        assert seen(path) == seen(path.replace("hidden", "absent"))
    for path in ("/", "/?q=hidden", "/feed?namespace=acme", f"/?base={world.base_sha256}"):
        assert "acme/hidden" not in world.get(path).text


def test_a_registry_without_anonymous_readers_shows_the_way_in_alone(tmp_path):
    with running(tmp_path, anonymous_read=False) as server, httpx.Client(base_url=server.url, headers=HTML) as visitor:
        for path in ("/", "/?q=x", "/acme/x", "/feed?namespace=acme"):
            answer = visitor.get(path)
            assert (answer.status_code, "Sign in first" in answer.text) == (401, True)
        assert sign_in(visitor, server.token).status_code == 303
        assert visitor.get("/").status_code == 200
