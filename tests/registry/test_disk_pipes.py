"""A pipe in the folder of a registry: nothing that reads its blobs waits for a writer that never comes."""

from __future__ import annotations

import os
import threading

import pytest
from adapterhub_registry.access.tokens import check_is_registry
from adapterhub_registry.database.db import Database
from adapterhub_registry.database.steps import silent
from adapterhub_registry.settings import load_settings
from adapterhub_registry.storage.blobs import DiskBlobs, digest_of
from adapterhub_registry.upkeep.holdings import WantedBlob
from adapterhub_registry.upkeep.moving import BlobsDamaged, copy_blobs

from adapterhub.core.errors import BlobNotFound, Malformed, UsageProblem, shown


@pytest.fixture
def piped(tmp_path) -> tuple[DiskBlobs, str]:
    """A store in which a pipe has the name of a blob."""
    blobs = DiskBlobs(tmp_path / "root")
    name = blobs.put([b"whole"]).sha256
    path = blobs._path(name)
    path.unlink()
    os.mkfifo(path)
    return blobs, name


def in_time(call) -> BaseException | None:
    """What a call raises; a call that waits for ever fails the test."""
    found: list[BaseException | None] = []

    def run() -> None:
        try:
            call()
            found.append(None)
        except BaseException as error:  # noqa: BLE001 - handed to the test
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(20)
    assert found, "it waits for the pipe"
    return found[0]


def test_a_pipe_is_no_blob(piped):
    blobs, name = piped

    for call in (lambda: b"".join(blobs.open(name)), lambda: blobs.file(name), lambda: digest_of(blobs.open(name))):
        error = in_time(call)
        assert isinstance(error, BlobNotFound)
        assert "is not a regular file" in error.message


def test_a_move_names_the_pipe_and_writes_no_row(piped, tmp_path):
    blobs, name = piped

    error = in_time(lambda: copy_blobs(blobs, DiskBlobs(tmp_path / "target"), [[WantedBlob(name, 5)]], silent))

    assert isinstance(error, BlobsDamaged)
    assert name in error.problems[0]
    assert "is not a regular file" in error.problems[0]


@pytest.mark.parametrize("put", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
@pytest.mark.parametrize("name", ["registry.db", "registry.db-wal", "registry.db-shm", "registry.db-journal"])
def test_a_pipe_is_no_file_of_the_database(tmp_path, name, put):
    url = f"sqlite:///{tmp_path / 'registry.db'}"
    Database(url).close()
    (tmp_path / name).unlink(missing_ok=True)
    put(tmp_path / name)

    check_is_registry(tmp_path)
    error = in_time(lambda: Database(url))

    assert isinstance(error, Malformed)
    assert f"{tmp_path / name}` is not a regular file" in error.message


def test_a_pipe_is_no_secret(tmp_path):
    os.mkfifo(tmp_path / "secret")

    error = in_time(lambda: load_settings(tmp_path))

    assert isinstance(error, UsageProblem)
    assert f"`{shown(str(tmp_path / 'secret'))}`: is not a regular file" in error.message
