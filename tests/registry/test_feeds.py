"""The feed of a base or a namespace has the newest of all that its reader may see, however it is read."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from adapterhub_registry.app import create_app, open_registry
from adapterhub_registry.database.db import adapters, releases, repos
from adapterhub_registry.pages import adapter as feeds
from adapterhub_registry.repos import search
from adapterhub_registry.repos.adapters import RELEASED_BUILD
from adapterhub_registry.settings import load_settings
from sqlalchemy import select
from starlette.testclient import TestClient

from tests.bench.registry_filling import Shape, fill, store_small_files

SHAPE = Shape(3000)
ENTRY = re.compile(r"<entry>.*?<id>[^<]*?/([^/<]+/[^/<]+#[^<]*)</id>.*?<summary[^>]*>([^<]*)</summary>", re.DOTALL)


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def client(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    is_shared = request.param == "postgresql"
    url = request.getfixturevalue("pg").new_database() if is_shared else None
    settings = load_settings(tmp_path_factory.mktemp("filled"), database_url=url, derives=False)
    registry = open_registry(settings)
    fill(registry.db, SHAPE, store_small_files(registry.blobs))
    yield TestClient(create_app(settings, registry), base_url="http://registry")
    registry.db.close()


def expected(client: TestClient, looked_at: int | None, **of: str) -> set[tuple[str, str]]:
    """The entries by their definition: 50 of the releases and yanks, both of the `looked_at` newest where it is set."""
    about = (adapters.c.commit_id, adapters.c.base_sha256, adapters.c.base_model, adapters.c.description)
    every = select(releases, repos.c.full_name, repos.c.private, adapters.c.created_at.label("built_at"), *about)
    every = every.join_from(releases, repos).join(adapters, RELEASED_BUILD)
    with client.app.state.registry.db.read() as connection:  # type: ignore[attr-defined]
        rows = connection.execute(every).all()

    def mine(row: object) -> bool:
        return all(getattr(row, name) == value for name, value in of.items())

    newest = sorted(filter(mine, rows), key=lambda row: -row.built_at)[:looked_at]
    yanks = sorted((row for row in rows if row.yanked_at is not None), key=lambda row: -row.yanked_at)[:looked_at]
    found = [
        (row.created_at, f"{row.full_name}#{row.version}-{row.digest[:16]}", row.description)
        for row in newest
        if not row.private
    ]
    found += [
        (row.yanked_at, f"{row.full_name}#{row.version}-yanked-{row.yanked_at}", row.yanked_reason)
        for row in yanks
        if mine(row) and not row.private
    ]
    return {(name, text) for _, name, text in sorted(found, reverse=True)[: feeds.ENTRIES]}


def told(client: TestClient, query: str) -> set[tuple[str, str]]:
    answer = client.get(f"/feed?{query}")
    assert answer.status_code == 200
    return set(ENTRY.findall(answer.text))


def test_a_feed_of_few_has_the_newest_of_all(client: TestClient) -> None:
    base = SHAPE.base_digest(3)

    assert len(expected(client, None, base_sha256=base)) == feeds.ENTRIES
    assert told(client, f"base={base}") == expected(client, None, base_sha256=base)
    assert told(client, "base=org/base-3") == expected(client, None, base_model="org/base-3")
    assert told(client, "namespace=corp") == expected(client, None, namespace="corp")


def test_a_feed_of_many_looks_at_the_newest_builds_and_the_last_yanks(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("FEW", 5), ("_PAGE", 1)):
        monkeypatch.setattr(search, name, value)
    monkeypatch.setattr(feeds, "LOOKED_AT", 30)
    feeds._asking.cache_clear()
    base = SHAPE.base_digest(0)

    for asked, of in ((base, {"base_sha256": base}), ("org/base-0", {"base_model": "org/base-0"})):
        entries = expected(client, 30, **of)
        assert any("-yanked-" in name for name, _ in entries)
        assert len(entries) < len(expected(client, None, **of))
        assert told(client, f"base={asked}") == entries
    feeds._asking.cache_clear()
