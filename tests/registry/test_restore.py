"""`adapt registry restore`: of a backup made beside running servers comes a registry that answers as its source."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from adapterhub_registry.database.db import Database, releases, repos
from adapterhub_registry.database.schema import HEAD, metadata
from adapterhub_registry.settings import S3Place
from adapterhub_registry.storage.blobs import DiskBlobs
from adapterhub_registry.upkeep import moving, restoring
from adapterhub_registry.upkeep.backup import back_up
from adapterhub_registry.upkeep.restoring import restore
from adapterhub_registry.upkeep.rows import copy_rows, rows_of
from sqlalchemy import delete, insert, select, text, update

from adapterhub.core.errors import UsageProblem
from tests.registry.conftest import ROOT
from tests.registry.matrix.asking import Request
from tests.registry.matrix.comparing import CALLERS, Told, answers_of, free_port, tells
from tests.registry.matrix.worlds import KINDS, make_builds, reopened, world
from tests.registry.running import Running, running, typed
from tests.registry.shared_servers import CREDENTIALS, S3, Postgres
from tests.support.command_line import Adapt, Done

NOW = re.compile(r"2023-11-14[T ]22:15:\d\d")
SIGNED = re.compile(r"http://127\.0\.0\.1:\d+/bucket-\d+/[^\s\"<>&?]*\?[^\s\"<>]*")


@dataclass
class Place:
    """Where a registry lies: in a folder, or in a database and a bucket; `options` name it for commands."""

    root: Path
    database: str | None = None
    s3: S3Place | None = None

    @property
    def settings(self) -> dict[str, Any]:
        return {} if self.database is None else {"database_url": self.database, "s3": self.s3}

    @property
    def options(self) -> list[object]:
        shared = [] if self.s3 is None else ["--database", self.database, "--blobs", f"s3://{self.s3.bucket}/reg"]
        return ["--root", self.root, *shared]

    def rows(self) -> dict[str, Any]:
        database = Database(self.database or f"sqlite:///{self.root / 'registry.db'}")
        with contextlib.closing(database), database.read() as connection:
            return rows_of(connection)


@pytest.fixture(params=["folder", "shared"])
def places(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """New, empty places of one kind."""

    def made() -> Iterator[Place]:
        while True:
            number = next(numbers)
            if request.param == "folder":
                yield Place(tmp_path / f"root-{number}")
                continue
            bucket = S3Place(bucket=s3.new_bucket(), prefix="reg/", endpoint=s3.endpoint)
            yield Place(tmp_path / f"root-{number}", pg.new_database(), bucket)

    numbers = iter(range(100))
    if request.param == "shared":
        pg: Postgres = request.getfixturevalue("pg")
        s3: S3 = request.getfixturevalue("s3_server")
        for name, value in (CREDENTIALS | {"ADAPTERHUB_REGISTRY_S3_ENDPOINT": s3.endpoint}).items():
            monkeypatch.setenv(name, value)
    return made()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    (tmp_path / "registry").mkdir()
    with running(tmp_path / "registry") as server:
        server.push("acme/x", b"x" * 5000)
        server.get("/api/adapt/v1/tlog/checkpoint").raise_for_status()  # the first head makes the key
        yield server


# ------------------------------------------------------------ every answer
def _same(before: dict[tuple[str, Request], Told], after: dict[tuple[str, Request], Told]) -> list[str]:
    assert before.keys() == after.keys()
    told = [
        f"{caller}\t{asked.method} {asked.path}\t{what}"
        for (caller, asked), answer in before.items()
        for what in tells(_plain(answer), _plain(after[caller, asked]), asked)
        if not what.startswith("mark: ")
    ]
    return told[:20]


def _plain(told: Told) -> Told:
    """Without the signed links to the bucket, whose name and time differ, and the moments of these very requests."""
    headers = tuple((name, SIGNED.sub("LINK", value)) for name, value in told.headers)
    return Told(told.status, headers, NOW.sub("NOW", SIGNED.sub("LINK", told.body)))


def _answers_again(places: Iterator[Place], tmp_path: Path, callers: tuple[str, ...]) -> None:
    source, target, port = next(places), next(places), free_port()
    made = make_builds(tmp_path / "library")
    with world(source.root, port, made, KINDS["private"], **source.settings) as there:
        tokens = there.tokens
        done = typed("backup", tmp_path / "backup", *source.options, "--json")  # while the server runs
        assert done.exit_code == 0, done.stderr
    with reopened(source.root, port, made[0], tokens, **source.settings) as there:
        before = answers_of(there, made[1], callers)

    restored = typed("restore", tmp_path / "backup", *target.options, "--json")

    assert restored.exit_code == 0, restored.stderr
    held = json.loads(done.stdout)
    assert json.loads(restored.stdout).items() >= {key: held[key] for key in ("blobs", "bytes", "log_size")}.items()
    assert held["log_size"] > 0
    with reopened(target.root, port, made[0], tokens, **target.settings) as there:
        after = answers_of(there, made[1], callers)
    assert {told.status for told in before.values()} > {200, 201, 404}
    assert _same(before, after) == []


def test_a_restored_registry_answers_every_route_as_its_source(places: Iterator[Place], tmp_path: Path) -> None:
    _answers_again(places, tmp_path, ("writer",))


@pytest.mark.exhaustive
def test_a_restored_registry_answers_every_caller_as_its_source(places: Iterator[Place], tmp_path: Path) -> None:
    _answers_again(places, tmp_path, CALLERS)


# ------------------------------------------------------------ live, resumable, in every direction
@pytest.mark.parametrize("places", ["shared"], indirect=True)
def test_a_backup_of_postgresql_is_of_one_moment_and_its_numbers_go_on(places: Iterator[Place], tmp_path: Path) -> None:
    source, folder = next(places), Place(tmp_path / "folder")
    source.root.mkdir()
    pushed = iter(range(3))

    def push_between(what: str, done: int, _total: int) -> None:
        if what == "tables" and done and (number := next(pushed, None)) is not None:
            server.push(f"acme/during-{number}", b"%d" % number * 3000)

    with running(source.root, **source.settings) as server:
        server.push("acme/x", b"x" * 5000)
        server.push("acme/gone", b"g" * 5000)
        server.remove("acme/gone")
        done = back_up(server.registry, tmp_path / "backup", progress=push_between)

    assert (done.problems, done.blobs) == ((), 4)
    assert typed("restore", tmp_path / "backup", *folder.options).exit_code == 0
    with running(folder.root) as copy:
        copy.push("acme/after", b"a" * 5000)
        with copy.registry.db.read() as connection:
            numbers = dict(connection.execute(select(repos.c.full_name, repos.c.id)).all())
    assert numbers.pop("acme/x") == 1
    assert {name: number > 2 for name, number in numbers.items()} == {"acme/after": True}, (
        "the number of the repository that was deleted came again"
    )


@pytest.mark.parametrize("places", ["shared"], indirect=True)
def test_the_files_of_a_backup_lie_in_a_bucket_and_only_new_ones_come(
    places: Iterator[Place], s3_server: S3, tmp_path: Path
) -> None:
    source, target, bucket = next(places), next(places), s3_server.new_bucket()
    source.root.mkdir()
    away = ("--files", f"s3://{bucket}/kept")
    with running(source.root, derives=False, **source.settings) as server:
        server.push("acme/x", b"x" * 5000)
        first = typed("backup", tmp_path / "backup", *source.options, *away, "--json")
        server.push("acme/y", b"y" * 5000)
        again = typed("backup", tmp_path / "backup", *source.options, *away, "--json")
        itself = typed("backup", tmp_path / "other", *source.options, "--files", f"s3://{source.s3.bucket}/reg")

    assert [json.loads(done.stdout)["copied"] for done in (first, again)] == [3, 1]
    assert (itself.exit_code, (tmp_path / "other").exists()) == (15, False)
    assert not (tmp_path / "backup" / "blobs").exists()
    assert len(s3_server.keys(bucket, "kept/blobs")) == 4
    restored = typed("restore", tmp_path / "backup", *target.options, "--json")
    assert json.loads(restored.stdout)["blobs"] == 4, restored.stderr
    rows, before = target.rows(), source.rows()
    rows["tokens"] = before["tokens"]  # the server writes down their last use when it ends, after the backup
    assert rows == before


def test_a_registry_has_its_secret_before_its_rows(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    back_up(server.registry, tmp_path / "backup")
    target = Place(tmp_path / "new")
    settings = server.registry.settings.__class__(root=target.root, secret=b"")

    def cut(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(restoring, "_place_rows", cut)
        with pytest.raises(KeyboardInterrupt):
            restore(tmp_path / "backup", settings)

    assert (target.root / "secret").read_bytes() == (tmp_path / "backup" / "secret").read_bytes()
    assert typed("restore", tmp_path / "backup", *target.options).exit_code == 0


def test_rows_of_a_later_schema_are_not_copied(server: Running, tmp_path: Path) -> None:
    target = Database(f"sqlite:///{tmp_path / 'target.db'}")
    with contextlib.closing(target), server.registry.db.begin() as old, target.begin() as new:
        old.execute(text("UPDATE alembic_version SET version_num = '9999'"))
        with pytest.raises(UsageProblem, match="has schema `9999`"):
            copy_rows(old, new, lambda *_: None)
        old.execute(text("UPDATE alembic_version SET version_num = :head"), {"head": HEAD})


def test_a_restore_that_was_cut_off_goes_on_and_reads_what_came(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(4):
        server.push(f"acme/y{number}", b"%d" % number * 5000)
    back_up(server.registry, tmp_path / "backup")
    target, put, left = Place(tmp_path / "new"), DiskBlobs.put, 3

    def cut(store: DiskBlobs, *given: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return put(store, *given)

    monkeypatch.setattr(moving, "COPIED_AT_ONCE", 1)
    settings = server.registry.settings.__class__(root=target.root, secret=b"")
    with monkeypatch.context() as patch:
        patch.setattr(DiskBlobs, "put", cut)
        with pytest.raises(KeyboardInterrupt):
            restore(tmp_path / "backup", settings)
    assert not (target.root / "registry.db").exists()
    (came, *_) = (path for path in (target.root / "blobs").rglob("*") if path.is_file())
    came.chmod(0o644)
    came.write_bytes(b"z" * came.stat().st_size)

    done = typed("restore", tmp_path / "backup", *target.options)

    assert done.exit_code == 0, done.stderr
    assert sorted(path.name for path in target.root.iterdir()) == ["blobs", "registry.db", "secret", "uploads"]
    assert json.loads(typed("check", *target.options, "--bytes", "--json").stdout)["problems"] == []


def test_a_file_of_a_backup_that_is_damaged_is_copied_again_only_where_it_is_read(
    server: Running, tmp_path: Path
) -> None:
    back_up(server.registry, tmp_path / "backup")
    damaged = next(path for path in (tmp_path / "backup" / "blobs").rglob("*") if path.is_file())
    damaged.chmod(0o644)
    damaged.write_bytes(b"z" * damaged.stat().st_size)
    target = Place(tmp_path / "new")

    assert back_up(server.registry, tmp_path / "backup").copied == 0
    refused = typed("restore", tmp_path / "backup", *target.options)
    assert (refused.exit_code, (target.root / "registry.db").exists()) == (12, False)
    assert damaged.name in refused.stderr
    assert back_up(server.registry, tmp_path / "backup", reads=True).copied == 1
    assert typed("restore", tmp_path / "backup", *target.options).exit_code == 0


# ------------------------------------------------------------ refusals, each of which leaves the target as it was
def _refused(done: Done, code: int, *said: str) -> None:
    assert done.exit_code == code, done.stderr
    assert all(part in done.stderr for part in (*said, "nothing was written")), done.stderr


def test_a_target_that_is_not_empty_is_refused_and_kept(server: Running, tmp_path: Path) -> None:
    back_up(server.registry, tmp_path / "backup")
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    before = server.registry.db.engine.url.database

    _refused(typed("restore", tmp_path / "backup", "--root", other), 15, "thesis.tex")
    _refused(typed("restore", tmp_path / "backup", "--root", server.root), 15, "not empty")
    filled = typed("restore", tmp_path / "backup", "--root", tmp_path / "new", "--database", f"sqlite:///{before}")
    assert (filled.exit_code, "has rows" in filled.stderr) == (15, True)
    assert [one.name for one in other.iterdir()] == ["thesis.tex"]
    assert server.get("/api/models/acme/x").status_code == 200
    assert not (tmp_path / "new").exists()


def test_what_is_no_finished_backup_is_refused(server: Running, tmp_path: Path) -> None:
    copy, new = tmp_path / "copy", ("--root", tmp_path / "new")
    back_up(server.registry, copy)
    (copy / "registry.db").rename(copy / "registry.db.new")
    _refused(typed("restore", copy, *new), 15, "interrupted before its end")

    (copy / "registry.db.new").rename(copy / "registry.db")
    with running(copy):
        _refused(typed("restore", copy, *new), 15, "a server ran on it")

    (tmp_path / "plain").mkdir()
    shutil.copy(server.root / "registry.db", tmp_path / "plain")
    _refused(typed("restore", tmp_path / "plain", *new), 15, "no backup finished")
    assert typed("restore", tmp_path / "nothing", *new).exit_code == 10
    assert not (tmp_path / "new").exists()


def test_a_backup_of_a_newer_version_is_refused(server: Running, tmp_path: Path) -> None:
    back_up(server.registry, tmp_path / "copy")
    with contextlib.closing(sqlite3.connect(tmp_path / "copy" / "registry.db", isolation_level=None)) as file:
        (about,) = file.execute("SELECT about FROM backup").fetchone()
        file.execute("UPDATE backup SET about = ?", [json.dumps(json.loads(about) | {"schema": "0999"})])

    _refused(typed("restore", tmp_path / "copy", "--root", tmp_path / "new"), 2, "schema 0999", HEAD, "upgrade")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("change", ["row", "missing row", "log"])
def test_a_backup_with_other_rows_than_at_its_end_is_refused(server: Running, tmp_path: Path, change: str) -> None:
    back_up(server.registry, tmp_path / "copy")
    statement = {
        "row": update(releases).values(digest="0" * 64),
        "missing row": delete(releases),
        "log": text("UPDATE log_entries SET entry = CAST(replace(CAST(entry AS TEXT), 'acme', 'evil') AS BLOB)"),
    }[change]
    database = Database(f"sqlite:///{tmp_path / 'copy' / 'registry.db'}")
    with contextlib.closing(database), database.begin() as connection:
        connection.execute(statement)

    done = typed("restore", tmp_path / "copy", "--root", tmp_path / "new")

    assert (done.exit_code, "does not match its digest" in done.stderr) == (12, True), done.stderr
    assert not (tmp_path / "new" / "registry.db").exists()


def test_a_log_that_was_rewritten_with_its_digests_is_found_before_it_is_backed_up(
    server: Running, tmp_path: Path
) -> None:
    with server.registry.db.begin() as connection:
        connection.execute(
            text("UPDATE log_entries SET entry = CAST(replace(CAST(entry AS TEXT), 'acme', 'evil') AS BLOB)")
        )

    done = typed("backup", tmp_path / "copy", "--root", server.root)

    assert (done.exit_code, "not those of its" in done.stderr) == (16, True), done.stderr


def test_a_backup_older_than_a_head_that_is_known_is_refused(server: Running, tmp_path: Path) -> None:
    back_up(server.registry, tmp_path / "copy")
    server.push("acme/y", b"y" * 6000)
    head, new = tmp_path / "head", ("--root", tmp_path / "new")
    head.write_text(server.get("/api/adapt/v1/tlog/checkpoint").text)

    _refused(typed("restore", tmp_path / "copy", *new, "--head", head), 12, "has 1 entries", "has seen 2")
    back_up(server.registry, tmp_path / "later")
    assert typed("restore", tmp_path / "later", *new, "--head", head).exit_code == 0
    head.write_text(head.read_text().replace("\n2\n", "\n3\n"))  # a signature of another head
    _refused(
        typed("restore", tmp_path / "copy", "--root", tmp_path / "third", "--head", head),
        12,
        "is not signed by its key",
    )


def test_the_heads_that_a_library_saw_are_known(server: Running, tmp_path: Path, online: None) -> None:
    home = Adapt(tmp_path)
    back_up(server.registry, tmp_path / "copy")
    server.push("acme/y", b"y" * 6000)
    key = server.get("/api/adapt/v1/info").json()["log_key"]
    note = server.get("/api/adapt/v1/tlog/checkpoint").text
    seen = {"place": server.url, "key": key, "heads": {note.partition("\n")[0]: note}}
    (home.library.root / "logs").mkdir(parents=True)
    (home.library.root / "logs" / f"{'0' * 64}.json").write_text(json.dumps(seen))
    command = ("registry", "restore", tmp_path / "copy", "--root", tmp_path / "new")

    _refused(home(*command), 12, "has seen 2")
    assert home(*command, "--accept-older").exit_code == 0


def test_another_past_is_refused_even_where_an_older_one_is_accepted(server: Running, tmp_path: Path) -> None:
    twin_root = tmp_path / "twin"
    back_up(server.registry, twin_root)
    server.push("acme/y", b"y" * 6000)
    head = tmp_path / "head"
    head.write_text(server.get("/api/adapt/v1/tlog/checkpoint").text)
    with running(twin_root) as twin:
        twin.push("acme/other", b"o" * 6000)
        twin.push("acme/third", b"t" * 6000)
        back_up(twin.registry, tmp_path / "copy")

    refused = typed("restore", tmp_path / "copy", "--root", tmp_path / "new", "--head", head, "--accept-older")

    _refused(refused, 12, "another past")


def test_the_digests_of_rows_do_not_depend_on_their_order_and_tell_each_change(tmp_path: Path) -> None:
    facts = metadata.tables["facts"]
    found = []
    for name, rows in {
        "a": [("x", "1"), ("y", "2")],
        "b": [("y", "2"), ("x", "1")],
        "c": [("x", "2"), ("y", "1")],
    }.items():
        database = Database(f"sqlite:///{tmp_path / name}.db")
        with contextlib.closing(database), database.begin() as connection:
            connection.execute(insert(facts), [dict(zip(("name", "value"), row, strict=True)) for row in rows])
            found.append(rows_of(connection)["facts"])
    assert found[0] == found[1] != found[2]
    assert {one.number for one in found} == {2}


# ------------------------------------------------------------ the page
def _commands_of_page() -> list[list[str]]:
    page = (ROOT / "docs" / "how-to" / "scale-registry.md").read_text()
    part = page.partition("## Day two")[2].partition("### On Kubernetes")[0]
    blocks = "".join(re.findall(r"^```sh\n(.*?)^```", part, re.MULTILINE | re.DOTALL)).replace("\\\n", " ")
    return [shlex.split(line) for line in blocks.splitlines()]


@pytest.mark.parametrize("places", ["shared"], indirect=True)
def test_the_commands_of_the_page_run_as_they_stand_there(
    places: Iterator[Place], s3_server: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place, bucket = next(places), s3_server.new_bucket()
    place.root.mkdir()
    with running(place.root, derives=False, **place.settings) as server:
        server.push("acme/x", b"x" * 5000)
    monkeypatch.chdir(tmp_path)

    for words in _commands_of_page():
        if words[0] == "createdb":
            place = next(places)
            continue
        assert place.s3 is not None
        values = {"postgresql://registry@db/registry": place.database, "s3://adapters": f"s3://{place.s3.bucket}/reg"}
        values["s3://adapters-backup"] = f"s3://{bucket}"
        done = typed(*(values.get(word, word) for word in words[2:]))
        assert done.exit_code == 0, (words, done.stderr)

    with running(place.root, derives=False, **place.settings) as server:
        assert server.get("/api/models/acme/x", token=None).status_code == 200
