"""The newest versions of an alias stay, and of the others all that something needs."""

from __future__ import annotations

import time
from itertools import count
from pathlib import Path

import pytest
from adapterhub_registry.database.db import alias_moves, commits, parents
from adapterhub_registry.repos import retention
from adapterhub_registry.upkeep.space import free_space, parse_policy
from sqlalchemy import insert, select, update

from tests.registry.running import Running

numbers = count(1)
API = "/api/adapt/v1/adapters"


@pytest.fixture
def repo(server: Running) -> str:
    """A repository with versions 0.0 to 0.7, each of which `current` named for a while."""
    name = f"acme/agent-{'abcdefghij'[next(numbers)]}"
    server.create(name)
    for number in range(8):
        server.push(name, b"weights %d of %s" % (number, name.encode()), f"v0.{number}")
        move(server, name, "current", f"0.{number}")
    return name


def move(server: Running, repo: str, alias: str, version: str) -> None:
    server.post(f"{API}/{repo}/aliases/{alias}", {"targets": [{"version": version}]}).raise_for_status()


def keep(server: Running, repo: str, newest: int | None, **more: object) -> None:
    server.post(f"{API}/{repo}/aliases/current/retention", {"newest": newest, **more}).raise_for_status()


def there(server: Running, repo: str) -> list[str]:
    return [one["version"] for one in server.get(f"{API}/{repo}/versions").json()["versions"]]


def digest_of(server: Running, repo: str, version: str) -> str:
    digest: str = server.get(f"{API}/{repo}/versions/{version}").json()["digest"]
    return digest.removeprefix("sha256:")


def test_the_newest_stay_and_the_others_go_with_tag_and_event(server: Running, repo: str) -> None:
    keep(server, repo, 3, grace_days=0)
    before = server.get("/api/adapt/v1/events").json()["next"]

    assert retention.apply(server.registry.db) == 5
    assert retention.apply(server.registry.db) == 0

    assert there(server, repo) == ["0.7", "0.6", "0.5"]
    assert [tag["name"] for tag in server.get(f"/api/models/{repo}/refs").json()["tags"]] == ["v0.5", "v0.6", "v0.7"]
    told = server.get(f"/api/adapt/v1/events?since={before}").json()["events"]
    gone = [one["data"] for one in told if one["type"] == "version.deleted" and one["data"]["repo"] == repo]
    assert [one["version"] for one in gone] == ["0.0", "0.1", "0.2", "0.3", "0.4"]
    assert {one["by"] for one in gone} == {"retention of current"}
    page = server.get(f"/{repo}").text
    assert "Kept of current" in page
    assert "the newest 3" in page


def test_a_version_that_went_never_gets_other_bytes(server: Running, repo: str) -> None:
    keep(server, repo, 3, grace_days=0)
    retention.apply(server.registry.db)

    server.push(repo, b"other bytes", "v0.1")  # its tag is refused
    assert "0.1" not in there(server, repo)
    back = server.post(f"{API}/{repo}/aliases/current/rollback", {"to": 1})
    assert back.status_code == 404


def test_what_something_needs_stays(server: Running, repo: str) -> None:
    keep(server, repo, 1, grace_days=0)
    move(server, repo, "prod", "0.0")
    move(server, repo, "tried", "0.1")
    move(server, repo, "tried", "0.2")
    server.yank(repo, "why", "0.3")
    parent = digest_of(server, repo, "0.4")
    with server.registry.db.begin() as connection:
        row = {"digest": "f" * 64, "position": next(numbers), "parent": parent, "spec": "x", "weight": 1.0}
        connection.execute(insert(parents).values(row))
    server.push(repo, b"never named", "v0.9")

    assert retention.apply(server.registry.db) == 2

    assert there(server, repo) == ["0.9", "0.7", "0.4", "0.3", "0.2", "0.1", "0.0"]


def test_the_time_of_grace_begins_when_the_alias_leaves(server: Running, repo: str) -> None:
    keep(server, repo, 1, grace_days=10)
    assert retention.apply(server.registry.db) == 0

    eleven_days_ago = int(time.time() * 1000) - 11 * retention.DAY_MS
    with server.registry.db.begin() as connection:  # 0.0 to 0.2 were left then, 0.3 is left only now
        mine = select(alias_moves.c.id).where(alias_moves.c.alias == "current").order_by(alias_moves.c.id.desc())
        ids = connection.scalars(mine.limit(8)).all()
        early = alias_moves.c.id.in_(sorted(ids)[:4])
        connection.execute(update(alias_moves).where(early).values(created_at=eleven_days_ago))
    assert retention.apply(server.registry.db) == 3

    assert there(server, repo) == ["0.7", "0.6", "0.5", "0.4", "0.3"]


def test_gc_gives_the_bytes_of_what_went_back(server: Running, repo: str) -> None:
    keep(server, repo, 1, grace_days=0)
    with server.registry.db.begin() as connection:
        connection.execute(update(commits).values(created_at=0))
    policy = parse_policy(("0",))
    of_others = free_space(server.registry, policy=policy, dry_run=True).commits
    assert len(there(server, repo)) == 8

    freed = free_space(server.registry, policy=policy)

    assert there(server, repo) == ["0.7"]
    assert freed.commits >= of_others + 7
    gone = server.get(f"/{repo}/resolve/v0.1/adapter_model.safetensors")
    assert gone.status_code == 404


def test_it_is_shown_taken_back_and_set_only_by_writers(server: Running, repo: str, tmp_path: Path) -> None:
    path = f"{API}/{repo}/aliases/current/retention"
    assert server.get(path).json()["newest"] is None
    keep(server, repo, 2)
    told = server.get(path).json()
    assert (told["newest"], told["grace_days"], told["alias"]) == (2, 30.0, "current")
    assert told["set_by"]

    reader = server.registry.tokens.create("rita", role="read", namespaces=["*"])
    assert server.post(path, {"newest": 1}, token=reader).status_code == 403
    assert server.post(f"{API}/{repo}/aliases/none/retention", {"newest": 1}).status_code == 404
    for wrong in ({"newest": 0}, {"newest": 1, "grace_days": -1}, {}, {"newest": 1, "more": 1}):
        assert server.post(path, wrong).status_code == 422

    since = server.get("/api/adapt/v1/events").json()["next"]
    keep(server, repo, 2)  # as it is
    keep(server, repo, 3, grace_days=0.5)
    keep(server, repo, None)
    told = [one["data"] for one in server.get(f"/api/adapt/v1/events?since={since}").json()["events"]]
    assert [(one["repo"], one["alias"], one["before"], one["newest"], one["grace_days"]) for one in told] == [
        (repo, "current", 2, 3, 0.5),
        (repo, "current", 3, None, None),
    ]
    assert all(one["by"] for one in told)
    assert "Kept of current" not in server.get(f"/{repo}").text
    assert server.get(path).json()["newest"] is None
    retention.apply(server.registry.db)
    assert len(there(server, repo)) == 8
