"""What a search reads: the words follow their repository, and what few adapters meet costs few rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from adapterhub_registry.database.db import Database, adapters, repos
from adapterhub_registry.repos.adapter_search import AdapterQuery, search_adapters
from adapterhub_registry.repos.adapters import write_words
from sqlalchemy import delete, text, true, update

from tests.registry.shared_servers import Postgres

MANY = 9000
BASE = "b" * 64


def fill(database: Database, count: int) -> None:
    """Repositories `acme/a-N`, all by LoRA; one in two is for `BASE`, and the task of one in three is `chat`."""
    rows: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for n in range(1, count + 1):
        name, commit = f"acme/a-{n}", hashlib.sha256(str(n).encode()).hexdigest()[:40]
        names = {"full_name": name, "namespace": "acme", "folded": name, "folded_namespace": "acme"}
        times = {"created_by": "ann", "created_at": n, "modified_at": n}
        facts = {"digest": commit, "base_sha256": BASE if n % 2 else "c" * 64, "task": "sql" if n % 3 else "chat"}
        facts |= {"peft_type": "LORA", "methods": "[]", "target_modules": "[]", "words": f"adapter number {n}"}
        place = {"repo_id": n, "commit_id": commit, "is_head": True, "is_listed": True, "created_at": n}
        rows.append(({"id": n, "private": False, "head": commit} | names | times, facts | place))
    with database.begin() as connection:
        connection.execute(repos.insert(), [repo for repo, _ in rows])
        connection.execute(adapters.insert(), [adapter for _, adapter in rows])


def found(database: Database, **query: Any) -> list[str]:
    with database.read() as connection:
        return [row.full_name for row in search_adapters(connection, AdapterQuery(**query), true()).rows]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.db'}"
    pg: Postgres = request.getfixturevalue("pg")
    return pg.new_database()


def test_the_words_of_an_earlier_database_are_found(url: str) -> None:
    first = Database(url)
    fill(first, 30)
    with first.begin() as connection:
        connection.execute(text("DROP TABLE texts"))
        if not first.is_shared:
            connection.execute(text("DROP TABLE text_trigrams"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0012'"))
    first.close()

    database = Database(url)

    assert found(database, q="umber 17") == ["acme/a-17"]
    assert found(database, q="a-2 numb") == [f"acme/a-{n}" for n in range(29, 19, -1)] + ["acme/a-2"]
    database.close()


def test_words_follow_the_name_and_go_with_the_repository(url: str) -> None:
    database = Database(url)
    fill(database, 5)

    def write() -> None:
        with database.begin() as connection:
            for n in range(1, 6):
                write_words(connection, n)

    write()
    with database.begin() as connection:
        connection.execute(update(repos).where(repos.c.id == 3).values(full_name="acme/zebra"))
        connection.execute(delete(repos).where(repos.c.id == 4))
    write()

    assert (found(database, q="zebra"), found(database, q="a-4"), found(database, q="number 4")) == (
        ["acme/zebra"],
        [],
        [],
    )
    if not database.is_shared:
        with database.begin() as connection:  # raises where the index has other words than the table
            connection.execute(text("INSERT INTO text_trigrams (text_trigrams, rank) VALUES ('integrity-check', 1)"))
    database.close()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., int]]:
    """Gives the steps of SQLite's machine, in hundreds, for a search among `MANY` adapters."""
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('many') / 'registry.db'}")
    fill(database, MANY)
    with database.begin() as connection:
        connection.execute(text("INSERT INTO texts SELECT id, full_name || ' number ' || id FROM repos"))

    def steps(**query: Any) -> int:
        counted: list[None] = []
        with database.read() as connection:
            raw = connection.connection.driver_connection
            assert raw is not None
            raw.set_progress_handler(lambda: counted.append(None), 100)
            search_adapters(connection, AdapterQuery(limit=20, **query), true())
            raw.set_progress_handler(None, 0)
        return len(counted)

    yield steps
    database.close()


@pytest.mark.parametrize(
    "query",
    [
        {},
        {"q": "number"},
        {"q": "a-4711"},
        {"q": "zebra"},
        {"peft_type": "LOHA"},
        {"task": "chat"},
        {"rank_min": 3},
        {"base_sha256": BASE[:12]},
        {"base": "org/none"},
        {"base_sha256": BASE, "task": "none"},
        {"cursor": "3000-3000", "peft_type": "LORA"},
    ],
)
def test_a_search_reads_few_rows_of_many(many: Callable[..., int], query: dict[str, Any]) -> None:
    assert many(**query) < MANY // 30  # hundreds of steps: to look at each row takes more than ten for each
