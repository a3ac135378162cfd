"""`adapt registry gc`: what nothing names goes, what a commit or an upload names stays, and servers run meanwhile."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from adapterhub_registry.app import open_registry
from adapterhub_registry.database import steps
from adapterhub_registry.database.db import blobs, commits, facts, places, repos, uploads
from adapterhub_registry.errors import HttpRefusal
from adapterhub_registry.repos import unnamed
from adapterhub_registry.repos.commits import ATTRIBUTES_SHA256
from adapterhub_registry.settings import S3Place, load_settings
from adapterhub_registry.storage.blobs import DiskBlobs
from adapterhub_registry.storage.xet import EPOCH_S, XorbPlace, epoch_at, parse_xet_hash
from adapterhub_registry.upkeep import space
from adapterhub_registry.upkeep.space import KEEP_UPLOADS_S, RetentionPolicy, free_space, parse_policy
from sqlalchemy import event, insert, select, update

from adapterhub.core.errors import UsageProblem
from tests.registry.arrivals import arriving_before
from tests.registry.pushing import Push
from tests.registry.running import Running, running, typed
from tests.registry.shared_servers import CREDENTIALS
from tests.registry.xet_wire import xorb_bytes, xorb_name
from tests.support.forked import forked

OLD_S = KEEP_UPLOADS_S + 3600


@pytest.fixture(params=["sqlite", pytest.param("scale", marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Running]:
    """A registry in one folder, and one with PostgreSQL and S3."""
    more: dict[str, Any] = {}
    if request.param == "scale":
        pg, s3 = request.getfixturevalue("pg"), request.getfixturevalue("s3_server")
        for name, value in CREDENTIALS.items():
            request.getfixturevalue("monkeypatch").setenv(name, value)
        place = S3Place(bucket=s3.new_bucket(), prefix="reg/", endpoint=s3.endpoint)
        more = {"database_url": pg.new_registry(), "s3": place}
    with running(tmp_path, **more) as server:
        yield server


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[Running]:
    """A registry in one folder."""
    with running(tmp_path) as server:
        yield server


@pytest.fixture
def all_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was uploaded up to now counts as old."""
    monkeypatch.setattr(space, "KEEP_UPLOADS_S", -5)


def is_whole(server: Running, made: Push, revision: str = "main") -> bool:
    with server.client() as http:
        return made.is_whole(http, revision)


def stored(server: Running) -> set[str]:
    return {kept.sha256 for kept in server.registry.blobs.kept()}


def age(server: Running) -> None:
    """Make every file and row older than what `gc` leaves."""
    old = time.time() - OLD_S
    for path in (server.root / "blobs").rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # a collection may run beside the test
            if path.is_file():
                os.utime(path, (old, old))
    with server.registry.db.begin() as connection:
        for table in (blobs, uploads, commits):
            connection.execute(update(table).values(created_at=int(old * 1000)))


# ------------------------------------------------------------ blobs
def test_the_files_of_a_removed_repository_go_and_those_of_others_stay(server: Running, all_is_old: None) -> None:
    kept, gone = server.push("acme/kept", b"k" * 5000), server.push("acme/gone", b"g" * 7000)
    server.remove("acme/gone")

    planned = free_space(server.registry, dry_run=True)
    before = stored(server)
    freed = free_space(server.registry)

    assert planned == replace(freed, dry_run=True)
    assert (freed.blobs, freed.blob_bytes) == (1, 7000)
    assert before - stored(server) == {gone.oid}
    assert is_whole(server, kept)
    assert free_space(server.registry).bytes == 0


def test_the_same_bytes_come_back_after_they_went(alone: Running, all_is_old: None) -> None:
    alone.push("acme/x", b"x" * 5000)
    alone.remove("acme/x")
    free_space(alone.registry)

    assert is_whole(alone, alone.push("acme/y", b"x" * 5000))


def test_what_was_uploaded_lately_stays_though_no_commit_names_it(alone: Running) -> None:
    with alone.client() as http:
        alone.create("acme/x")
        sent = Push(repo="acme/x", weights=b"w" * 5000)
        sent.send(http)

        assert free_space(alone.registry).blobs == 0

        sent.commit(http)
        assert sent.is_whole(http)


def test_a_file_that_an_old_upload_left_goes(alone: Running, all_is_old: None) -> None:
    with alone.client() as http:
        alone.create("acme/x")
        Push(repo="acme/x", weights=b"w" * 5000).send(http)
    alone.registry.blobs.put([b"bytes that no row names"])

    assert free_space(alone.registry).blobs == 2
    assert stored(alone) == {ATTRIBUTES_SHA256}


def test_an_upload_makes_the_same_bytes_new_again(server: Running) -> None:
    store, contents = server.registry.blobs, ([b"small"], [b"large" * 100_000])
    small, large = (store.put(content).sha256 for content in contents)
    first = max(kept.uploaded_s for kept in store.kept())
    while min(kept.uploaded_s for kept in store.kept()) <= first + 0.001:  # S3 keeps whole seconds
        for content in contents:
            store.put(content)

    assert store.remove([small, large], first + 0.001) == set()
    assert store.remove([small], time.time() + 5) == {small}
    assert stored(server) == {large}


def test_an_upload_that_lost_its_file_meanwhile_is_sent_again(alone: Running, all_is_old: None) -> None:
    alone.push("acme/x", b"x" * 5000)
    blob = alone.registry.blobs.put([b"arrives now"])
    free_space(alone.registry)

    with alone.registry.db.begin() as connection, pytest.raises(HttpRefusal) as refused:
        alone.registry.repos.record_upload(connection, 1, "ann", blob)

    assert refused.value.status == 503


def test_a_file_that_the_server_said_it_has_waits_for_its_commit(alone: Running) -> None:
    alone.push("acme/first", b"x" * 5000)
    second = Push(repo="acme/second", weights=b"x" * 5000)
    age(alone)
    with alone.client() as http:
        alone.create("acme/second")
        second.send(http)  # the server has the bytes, so nothing is sent
        alone.remove("acme/first")

        freed = free_space(alone.registry)
        second.commit(http)

        assert freed.blobs == 1  # the config
        assert second.is_whole(http)


def test_pushes_succeed_while_their_old_bytes_are_being_removed(
    alone: Running, amount: Callable[[int, int], int]
) -> None:
    other = open_registry(load_settings(alone.root))  # as the command opens it beside the server
    ended = threading.Event()
    removed = 0

    def collect() -> None:
        nonlocal removed
        while not ended.is_set():
            removed += free_space(other).blobs

    with ThreadPoolExecutor(4) as pool:
        collecting = pool.submit(collect)
        try:
            for turn in range(60):
                if removed and turn >= amount(3, 6):  # on a busy machine, the first pushes may all be faster
                    break
                names = [f"acme/a{turn}-{number}" for number in range(3)]
                made = [alone.push(name, bytes([turn, number]) * 4000) for number, name in enumerate(names)]
                for name in names:
                    alone.remove(name)
                age(alone)
                again = [Push(repo=f"{one.repo}-again", weights=one.weights) for one in made]
                pushed = list(pool.map(lambda one: alone.push(one.repo, one.weights), again))
                assert [is_whole(alone, one) for one in pushed] == [True] * 3
        finally:
            ended.set()
        collecting.result()
    other.db.close()

    assert removed > 0


@pytest.mark.parametrize("step", range(4))
def test_bytes_that_arrive_while_their_old_file_goes_stay(
    step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DiskBlobs(tmp_path)
    old = time.time() - OLD_S
    sha256 = store.put([b"again"], size=5).sha256
    (path,) = (tmp_path / "blobs").rglob(sha256)
    os.utime(path, (old, old))

    def arrive() -> None:
        store.put([b"again"], size=5)

    with arriving_before(arrive, step, Path, "stat", "rename", "replace", "unlink", monkeypatch=monkeypatch):
        store.remove([sha256], old + 60)

    assert store.holds({sha256: 5}) == {sha256}
    assert list((tmp_path / "uploads").iterdir()) == [tmp_path / "uploads" / "parts"]


def test_the_bytes_of_rewritten_histories_go_and_what_is_left_stays_whole(alone: Running, all_is_old: None) -> None:
    kept, secret = alone.push("acme/kept", b"k" * 5000), b"s" * 6000
    alone.create("acme/x")
    with alone.client() as http:
        Push(repo="acme/x", weights=secret).commit(http)
    for number in range(3):
        write(alone, "acme/x", "notes.txt", f"note {number}")
    forgotten = {"deletions": {"sha": [hashlib.sha256(secret).hexdigest()], "rewriteHistory": True}}
    alone.post("/api/models/acme/x/lfs-files/batch", forgotten).raise_for_status()
    alone.post("/api/models/acme/x/super-squash/main", {}).raise_for_status()

    freed = free_space(alone.registry, policy=RetentionPolicy(others=0))

    assert (freed.blobs, freed.blob_bytes) == (3, 6000 + 2 * len("note 0"))
    assert alone.get("/acme/x/resolve/main/notes.txt").text == "note 2"
    assert is_whole(alone, kept)
    assert json.loads(typed("check", "--root", alone.root, "--bytes", "--json").stdout)["problems"] == []


def _statements_over(root: Path, count: int) -> int:
    """The statements of a dry run over `count` blobs, of which half are named, each by a repository with a commit."""
    registry = open_registry(load_settings(root))
    old_s = time.time() - OLD_S
    digests = [f"{number % 16:x}{hashlib.sha256(b'%d' % number).hexdigest()[1:]}" for number in range(count)]
    for digest in digests:
        path = root / "blobs" / "sha256" / digest[:2] / digest[2:4] / digest
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"b")
        os.utime(path, (old_s, old_s))
    with registry.db.begin() as connection:
        for number, digest in enumerate(digests[::2], 1):
            name, at_ms = f"acme/r{number}", int(old_s * 1000)
            repo = {"id": number, "full_name": name, "namespace": "acme", "folded": name, "folded_namespace": "acme"}
            times = {"created_at": at_ms, "modified_at": at_ms}
            connection.execute(insert(repos).values(private=False, created_by="ann", head="0" * 40, **repo, **times))
            named = {"repo_id": number, "sha256": digest}
            connection.execute(insert(places).values(path="f", commit_id="0" * 40, **named))
            connection.execute(insert(uploads).values(user_name="ann", created_at=at_ms, **named))
            one = {"repo_id": number, "id": "0" * 40, "root": "", "title": "", "message": "", "author": "ann"}
            connection.execute(insert(commits).values(created_at=at_ms, **one))
    asked: list[str] = []
    event.listen(registry.db.engine, "before_cursor_execute", lambda *given: asked.append(given[2]))

    freed = free_space(registry, policy=RetentionPolicy(others=5), dry_run=True)

    registry.db.close()
    assert freed.blobs == count // 2
    return len(asked)


def test_a_dry_run_over_ten_times_the_blobs_makes_no_more_statements(tmp_path: Path) -> None:
    assert _statements_over(tmp_path / "few", 32) == _statements_over(tmp_path / "many", 320)


# ------------------------------------------------------------ retention
def write(server: Running, repo: str, path: str, content: str) -> str:
    file = {"path": path, "content": base64.b64encode(content.encode()).decode(), "encoding": "base64"}
    lines = [{"key": "header", "value": {"summary": f"write {path}"}}, {"key": "file", "value": file}]
    with server.client() as http:
        answer = http.post(f"/api/models/{repo}/commit/main", content="\n".join(map(json.dumps, lines)))
    answer.raise_for_status()
    return str(answer.json()["commitOid"])


def history(server: Running, repo: str) -> list[str]:
    return [commit["id"] for commit in server.get(f"/api/models/{repo}/commits/main").json()]


def test_the_last_commits_and_every_release_stay_and_the_others_go(server: Running, all_is_old: None) -> None:
    released = server.push("acme/x", b"one" * 2000)
    made = [write(server, "acme/x", "notes.txt", f"note {number}") for number in range(6)]
    tagged = history(server, "acme/x")[-2]

    planned = free_space(server.registry, policy=RetentionPolicy(others=2), dry_run=True)
    freed = free_space(server.registry, policy=RetentionPolicy(others=2))

    assert planned == replace(freed, dry_run=True)
    assert freed.commits == 4  # the empty first one, and notes 0 to 2
    assert freed.blobs == 3
    assert history(server, "acme/x") == [made[5], made[4], made[3], tagged]
    assert is_whole(server, released, "v1.0.0")
    assert is_whole(server, released)
    assert server.get(f"/acme/x/resolve/{made[3]}/notes.txt").text == "note 3"
    assert server.get(f"/acme/x/resolve/{made[0]}/notes.txt").status_code == 404
    assert free_space(server.registry, policy=RetentionPolicy(others=2)).commits == 0


def test_what_stays_is_whole_after_others_went(alone: Running, all_is_old: None) -> None:
    alone.push("acme/x", b"one" * 2000)
    for number in range(5):
        write(alone, "acme/x", f"folder/{number}.txt", f"file {number}")
    free_space(alone.registry, policy=RetentionPolicy(others=0))

    listed = alone.get("/api/models/acme/x/tree/main/folder?expand=true").json()
    done = typed("check", "--root", alone.root, "--bytes", "--json")
    place = alone.get(f"/api/adapt/v1/blobs/{hashlib.sha256(b'file 1').hexdigest()}").json()["places"]

    assert [item["path"] for item in listed] == [f"folder/{number}.txt" for number in range(5)]
    assert listed[0]["lastCommit"]["title"] == "(removed from the history)"
    assert (done.exit_code, json.loads(done.stdout)["problems"]) == (0, [])
    assert [one["commit"] for one in place] == history(alone, "acme/x")[:1]
    write(alone, "acme/x", "folder/0.txt", "goes on")
    assert len(history(alone, "acme/x")) == 3


def test_a_namespace_has_a_number_of_its_own() -> None:
    policy = parse_policy(("20", "acme=5", "beta=0"))

    assert [policy.commits_of(name) for name in ("acme", "beta", "other")] == [5, 0, 20]
    assert parse_policy(("acme=5",)).commits_of("other") is None
    assert parse_policy(()).commits_of("acme") is None


@pytest.mark.parametrize("text", ["", "many", "-1", "acme=", "=5", "acme=x", "1.5"])
def test_a_policy_that_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(UsageProblem, match="keep"):
        parse_policy((text,))


# ------------------------------------------------------------ in steps
class Cut(Exception):
    """The moment at which a task is interrupted."""


def cut_at(step: int) -> Callable[[str, int, int], None]:
    """A progress that interrupts a task when it looks at files for the `step`th time."""
    left = step

    def progress(what: str, done: int, total: int) -> None:
        nonlocal left
        left -= what == "files"
        if left == 0:
            raise Cut

    return progress


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task looks at few files and rows at once."""
    for name, number in {"LOOKED_AT": 5, "AT_ONCE": 3, "NOTED": 1, "CHANGED": 4}.items():
        monkeypatch.setattr(space, name, number)
    monkeypatch.setattr(steps, "CHANGED", 4)


def unneeded(server: Running, count: int) -> set[str]:
    """Put files that no row names."""
    return {server.registry.blobs.put([b"nothing names number %d" % number]).sha256 for number in range(count)}


def test_a_collection_that_was_cut_off_goes_on_behind_what_it_did(
    server: Running, all_is_old: None, small_steps: None
) -> None:
    kept = server.push("acme/kept", b"k" * 5000)
    gone = unneeded(server, 20)
    with pytest.raises(Cut):
        free_space(server.registry, progress=cut_at(3))
    left = gone & stored(server)
    assert 0 < len(left) < 20
    places: list[int] = []

    freed = free_space(server.registry, progress=lambda what, done, _: places.append(done) if what == "files" else None)

    assert freed.blobs == len(left)
    assert not gone & stored(server)
    assert is_whole(server, kept)
    assert places[0] < 1 << 15  # it began behind the place, and came round to the files before
    assert free_space(server.registry).blobs == 0


def test_a_collection_that_is_cut_off_each_time_comes_to_every_file(
    alone: Running, all_is_old: None, small_steps: None
) -> None:
    unneeded(alone, 40)
    for _ in range(12):
        with contextlib.suppress(Cut):
            free_space(alone.registry, progress=cut_at(3))

    assert stored(alone) == set()


@pytest.mark.slow
def test_a_collection_that_is_killed_while_it_removes_goes_on(tmp_path: Path) -> None:
    with running(tmp_path, derives=False) as server:
        kept = server.push("acme/kept", b"k" * 5000)
        gone = unneeded(server, 30)

    def die_at_the_third_removal() -> None:
        remove, calls = DiskBlobs.remove, 0

        def dying(store: DiskBlobs, digests: Sequence[str], before_s: float) -> set[str]:
            nonlocal calls
            calls += 1
            if calls == 3:
                remove(store, digests[:1], before_s)
                os.kill(os.getpid(), signal.SIGKILL)
            return remove(store, digests, before_s)

        DiskBlobs.remove = dying  # type: ignore[method-assign]
        space.KEEP_UPLOADS_S, space.AT_ONCE, space.LOOKED_AT = -5, 4, 6  # type: ignore[misc]

    with forked("registry", "gc", "--root", tmp_path, environ=os.environ, first=die_at_the_third_removal) as child:
        pass
    with running(tmp_path, derives=False) as server:
        left = gone & stored(server)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(space, "KEEP_UPLOADS_S", -5)
            freed = free_space(server.registry)

        assert child.returncode == -signal.SIGKILL
        assert 20 < len(left) < 30
        assert freed.blobs == len(left)
        assert is_whole(server, kept)


def test_a_collection_finds_what_is_named_by_indexes(alone: Running) -> None:
    asked: list[tuple[str, Any]] = []
    event.listen(alone.registry.db.engine, "before_cursor_execute", lambda *given: asked.append((given[2], given[3])))
    with alone.registry.db.read() as connection:
        space._named(connection, ["a" * 64], time.time())
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {asked[0][0]}", asked[0][1]).all()

    steps_of = [str(row[3]) for row in plan]
    assert [step for step in steps_of if step.startswith("SCAN") and "VIRTUAL TABLE" not in step] == []
    assert len([step for step in steps_of if "_by_sha256 (sha256=?" in step]) == 2


def test_no_transaction_of_a_collection_changes_many_rows(
    server: Running, all_is_old: None, monkeypatch: pytest.MonkeyPatch, small_steps: None
) -> None:
    for number in range(10):
        server.push(f"acme/x{number}", b"%d" % number * 3000)
        server.remove(f"acme/x{number}")
    changed = [0]

    def count(_c: object, cursor: Any, statement: str, *_: object) -> None:
        if statement.startswith(("DELETE", "UPDATE", "INSERT")):
            changed[-1] += max(cursor.rowcount, 0)

    event.listen(server.registry.db.engine, "after_cursor_execute", count)
    event.listen(server.registry.db.engine, "begin", lambda _: changed.append(0))
    free_space(server.registry)

    assert sum(changed) >= 20
    assert max(changed) <= 4 + 2  # and the note of a place


def test_a_thinning_that_was_cut_off_gives_its_bytes_back_later(
    alone: Running, all_is_old: None, small_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone.push("acme/x", b"one" * 2000)
    for number in range(12):
        write(alone, "acme/x", "notes.txt", f"note {number}")

    def cut(*_: object) -> None:
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(space, "_drop_rest", cut)
        with pytest.raises(Cut):
            free_space(alone.registry, policy=RetentionPolicy(others=2))
    freed = free_space(alone.registry)  # without a policy

    assert (freed.commits, freed.blobs) == (0, 9)
    assert json.loads(typed("check", "--root", alone.root, "--bytes", "--json").stdout)["problems"] == []
    with alone.registry.db.read() as connection:
        assert connection.scalars(select(facts.c.name).where(facts.c.name.startswith(space.THINNED))).all() == []


def test_a_commit_during_a_thinning_keeps_what_it_names_again(
    alone: Running, all_is_old: None, small_steps: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone.push("acme/x", b"one" * 2000)
    for number in range(6):
        write(alone, "acme/x", "notes.txt", f"note {number}")

    def rest_is_planned(database: Any, repo_id: int) -> None:
        with database.read() as connection:
            rest = unnamed.plan_unnamed(connection, repo_id)
        write(alone, "acme/x", "notes.txt", "note 0")
        is_left = True
        while is_left:
            with database.begin() as connection:
                is_left = unnamed.drop(connection, rest, 1)

    monkeypatch.setattr(space, "_drop_rest", rest_is_planned)
    free_space(alone.registry, policy=RetentionPolicy(others=1))

    assert alone.get("/acme/x/resolve/main/notes.txt").text == "note 0"
    assert json.loads(typed("check", "--root", alone.root, "--bytes", "--json").stdout)["problems"] == []


def test_pushes_find_the_database_free_between_the_steps_of_a_collection(
    alone: Running, all_is_old: None, small_steps: None
) -> None:
    for number in range(10):
        alone.push(f"acme/x{number}", b"%d" % number * 3000)
        alone.remove(f"acme/x{number}")
    steps_before_each = []

    def push(what: str, done: int, total: int) -> None:
        steps_before_each.append(what)
        alone.push(f"acme/during-{len(steps_before_each)}", b"d" * 3000)  # would wait for ever inside a transaction

    free_space(alone.registry, progress=push)

    assert {"tables", "files"} <= set(steps_before_each)


# ------------------------------------------------------------ xorbs
def test_xorbs_of_closed_epochs_and_of_removed_repositories_go(server: Running) -> None:
    server.push("acme/x", b"x" * 5000)
    with server.registry.db.read() as connection:
        repo = connection.execute(select(repos).where(repos.c.full_name == "acme/x")).one()
    scope = f"{repo.id}-{repo.created_at}"
    chunks = [(b"chunk" * 100, 0)]
    now = epoch_at(time.time())
    kept_at = [
        XorbPlace(scope=scope, epoch=epoch, hash=parse_xet_hash(xorb_name(chunks))) for epoch in (now, now - 3)
    ] + [XorbPlace(scope="999-1", epoch=now, hash=parse_xet_hash(xorb_name(chunks)))]
    for place in kept_at:
        with server.registry.xorbs.writer(place) as writer:
            writer.write(xorb_bytes(chunks))
            writer.keep()

    planned = free_space(server.registry, dry_run=True)
    freed = free_space(server.registry)

    assert planned == replace(freed, dry_run=True)
    assert (freed.xorbs, freed.xorb_bytes) == (2, 2 * len(xorb_bytes(chunks)))
    assert [server.registry.xorbs.chunks(place) is not None for place in kept_at] == [True, False, False]


def test_a_server_sweeps_closed_epochs_by_itself(tmp_path: Path) -> None:
    old = tmp_path / "xorbs" / str(epoch_at(time.time() - 5 * EPOCH_S)) / "1-2"
    old.mkdir(parents=True)
    (old / "a-xorb").write_bytes(b"x")

    with running(tmp_path):
        until = time.monotonic() + 60
        while old.exists() and time.monotonic() < until:
            time.sleep(0.01)

    assert not old.exists()


# ------------------------------------------------------------ the command
def test_the_command_says_what_it_freed(alone: Running) -> None:
    alone.push("acme/x", b"x" * 5000)
    alone.remove("acme/x")
    age(alone)

    planned = typed("gc", "--root", alone.root, "--dry-run")
    done = typed("gc", "--root", alone.root, "--json")

    assert planned.stdout.startswith("would remove 3 files (6.")
    found = json.loads(done.stdout)
    assert (done.exit_code, found["blobs"], found["dry_run"]) == (0, 3, False)
    assert found["bytes"] == found["blob_bytes"] > 5000
    assert stored(alone) == set()


def test_the_command_creates_no_registry(tmp_path: Path) -> None:
    done = typed("gc", "--root", tmp_path / "nowhere")

    assert (done.exit_code, "is not a registry; nothing was created" in done.stderr) == (10, True)
    assert not (tmp_path / "nowhere").exists()
