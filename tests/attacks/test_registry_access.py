"""What is private stays with the tokens that were made for it: neither another token nor another case opens it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from tests.registry.pushing import Push
from tests.registry.running import Running, running

PRIVATE = "alice/secret"
PUSH = Push(repo=PRIVATE, weights=b"secret weights" * 400)
STRANGERS = ("bob", "ALICE", "Alice", "alic_")
READING = (
    ("GET", f"/api/models/{PRIVATE}"),
    ("GET", f"/api/models/{PRIVATE}/revision/v1.0.0"),
    ("GET", f"/{PRIVATE}/resolve/main/adapter_config.json"),
    ("HEAD", f"/{PRIVATE}/resolve/v1.0.0/adapter_model.safetensors"),
    ("GET", f"/api/models/{PRIVATE}/tree/main"),
    ("POST", f"/api/models/{PRIVATE}/paths-info/main"),
    ("GET", f"/api/models/{PRIVATE}/refs"),
    ("GET", f"/api/models/{PRIVATE}/commits/main"),
    ("GET", f"/api/models/{PRIVATE}/auth-check"),
    ("GET", f"/api/adapt/v1/adapters/{PRIVATE}/versions"),
    ("GET", f"/api/adapt/v1/blobs/{PUSH.oid}"),
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A registry with one private adapter of alice."""
    with running(tmp_path_factory.mktemp("registry")) as server:
        with client_of(server, "alice") as alice:
            made = {"organization": "alice", "name": "secret", "visibility": "private"}
            alice.post("/api/repos/create", json=made).raise_for_status()
            PUSH.run(alice)
        yield server


def client_of(server: Running, user: str, namespaces: tuple[str, ...] = ()) -> httpx.Client:
    token = server.registry.tokens.create(user, "write", namespaces=list(namespaces))
    return httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {token}"}, timeout=60)


@pytest.mark.parametrize("user", STRANGERS)
def test_no_token_of_another_user_reads_a_private_repository(server: Running, user: str) -> None:
    with client_of(server, user) as stranger:
        answers = {path: stranger.request(method, path).status_code for method, path in READING}

    assert set(answers.values()) == {404}, answers


def test_the_tokens_that_were_made_for_a_private_repository_read_it(server: Running) -> None:
    for user, namespaces in (("alice", ()), ("carol", ("alice/*",)), ("dave", ("al?ce/sec*",))):
        with client_of(server, user, namespaces) as friend:
            answers = {path: friend.request(method, path).status_code for method, path in READING}

        assert set(answers.values()) == {200}, answers


@pytest.mark.parametrize("user", STRANGERS)
def test_no_listing_shows_a_private_repository_to_a_token_that_is_written_alike(server: Running, user: str) -> None:
    with client_of(server, user) as stranger:
        listed = [
            stranger.get("/api/models").json(),
            stranger.get("/api/models", params={"author": "alice", "full": "true"}).json(),
            stranger.get("/api/organizations/alice/settings/repositories").json(),
            stranger.get("/api/adapt/v1/adapters").json()["adapters"],
        ]

    assert listed == [[], [], [], []]


@pytest.mark.parametrize("user", STRANGERS)
def test_no_commit_takes_private_bytes_by_their_digest(server: Running, user: str) -> None:
    value = {"path": "stolen", "algo": "sha256", "oid": PUSH.oid, "size": len(PUSH.weights)}
    lines = [{"key": "header", "value": {"summary": "x"}}, {"key": "lfsFile", "value": value}]
    with client_of(server, user, ("thieves/*", f"{user}/*")) as stranger:
        made = {"organization": "thieves", "name": "abcd"[STRANGERS.index(user)] * 3}
        stranger.post("/api/repos/create", json=made).raise_for_status()

        taken = stranger.post(
            f"/api/models/thieves/{made['name']}/commit/main", content="\n".join(json.dumps(line) for line in lines)
        )

    assert taken.status_code == 400
    assert "is missing or has another size" in taken.json()["error"]
