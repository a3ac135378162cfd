"""`adapt registry gc`: what nothing names goes, what a commit or an upload names stays, and servers run meanwhile."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from adapterhub_registry import upkeep
from adapterhub_registry.app import open_registry
from adapterhub_registry.database.db import blobs, commits, places, repos, uploads
from adapterhub_registry.errors import HttpRefusal
from adapterhub_registry.repos.commits import ATTRIBUTES_SHA256
from adapterhub_registry.settings import S3Place, load_settings
from adapterhub_registry.storage.xet import EPOCH_S, XorbPlace, epoch_at, parse_xet_hash
from adapterhub_registry.upkeep import KEEP_UPLOADS_S, RetentionPolicy, free_space, parse_policy
from sqlalchemy import event, insert, select, update

from adapterhub.core.errors import UsageProblem
from tests.registry.pushing import Push
from tests.registry.running import Running, running, typed
from tests.registry.shared_servers import CREDENTIALS
from tests.registry.xet_wire import xorb_bytes, xorb_name

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
        more = {"database_url": pg.new_database(), "s3": place}
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
    monkeypatch.setattr(upkeep, "KEEP_UPLOADS_S", -5)


def client(server: Running) -> httpx.Client:
    return httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.token}"}, timeout=60)


def push(server: Running, repo: str, weights: bytes, version: str = "v1.0.0") -> Push:
    made = Push(repo=repo, weights=weights, version=version)
    with client(server) as http:
        made.run(http)
    return made


def is_whole(server: Running, made: Push, revision: str = "main") -> bool:
    with client(server) as http:
        return made.is_whole(http, revision)


def delete(server: Running, repo: str) -> None:
    namespace, _, name = repo.partition("/")
    assert server.send("DELETE", "/api/repos/delete", {"organization": namespace, "name": name}).status_code == 200


def stored(server: Running) -> set[str]:
    return {kept.sha256 for kept in server.registry.blobs.kept()}


def age(server: Running) -> None:
    """Make every file and row older than what `gc` leaves."""
    old = time.time() - OLD_S
    for path in (server.root / "blobs").rglob("*"):
        if path.is_file():
            os.utime(path, (old, old))
    with server.registry.db.begin() as connection:
        for table in (blobs, uploads, commits):
            connection.execute(update(table).values(created_at=int(old * 1000)))


# ------------------------------------------------------------ blobs
def test_the_files_of_a_removed_repository_go_and_those_of_others_stay(server: Running, all_is_old: None) -> None:
    kept, gone = push(server, "acme/kept", b"k" * 5000), push(server, "acme/gone", b"g" * 7000)
    delete(server, "acme/gone")

    planned = free_space(server.registry, dry_run=True)
    before = stored(server)
    freed = free_space(server.registry)

    assert planned == replace(freed, dry_run=True)
    assert (freed.blobs, freed.blob_bytes) == (1, 7000)
    assert before - stored(server) == {gone.oid}
    assert is_whole(server, kept)
    assert free_space(server.registry).bytes == 0


def test_the_same_bytes_come_back_after_they_went(server: Running, all_is_old: None) -> None:
    push(server, "acme/x", b"x" * 5000)
    delete(server, "acme/x")
    free_space(server.registry)

    assert is_whole(server, push(server, "acme/y", b"x" * 5000))


def test_what_was_uploaded_lately_stays_though_no_commit_names_it(server: Running) -> None:
    with client(server) as http:
        http.post("/api/repos/create", json={"organization": "acme", "name": "x"}).raise_for_status()
        sent = Push(repo="acme/x", weights=b"w" * 5000)
        sent.send(http)

        assert free_space(server.registry).blobs == 0

        sent.commit(http)
        assert sent.is_whole(http)


def test_a_file_that_an_old_upload_left_goes(server: Running, all_is_old: None) -> None:
    with client(server) as http:
        http.post("/api/repos/create", json={"organization": "acme", "name": "x"}).raise_for_status()
        Push(repo="acme/x", weights=b"w" * 5000).send(http)
    server.registry.blobs.put([b"bytes that no row names"])

    assert free_space(server.registry).blobs == 2
    assert stored(server) == {ATTRIBUTES_SHA256}


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


def test_an_upload_that_lost_its_file_meanwhile_is_sent_again(server: Running, all_is_old: None) -> None:
    push(server, "acme/x", b"x" * 5000)
    blob = server.registry.blobs.put([b"arrives now"])
    free_space(server.registry)

    with server.registry.db.begin() as connection, pytest.raises(HttpRefusal) as refused:
        server.registry.repos.record_upload(connection, 1, "ann", blob)

    assert refused.value.status == 503


def test_a_file_that_the_server_said_it_has_waits_for_its_commit(alone: Running) -> None:
    push(alone, "acme/first", b"x" * 5000)
    second = Push(repo="acme/second", weights=b"x" * 5000)
    age(alone)
    with client(alone) as http:
        http.post("/api/repos/create", json={"organization": "acme", "name": "second"}).raise_for_status()
        second.send(http)  # the server has the bytes, so nothing is sent
        delete(alone, "acme/first")

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
            for turn in range(amount(3, 6)):
                names = [f"acme/a{turn}-{number}" for number in range(3)]
                made = [push(alone, name, bytes([turn, number]) * 4000) for number, name in enumerate(names)]
                for name in names:
                    delete(alone, name)
                age(alone)
                again = [Push(repo=f"{one.repo}-again", weights=one.weights) for one in made]
                pushed = list(pool.map(lambda one: push(alone, one.repo, one.weights), again))
                assert [is_whole(alone, one) for one in pushed] == [True] * 3
        finally:
            ended.set()
        collecting.result()
    other.db.close()

    assert removed > 0


def test_the_bytes_of_rewritten_histories_go_and_what_is_left_stays_whole(alone: Running, all_is_old: None) -> None:
    kept, secret = push(alone, "acme/kept", b"k" * 5000), b"s" * 6000
    alone.post("/api/repos/create", {"organization": "acme", "name": "x"}).raise_for_status()
    with client(alone) as http:
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
    with client(server) as http:
        answer = http.post(f"/api/models/{repo}/commit/main", content="\n".join(map(json.dumps, lines)))
    answer.raise_for_status()
    return str(answer.json()["commitOid"])


def history(server: Running, repo: str) -> list[str]:
    return [commit["id"] for commit in server.get(f"/api/models/{repo}/commits/main").json()]


def test_the_last_commits_and_every_release_stay_and_the_others_go(server: Running, all_is_old: None) -> None:
    released = push(server, "acme/x", b"one" * 2000)
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
    push(alone, "acme/x", b"one" * 2000)
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


# ------------------------------------------------------------ xorbs
def test_xorbs_of_closed_epochs_and_of_removed_repositories_go(server: Running) -> None:
    push(server, "acme/x", b"x" * 5000)
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
    push(alone, "acme/x", b"x" * 5000)
    delete(alone, "acme/x")
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
