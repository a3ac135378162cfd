"""What `adapt` makes of a registry's log: a past that changes is refused, wherever it was changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from adapterhub_registry import treelog
from adapterhub_registry.api import versions_api
from adapterhub_registry.database.db import Database, facts, log_entries, log_nodes
from sqlalchemy import delete, select, update

from adapterhub.distribution.hub import Hub
from adapterhub.formats.release import Release
from adapterhub.formats.treelog import LogSigner, appended, leaf_hash, new_seed
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from adapterhub.library.transfer import copy
from tests.registry.proxy import proxy_of
from tests.registry.running import Running, running
from tests.support.command_line import Adapt

numbers = count(1)
PUSHED = 5


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path / "registry") as server:
        yield server


@pytest.fixture
def push(online: None, server: Running, library: Library, add: Callable[..., Added]) -> Callable[[str], None]:
    """Publish an adapter as `acme/NAME`."""

    def pushed(name: str) -> None:
        release = Release(manifest=add(name, seed=next(numbers)).build.manifest, namespace=None, origin="home")
        copy(release, library, Hub(endpoint=server.url, token=server.token).to(f"acme/{name}"))

    return pushed


@pytest.fixture
def far(tmp_path: Path) -> Adapt:
    return Adapt(tmp_path, home="far")


@pytest.fixture
def seen(server: Running, push: Callable[[str], None], far: Adapt) -> Adapt:
    """A library that installed `acme/a0` while the log had five entries."""
    for number in range(PUSHED):
        push(f"a{number}")
    far.json("install", "acme/a0", "--remote", server.url)
    return far


def refused(adapt: Adapt, server: Running, *names: str, url: str = "") -> str:
    done = adapt("install", *(names or ("acme/a1",)), "--remote", url or server.url)
    assert done.exit_code == 12, done.stderr
    assert "Traceback" not in done.stderr
    assert not [build for build in adapt.library.installed() if build.full_name in (names or ("acme/a1",))]
    return done.stderr


def rebuild(database: Database, entries: list[bytes], rows: Sequence[Any] = ()) -> Sequence[Any]:
    """Write the log anew, as one who owns the database can: each hash is right, and the key is the old one.

    `rows` are those that the entries were in; without them the present ones, which it returns.
    """
    with database.begin() as connection:
        rows = rows or connection.execute(select(log_entries).order_by(log_entries.c.position)).mappings().all()
        connection.execute(delete(log_entries))
        connection.execute(delete(log_nodes))
        nodes: dict[tuple[int, int], bytes] = {}
        for at, entry in enumerate(entries):
            named = entry.partition(b'"repository":')[2][:10]
            about = dict(next(row for row in rows if named in bytes(row["entry"]) or row is rows[-1]))
            connection.execute(log_entries.insert().values(about | {"position": at, "entry": entry}))
            new = appended(at, leaf_hash(entry), nodes.__getitem__)
            nodes |= dict(new)
            made = [{"log": 0, "level": level, "position": place, "hash": h} for (level, place), h in new]
            connection.execute(log_nodes.insert(), made)
    return rows


def log_in(database: Database) -> list[bytes]:
    with database.read() as connection:
        found = connection.scalars(select(log_entries.c.entry).order_by(log_entries.c.position)).all()
        return [bytes(one) for one in found]


def test_a_log_that_grows_is_followed(server: Running, seen: Adapt, push: Callable[[str], None]) -> None:
    for number in range(PUSHED, PUSHED + 3):
        push(f"a{number}")
        done = seen("install", f"acme/a{number}", "--remote", server.url)
        assert done.exit_code == 0, done.stderr
        known = seen.library.heads.of(server.url)
        assert known is not None
        assert [note.split("\n")[1] for note in known.heads.values()] == [str(number + 1)]


def test_a_release_whose_row_was_changed_is_refused(server: Running, seen: Adapt) -> None:
    with server.registry.db.begin() as connection:
        entry = log_entries.c.position == 1
        said = bytes(connection.scalar(select(log_entries.c.entry).where(entry)) or b"")
        other = bytes(connection.scalar(select(log_entries.c.entry).where(log_entries.c.position == 2)) or b"")
        digest = said.partition(b'"sha256:')[2][:64]
        connection.execute(
            update(log_entries).where(entry).values(entry=said.replace(digest, other.partition(b'"sha256:')[2][:64]))
        )

    assert "the proof of `acme/a1`" in refused(seen, server)


def test_other_bytes_than_the_log_has_are_refused_from_the_first_install_on(server: Running, seen: Adapt) -> None:
    entries = log_in(server.registry.db)
    mine, other = (one.partition(b'"sha256:')[2][:64] for one in entries[1:3])
    rebuild(server.registry.db, [entries[0], entries[1].replace(mine, other), *entries[2:]])
    fresh = Adapt(seen.folder, home="fresh")

    assert f"and the server offers sha256:{mine.decode()}" in refused(fresh, server)
    assert not (fresh.folder / "fresh" / "logs").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda all_of: all_of[:3],
        lambda all_of: [*all_of[:2], *all_of[3:]],
        lambda all_of: [all_of[0], all_of[1], all_of[2].replace(b"a2", b"b2"), *all_of[3:]],
        lambda all_of: [*all_of[:3], all_of[4], all_of[3]],
        lambda all_of: [*all_of[1:], all_of[0], all_of[0].replace(b"a0", b"a9")],
    ],
    ids=["rolled back", "an entry less", "an entry changed", "another order", "longer and another past"],
)
def test_a_log_with_another_past_is_refused(
    server: Running, seen: Adapt, change: Callable[[list[bytes]], list[bytes]]
) -> None:
    rebuild(server.registry.db, change(log_in(server.registry.db)))

    said = refused(seen, server)

    assert "another past" in said or "shorter" in said
    assert seen("install", "acme/a0", "--remote", server.url).exit_code == 0  # what is here stays
    assert Adapt(seen.folder, home="fresh")("install", "acme/a1", "--remote", server.url).exit_code == 0


def test_another_key_is_refused(server: Running, seen: Adapt) -> None:
    with server.registry.db.begin() as connection:
        connection.execute(update(facts).where(facts.c.name == "log_key").values(value=new_seed().hex()))
    server.registry.log._seed = None

    assert "another registry" in refused(seen, server)


def test_a_head_signed_by_a_stranger_under_the_same_name_is_refused(
    server: Running, seen: Adapt, monkeypatch: pytest.MonkeyPatch, push: Callable[[str], None]
) -> None:
    name = server.registry.log.signer().key.name

    class Forger(LogSigner):
        @property
        def key(self):  # type: ignore[no-untyped-def]
            return type(super().key)(name, super().key.public)

    push("a9")
    monkeypatch.setattr(treelog.TreeLog, "signer", lambda _self, _log=0: Forger(b"8" * 32))

    assert "not signed by its key" in refused(seen, server, "acme/a9")


def test_a_registry_that_had_a_log_and_has_none_is_refused(
    server: Running, seen: Adapt, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions_api, "FEATURES", tuple(one for one in versions_api.FEATURES if one != "log"))

    assert "has no log any more" in refused(seen, server)
    fresh = Adapt(seen.folder, home="fresh")
    assert fresh("install", "acme/a1", "--remote", server.url).exit_code == 0  # as an older server


def test_a_release_that_is_in_no_log_is_refused(server: Running, seen: Adapt, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(treelog, "complete", lambda *_: None)
    with server.registry.db.begin() as connection:
        connection.execute(update(log_entries).where(log_entries.c.position == 1).values(version_key=None))

    assert "does not have `acme/a1`" in refused(seen, server)


def test_lock_and_sync_check_the_log_too(server: Running, seen: Adapt, tmp_path: Path) -> None:
    project = tmp_path / "adapters.toml"
    project.write_text(
        f'[adapters]\na1 = "acme/a1"\na2 = "acme/a2"\n[remotes.ours]\nurl = "{server.url}"\nnamespaces = ["acme"]\n'
    )
    seen = seen.having(ADAPTERHUB_TRUST_PROJECT="1")
    seen.ok("lock")
    whole = log_in(server.registry.db)
    rows = rebuild(server.registry.db, whole[:3])

    assert "shorter" in seen.fails(12, "lock", "--upgrade", "a1")
    assert "shorter" in seen.fails(12, "sync")
    rebuild(server.registry.db, whole, rows)
    seen.ok("sync")


@pytest.mark.parametrize("spec", ["acme/*", "acme/a1"])
def test_a_mirror_copies_nothing_from_a_log_with_another_past(
    server: Running, seen: Adapt, tmp_path: Path, spec: str
) -> None:
    with running(tmp_path / "copy") as copy_of:
        for name, place in (("ours", server), ("copy", copy_of)):
            seen.ok("remote", "add", name, place.url)
        seen.ok("remote", "login", "copy", "--token", copy_of.token)
        between = ("mirror", spec, "--from", "ours", "--to", "copy")
        whole = log_in(server.registry.db)
        rows = rebuild(server.registry.db, whole[:3])
        refusal = seen.fails(12, *between)
        before = copy_of.get("/api/models").json()
        rebuild(server.registry.db, whole, rows)
        seen.ok(*between)

        assert "shorter" in refusal
        assert before == []
        assert "acme/a1" in [one["id"] for one in copy_of.get("/api/models").json()]


def test_audit_looks_for_what_a_project_locks_and_the_library_lacks(
    server: Running, seen: Adapt, tmp_path: Path
) -> None:
    project = tmp_path / "adapters.toml"
    project.write_text(
        f'[adapters]\na0 = "acme/a0"\na1 = "acme/a1"\n[remotes.ours]\nurl = "{server.url}"\nnamespaces = ["acme"]\n'
    )
    seen = seen.having(ADAPTERHUB_TRUST_PROJECT="1")
    seen.ok("lock")

    def found(*options: str) -> tuple[int, dict[str, list[str]]]:
        done = seen("audit", *options, "--json")
        told = {one["adapter"]: [f["code"] for f in one["findings"]] for one in json.loads(done.stdout)["adapters"]}
        return done.exit_code, {name: [c for c in codes if c.endswith("_LOG")] for name, codes in told.items()}

    assert found() == (0, {"acme/a0 1.0.0 (rank 4)": []})
    assert found("--log") == (0, {"acme/a0 1.0.0 (rank 4)": ["N_LOG"], "acme/a1 1.0.0 (locked)": ["N_LOG"]})
    assert found("--log", "--offline")[1]["acme/a1 1.0.0 (locked)"] == ["U_LOG"]
    assert found("--log", "--ignore", "N_LOG")[1]["acme/a1 1.0.0 (locked)"] == []
    rebuild(server.registry.db, log_in(server.registry.db)[:3])
    assert found("--log") == (12, {"acme/a0 1.0.0 (rank 4)": ["E_LOG"], "acme/a1 1.0.0 (locked)": ["E_LOG"]})


def test_one_request_more_at_install_and_none_for_several(server: Running, seen: Adapt) -> None:
    fresh = Adapt(seen.folder, home="fresh")
    with proxy_of(server.url) as proxy:
        fresh.json("install", "acme/a1", "--remote", proxy.url)
        alone = proxy.paths("/tlog/")
        fresh.json("install", "acme/a2", "acme/a3", "acme/a4", "--remote", proxy.url)
        together = proxy.paths("/tlog/")[len(alone) :]

    assert alone == ["/api/adapt/v1/tlog/releases/acme/a1/1.0.0"]
    assert together == []


def test_audit_shows_the_head_and_finds_another_past(server: Running, seen: Adapt) -> None:
    def codes(*options: str) -> tuple[int, set[str]]:
        done = seen("audit", *options, "--json")
        (one,) = json.loads(done.stdout)["adapters"]
        return done.exit_code, {f["code"] for f in one["findings"] if f["code"].endswith("_LOG")}

    before = seen.library.heads.path(server.url).read_bytes()

    assert codes() == (0, set())
    assert codes("--log") == (0, {"N_LOG"})
    assert f"entry 0 of {PUSHED} in `{server.registry.log.signer().key.name}`" in seen.ok("audit", "--log", "--notes")
    assert codes("--log", "--offline") == (0, {"U_LOG"})
    rebuild(server.registry.db, log_in(server.registry.db)[:3])
    assert codes("--log") == (12, {"E_LOG"})
    assert seen.library.heads.path(server.url).read_bytes() == before
    for damaged in (before[:-9], before.replace(b"\\n5\\n", b"\\nx\\n"), b"[]", b'{"key": 1}'):
        seen.library.heads.path(server.url).write_bytes(damaged)
        assert codes() == (12, {"E_LOG"})
        for command in (("info", "acme/a0"), ("install", "acme/a1", "--remote", server.url)):
            said = seen.fails(16, *command)
            assert "holds no heads of a log" in said
            assert "remove the file" in said
