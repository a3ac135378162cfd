"""`adapt registry check`: a restored backup is whole, or it is said what is missing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from adapterhub_registry.api.context import Registry
from adapterhub_registry.app import open_registry
from adapterhub_registry.database import counting
from adapterhub_registry.database.counting import SpaceUse, start_counting
from adapterhub_registry.database.db import Database, commits, nodes, refs, repos
from adapterhub_registry.settings import load_settings
from adapterhub_registry.storage.blobs import DiskBlobs
from adapterhub_registry.upkeep import holdings, numbers
from adapterhub_registry.upkeep.holdings import check_holdings
from sqlalchemy import delete, func, insert, select, update

from tests.bench.registry_filling import Shape, fill, store_small_files
from tests.registry.running import running, typed
from tests.support.command_line import Done


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """The folder of a registry with one adapter, which has ended."""
    with running(tmp_path) as server:
        server.push("acme/x", b"w" * 5000)
    return tmp_path


def check(root: Path, *options: str) -> Done:
    return typed("check", "--root", root, *options)


def weights_of(root: Path) -> Path:
    return max((path for path in (root / "blobs").rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def test_a_whole_registry_is_whole(kept: Path) -> None:
    done = check(kept, "--bytes", "--json")

    found = json.loads(done.stdout)
    assert done.exit_code == 0
    assert (found["blobs"], found["problems"]) == (3, [])  # with .gitattributes
    assert found["bytes"] > 5000


def test_a_blob_that_is_missing_is_named(kept: Path) -> None:
    weights_of(kept).unlink()

    done = check(kept, "--json")

    assert done.exit_code == 12
    assert len(json.loads(done.stdout)["problems"]) == 1
    assert "is missing" in done.stdout
    assert "nothing was changed" in done.stderr


def test_a_blob_with_other_bytes_is_found_when_they_are_read(kept: Path) -> None:
    path = weights_of(kept)
    path.chmod(0o644)
    path.write_bytes(b"v" * 5000)

    quick, full = check(kept), check(kept, "--bytes")

    assert (quick.exit_code, full.exit_code) == (0, 12)
    assert "its bytes have the digest" in full.stdout


def test_a_ref_without_its_commit_is_named(kept: Path) -> None:
    database = Database(f"sqlite:///{kept / 'registry.db'}")
    with database.begin() as connection:
        connection.execute(update(refs).where(refs.c.kind == "tag").values(commit_id="0" * 40))
    database.close()

    done = check(kept)

    assert done.exit_code == 12
    assert "acme/x: `v1.0.0` names commit" in done.stdout


def test_parts_of_trees_that_are_missing_or_damaged_are_named(kept: Path) -> None:
    database = Database(f"sqlite:///{kept / 'registry.db'}")
    with database.begin() as connection:
        repo_id, root, body = connection.execute(select(nodes).limit(1)).one()
        connection.execute(insert(nodes).values(repo_id=repo_id, id="d" * 64, body=body))
        connection.execute(update(commits).where(commits.c.root == root).values(root="0" * 64))
    database.close()

    done = check(kept)

    assert done.exit_code == 12
    assert f"acme/x: part {'0' * 64} of a tree is missing" in done.stdout
    assert f"acme/x: part {'d' * 64} of a tree is damaged" in done.stdout


def test_a_check_of_all_bytes_that_was_cut_off_goes_on_and_names_what_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running(tmp_path) as server:
        for number in range(12):
            server.push(f"acme/x{number}", b"%d" % number * 5000)
        damaged = sorted(kept.sha256 for kept in server.registry.blobs.kept())[:2]
    for digest in damaged:
        (path,) = (tmp_path / "blobs").rglob(digest)
        path.chmod(0o644)
        path.write_bytes(b"v" * path.stat().st_size)
    monkeypatch.setattr(holdings, "READ", 3)
    registry, read = open_registry(load_settings(tmp_path)), []
    hashed = holdings.digest_of
    monkeypatch.setattr(holdings, "digest_of", lambda chunks: read.append(1) or hashed(chunks))

    def cut(what: str, *_: int) -> None:
        if what == "files" and len(read) > 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_holdings(registry.db, registry.blobs, read_bytes=True, progress=cut)
    before = len(read)
    found = check_holdings(registry.db, registry.blobs, read_bytes=True)
    again = check_holdings(registry.db, registry.blobs, read_bytes=True)
    registry.db.close()

    assert before >= 6
    assert len(read) - before - 14 == 14 - before + len(damaged)  # those that were read are not read again
    assert [digest for digest in damaged if any(digest in problem for problem in found.problems)] == damaged
    assert len(found.problems) == 2
    assert found == again
    assert found.blobs == 14  # with a config and .gitattributes


def test_a_check_asks_the_store_for_one_list_and_looks_at_no_blob(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    monkeypatch.setattr(DiskBlobs, "size", lambda _self, sha256: looked.append(sha256))

    assert check(kept).exit_code == 0
    assert looked == []


def test_a_check_shows_what_the_database_takes_for_a_build(kept: Path) -> None:
    found = json.loads(check(kept, "--json").stdout)

    assert found["builds"] == 1
    assert found["database_bytes"] == (kept / "registry.db").stat().st_size
    assert f"per build\t{found['database_bytes']}" in check(kept).stdout


def test_a_folder_without_a_registry_is_refused_and_not_made(tmp_path: Path) -> None:
    done = check(tmp_path / "nowhere")

    assert (done.exit_code, "is not a registry" in done.stderr) == (10, True)
    assert not (tmp_path / "nowhere").exists()


# ------------------------------------------------------------ numbers
WRONG: Final = (
    "UPDATE counts SET value = value + 5 WHERE name = 'releases'",
    "DELETE FROM counts WHERE name = 'public repos'",
    "UPDATE spaces SET bytes = bytes - 7 WHERE namespace = 'acme'",
    "INSERT INTO spaces VALUES ('gone', 0, 3, 9)",
)


@pytest.fixture(params=["sqlite", "postgresql"])
def counted(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Registry]:
    """A registry on each database, with a few repositories of several namespaces."""
    url = request.getfixturevalue("pg").new_registry() if request.param == "postgresql" else None
    registry = open_registry(load_settings(tmp_path, database_url=url, derives=False))
    fill(registry.db, Shape(200), store_small_files(registry.blobs))
    with registry.db.begin() as connection:
        start_counting(connection)
    yield registry
    registry.db.close()


def numbers_of(database: Database) -> tuple[dict[str, int], dict[str, int], SpaceUse]:
    with database.read() as connection:
        every, public = counting.counted(connection), counting.counted(connection, public=True)
        return every, public, counting.space_of(connection, "corp")


def test_numbers_that_are_right_are_no_problem(counted: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "AT_ONCE", 2)  # several turns

    assert list(numbers.wrong_numbers(counted.db)) == []


def test_wrong_numbers_are_named_and_put_right_on_request(counted: Registry, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "AT_ONCE", 2)
    monkeypatch.setattr(numbers, "CHANGED", 1)
    before = numbers_of(counted.db)
    with counted.db.begin() as connection:
        for statement in (one.replace("acme", "corp") for one in WRONG):
            connection.exec_driver_sql(statement)
    damaged = numbers_of(counted.db)

    named = sorted(one.name for one in numbers.wrong_numbers(counted.db))
    untouched = numbers_of(counted.db)
    mended = sorted(one.name for one in numbers.wrong_numbers(counted.db, mends=True))

    assert named == mended == ["corp", "gone", "public repos", "releases"]
    assert damaged == untouched != before
    assert numbers_of(counted.db) == before
    assert list(numbers.wrong_numbers(counted.db)) == []


def test_a_change_between_the_comparison_and_the_mending_counts(counted: Registry) -> None:
    with counted.db.begin() as connection:
        connection.exec_driver_sql("UPDATE counts SET value = value - 2 WHERE name = 'repos'")
        (wrong,) = counting.wrong_counts(connection, "repos")
        connection.execute(delete(repos).where(repos.c.id == 5))
        counting.put_right(connection, [wrong])

        left = connection.scalar(select(func.count()).select_from(repos))
        assert counting.counted(connection)["repos"] == left
        assert counting.wrong_counts(connection, "repos") == []


def test_the_command_names_wrong_numbers_and_mends_them(kept: Path) -> None:
    registry = open_registry(load_settings(kept))
    with registry.db.begin() as connection:
        connection.exec_driver_sql(WRONG[0])
        connection.exec_driver_sql(WRONG[2])
    registry.db.close()

    named, mended, again = check(kept), check(kept, "--mend", "--json"), check(kept, "--json")

    assert named.exit_code == 12
    assert "the kept number of counts `releases` is wrong" in named.stdout
    assert "`adapt registry check --mend` puts it right" in named.stdout
    assert (mended.exit_code, json.loads(mended.stdout)["problems"]) == (0, [])
    assert len(json.loads(mended.stdout)["mended"]) == 2
    assert (again.exit_code, json.loads(again.stdout)["mended"]) == (0, [])
