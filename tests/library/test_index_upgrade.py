"""The index of an older schema: brought up to date where it lies, or made again, and in both cases without a loss."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest

from adapterhub.library.library import Library
from adapterhub.library.store import counts
from adapterhub.library.store.index import SCHEMA_VERSION, Index
from adapterhub.library.store.rows import Filters, SketchRow
from tests.bench.find_questions import cards, row_of

_NEW = ("by_base_and_task", "by_base_and_rank", "by_method", "by_license", "by_base_hub_id")


def schema_of(index: Index) -> tuple[int, set[tuple[str, str]]]:
    with contextlib.closing(sqlite3.connect(index.path)) as connection:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        return version, set(connection.execute("SELECT type, name FROM sqlite_master WHERE name NOT LIKE '%fts%'"))


def make_older(index: Index, version: int) -> None:
    """Leave the file as schema 9 had it."""
    with contextlib.closing(sqlite3.connect(index.path)) as connection, connection:
        for name in _NEW:
            connection.execute(f"DROP INDEX {name}")
        connection.execute("DROP TRIGGER build_counted")
        connection.execute("DROP TRIGGER build_uncounted")
        connection.execute("DROP TABLE per_base")
        connection.execute(f"PRAGMA user_version = {version}")


@pytest.fixture
def sketched(library: Library, add) -> Library:
    for number in range(3):
        build = add(f"qa-{number}", seed=number).build
        library.catalog.put_sketches([SketchRow(build.manifest.digest, 1.0, "", bytes([number]))])
        folder = build.folder.relative_to(library.root).as_posix()
        library.catalog.keep_vectors("a model", [(folder, build.manifest.digest, b"vectors")])
    return library


def test_the_schema_before_is_changed_in_place_by_a_reader(sketched, monkeypatch):
    index = sketched.catalog.index
    wanted, rows, sketches = schema_of(index), index.search(Filters()), index.sketches()
    make_older(index, 9)
    monkeypatch.setattr(Index, "rebuild", None)  # no build is read again

    assert sketched.catalog.search(Filters()) == rows
    assert schema_of(index) == wanted
    assert (index.count(), index.sketches(), index.without_vectors("a model")) == (3, sketches, [])
    assert sketched.catalog.differences() == []


def test_the_schema_before_is_changed_in_place_by_a_writer(sketched, add, monkeypatch):
    index = sketched.catalog.index
    make_older(index, 9)
    monkeypatch.setattr(Index, "rebuild", None)

    add("other", seed=9)

    assert (index.count(), len(index.sketches()), schema_of(index)[0]) == (4, 3, SCHEMA_VERSION)
    assert sketched.catalog.differences() == []


def test_a_change_of_the_schema_that_fails_leaves_the_file_as_it_was(sketched, monkeypatch):
    index = sketched.catalog.index
    make_older(index, 9)
    before = schema_of(index)
    with monkeypatch.context() as patch:
        patch.setattr(
            "adapterhub.library.store.index._UPGRADES", {9: (*counts.SCHEMA, "CREATE INDEX by_name ON x (y)")}
        )
        assert not index.upgrade()

    assert schema_of(index) == before
    assert index.upgrade()


def test_an_index_that_is_made_again_keeps_the_sketches_of_an_older_schema(sketched):
    index = sketched.catalog.index
    sketches = index.sketches()
    make_older(index, 8)

    assert len(sketched.catalog.search(Filters())) == 3
    assert (index.sketches(), schema_of(index)[0]) == (sketches, SCHEMA_VERSION)


def test_the_counts_of_a_base_follow_each_change(tmp_path):
    index = Index(tmp_path / "index.db")
    rows = [
        row_of(card)._replace(base_weights=f"sha256:{at % 2}", size_bytes=at) for at, card in enumerate(cards()[:9])
    ]
    index.rebuild(rows, [], [])
    index.upsert_builds([rows[0]._replace(size_bytes=100), rows[1]._replace(base_weights="sha256:2")])
    index.remove_builds([rows[2].folder, rows[2].folder])

    kept = {one.weights: (one.builds, one.size_bytes) for one in index.per_base()}
    assert kept == {"sha256:0": (4, 118), "sha256:1": (3, 15), "sha256:2": (1, 1)}
    index.remove_builds([rows[1].folder])
    assert {one.weights for one in index.per_base()} == {"sha256:0", "sha256:1"}
    assert index.count() == 7


def test_doctor_finds_a_count_that_is_wrong(sketched):
    with contextlib.closing(sqlite3.connect(sketched.catalog.index.path)) as connection, connection:
        connection.execute("UPDATE per_base SET builds = builds + 1")

    assert sketched.catalog.differences() == ["`per_base`: 1 counts wrong"]


@pytest.mark.parametrize("few", [3, 10_000])
@pytest.mark.parametrize(
    "asked",
    [
        {"method": "lora"},
        {"method": "LORA", "sort": "date"},
        {"method": "lor"},
        {"license": "MIT"},
        {"base_hub_id": "org/one", "reverse": True},
        {"task": "qa", "method": "dora"},
        {"bases": ("sha256:1",), "license": "mit", "sort": "size"},
        {"bases": ("sha256:1", "sha256:0"), "method": "dora"},
    ],
)
def test_a_page_is_the_beginning_of_the_whole_list(tmp_path, monkeypatch, asked, few):
    monkeypatch.setattr("adapterhub.library.store.index._FEW", few)
    index = Index(tmp_path / "index.db")
    rows = [
        row_of(card)._replace(
            base_weights=f"sha256:{at % 2}",
            method=("lora", "lora,dora", "ia3")[at % 3],
            license=("mit", "")[at % 4 > 1],
            base_hub_id=("org/one", "")[at % 5 > 1],
            task="qa",
            size_bytes=at % 7,
        )
        for at, card in enumerate(cards()[:60])
    ]
    index.rebuild(rows, [], [])

    whole = index.search(Filters(**asked))
    assert bool(whole) == (asked != {"method": "lor"})
    assert index.search(Filters(**asked, limit=4, skip=2)) == whole[2:6]
