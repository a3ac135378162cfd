"""`adapt registry check`: a restored backup is whole, or it is said what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest
from adapterhub_registry.database.db import Database, commits, nodes, refs
from sqlalchemy import insert, select, update

from tests.registry.pushing import Push
from tests.registry.running import running, typed
from tests.support.command_line import Done


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    """The folder of a registry with one adapter, which has ended."""
    with running(tmp_path) as server, httpx.Client(base_url=server.url) as client:
        client.headers["Authorization"] = f"Bearer {server.token}"
        Push(repo="acme/x", weights=b"w" * 5000).run(client)
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


def test_a_folder_without_a_registry_is_refused_and_not_made(tmp_path: Path) -> None:
    done = check(tmp_path / "nowhere")

    assert (done.exit_code, "is not a registry" in done.stderr) == (10, True)
    assert not (tmp_path / "nowhere").exists()
