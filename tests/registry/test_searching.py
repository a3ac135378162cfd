"""What a search reads: the words follow their repository, and what few adapters meet costs few rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from adapterhub_registry.database.db import Database, adapters, repos
from adapterhub_registry.errors import Refusal
from adapterhub_registry.meaning.nearest import Nearest
from adapterhub_registry.meaning.vectors import make, model_place
from adapterhub_registry.repos.adapter_search import AdapterQuery, search_adapters
from adapterhub_registry.repos.adapters import write_words
from sqlalchemy import delete, text, true, update

from adapterhub.formats.meaning.model import take_model
from tests.registry.shared_servers import Postgres
from tests.support.real_encoder import minilm_base

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
        for table in ("texts", "wordings", *(() if first.is_shared else ("text_trigrams", "wording_stems"))):
            connection.execute(text(f"DROP TABLE {table}"))
        connection.execute(text("UPDATE alembic_version SET version_num = '0012'"))
    first.close()

    database = Database(url)

    assert found(database, q="umber 17") == ["acme/a-17"]
    assert found(database, q="a-2 numb") == [f"acme/a-{n}" for n in range(29, 19, -1)] + ["acme/a-2"]
    assert [name for name, *_ in ranking(database, "the chatting of 3")] == [f"acme/a-{n}" for n in range(3, 31, 3)]
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


def tell(database: Database, told: dict[int, tuple[str, str]], private: Collection[int] = ()) -> None:
    """Give repositories of `fill` a task and a description."""
    with database.begin() as connection:
        for number, (task, description) in told.items():
            mine = adapters.c.repo_id == number
            connection.execute(update(adapters).where(mine).values(task=task, description=description, examples=""))
            hidden = update(repos).where(repos.c.id == number).values(private=number in private)
            connection.execute(hidden)
            write_words(connection, number)


TOLD = {
    1: ("sentiment", "Positive or negative film reviews"),
    2: ("legal-qa", "Questions about tenancy law"),
    3: ("reviews", "Reviews of restaurants in Rome, and of the films that were shot there"),
    4: ("translation", "English to German"),
}


def ranking(database: Database, q: str, visible: Any = None, **query: Any) -> list[tuple[str, float, str]]:
    asked = AdapterQuery(q=q, by_relevance=True, **query)
    with database.read() as connection:
        page = search_adapters(connection, asked, true() if visible is None else visible)
    fits = [page.fits[row.repo_id] for row in page.rows]
    return [(row.full_name, fit.score, fit.matched.part) for row, fit in zip(page.rows, fits, strict=True)]


def test_any_word_in_any_inflection_matches_and_the_best_comes_first(url: str) -> None:
    database = Database(url)
    fill(database, 4)
    tell(database, TOLD)

    first, second = ranking(database, "is this film reviewed as a positive one?")

    assert (first[0], second[0]) == ("acme/a-1", "acme/a-3")
    assert first[1] > second[1] > 0
    assert first[2] == "description"
    assert [name for name, *_ in ranking(database, "film reviews", task="reviews")] == ["acme/a-3"]
    assert ranking(database, "zebra giraffe") == []
    assert found(database, q="film reviews") == []  # the order by time still wants every word, as `words` has them
    assert ranking(database, "' | x & !' 9:* \" OR") == []
    database.close()


def test_a_private_adapter_changes_no_answer_of_one_who_may_not_read_it(url: str) -> None:
    database = Database(url)
    fill(database, 9)
    readable = repos.c.private.is_(False)
    tell(database, TOLD)
    before = ranking(database, "positive film reviews", readable)
    hidden = dict.fromkeys(range(5, 10), ("sentiment", "Positive film reviews, films and more films"))
    tell(database, hidden, private=hidden)

    assert ranking(database, "positive film reviews", readable) == before
    assert len(ranking(database, "positive film reviews")) == len(before) + len(hidden)
    database.close()


def test_a_ranking_has_pages(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'registry.db'}")
    fill(database, 260)
    tell(database, {n: ("t", f"films and number {n}" if n % 2 else f"some films {n}") for n in range(1, 261)})
    pages, cursor = [], None
    with database.read() as connection:
        while len(pages) < 4 and (cursor or not pages):
            asked = AdapterQuery(q="films number", by_relevance=True, limit=90, cursor=cursor)
            page = search_adapters(connection, asked, true())
            pages.append([row.repo_id for row in page.rows])
            cursor = page.next_cursor
        with pytest.raises(Refusal, match="cursor"):
            search_adapters(connection, AdapterQuery(q="films number", by_relevance=True, cursor="1-2"), true())

    assert [len(page) for page in pages] == [90, 90, 20]
    shown = [number for page in pages for number in page]
    assert len(set(shown)) == 200
    assert all(number % 2 for number in shown[:130])
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


def test_meaning_ranks_what_a_caller_may_read(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    take_model(minilm_base(), model_place(tmp_path))
    database = Database(url)
    fill(database, 5)
    tell(database, TOLD | {5: ("sentiment", "Is this movie good or bad?")}, private=[5])
    assert make(database, tmp_path) == 5
    nearest = Nearest(tmp_path)
    asked = AdapterQuery(q="is this movie good or bad", by_relevance=True)
    readable = repos.c.private.is_(False)

    with database.read() as connection:
        page = search_adapters(connection, asked, readable, nearest.ranked)
        everything = search_adapters(connection, asked, true(), nearest.ranked)
        monkeypatch.setattr("adapterhub_registry.meaning.nearest._LOOKED_AT", 1)
        narrow = search_adapters(connection, replace(asked, limit=1), readable, nearest.ranked)
    with database.begin() as connection:
        connection.execute(delete(repos).where(repos.c.id == 5))
    with database.read() as connection:
        without = search_adapters(connection, asked, readable, nearest.ranked)

    assert (page.rows[0].full_name, everything.rows[0].full_name) == ("acme/a-1", "acme/a-5")
    assert (without.rows, without.fits) == (page.rows, page.fits)
    assert narrow.rows == page.rows[:1]  # the nearest one that it looks at first is not for this caller
    database.close()
