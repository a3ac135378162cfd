"""What a search reads: the words follow their repository, and what few adapters meet costs few rows."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from adapterhub_registry.database.counting import Counts, counted, fold, largest_spaces, space_of
from adapterhub_registry.database.db import (
    Database,
    adapters,
    add_bytes,
    blobs,
    commits,
    insert_new,
    releases,
    repo_tags,
    repos,
)
from adapterhub_registry.database.prepared import GLANCED, Met
from adapterhub_registry.database.search_tables import tagged
from adapterhub_registry.errors import HttpRefusal
from adapterhub_registry.nearest import Nearest
from adapterhub_registry.pages import search as search_page
from adapterhub_registry.pages.facets import Counting
from adapterhub_registry.pages.wanted import Wanted
from adapterhub_registry.repos import search
from adapterhub_registry.repos.adapters import follow_gate, write_words
from adapterhub_registry.repos.listing import RepoListing, Sort, list_repos
from adapterhub_registry.repos.search import AdapterQuery, search_adapters
from adapterhub_registry.vectors import make, model_place
from sqlalchemy import delete, event, insert, select, text, true, update
from sqlalchemy.engine import Connection

from adapterhub.formats.meaning.model import take_model
from tests.registry import older_schemas
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


def listed(database: Database, *tags: str, **query: Any) -> list[str]:
    with database.read() as connection:
        rows = list_repos(connection, RepoListing(filters=tags, **query), true()).rows
        names = {row.id: row.full_name for row in connection.execute(select(repos))}
    return [names[row.id] for row in rows]


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.db'}"
    pg: Postgres = request.getfixturevalue("pg")
    return pg.new_database()


def test_what_an_earlier_database_holds_is_found(url: str) -> None:
    first = Database(url)
    fill(first, 30)
    with first.begin() as connection:
        for table in ("texts", "wordings", *(() if first.is_shared else ("wording_stems",))):
            connection.execute(text(f"DROP TABLE {table}"))
        for index in () if first.is_shared else ("text_trigrams", "name_trigrams"):
            connection.execute(text(f"DROP TABLE {index}"))
            connection.execute(text(f"DROP VIEW {index}_rows"))
        for change in () if first.is_shared else ("insert", "delete", "update"):
            connection.execute(text(f"DROP TRIGGER name_trigrams_{change}"))
        connection.execute(text("DROP INDEX repo_tags_by_tag"))
        connection.execute(text("ALTER TABLE repo_tags DROP COLUMN modified_at"))
        connection.execute(text("INSERT INTO repo_tags (repo_id, tag) VALUES (5, 'peft'), (4, 'peft')"))
        connection.execute(text("UPDATE repos SET pipeline_tag = 'chat' WHERE id IN (4, 7)"))
        older_schemas.undo_newest(connection)
        connection.execute(text("UPDATE alembic_version SET version_num = '0012'"))
    first.close()

    database = Database(url)

    assert found(database, q="umber 17") == ["acme/a-17"]
    assert (listed(database, "peft"), listed(database, "chat")) == (["acme/a-5", "acme/a-4"], ["acme/a-7", "acme/a-4"])
    if database.is_shared:  # a server of the version before still runs
        with database.begin() as connection:
            connection.execute(text("INSERT INTO repo_tags (repo_id, tag) VALUES (9, 'peft')"))
        assert listed(database, "peft") == ["acme/a-9", "acme/a-5", "acme/a-4"]
    assert listed(database, search="A-2") == [f"acme/a-{n}" for n in range(29, 19, -1)] + ["acme/a-2"]
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
            for index in ("text_trigrams", "name_trigrams"):
                connection.execute(text(f"INSERT INTO {index} ({index}, rank) VALUES ('integrity-check', 1)"))  # noqa: S608
    database.close()


@pytest.mark.parametrize("few", [0, 2000])
def test_words_of_any_length_are_found_wherever_they_stand(url: str, monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    """Both ways of a search: it begins with the few that have a word (2,000), or goes through all in order (0)."""
    monkeypatch.setattr(search, "FEW", few)
    database = Database(url)
    fill(database, 40)
    with database.begin() as connection:
        connection.execute(update(repos).where(repos.c.id == 9).values(full_name="acme/Zo9q"))
        for n in range(1, 41):
            write_words(connection, n)
        connection.execute(update(adapters).where(adapters.c.repo_id == 8).values(words="x%y_é漢"))
        write_words(connection, 8)

    for word in (
        "z",
        "q",
        "9",
        "9q",
        "7",
        "-7",
        "a-",
        "e/",
        "j",
        "zo",
        "zo9q",
        "acme 9q z",
        "40",
        "4 0",
        "_",
        "%",
        "cm",
        "4 acme",
    ):
        named = [
            n for n in range(40, 0, -1) if all(w in ("acme/zo9q" if n == 9 else f"acme/a-{n}") for w in word.split())
        ]
        assert listed(database, search=word) == ["acme/Zo9q" if n == 9 else f"acme/a-{n}" for n in named]
    for word in ("é", "漢", "é漢", "%y", "y_", "x%y_é", "%", "y_ %"):
        assert found(database, q=word) == ["acme/a-8"]
    assert found(database, q="r 3 1") == ["acme/a-31", "acme/a-13"]
    database.close()


def test_a_trigram_of_each_word_is_enough_where_few_have_them(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'registry.db'}")
    fill(database, GLANCED + 6)
    with database.begin() as connection:
        for n in range(1, GLANCED + 7):
            write_words(connection, n)

    def matches(q: str) -> tuple[int, int]:
        asked: list[str] = []
        with database.read() as connection:
            raw = connection.connection.driver_connection
            assert raw is not None
            raw.set_trace_callback(asked.append)
            rows = search_adapters(connection, AdapterQuery(q=q, limit=100), true()).rows
            raw.set_trace_callback(None)
        return len(rows), sum("MATCH" in statement for statement in asked)

    assert matches("number acme/a-37") == (1, 1)
    assert matches("number acme/b-37") == (0, 1)  # a-37 has the last trigrams of both
    assert matches("number zebra-37") == (0, 1)
    assert matches("number adapter") == (GLANCED + 6, 2)
    assert matches("number") == (GLANCED + 6, 1)
    database.close()


def hold(connection: Connection) -> tuple[dict[str, int], dict[str, int]]:
    """Change what nine repositories hold, in every way that decides a number; those of all, and of the public ones."""
    blob = {"git_sha1": "g", "created_at": 1}
    release = {"version": "1", "tag": "v1", "commit_id": "c", "digest": "d", "created_at": 1}
    commit = {"id": "c", "root": "r", "title": "", "message": "", "author": "ann", "created_at": 1}
    connection.execute(blobs.insert(), [blob | {"sha256": f"{n}", "size": n} for n in range(5)])
    connection.execute(releases.insert(), [release | {"repo_id": n} for n in range(1, 7)])
    connection.execute(commits.insert(), [commit | {"repo_id": n} for n in range(1, 9)])
    connection.execute(update(releases).where(releases.c.repo_id < 4).values(yanked_at=5))
    connection.execute(update(releases).where(releases.c.repo_id < 2).values(yanked_at=None))
    connection.execute(update(adapters).where(adapters.c.repo_id == 7).values(is_listed=False))
    connection.execute(update(repos).values(downloads=repos.c.downloads + repos.c.id))
    for number, private in ((3, True), (4, True), (4, False), (5, True)):
        connection.execute(update(repos).where(repos.c.id == number).values(private=private))
    connection.execute(delete(commits).where(commits.c.repo_id == 8))
    connection.execute(delete(blobs).where(blobs.c.sha256 == "4"))
    for number in (2, 5):
        connection.execute(delete(repos).where(repos.c.id == number))  # takes its rows in other tables along
    everything = {"repos": 7, "downloads": 38, "commits": 5, "adapters": 6, "releases": 4, "releases_yanked": 1}
    public = {"repos": 6, "downloads": 35, "commits": 4, "adapters": 5, "releases": 3, "releases_yanked": 0}
    return everything | {"blobs": 4, "blob_bytes": 6, "tokens_active": 0}, public


def test_a_database_counts_what_it_holds(url: str) -> None:
    database = Database(url)
    fill(database, 9)

    with database.begin() as connection:
        everything, public = hold(connection)

    for _ in range(2):
        with database.begin() as connection:
            assert (counted(connection), counted(connection, public=True)) == (everything, public)
            fold(connection)  # changes no number
    database.close()


def test_a_migration_counts_what_a_database_holds(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    database = Database(url)
    fill(database, 9)
    with database.begin() as connection:
        everything, public = hold(connection)
        older_schemas.undo_newest(connection)
        for text_ in ("UPDATE alembic_version SET version_num = '0013'", "DROP TABLE name_trigrams"):
            connection.execute(text(text_))
        connection.execute(text("UPDATE counts SET value = 0"))
    database.close()

    database = Database(url)

    with database.read() as connection:
        assert (counted(connection), counted(connection, public=True)) == (everything, public)
    database.close()


def test_a_namespace_keeps_what_it_takes(url: str) -> None:
    database = Database(url)
    fill(database, 9)

    with database.begin() as connection:
        connection.execute(update(repos).values(namespace="ann", most_bytes=repos.c.id))
        connection.execute(update(repos).where(repos.c.id > 6).values(namespace="bob"))
        add_bytes(connection, 1, 100)
        connection.execute(delete(repos).where(repos.c.id == 9))
        fold(connection)
        found = largest_spaces(connection, 5)

    assert [(one.namespace, one.repos, one.bytes) for one in found] == [("ann", 6, 121), ("bob", 2, 15)]
    with database.read() as connection:
        assert space_of(connection, "bob") == found[1]
    database.close()


def test_sqlite_keeps_who_has_a_tag(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    database = Database(url)
    fill(database, 200)
    many = {"even": range(2, 201, 2), "third": range(3, 201, 3), "late": range(190, 201), "none": ()}
    with database.begin() as connection:
        insert_new(connection, repo_tags, _rows(many))
        insert_new(connection, repo_tags, _rows({"even": (4, 6), "late": (190,)}))  # has them all
        connection.execute(delete(repos).where(repos.c.id.in_((6, 126, 192, 200))))
        connection.execute(delete(repo_tags).where(repo_tags.c.repo_id == 12))

    def check() -> None:
        gone = {6, 126, 192, 200, 12}
        with database.read() as connection:
            for tags in (("even",), ("even", "third"), ("late", "third", "even"), ("even", "none"), ("late", "new")):
                expected = sorted(set.intersection(*(set(many.get(tag, ())) for tag in tags)) - gone)
                assert tagged(connection, tags, most=200) == expected
            assert tagged(connection, ["even"], most=94) is None

    check()
    with database.begin() as connection:
        connection.execute(text("DROP TABLE tag_sets"))
        for change in ("insert", "delete"):
            connection.execute(text(f"DROP TRIGGER tag_sets_{change}"))
        older_schemas.undo_newest(connection)
        connection.execute(text("UPDATE alembic_version SET version_num = '0018'"))
    database.close()
    database = Database(url)  # the migration makes the same sets
    check()
    database.close()


def _rows(tags: dict[str, Collection[int]]) -> list[dict[str, object]]:
    return [{"repo_id": n, "tag": tag, "modified_at": n} for tag, numbers in tags.items() for n in numbers]


@pytest.mark.parametrize("sort", ["lastModified", "createdAt", "downloads"])
def test_pages_of_tags_are_in_order(url: str, sort: Sort) -> None:
    database = Database(url)
    fill(database, 30)
    with database.begin() as connection:
        connection.execute(
            update(repos).values(downloads=repos.c.id % 3, modified_at=repos.c.id % 5, created_at=repos.c.id % 7)
        )
        connection.execute(text("INSERT INTO repo_tags SELECT id, 'even', modified_at FROM repos WHERE id % 2 = 0"))
        connection.execute(text("INSERT INTO repo_tags SELECT id, 'third', modified_at FROM repos WHERE id % 3 = 0"))
        key = {"lastModified": 5, "createdAt": 7}.get(sort, 3)

        connection.execute(text("INSERT INTO repo_tags SELECT id, 'odd', modified_at FROM repos WHERE id % 2 = 1"))

        for tags, numbers in (
            ((), range(31)),
            (("even", "odd"), ()),
            (("even",), range(0, 31, 2)),
            (("third", "even"), range(0, 31, 6)),
            (("even", "no"), ()),
        ):
            cursor, seen = None, []
            while True:
                page = list_repos(connection, RepoListing(filters=tags, sort=sort, cursor=cursor, limit=2), true())
                seen += page.ids
                cursor = page.next_cursor
                if cursor is None:
                    break
            assert seen == sorted((n for n in numbers if n), key=lambda n: (n % key, n), reverse=True)
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


def test_files_behind_a_gate_add_nothing_to_a_search(url: str) -> None:
    database = Database(url)
    fill(database, 3)
    said = {"description": "Umami recipes", "words": "a-1 chat umami recipes", "examples": "Does oat milk work?"}
    with database.begin() as connection:
        connection.execute(update(adapters).values(version=None, **said))
        connection.execute(update(adapters).where(adapters.c.repo_id == 2).values(version="1.0.0"))
        for number in (1, 2, 3):
            write_words(connection, number)
        everything = [f"acme/a-{number}" for number in (1, 2, 3)]
        connection.execute(update(repos).where(repos.c.id < 3).values(gated="manual"))
        for number in (1, 2):
            follow_gate(connection, number)

    assert [name for name, *_ in ranking(database, "does oat milk work")] == everything[2:]
    assert sorted(name for name, *_ in ranking(database, "umami recipes")) == everything[1:]  # a manifest's stays
    assert found(database, q="umami") == everything[:0:-1]

    with database.begin() as connection:
        connection.execute(update(repos).values(gated=None))
        follow_gate(connection, 2)
    assert sorted(name for name, *_ in ranking(database, "does oat milk work")) == everything[1:]
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
        with pytest.raises(HttpRefusal, match="cursor"):
            search_adapters(connection, AdapterQuery(q="films number", by_relevance=True, cursor="1-2"), true())

    with database.read() as connection:
        wanted = Met([adapters.c.is_listed], {})
        more, one = (search.ranked(connection, "films", wanted, cursor=None, limit=n, fitted=25) for n in (64, 25))

    assert (more.first(25), more.first(64), len(more.fits)) == (one, more, 25)
    assert [len(page) for page in pages] == [90, 90, 20]
    shown = [number for page in pages for number in page]
    assert len(set(shown)) == 200
    assert all(number % 2 for number in shown[:130])
    database.close()


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., int]]:
    """Gives the steps of SQLite's machine, in hundreds, for a search or a listing among `MANY` adapters."""
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('many') / 'registry.db'}")
    fill(database, MANY)
    with database.begin() as connection:
        connection.execute(text("INSERT INTO texts SELECT id, full_name || ' number ' || id FROM repos"))
        for tag, step in (("peft", 1), ("two", 2), ("three", 3), ("rare", 1000), ("ten", 10)):
            rows = f"SELECT id, '{tag}', modified_at FROM repos WHERE id % {step} = 0"  # noqa: S608
            connection.execute(text(f"INSERT INTO repo_tags {rows}"))
        connection.execute(text("INSERT INTO repo_tags SELECT id, 'odd', modified_at FROM repos WHERE id % 2 = 1"))

    def steps(query: AdapterQuery | RepoListing) -> int:
        counted: list[None] = []
        with pytest.MonkeyPatch.context() as patched, database.read() as connection:
            patched.setattr(search, "FEW", MANY // 50)  # as 2,000 of 100,000
            patched.setattr(search, "_PAGE", 1)  # so that the root of the rows by a page is less
            raw = connection.connection.driver_connection
            assert raw is not None
            raw.set_progress_handler(lambda: counted.append(None), 100)
            if isinstance(query, RepoListing):
                list_repos(connection, query, true())
            else:
                search_adapters(connection, query, true())
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
        {"q": "j"},
        {"q": "-x"},
        {"q": "number 4711"},
        {"peft_type": "LOHA"},
        {"task": "chat"},
        {"rank_min": 3},
        {"base_sha256": BASE[:12]},
        {"base": "org/none"},
        {"base_sha256": BASE, "task": "none"},
        {"base_sha256": "c" * 64, "task": "sql"},
        {"cursor": "3000-3000", "peft_type": "LORA"},
    ],
)
@pytest.mark.slow
def test_a_search_reads_few_rows_of_many(many: Callable[..., int], query: dict[str, Any]) -> None:
    assert many(AdapterQuery(limit=20, **query)) < MANY // 30  # hundreds of steps: each row takes more than ten


@pytest.mark.parametrize("sort", ["lastModified", "downloads"])
@pytest.mark.parametrize(
    "query",
    [
        {},
        {"filters": ("peft",)},
        {"filters": ("two", "three")},
        {"filters": ("two", "odd")},
        {"filters": ("odd", "ten", "peft")},
        {"filters": ("peft", "rare")},
        {"filters": ("none",)},
        {"filters": ("three",), "search": "a-4"},
        {"filters": ("peft",), "author": "none"},
        {"search": "a-4711"},
        {"search": "number"},
        {"search": "j"},
        {"search": "-x"},
        {"author": "acme"},
        {"author": "none"},
        {"num_parameters": "min:1M"},
    ],
)
@pytest.mark.slow
def test_a_listing_reads_few_rows_of_many(many: Callable[..., int], query: dict[str, Any], sort: Sort) -> None:
    assert many(RepoListing(limit=20, sort=sort, **query)) < MANY // 30


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
        monkeypatch.setattr("adapterhub_registry.nearest._LOOKS", ((1, 1.0),))
        narrow = search_adapters(connection, replace(asked, limit=1), readable, nearest.ranked)
    with database.begin() as connection:
        connection.execute(delete(repos).where(repos.c.id == 5))
    with database.read() as connection:
        without = search_adapters(connection, asked, readable, nearest.ranked)

    assert (page.rows[0].full_name, everything.rows[0].full_name) == ("acme/a-1", "acme/a-5")
    assert (without.rows, without.fits) == (page.rows, page.fits)
    assert narrow.rows == page.rows[:1]  # the nearest one that it looks at first is not for this caller
    database.close()


@pytest.mark.parametrize(
    "given", [{"sort": "newest"}, {"sort": "changed"}, {"sort": "downloads"}, {"q": "adapter number"}]
)
@pytest.mark.parametrize("yanked", [0, 3, search.FEW + 50])
def test_a_list_of_what_was_yanked_begins_at_the_yanks(tmp_path: Path, given: dict[str, str], yanked: int) -> None:
    database, read = Database(f"sqlite:///{tmp_path / 'registry.db'}"), []
    fill(database, search.FEW + 100)
    with database.begin() as connection:
        named = {"version": "1.0", "version_key": "1", "tag": "v1.0", "commit_id": "", "digest": "", "created_at": 1}
        yanks = [{"repo_id": n, "yanked_at": 5} for n in range(1, yanked + 1)]
        connection.execute(insert(releases), [named | one for one in yanks] or [named | {"repo_id": 1}])
        connection.execute(update(adapters).where(adapters.c.repo_id <= yanked).values(is_warned=True))
        connection.execute(update(adapters).where(adapters.c.repo_id == 2).values(is_listed=False))
        for number in range(1, 20):
            write_words(connection, number)
    with database.read() as connection:
        event.listen(database.engine, "before_cursor_execute", lambda *told: read.append((told[2], told[3])))
        asked = Wanted(given={"yanked": "yes"} | given)
        counting = Counting(
            connection,
            Met([], {}),
            lambda *_: search.FoundAdapters(rows=(), next_cursor=None),
            Counts(),
            0,
            is_all=True,
        )
        page = search_page._page(counting, asked, None)
        plans = [connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", told).all() for sql, told in list(read)]
    database.close()

    steps = [step[-1] for plan in plans for step in plan]
    # of many, the first of a page come in the order of an index
    in_order = ("SCAN repos USING INDEX repos_by_", "SCAN adapters USING INDEX adapters_warned")
    scans = [step for step in steps if step.startswith(("SCAN adapters", "SCAN repos", "SCAN wordings", "SCAN text"))]
    assert [step for step in scans if yanked <= search.FEW or not step.startswith(in_order)] == []
    names = {row.full_name for row in page.rows}
    assert len(names) == min(yanked, 25 if "q" not in given else 19)  # of so many the words are known
    if yanked == 3:
        assert names == {"acme/a-1", "acme/a-2", "acme/a-3"}


def test_who_found_many_does_not_look_for_few_again(tmp_path: Path) -> None:
    database, asked = Database(f"sqlite:///{tmp_path / 'registry.db'}"), search.AdapterQuery(q="adapter")
    fill(database, search.FEW + 100)
    with database.begin() as connection:
        for number in range(1, search.FEW + 101):
            write_words(connection, number)
    told: list[str] = []
    looks, found = [], []
    for _ in range(2):
        with database.read() as connection:
            driver: Any = connection.connection.driver_connection
            driver.set_trace_callback(told.append)
            found.append(search.search_adapters(connection, asked, true()).rows)
            looks.append(len([text for text in told if "MATCH" in text]))
            told.clear()
    database.close()

    assert looks == [1, 0]
    assert len(found[0]) == asked.limit
    assert found[1] == found[0]
