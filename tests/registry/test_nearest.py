"""The index of vectors: as good as comparing each build, right after each change, restart and crash, and blind to rights.

Its sizes are made small, so that a few hundred builds have a file of cells.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from adapterhub_registry import nearest, vectors, worker
from adapterhub_registry.database.db import Database, adapters, meaning, now_ms, repos
from adapterhub_registry.errors import HttpRefusal
from adapterhub_registry.nearest import Nearest
from adapterhub_registry.repos.search import AdapterQuery, search_adapters
from adapterhub_registry.vectors import model_place
from adapterhub_registry.worker import Lookout
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, event, insert, select, true, update

from adapterhub.core.errors import Malformed
from adapterhub.formats.meaning.cells import Builds, CellFile, write_cells
from adapterhub.formats.meaning.model import FILES, MODEL, SIZE
from adapterhub.formats.meaning.ranking import VectorBlock, packed
from adapterhub.formats.meaning.texts import FAR, FEWEST
from adapterhub.formats.relevance import MOST_RANKED
from tests.registry.shared_servers import Postgres
from tests.support.real_encoder import minilm_base

BUILDS = 400


class Encoder:
    """Gives the vector that a question names by its number: it is about three subjects."""

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        return np.concatenate([self._vector(int(text.split()[0])) for text in texts]).astype(np.float32)

    def _vector(self, number: int) -> np.ndarray:
        subjects = [factor * _random((number + step) % 20, 1) for step, factor in ((0, 1.0), (3, 0.9), (8, 0.8))]
        return unit(sum(subjects) + 0.4 * _random(9000 + number, 1))


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def _random(seed: int, count: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, SIZE))


def vectors_of(number: int) -> bytes:
    """The vectors of a build: near one of twenty subjects; every seventh is the same as another."""
    subject = _random(number % 20, 1)
    mine = subject + 0.7 * _random(1000 + (7 if number % 7 == 0 else number), 1)
    prompts = mine + 0.8 * _random(5000 + number, number % 3)
    return packed(unit(np.concatenate([mine, prompts])))


def commit(number: int) -> str:
    return f"{number:040x}"


def add(database: Database, numbers: Sequence[int], **how: Any) -> None:
    """Repositories with a listed build each, and their vectors."""
    told = {"private": False, "created_by": "a", "created_at": 1, "modified_at": 1, "namespace": "a"} | how
    build = {"digest": "d", "methods": "[]", "target_modules": "[]", "words": "", "is_head": True, "is_listed": True}
    build["created_at"] = 1
    mine = [{"repo_id": number, "commit_id": commit(number)} for number in numbers]
    with database.begin() as connection:
        for at in numbers:
            name = f"{told['namespace']}/{at}"
            names = {"full_name": name, "folded": name, "folded_namespace": "a", "head": commit(at)}
            connection.execute(insert(repos).values(id=at, **names, **told))
        for one in mine:
            about = {"task": f"t{one['repo_id'] % 100}", "examples": "one\ntwo"}
            connection.execute(insert(adapters).values(**one, **build, **about))
        connection.execute(insert(meaning), [one | row(one["repo_id"]) for one in mine])


def row(number: int) -> dict[str, Any]:
    return {"model": MODEL, "vectors": vectors_of(number)}


class Place(NamedTuple):
    database: Database
    root: Path

    def searcher(self) -> Nearest:
        """What searches in a new process."""
        made = Nearest(self.root)
        made.__dict__["_encoder"] = Encoder()
        return made

    def ready(self) -> Nearest:
        """As `searcher`, with its file."""
        made = self.searcher()
        made.keep(self.database)
        assert made._held is not None
        assert made._held.cells is not None
        return made

    def first(self, searcher: Nearest, question: int, seen: Any = None, limit: int = 10, **query: Any) -> list[int]:
        asked = AdapterQuery(q=f"{question} is asked", by_relevance=True, limit=limit, **query)
        visible = repos.c.private.is_(False) if seen is None else seen
        with self.database.read() as connection:
            assert searcher.serves(connection, asked.q, "meaning")
            page = search_adapters(connection, asked, visible, searcher.ranked)
        return [found.repo_id for found in page.rows]

    def exact(self, question: int, allowed: Any = None, limit: int = 10) -> list[int]:
        """The nearest by comparing each that the table has."""
        with self.database.read() as connection:
            wanted = select(meaning.c.repo_id, meaning.c.vectors).order_by(meaning.c.repo_id)
            rows = [one for one in connection.execute(wanted) if allowed is None or allowed(one.repo_id)]
        block = VectorBlock([one.vectors for one in rows])
        best = block.best(block.scores(Encoder().vectors([str(question)])[0]), limit)
        near = [one for one in best if one[1] >= FAR] or best[:FEWEST]
        return [rows[at].repo_id for at, *_ in near]


def place_in(folder: Path, url: str = "") -> Place:
    model = model_place(folder)
    model.mkdir(parents=True)
    for name in FILES:
        (model / name).symlink_to(minilm_base() / name)
    return Place(Database(url or f"sqlite:///{folder / 'registry.db'}"), folder)


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes of a test: more than 50 builds have a file, more than 20 new ones are due."""
    for name, value in {"EXACT": 50, "_MOST": 200, "_NEW": 20, "_AT_ONCE": 30, "_FEW": 20}.items():
        monkeypatch.setattr(nearest, name, value)
    monkeypatch.setattr(nearest, "_LOOKS", ((3, 0.8), (8, 1.0)))


@pytest.fixture
def place(tmp_path: Path, small: None) -> Iterator[Place]:
    made = place_in(tmp_path)
    add(made.database, range(1, BUILDS + 1))
    yield made
    made.database.close()


def recall(place: Place, searcher: Nearest, allowed: Any = None) -> float:
    pairs = [(place.first(searcher, one), place.exact(one, allowed)) for one in range(20)]
    return sum(len({*found} & {*wanted}) for found, wanted in pairs) / sum(len(wanted) for _, wanted in pairs)


# ------------------------------------------------------------ the answers
def test_a_few_builds_are_compared_each(tmp_path: Path) -> None:
    place = place_in(tmp_path)
    add(place.database, range(1, 60))
    searcher = place.searcher()

    assert not searcher.keep(place.database)
    assert all(place.first(searcher, one) == place.exact(one) for one in range(20))
    assert not searcher._place.exists()


def test_with_a_file_the_nearest_are_found(place: Place) -> None:
    searcher = place.ready()

    assert recall(place, searcher) >= 0.98
    assert len(place.first(searcher, 1, limit=30)) == 30


def test_pages_go_on_to_the_last(place: Place) -> None:
    searcher, found, cursor = place.ready(), [], None
    while cursor is not None or not found:
        asked = AdapterQuery(q="3 is asked", by_relevance=True, limit=30, cursor=cursor)
        with place.database.read() as connection:
            page = search_adapters(connection, asked, true(), searcher.ranked)
        found += [one.repo_id for one in page.rows]
        cursor = page.next_cursor
    near = place.exact(3, limit=MOST_RANKED)
    assert len(found) == len(set(found))
    assert found == near[: len(found)]


def test_the_file_is_made_when_there_are_many_and_words_serve_until_then(place: Place) -> None:
    searcher = place.searcher()
    with place.database.read() as connection:
        assert not searcher.serves(connection, "two words", "auto")
        with pytest.raises(HttpRefusal, match="still building its index") as refused:
            searcher.serves(connection, "two words", "meaning")
    assert refused.value.status == 503

    assert searcher.keep(place.database)
    assert not searcher.keep(place.database)
    with place.database.read() as connection:
        assert searcher.serves(connection, "two words", "auto")
        assert not searcher.serves(connection, "one", "auto")


# ------------------------------------------------------------ changes
def test_a_push_is_found_at_once_and_nothing_else_is_read_again(place: Place) -> None:
    searcher = place.ready()
    place.first(searcher, 1)
    read: list[tuple[str, Any]] = []
    add(place.database, [1001])
    with place.database.begin() as connection:
        mine = meaning.c.repo_id == 1001
        connection.execute(update(meaning).where(mine).values(vectors=packed(Encoder().vectors(["77"]))))

    with place.database.read() as connection:
        event.listen(place.database.engine, "before_cursor_execute", lambda *told: read.append((told[2], told[3])))
        found = searcher._read(connection)
        plan = connection.exec_driver_sql(
            "EXPLAIN QUERY PLAN SELECT id, commit_id, vectors FROM meaning WHERE model = 'm' AND id > 5 ORDER BY id"
        ).all()

    assert found is not None
    assert len(found.ids) == 1
    assert not any(step[-1].startswith("SCAN") or "TEMP" in step[-1] for step in plan)
    assert place.first(searcher, 77)[0] == 1001


def test_the_file_is_written_again_with_what_came_and_without_what_went(place: Place) -> None:
    searcher = place.ready()
    add(place.database, range(1001, 1031))
    with place.database.begin() as connection:
        connection.execute(delete(meaning).where(meaning.c.repo_id < 101))
    before = searcher._place.stat().st_ino

    assert searcher.keep(place.database)

    assert searcher._held is not None
    assert searcher._held.cells is not None
    assert searcher._place.stat().st_ino != before
    assert (len(searcher._held.cells), len(searcher._held.ids)) == (BUILDS - 100 + 30, 0)
    assert recall(place, searcher) >= 0.98


@settings(max_examples=15, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["put", "again", "remove", "keep", "restart"]), st.integers(1, 12)), max_size=14
    )
)
def test_the_answer_follows_each_change(tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"EXACT": 3, "_MOST": 5, "_NEW": 2, "_AT_ONCE": 2, "_FEW": 2, "_LOOKS": ((8, 1.0),)}.items():
            patch.setattr(nearest, name, value)
        place = place_in(tmp_path_factory.mktemp("steps"))
        searcher, there = place.searcher(), set[int]()
        for what, number in steps:
            if what == "put" and number not in there:
                add(place.database, [number])
                there.add(number)
            elif what == "again":  # a worker makes the vectors again
                same = meaning.c.repo_id == number
                with place.database.begin() as connection:
                    if connection.execute(delete(meaning).where(same)).rowcount:
                        new = row(number) | {"repo_id": number, "commit_id": commit(number)}
                        connection.execute(insert(meaning).values(**new))
            elif what == "remove":
                with place.database.begin() as connection:
                    connection.execute(delete(repos).where(repos.c.id == number))
                there.discard(number)
            elif what == "restart":
                searcher = place.searcher()
            searcher._looked_at = searcher._counted_at = -1e9
            searcher.keep(place.database)
            assert place.first(searcher, 1) == place.exact(1)
        place.database.close()


# ------------------------------------------------------------ restarts and crashes
def test_a_restart_reads_the_file_and_only_what_it_lacks(place: Place) -> None:
    inode = place.ready()._place.stat().st_ino
    add(place.database, range(1001, 1011))

    again = place.ready()

    assert again._place.stat().st_ino == inode
    assert again._held is not None
    assert (len(again._held.ids), again._held.last) == (10, BUILDS + 10)
    assert recall(place, again) >= 0.98


def test_a_process_that_dies_while_it_writes_leaves_the_file_of_before(place: Place) -> None:
    searcher = place.ready()
    before = searcher._place.read_bytes()
    add(place.database, range(1001, 1041))
    code = f"""
import os
from pathlib import Path
import numpy as np
from adapterhub_registry import nearest, vectors, worker
from adapterhub_registry.database.db import Database
from adapterhub.formats.meaning import cells
nearest.EXACT, nearest._MOST, nearest._NEW = 50, 200, 20
write, made = cells._write, []
def dies(*given):
    write(*given)
    os._exit(9)
cells._write = dies
nearest.Nearest(Path({str(place.root)!r})).keep(Database("sqlite:///{place.root}/registry.db"))
"""
    done = subprocess.run([sys.executable, "-c", code], check=False)

    assert done.returncode == 9
    assert searcher._place.read_bytes() == before
    again = place.ready()
    assert again._held is not None
    assert len(again._held) == BUILDS + 40
    assert recall(place, again) >= 0.98


@pytest.mark.parametrize("damage", ["cut", "bytes", "other model", "text"])
def test_a_damaged_file_is_made_again(place: Place, damage: str) -> None:
    file = place.ready()._place
    raw = bytearray(file.read_bytes())
    if damage == "cut":
        raw = raw[:-100]
    elif damage == "bytes":
        raw[4096 + 5000 : 4096 + 5004] = b"\xff" * 4
    elif damage == "other model":
        raw = raw.replace(MODEL.encode(), b"0" * len(MODEL))
    else:
        raw = bytearray(b"no index")
    file.write_bytes(raw)
    with pytest.raises(Malformed):
        CellFile.opened(file, MODEL)

    again = place.ready()

    assert recall(place, again) >= 0.98
    CellFile.opened(file, MODEL)


def test_wrong_vectors_in_the_file_change_no_score(place: Place) -> None:
    file = place.ready()._place
    raw = bytearray(file.read_bytes())
    raw[-1000 * SIZE :] = np.random.default_rng(1).bytes(1000 * SIZE)  # the vectors, whose bytes no sum covers
    file.write_bytes(raw)
    searcher = place.ready()
    asked = AdapterQuery(q="3 is asked", by_relevance=True, limit=10)
    with place.database.read() as connection:
        page = search_adapters(connection, asked, true(), searcher.ranked)
        rows = connection.execute(select(meaning).where(meaning.c.repo_id.in_(list(page.fits)))).all()
    for one in rows:
        block = VectorBlock([one.vectors])
        ((_, score, _),) = block.best(block.scores(Encoder().vectors(["3"])[0]), 1)
        assert page.fits[one.repo_id].score == pytest.approx(score, abs=1e-4)


def test_the_file_of_another_database_is_not_believed(place: Place, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = place.ready()._place
    other = place_in(tmp_path_factory.mktemp("other"))
    add(other.database, range(2001, 2001 + BUILDS))  # with the same numbers of rows
    (other.root / "meaning" / file.name).write_bytes(file.read_bytes())

    assert recall(other, other.ready()) >= 0.98
    other.database.close()


# ------------------------------------------------------------ several processes
def test_two_processes_share_a_file_and_each_finds_what_the_other_pushed(place: Place) -> None:
    one, two = place.ready(), place.searcher()
    assert not two.keep(place.database)
    add(place.database, range(1001, 1031))
    assert len(place.first(two, 1)) == 10

    assert one.keep(place.database)
    assert not two.keep(place.database)

    for searcher in (one, two):
        assert searcher._held is not None
        assert len(searcher._held.ids) == 0
        assert recall(place, searcher) >= 0.98


@pytest.mark.slow
def test_two_servers_on_one_postgresql_have_a_file_each(
    pg: Postgres, tmp_path: Path, small: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nearest, "_LOOKS", ((3, 1.0), (8, 1.0)))
    one = place_in(tmp_path / "one", pg.new_database())
    two = place_in(tmp_path / "two", one.database.engine.url.render_as_string(hide_password=False))
    add(one.database, range(1, 201))
    with one.database.begin() as connection:
        connection.execute(update(repos).where(repos.c.id % 10 != 0).values(private=True))
    searchers = [place.ready() for place in (one, two)]
    add(one.database, range(1001, 1031))

    for place, searcher in zip((one, two), searchers, strict=True):
        for question in range(5):
            wanted = place.exact(question, lambda number: number % 10 == 0 or number > 1000)
            assert place.first(searcher, question) == wanted
            assert place.first(searcher, question, task="t7", seen=true()) == place.exact(
                question, lambda number: number % 100 == 7
            )
        assert searcher.keep(place.database)
        assert recall(place, searcher, lambda number: number % 10 == 0 or number > 1000) >= 0.98
        place.database.close()


def test_one_process_writes_at_a_time(place: Place) -> None:
    searcher = place.searcher()
    with nearest._alone(searcher._place) as is_mine:
        assert is_mine
        assert not searcher.keep(place.database)
    assert searcher.keep(place.database)


def test_searches_go_on_while_the_file_is_written(place: Place) -> None:
    searcher, failed = place.ready(), list[object]()
    stopped = threading.Event()

    def ask() -> None:
        while not stopped.is_set():
            try:
                assert len(place.first(searcher, 5)) == 10
            except BaseException as error:  # noqa: BLE001 - the test shows it
                failed.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    for start in (1001, 1101, 1201):
        add(place.database, range(start, start + 30))
        assert searcher.keep(place.database)
    stopped.set()
    asking.join()
    assert not failed


# ------------------------------------------------------------ rights
@pytest.mark.parametrize("every", [10, 40, 399])
def test_a_reader_of_few_builds_gets_all_the_nearest_of_these(
    place: Place, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with place.database.begin() as connection:
        connection.execute(update(repos).where(repos.c.id % every != 0).values(private=True))
    monkeypatch.setattr(nearest, "_LOOKS", ((3, 1.0), (8, 1.0)))
    searcher = place.ready()
    for question in range(10):
        found = place.first(searcher, question)
        assert found == place.exact(question, lambda number: number % every == 0)


def test_a_condition_that_few_meet_is_exact(place: Place) -> None:
    searcher = place.ready()
    for question in range(5):
        assert place.first(searcher, question, task="t7") == place.exact(question, lambda number: number % 100 == 7)


def test_a_hidden_build_changes_nothing(place: Place) -> None:
    searcher = place.ready()

    def answers() -> list[object]:
        found: list[object] = []
        for question in range(5):
            asked = AdapterQuery(q=f"{question} is asked", by_relevance=True, limit=10)
            with place.database.read() as connection:
                page = search_adapters(connection, asked, repos.c.private.is_(False), searcher.ranked)
            found.append(([one.repo_id for one in page.rows], page.fits, page.next_cursor))
        return found

    before = answers()
    add(place.database, range(1001, 1041), private=True)
    with place.database.begin() as connection:  # the nearest of all
        for number in range(1001, 1041):
            near = packed(unit(Encoder().vectors([str(number % 5)]) + 0.01 * _random(number, 1)))
            connection.execute(update(meaning).where(meaning.c.repo_id == number).values(vectors=near))
    assert answers() == before
    searcher.keep(place.database)
    assert answers() == before


def test_what_is_behind_a_gate_counts_by_its_description(place: Place) -> None:
    gated = range(1001, 1041)
    add(place.database, gated, gated="manual")
    own, asked = unit(_random(900, 1)), Encoder().vectors(["3"])
    with place.database.begin() as connection:
        known = packed(np.concatenate([own, asked]))  # a prompt that is the question itself
        connection.execute(update(meaning).where(meaning.c.repo_id > 1000).values(vectors=known))
    searcher = place.ready()

    assert place.first(searcher, 3) == place.exact(3, lambda number: number <= BUILDS)


def test_a_build_that_is_no_longer_listed_goes_at_once(place: Place) -> None:
    searcher = place.ready()
    first = place.first(searcher, 2)
    with place.database.begin() as connection:
        connection.execute(update(adapters).where(adapters.c.repo_id == first[0]).values(is_listed=False))
        connection.execute(delete(repos).where(repos.c.id == first[1]))
    assert place.first(searcher, 2)[:8] == first[2:10]


# ------------------------------------------------------------ the file
def test_a_file_is_written_from_an_earlier_one_and_learns_anew_when_it_doubles(tmp_path: Path) -> None:
    def builds(numbers: Sequence[int]) -> Builds:
        return Builds(list(numbers), [commit(one) for one in numbers], [vectors_of(one) for one in numbers])

    path = tmp_path / "x.cells"
    write_cells(path, "m", [builds(range(1, 101)), builds(range(101, 201))])
    first = CellFile.opened(path, "m")
    keeps = first.columns["ids"] % 2 == 0
    write_cells(path, "m", [builds(range(201, 211))], first, keeps)
    second = CellFile.opened(path, "m")
    write_cells(path, "m", [builds(range(211, 801))], second, np.ones(len(second), bool))
    third = CellFile.opened(path, "m")

    assert sorted(second.columns["ids"].tolist()) == [*range(2, 201, 2), *range(201, 211)]
    assert np.array_equal(first.columns["centres"], second.columns["centres"])
    assert third.learnt_of == third.rows > 2 * first.learnt_of == 2 * second.learnt_of
    for file in (first, second, third):  # the earlier ones are mapped still
        numbers, columns = file.columns["ids"].tolist(), file.columns
        for place, number in enumerate(numbers):
            mine = columns["owners"] == place
            whole = np.frombuffer(vectors_of(number), np.int8).reshape(-1, SIZE)
            assert sorted(map(bytes, columns["vectors"][mine])) == sorted(map(bytes, whole))
            assert bytes(columns["vectors"][mine & (columns["shares"] == 1)][0]) == bytes(whole[0])
        question = Encoder().vectors(["4"])[0]
        block = VectorBlock([vectors_of(number) for number in numbers])
        scores = block.scores(question)
        every, best = file.every(question), file.best(question, 10, 1.0)
        assert np.allclose(every.scores, block.tops(scores), atol=1e-6)
        assert np.allclose(every.plain, block.of_descriptions(scores), atol=1e-6)
        assert np.allclose(best.scores, [score for _, score, _ in block.best(scores, 10)], atol=1e-6)
    assert [one.name for one in tmp_path.iterdir()] == ["x.cells"]


def test_a_worker_looks_at_new_builds_and_now_and_then_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, now = place_in(tmp_path), 1000.0
    monkeypatch.setattr(worker, "monotonic", lambda: now)
    lookout = Lookout()
    assert lookout.since_ms() == 0
    recent = lookout.since_ms()
    assert 0 < now_ms() - recent <= 2_000_000
    now += Lookout.EVERY_S
    assert lookout.since_ms() == 0

    add(place.database, [1, 2])
    with place.database.begin() as connection:
        connection.execute(delete(meaning))
        connection.execute(update(adapters).where(adapters.c.repo_id == 2).values(created_at=now_ms()))
        wanted = select(adapters.c.digest).where(vectors.DUE, adapters.c.created_at >= recent)
        sql = str(
            wanted.order_by(adapters.c.created_at).compile(
                place.database.engine, compile_kwargs={"literal_binds": True}
            )
        )
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}").all()
    assert not any(step[-1].startswith("SCAN adapters") for step in plan)
    assert vectors.make(place.database, tmp_path, since_ms=recent) == 1
    assert vectors.make(place.database, tmp_path) == 1
    place.database.close()
