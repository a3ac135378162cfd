"""A version that was released once never gets other bytes, not even when its repository is gone or has another name."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from adapterhub_registry.database.db import Database
from adapterhub_registry.names import RepoId

from tests.registry.pushing import Push
from tests.registry.running import Running, running
from tests.registry.shared_servers import Postgres

GOOD, BAD = b"g" * 5000, b"b" * 5000


@pytest.fixture(params=["sqlite", "postgresql"])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    url = None if request.param == "sqlite" else request.getfixturevalue("pg").new_registry()
    with running(tmp_path, database_url=url) as server:
        yield server


@pytest.fixture
def ann(server: Running) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def remove(client: httpx.Client, repo: str) -> None:
    namespace, _, name = repo.partition("/")
    gone = client.request("DELETE", "/api/repos/delete", json={"organization": namespace, "name": name})
    gone.raise_for_status()


def move(client: httpx.Client, source: str, target: str) -> httpx.Response:
    return client.post("/api/repos/move", json={"fromRepo": source, "toRepo": target, "type": "model"})


def released(client: httpx.Client, repo: str, weights: bytes, version: str = "v1.0.0") -> int:
    """Push and tag; the status of the tag."""
    push = Push(repo=repo, weights=weights)
    namespace, _, name = repo.partition("/")
    client.post("/api/repos/create", json={"organization": namespace, "name": name})
    push.commit(client)
    return client.post(f"/api/models/{repo}/tag/main", json={"tag": version}).status_code


def test_a_removed_release_comes_back_with_its_own_bytes_only(ann: httpx.Client) -> None:
    assert released(ann, "acme/x", GOOD) == 200
    remove(ann, "acme/x")

    other, next_one = released(ann, "acme/x", BAD), released(ann, "acme/x", BAD, "v1.0.1")
    remove(ann, "acme/x")
    same, elsewhere = released(ann, "acme/x", GOOD), released(ann, "acme/yonder", BAD)

    assert (other, next_one, same, elsewhere) == (409, 200, 200, 200)


def test_a_name_that_was_given_up_keeps_its_versions(ann: httpx.Client) -> None:
    released(ann, "acme/x", GOOD)
    assert move(ann, "acme/x", "acme/yonder").status_code == 200

    other, kept = released(ann, "acme/x", BAD), released(ann, "acme/yonder", GOOD, "v1.0.1")
    remove(ann, "acme/x")
    back = move(ann, "acme/yonder", "acme/x")

    assert (other, kept, back.status_code) == (409, 200, 200)


def test_a_repository_is_not_removed_beside_a_release_that_is_being_made(pg: Postgres, tmp_path: Path) -> None:
    with running(tmp_path, database_url=pg.new_registry()) as server:
        server.create("acme/x")
        with server.client() as ann:
            Push(repo="acme/x", weights=GOOD).commit(ann)
            registry = server.registry
            caller = registry.tokens.authenticate(server.token)
            assert caller is not None

            with registry.db.begin() as making:
                registry.repos.create_tag(making, caller, RepoId("acme/x"), "v1.0.0", at="main", message=None)
                removing = threading.Thread(target=remove, args=(ann, "acme/x"))
                removing.start()
                while removing.is_alive() and not waiting(registry.db):
                    pass
            removing.join()

            assert ann.get("/api/models/acme/x").status_code == 404
            assert released(ann, "acme/x", BAD) == 409


def waiting(database: Database) -> int:
    """How many transactions wait for another."""
    count = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with database.engine.connect() as connection:
        return int(connection.exec_driver_sql(count).scalar_one())
