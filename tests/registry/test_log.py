"""The log of a registry: every change is in it once, in the format of Go's checksum database, and private ones apart."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from adapterhub_registry import outbox, treelog
from adapterhub_registry.database.db import Database, log_entries, log_nodes, repos
from sqlalchemy import delete, event, insert, select
from sqlalchemy.engine import Connection

from adapterhub.formats.treelog import EMPTY_ROOT, Head, LogKey, extends, includes, leaf_hash, opened_note
from tests.registry.running import Running, running
from tests.registry.shared_servers import Postgres
from tests.support.programs import needs

API = "/api/adapt/v1"
LOG = f"{API}/tlog"
NOW = 1_700_000_000_000


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path / "registry") as server:
        yield server


def key_of(server: Running) -> LogKey:
    return LogKey.parse(server.get(f"{API}/info").json()["log_key"])


def entries(server: Running, log: str = LOG) -> list[dict[str, Any]]:
    """The whole log, which has few entries; its head is checked by `head`."""
    size = head(server, log).size
    body = server.get(f"{log}/tile/entries/000.p/{size}").content if size else b""
    found = []
    while body:
        length = int.from_bytes(body[:2], "big")
        found.append(json.loads(body[2 : 2 + length]))
        body = body[2 + length :]
    return found


def head(server: Running, log: str = LOG) -> Head:
    note = server.get(f"{log}/checkpoint").text
    return opened_note(note, LogKey(note.partition("\n")[0], key_of(server).public))


def said(server: Running, log: str = LOG) -> list[tuple[str, str]]:
    return [(one["kind"], one["repository"]) for one in entries(server, log)]


def set_private(server: Running, repo: str, *, private: bool) -> None:
    server.send("PUT", f"/api/models/{repo}/settings", {"private": private}).raise_for_status()


def test_each_change_is_one_entry_without_who_and_why(server: Running) -> None:
    assert head(server) == Head(key_of(server).name, 0, EMPTY_ROOT)
    server.push("acme/open", b"w")
    server.yank("acme/open", "leaked labels")
    server.post(f"{API}/adapters/acme/open/unyank", {"version": "1.0.0"}).raise_for_status()
    target = {"targets": [{"version": "1.0.0"}]}
    server.post(f"{API}/adapters/acme/open/aliases/prod", target).raise_for_status()
    server.send("DELETE", "/api/models/acme/open/tag/v1.0.0").raise_for_status()
    server.remove("acme/open")

    found = entries(server)

    assert [one["kind"] for one in found] == [
        *("version.published", "version.yanked", "version.unyanked", "alias.moved", "version.deleted"),
        "repository.deleted",
    ]
    assert set(found[1]) == {"adapter", "digest", "kind", "repository", "time", "version"}
    assert set(found[3]) == {"alias", "kind", "repository", "targets", "time"}
    assert "leaked" not in json.dumps(found)


def test_a_release_is_proven_and_each_head_extends_the_last(server: Running) -> None:
    heads = []
    for number in range(9):
        server.push(f"acme/a{number}", b"w%d" % number)
        heads.append(head(server))
    for number in range(9):
        proof = server.get(f"{LOG}/releases/acme/a{number}/1.0.0").json()
        now = opened_note(proof["checkpoint"], key_of(server))
        hashes = [bytes.fromhex(one) for one in proof["hashes"]]
        assert json.loads(proof["entry"])["repository"] == f"acme/a{number}"
        assert includes(now.root, now.size, proof["index"], leaf_hash(proof["entry"].encode()), hashes)
        between = server.get(f"{LOG}/consistency?old={number + 1}&new=9").json()["hashes"]
        assert extends(heads[number], now, [bytes.fromhex(one) for one in between])


def test_a_private_repository_has_a_log_of_its_own_that_nobody_else_sees(server: Running) -> None:
    server.create("acme/secret", private=True)
    before = server.get(f"{LOG}/checkpoint", token=None).text
    server.push("acme/secret", b"w")
    server.yank("acme/secret", "why")

    mine = f"{LOG}/of/acme/secret"

    assert server.get(f"{LOG}/checkpoint", token=None).text == before
    assert said(server, mine) == [("version.published", "acme/secret"), ("version.yanked", "acme/secret")]
    assert "secret" not in head(server, mine).origin
    for path in ("checkpoint", "tile/0/000.p/1", "tile/entries/000.p/1", "consistency?old=0&new=1"):
        assert server.get(f"{mine}/{path}", token=None).status_code == 404
        assert server.get(f"{LOG}/of/acme/other/{path}", token=None).status_code == 404
    assert server.get(f"{LOG}/releases/acme/secret/1.0.0", token=None).status_code == 404


def test_a_release_is_found_by_each_name_and_in_the_log_that_its_repository_has_now(server: Running) -> None:
    server.push("acme/open", b"w")
    set_private(server, "acme/open", private=True)
    assert said(server, f"{LOG}/of/acme/open") == [("version.recorded", "acme/open")]
    server.yank("acme/open", "not for all to see")
    set_private(server, "acme/open", private=False)
    server.post("/api/repos/move", {"fromRepo": "acme/open", "toRepo": "acme/new"}).raise_for_status()
    server.push("acme/new", b"w2", "v2.0.0")

    assert said(server) == [
        ("version.published", "acme/open"),
        ("version.recorded", "acme/open"),
        ("repository.moved", "acme/open"),
        ("version.recorded", "acme/new"),
        ("version.published", "acme/new"),
        ("version.recorded", "acme/open"),
    ]
    for repo in ("acme/open", "acme/new"):
        for version in ("1.0.0", "2.0"):
            found = server.get(f"{LOG}/releases/{repo}/{version}").json()
            assert json.loads(found["entry"])["repository"] == repo


def test_a_log_that_is_new_records_the_releases_that_stand(server: Running) -> None:
    for number in range(3):
        server.push(f"acme/a{number}", b"w%d" % number)
    server.create("acme/secret", private=True)
    server.push("acme/secret", b"w")
    with server.registry.db.begin() as connection:  # as an older server left it
        connection.execute(delete(log_entries))
        connection.execute(delete(log_nodes))

    assert server.get(f"{LOG}/releases/acme/a1/1.0.0").json()["index"] == 0
    treelog.complete(server.registry.db)
    treelog.complete(server.registry.db)

    assert sorted(said(server)) == [("version.recorded", f"acme/a{number}") for number in range(3)]
    assert said(server, f"{LOG}/of/acme/secret") == [("version.recorded", "acme/secret")]
    assert server.get(f"{LOG}/releases/acme/a1/3.0").status_code == 404


def test_no_push_waits_for_many_releases_that_are_recorded(server: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transaction that records them holds the log."""
    for number in range(5):
        server.push(f"acme/a{number}", b"w%d" % number)
    with server.registry.db.begin() as connection:
        connection.execute(delete(log_entries))
        connection.execute(delete(log_nodes))
    recorded: list[int] = []

    def count(_connection: object, _cursor: object, text: str, given: Sequence[object], *more: object) -> None:
        if text.startswith("INSERT INTO log_entries"):
            recorded.append(len(given) if more[-1] else 1)

    monkeypatch.setattr(treelog, "AT_ONCE", 2)
    event.listen(server.registry.db.engine, "before_cursor_execute", count)
    treelog.complete(server.registry.db)

    assert (max(recorded), sum(recorded)) == (2, 5)


@pytest.mark.parametrize(
    "path", ["tile/0/000.p/2", "tile/0/000", "tile/1/000.p/1", "tile/9/000", "consistency?old=1&new=2"]
)
def test_what_the_log_does_not_have_is_404(server: Running, path: str) -> None:
    server.push("acme/open", b"w")

    assert server.get(f"{LOG}/tile/0/000.p/1").status_code == 200
    assert server.get(f"{LOG}/{path}").status_code == 404


# ------------------------------------------------------------ one transaction
@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'registry.db'}"
    pg: Postgres = request.getfixturevalue("pg")
    return pg.new_registry()


def made_repo(connection: Connection, name: str = "acme/open", **about: object) -> None:
    named = {"full_name": name, "namespace": "acme", "folded": name, "folded_namespace": "acme", "private": False}
    times = {"created_by": "ann", "created_at": NOW, "modified_at": NOW, "head": "0" * 40}
    connection.execute(insert(repos).values(**named | times | about))


def change(connection: Connection, number: int, name: str = "acme/open") -> None:
    repo = connection.execute(select(repos).where(repos.c.full_name == name)).one()
    outbox.record(
        connection, repo, "version.published", name="open", version=f"{number}.0", digest="sha256:" + "0" * 64
    )


def test_writers_at_once_leave_a_tree_of_all_entries(url: str) -> None:
    databases = [Database(url), Database(url)]
    with databases[0].begin() as connection:
        made_repo(connection)
        made_repo(connection, "acme/secret", private=True)

    def write(database: Database, first: int) -> None:
        for number in range(first, first + 10):
            with database.begin() as connection:
                change(connection, number, ("acme/open", "acme/secret")[number % 2])
                change(connection, number, ("acme/secret", "acme/open")[number % 2])

    threads = [threading.Thread(target=write, args=(databases[n % 2], 10 * n)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    log = treelog.TreeLog(databases[0])
    with databases[1].read() as connection:
        for repo in connection.execute(select(repos)).all():
            number = treelog.log_of(repo)
            rows = connection.scalars(select(log_entries.c.entry).where(log_entries.c.log == number)).all()
            now = opened_note(log.checkpoint(connection, number), treelog.TreeLog(databases[1]).signer(number).key)
            assert {json.loads(row)["version"] for row in rows} == {f"{one}.0" for one in range(60)}
            assert (len(rows), now.size) == (60, 60)
            for version in (0, 30, 59):
                proof = log.proof(connection, repo, repo.full_name, f"{version}" if version else "0")
                assert proof is not None
                assert includes(now.root, 60, proof.index, leaf_hash(proof.entry.encode()), proof.hashes)
    for database in databases:
        database.close()


def test_a_change_that_fails_at_its_end_is_in_no_log_and_no_feed(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    database = Database(url)
    with database.begin() as connection:
        made_repo(connection)
        change(connection, 1)
    whole = treelog.appended

    def crash(*given: Any) -> Any:
        raise OSError("power cut")

    monkeypatch.setattr(treelog, "appended", crash)
    with pytest.raises(OSError, match="power cut"), database.begin() as connection:
        change(connection, 2)
    monkeypatch.setattr(treelog, "appended", whole)
    with contextlib.suppress(ValueError), database.begin() as connection:
        change(connection, 3)
        raise ValueError("changed its mind")
    with database.begin() as connection:
        change(connection, 4)

    with database.read() as connection:
        told = [json.loads(one)["version"] for one in connection.scalars(select(outbox.events.c.data)).all()]
        kept = [json.loads(one)["version"] for one in connection.scalars(select(log_entries.c.entry)).all()]
        assert told == kept == ["1.0", "4.0"]
    database.close()


# ------------------------------------------------------------ the format
@pytest.fixture(scope="module")
def verify(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Running, str, str], subprocess.CompletedProcess[str]]:
    """The verifier of Go's checksum database, built."""
    go, modules = needs("go"), needs_modules()
    built = tmp_path_factory.mktemp("go")
    env = os.environ | {"GO111MODULE": "off", "GOPATH": modules, "GOCACHE": str(built / "cache"), "GOFLAGS": ""}
    source = Path(__file__).parent / "treelog_verifier" / "main.go"
    subprocess.run([go, "build", "-o", str(built / "verify"), str(source)], env=env, check=True)

    def run(server: Running, log: str, key: str) -> subprocess.CompletedProcess[str]:
        asked = [str(built / "verify"), server.url + log, key]
        return subprocess.run(asked, env={"TOKEN": server.token}, capture_output=True, text=True, check=False)

    return run


def needs_modules() -> str:
    """The folder of Go's own modules, as Debian's golang-golang-x-mod-dev has them."""
    modules = Path("/usr/share/gocode")
    if not (modules / "src/golang.org/x/mod/sumdb").is_dir():
        pytest.skip("needs golang-golang-x-mod-dev")
    return str(modules)


@pytest.mark.exhaustive  # Go compiles for a minute
def test_the_code_of_the_checksum_database_reads_heads_tiles_and_entries(
    server: Running, verify: Callable[[Running, str, str], subprocess.CompletedProcess[str]]
) -> None:
    server.push("acme/open", b"w")
    server.create("acme/secret", private=True)
    server.push("acme/secret", b"w")
    with server.registry.db.begin() as connection:
        repo = connection.execute(select(repos).where(repos.c.full_name == "acme/open")).one()
        for number in range(599):
            treelog.note(connection, repo, "alias.moved", {"alias": f"a{number}", "targets": []})
    apart = f"{LOG}/of/acme/secret"
    for log, size in ((LOG, 600), (apart, 1)):
        done = verify(server, log, str(LogKey(head(server, log).origin, key_of(server).public)))
        assert (done.returncode, done.stderr) == (0, "")
        assert len(done.stdout.splitlines()) == size

    with server.registry.db.begin() as connection:
        connection.execute(
            log_entries.update().where(log_entries.c.log == 0, log_entries.c.position == 300).values(entry=b"{}")
        )

    assert verify(server, LOG, str(key_of(server))).returncode == 1
