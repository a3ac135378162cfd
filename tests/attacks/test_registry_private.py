"""What is private changes no answer to those who may not see it: counts, numbers and look-alike names."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from adapterhub_registry.database.db import repos
from sqlalchemy import select, update

from tests.registry.pushing import Push
from tests.registry.running import Running, running


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path) as server:
        yield server


def create(server: Running, repo: str, *, token: str | None = "", private: bool = False) -> httpx.Response:
    namespace, _, name = repo.partition("/")
    body = {"organization": namespace, "name": name, "visibility": "private" if private else "public"}
    return server.post("/api/repos/create", body, token=token)


def show(server: Running, repo: str, *, private: bool) -> httpx.Response:
    return server.send("PUT", f"/api/models/{repo}/settings", {"private": private})


def push_private(server: Running, repo: str) -> None:
    create(server, repo, private=True).raise_for_status()
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.token}"}) as client:
        Push(repo=repo, weights=b"w" * 1000).run(client)


# ------------------------------------------------------------ counts
def counts(server: Running, token: str | None) -> dict[str, int]:
    text = server.get("/api/adapt/v1/metrics", token=token).raise_for_status().text
    return {line.split()[0]: int(line.split()[1]) for line in text.splitlines() if not line.startswith("#")}


def test_counts_for_everybody_leave_out_what_is_private(server: Running) -> None:
    create(server, "acme/open").raise_for_status()
    stranger = server.registry.tokens.create("bob", "read")
    before = [counts(server, None), counts(server, stranger)]
    push_private(server, "hidden/x")

    assert [counts(server, None), counts(server, stranger)] == before
    assert before[0]["adapterhub_repos"] == 1
    assert before[0]["adapterhub_commits"] == 1
    assert set(before[0]) == {
        f"adapterhub_{name}" for name in ("repos", "commits", "adapters", "releases", "releases_yanked", "downloads")
    }


def test_a_token_counts_what_is_public_and_one_for_everything_counts_all(server: Running) -> None:
    create(server, "acme/open").raise_for_status()
    push_private(server, "hidden/x")
    owner = server.registry.tokens.create("hidden", "read")
    monitor = server.registry.tokens.create("prometheus", "read", namespaces=["*"])

    assert [counts(server, one)["adapterhub_repos"] for one in (owner, monitor)] == [1, 2]
    assert counts(server, monitor)["adapterhub_adapters"] == 1
    assert counts(server, monitor)["adapterhub_blobs"] > 0
    assert counts(server, monitor)["adapterhub_tokens_active"] == 3
    assert "adapterhub_blobs" not in counts(server, owner)


def test_traffic_is_shown_to_tokens_for_everything_only(server: Running) -> None:
    some = [server.registry.tokens.create("bob", role) for role in ("read", "write")]
    some.append(server.registry.tokens.create("eve", "admin", namespaces=["eve/*"]))
    monitor = server.registry.tokens.create("prometheus", "read", namespaces=["*"])

    assert [server.get("/metrics", token=token).status_code for token in (None, *some)] == [401, 403, 403, 403]
    assert server.get("/metrics", token=monitor).status_code == server.get("/metrics").status_code == 200


def hidden_numbers(server: Running) -> list[str]:
    """How the numbers of all repositories could be written."""
    with server.registry.db.read() as connection:
        rows = connection.execute(select(repos.c.id, repos.c.created_at)).all()
    return [f"{row.id:024x}" for row in rows] + [f"{row.created_at}-{row.id}" for row in rows]


def test_no_answer_holds_the_number_of_a_repository(server: Running) -> None:
    made = [create(server, f"acme/{name}").json()["id"] for name in "ab"]
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.token}"}) as client:
        for name in "ab":
            Push(repo=f"acme/{name}", weights=name.encode() * 1000).run(client)

    listed = server.get("/api/models?limit=1")
    found = server.get("/api/adapt/v1/adapters?limit=1").json()
    hub_cursor = httpx.URL(listed.links["next"]["url"]).params["cursor"]

    told = [listed.json()[0]["_id"], *made, found["next_cursor"], hub_cursor]
    told += [base64.urlsafe_b64decode(cursor).decode("latin-1") for cursor in told[-2:]]
    assert [number for number in hidden_numbers(server) for text in told if number in text] == []
    assert not any(text.startswith("[") for text in told)
    assert server.get(f"/api/models?limit=1&cursor={hub_cursor}").json()[0]["id"] != listed.json()[0]["id"]


@pytest.mark.parametrize("path", ["/api/models?limit=1&", "/api/adapt/v1/adapters?limit=1&"])
@pytest.mark.parametrize("cursor", ["1700000000000-5", "WzAsMSwyXQ", "gAAAAA", "x", "\u00e9", ""])
def test_a_cursor_that_no_server_gave_is_refused(server: Running, path: str, cursor: str) -> None:
    refused = httpx.get(
        f"{server.url}{path}", params=httpx.QueryParams(path.partition("?")[2]).merge({"cursor": cursor})
    )

    assert (refused.status_code, refused.headers["x-error-code"]) == (404, "NotFound")


# ------------------------------------------------------------ names
LOOK_ALIKES = [("acme/legal-qa", "acme/Legal_QA"), ("acme/legal-qa", "Acme/x"), ("acme1/x", "acmel/y")]


@pytest.mark.parametrize(("hidden", "wanted"), LOOK_ALIKES)
@pytest.mark.parametrize("private", [True, False])
def test_a_private_name_forbids_no_look_alike(server: Running, hidden: str, wanted: str, *, private: bool) -> None:
    create(server, hidden, private=True).raise_for_status()
    stranger = server.registry.tokens.create("bob", "write", namespaces=[wanted])

    made = create(server, wanted, token=stranger, private=private)

    assert made.status_code == 200
    assert server.get(f"/api/models/{hidden}").json()["private"] is True


@pytest.mark.parametrize(("shown", "wanted"), [LOOK_ALIKES[0], LOOK_ALIKES[2]])
@pytest.mark.parametrize("private", [True, False])
def test_a_public_name_forbids_look_alikes(server: Running, shown: str, wanted: str, *, private: bool) -> None:
    create(server, shown).raise_for_status()

    refused = create(server, wanted, private=private)

    assert (refused.status_code, refused.headers["x-error-code"]) == (400, "BadRequest")
    assert f"`{shown}`" in refused.json()["error"]


@pytest.mark.parametrize(("hidden", "shown"), [LOOK_ALIKES[0], LOOK_ALIKES[2]])
def test_a_private_repository_is_not_made_public_beside_a_look_alike(server: Running, hidden: str, shown: str) -> None:
    create(server, hidden, private=True).raise_for_status()
    create(server, shown).raise_for_status()

    refused = show(server, hidden, private=False)

    assert (refused.status_code, refused.headers["x-error-code"]) == (400, "BadRequest")
    assert server.get(f"/api/models/{hidden}").json()["private"] is True
    assert server.get(f"/api/models/{hidden}", token=None).status_code == 404
    namespace, _, name = shown.partition("/")
    server.send("DELETE", "/api/repos/delete", {"organization": namespace, "name": name}).raise_for_status()
    assert show(server, hidden, private=False).status_code == 200


def test_a_repository_that_is_hidden_gives_its_look_alikes_free(server: Running) -> None:
    create(server, "acme/legal-qa").raise_for_status()
    assert create(server, "acme/legal_qa").status_code == 400
    show(server, "acme/legal-qa", private=True).raise_for_status()

    assert create(server, "acme/legal_qa").status_code == 200


def test_a_move_follows_the_same_rule(server: Running) -> None:
    create(server, "acme/legal-qa", private=True).raise_for_status()
    create(server, "acme/open").raise_for_status()

    def move(source: str, target: str) -> int:
        return server.post("/api/repos/move", {"fromRepo": source, "toRepo": target}).status_code

    assert move("acme/open", "acme/legal_qa") == 200
    assert move("acme/legal-qa", "acme/Legal.QA") == 400
    assert move("acme/legal-qa", "acme/contracts") == 200


def test_two_private_look_alikes_live_side_by_side(server: Running) -> None:
    names = ["acme/legal-qa", "acme/legal_qa", "acme/LEGAL-QA"]

    assert [create(server, name, private=True).status_code for name in names] == [200] * 3
    assert [show(server, name, private=False).status_code for name in names] == [200, 400, 409]


def test_a_database_of_an_earlier_version_gives_way_too(server: Running) -> None:
    create(server, "acme/legal-qa", private=True).raise_for_status()
    earlier: dict[str, Any] = {"folded": "acme/legalqa".replace("i", "l")}
    with server.registry.db.begin() as connection:
        connection.execute(update(repos).values(**earlier))

    assert create(server, "acme/legal_qa").status_code == 200
    assert show(server, "acme/legal-qa", private=False).status_code == 400
