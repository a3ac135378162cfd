"""`adapt registry backup`: a copy of a folder beside its running server, whole at each moment."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from adapterhub_registry.database.db import Database, commits
from adapterhub_registry.storage.blobs import DiskBlobs
from adapterhub_registry.upkeep import backup as backing
from adapterhub_registry.upkeep.backup import back_up
from sqlalchemy import func, select, text

from adapterhub.core.errors import Conflict
from tests.registry.running import Running, running, typed


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    (tmp_path / "registry").mkdir()
    with running(tmp_path / "registry") as server:
        server.push("acme/x", b"x" * 5000)
        yield server


def problems_of(root: Path) -> list[str]:
    found: list[str] = json.loads(typed("check", "--root", root, "--bytes", "--json").stdout)["problems"]
    return found


def test_a_server_goes_on_with_a_copy(server: Running, tmp_path: Path) -> None:
    done = typed("backup", tmp_path / "copy", "--root", server.root, "--json")

    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["copied"] == json.loads(done.stdout)["blobs"] == 3
    assert problems_of(tmp_path / "copy") == []
    with running(tmp_path / "copy") as copy:
        assert copy.get("/api/models/acme/x", token=server.token).status_code == 200
        assert (tmp_path / "copy" / "secret").read_bytes() == (server.root / "secret").read_bytes()
    assert (tmp_path / "copy").stat().st_mode & 0o077 == 0


def test_the_next_backup_copies_only_what_is_new(server: Running, tmp_path: Path) -> None:
    back_up(server.registry, tmp_path / "copy")
    server.push("acme/y", b"y" * 6000)

    again = back_up(server.registry, tmp_path / "copy")

    assert (again.blobs, again.copied, again.problems) == (4, 1, ())
    assert problems_of(tmp_path / "copy") == []


def test_pushes_during_a_backup_neither_wait_nor_tear_it(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server.registry.db.begin() as connection:  # more pages than one step copies
        connection.execute(text("CREATE TABLE filler (a TEXT)"))
        connection.execute(text("INSERT INTO filler VALUES (:a)"), [{"a": "x" * 3000}] * 200)
    monkeypatch.setattr(backing, "PAGES", 20)
    steps = 0

    def push_between(what: str, done: int, total: int) -> None:
        nonlocal steps
        if what == "database":
            steps += 1
            assert steps < 100, "each push begins the copy again"
            server.push(f"acme/during-{steps}", b"%d" % steps * 3000) if steps <= 3 else None

    done = back_up(server.registry, tmp_path / "copy", progress=push_between)

    assert steps > 5
    assert done.problems == ()
    copy = Database(f"sqlite:///{tmp_path / 'copy' / 'registry.db'}")
    with copy.read() as connection:
        assert connection.scalar(text("SELECT count(*) FROM repos")) == 1  # of the moment of its beginning
        assert connection.scalar(text("PRAGMA integrity_check")) == "ok"
        assert connection.scalar(select(func.count()).select_from(commits)) == 2
    copy.close()
    assert problems_of(tmp_path / "copy") == []


def test_a_backup_that_was_cut_off_leaves_the_one_before_and_goes_on(
    server: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    back_up(server.registry, copy)
    before = (copy / "registry.db").read_bytes()
    for number in range(6):
        server.push(f"acme/y{number}", b"%d" % number * 5000)
    monkeypatch.setattr(backing, "TOGETHER", 2)
    put, left = DiskBlobs.together, 2

    def cut(store: DiskBlobs):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return put(store)

    with monkeypatch.context() as patch:
        patch.setattr(DiskBlobs, "together", cut)
        with pytest.raises(KeyboardInterrupt):
            back_up(server.registry, copy)
    assert (copy / "registry.db").read_bytes() == before

    done = back_up(server.registry, copy)

    assert (done.blobs, done.problems) == (9, ())
    assert done.copied < 6
    assert problems_of(copy) == []


def test_a_file_that_is_damaged_is_named_and_the_backup_before_stays(server: Running, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    back_up(server.registry, copy)
    before = (copy / "registry.db").read_bytes()
    made = server.push("acme/y", b"y" * 6000)
    (path,) = (server.root / "blobs").rglob(made.oid)
    path.chmod(0o644)
    path.write_bytes(b"z" * 6000)

    done = typed("backup", copy, "--root", server.root)

    assert done.exit_code == 12
    assert made.oid in done.stdout
    assert (copy / "registry.db").read_bytes() == before


def test_a_folder_with_something_else_is_refused_and_kept(server: Running, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("x")

    for target in (other, server.root, other / "thesis.tex"):
        with pytest.raises(Conflict, match="nothing was written"):
            back_up(server.registry, target)
    assert [one.name for one in other.iterdir()] == ["thesis.tex"]


def test_a_served_copy_is_refused(server: Running, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    back_up(server.registry, copy)
    shutil.copy(server.root / "secret", copy / "serving.lock")

    with pytest.raises(Conflict, match=r"serving\.lock"):
        back_up(server.registry, copy)
