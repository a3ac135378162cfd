"""Members, teams, invitations and tokens with scopes: no way from less to more, nor back after a removal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from adapterhub_registry.access.audit import LogSearch, entries
from adapterhub_registry.access.callers import ANONYMOUS
from adapterhub_registry.access.tokens import open_session
from adapterhub_registry.database.db import now_ms

from tests.registry.running import Running, running

V1 = "/api/adapt/v1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("members"), derives=False) as found:
        found.create("a_me/secret", private=True)
        found.create("acme/secret", private=True)
        found.create("acme/open")
        for user in ("eve", "owner"):
            found.registry.tokens.create(user, "read")
        found.registry.members.add("acme", "owner", role="administer")
        yield found


def own(server: Running, user: str, *scopes: str, namespaces: tuple[str, ...] = ()) -> str:
    with server.registry.db.begin() as connection:
        number = open_session(connection, user, lasts_s=600, label="signed in")
    caller = server.registry.tokens.caller_numbered(number)
    assert caller is not None
    return server.registry.tokens.create_own(caller, scopes=scopes or ("administer",), namespaces=namespaces)


def test_the_name_of_a_namespace_is_no_pattern_for_another(server: Running) -> None:
    """`_` stands for any character in LIKE, and a member of `a_me` sees nothing of `acme`."""
    server.registry.members.add("a_me", "eve", role="read")
    token = own(server, "eve", "read")

    listed = server.get("/api/models", token=token).json()

    assert sorted(one["id"] for one in listed) == ["a_me/secret", "acme/open"]
    assert server.get("/api/models/acme/secret", token=token).status_code == 404
    server.registry.members.remove("a_me", "eve")


@pytest.mark.parametrize("pattern", ["../acme/*", "x/../../y", "*/*", "acme/secret", "a,b/c", "[a-z]*", ""])
def test_a_team_reaches_nothing_outside_of_its_namespace(server: Running, pattern: str) -> None:
    token, place = own(server, "owner"), f"{V1}/namespaces/acme/teams"

    made = server.post(place, {"name": "wide", "role": "administer", "repos": [pattern]}, token=token)

    assert made.status_code == 400


@pytest.mark.parametrize("space", ["*", "a_me", "ACME", "api", "acme%2Fopen", "%2A"])
def test_who_administers_one_namespace_administers_no_other(server: Running, space: str) -> None:
    token = own(server, "owner")

    for body in ({"user": "owner", "role": "administer"},):
        made = server.post(f"{V1}/namespaces/{space}/members", body, token=token)
        assert made.status_code in {403, 404, 422}
    invited = server.post(f"{V1}/namespaces/{space}/invitations", {"role": "administer"}, token=token)
    assert invited.status_code in {403, 404, 422}
    assert {one.namespace for one in server.registry.members.of("owner")} == {"acme"}


def test_a_stolen_token_of_one_scope_makes_no_token_of_another_nor_outlives_its_end(server: Running) -> None:
    stolen = own(server, "owner", "read", namespaces=("acme/open",))
    asked = [
        {"scopes": ["administer"]},
        {"scopes": ["read"], "namespaces": ["acme"]},
        {"scopes": ["read"], "namespaces": ["*"]},
        {"scopes": ["read"], "namespaces": ["acme/open", "acme/secret"]},
        {"user": "owner", "role": "admin"},
        {"user": "other", "scopes": ["read"]},
        {"scopes": ["session"]},
    ]

    found = [server.post(f"{V1}/tokens", body, token=stolen).status_code for body in asked]

    assert found == [403, 403, 403, 403, 403, 403, 422]
    mine = server.registry.tokens.records(user="owner")[-1]
    short = server.post(f"{V1}/tokens", {"days": 1 / 86_400}, token=own(server, "owner")).json()["token"]
    made = server.post(f"{V1}/tokens", {"days": 300}, token=short)
    if made.status_code == 201:  # the second may be over already
        ends = server.registry.tokens.records(user="owner")[-1].expires_at
        assert ends is not None
        assert int(ends) <= now_ms() + 1000
    assert mine.own
    maker = own(server, "owner")
    number = server.registry.tokens.records(user="owner")[-1].id
    below = server.post(f"{V1}/tokens", {"days": 300}, token=maker).json()["token"]
    lower = server.post(f"{V1}/tokens", {"days": 300}, token=below).json()["token"]
    server.registry.tokens.revoke(number)
    assert [server.get("/api/whoami-v2", token=one).status_code for one in (maker, below, lower)] == [401] * 3


def test_one_code_sent_ten_times_at_once_lets_one_person_in(server: Running) -> None:
    made = server.registry.members.invite("acme", role="read")

    def accept(at: int) -> str | None:
        try:
            return server.registry.members.accept(made.code, ANONYMOUS, name=f"racer{at}").user
        except Exception as error:  # noqa: BLE001 - any refusal
            return type(error).__name__ if type(error).__name__ != "NotFound" else None

    with ThreadPoolExecutor(10) as pool:
        found = list(pool.map(accept, range(10)))

    assert len([one for one in found if one is not None]) == 1
    assert len([one for one in server.registry.members.records("acme") if one.user.startswith("racer")]) == 1


def test_a_removed_person_comes_back_by_no_link_that_was_made_before(server: Running) -> None:
    members = server.registry.members
    server.registry.tokens.create("gone", "read")
    members.add("acme", "gone", role="administer")
    theirs = server.post(f"{V1}/namespaces/acme/invitations", {"role": "administer"}, token=own(server, "gone")).json()
    named = members.invite("acme", role="read", user="gone")
    anyone = members.invite("acme", role="read")

    members.remove("*", "gone")

    for code in (theirs["code"], named.code):
        assert server.post(f"{V1}/invitations/accept", {"code": code, "user": "gone2"}, token=None).status_code == 404
    taken = server.post(f"{V1}/invitations/accept", {"code": anyone.code, "user": "gone"}, token=None)
    assert taken.status_code == 409
    assert members.of("gone") == []


def test_an_administrator_of_a_namespace_learns_nothing_of_the_rest_from_its_log(server: Running) -> None:
    token = own(server, "owner")
    server.create("hidden/zebra", private=True)

    for path in ("log?repo=acme", "log?repo=acme/open&limit=1", "log/export?repo=acme", "log?repo=acme&order=newest"):
        answer = server.get(f"{V1}/{path}", token=token)
        assert answer.status_code == 200
        assert "zebra" not in answer.text
        found = (
            [json.loads(line) for line in answer.text.splitlines()] if "export" in path else answer.json()["entries"]
        )
        assert {(one["number"], one["seal"]) for one in found} == {(0, "")}  # they count what happens elsewhere
    first = server.get(f"{V1}/log?repo=acme&limit=1", token=token).json()
    assert not str(first["next_after"]).isdigit()
    assert server.get(f"{V1}/log?repo=acme&after=5", token=token).status_code == 404
    later = server.get(f"{V1}/log?repo=acme&limit=1&after={first['next_after']}", token=token).json()
    assert later["entries"] != first["entries"]


def test_no_route_changes_or_removes_an_entry_of_the_log(server: Running) -> None:
    with server.registry.db.read() as connection:
        before = entries(connection, LogSearch())
    for method in ("POST", "PUT", "PATCH", "DELETE"):
        for path in ("log", "log/export", "log/1", "log?repo=acme"):
            assert server.send(method, f"{V1}/{path}", {} if method != "DELETE" else None).status_code in {404, 405}
    for at in range(300):  # a reader who floods it moves nothing out
        server.registry.tokens.create(f"flood{at % 3}", "read")

    with server.registry.db.read() as connection:
        assert entries(connection, LogSearch(), limit=len(before)) == before
