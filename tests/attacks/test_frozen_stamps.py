"""Weights that were edited in a project's `adapters/` with all of their old facts restored: which form of sync sees it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from adapterhub.core.disk.files import RealFolder
from adapterhub.formats.manifest import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE
from adapterhub.library.store.roots import synced_path
from adapterhub.projects.values import LockedAdapter
from tests.support.command_line import Adapt
from tests.support.locks import entry_of, lock_of, planned, sync
from tests.support.tiny import make_adapter


@pytest.fixture
def adapt(tmp_path: Path) -> Adapt:
    adapt = Adapt(tmp_path)
    make_adapter(tmp_path / "made", seed=1)
    adapt.ok("add", "./made", "--name", "legal-qa")
    adapt.ok("push", "legal-qa", "--to", "./published")
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "adapters.toml").write_text(
        '[remotes.team]\npath = "../published"\n\n[adapters]\nlegal-qa = ""\n'
    )
    adapt.ok("sync", "--project", "repo")
    adapt.ok("sync", "--project", "repo", "--frozen")
    return adapt


def flipped(data: bytes) -> bytes:
    """The same bytes but for one bit of the last number."""
    return data[:-1] + bytes([data[-1] ^ 1])


def edit_in_place(path: Path) -> None:
    """Change one bit, and give the file back its size, its mode and its times."""
    before, mode = path.stat(), path.stat().st_mode
    path.chmod(0o644)
    path.write_bytes(flipped(path.read_bytes()))
    path.chmod(mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    after = path.stat()
    assert (after.st_size, after.st_mtime_ns, after.st_ino, after.st_mode) == (
        before.st_size, before.st_mtime_ns, before.st_ino, before.st_mode,
    )  # fmt: skip


def replace_by_other(path: Path) -> None:
    """Put another file of the same size, mode and times in its place."""
    other = path.with_name("other")
    shutil.copy2(path, other)
    before = path.stat()
    other.chmod(0o644)
    other.write_bytes(flipped(path.read_bytes()))
    other.chmod(before.st_mode)
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns))
    other.replace(path)


@pytest.mark.parametrize("edit", [edit_in_place, replace_by_other])
@pytest.mark.parametrize("options", [(), ("--frozen",), ("--frozen", "--check")])
def test_weights_that_were_edited_with_size_and_time_restored_are_put_right(adapt, tmp_path, edit, options):
    weights = tmp_path / "repo" / "adapters" / "legal-qa" / WEIGHTS_FILE
    sound = weights.read_bytes()
    edit(weights)
    assert weights.read_bytes() != sound

    said = adapt.ok("sync", "--project", "repo", *options)

    assert "it had changed" in said
    assert weights.read_bytes() == sound
    assert "all as locked" in adapt.ok("sync", "--project", "repo", "--frozen")
    assert "FAILED" not in adapt("verify", "--all").stdout


def test_check_sees_an_edit_that_no_stamp_tells(adapt, tmp_path):
    """As by somebody who writes to the disk itself, or forges the note: every fact is as sync left it."""
    weights = tmp_path / "repo" / "adapters" / "legal-qa" / WEIGHTS_FILE
    sound, note = weights.read_bytes(), synced_path(tmp_path / "home", tmp_path / "repo")
    before = weights.stat()
    edit_in_place(weights)
    note.write_bytes(
        note.read_bytes().replace(str(before.st_ctime_ns).encode(), str(weights.stat().st_ctime_ns).encode())
    )

    assert "all as locked" in adapt.ok("sync", "--project", "repo", "--frozen")
    assert "it had changed" in adapt.ok("sync", "--project", "repo", "--frozen", "--check")
    assert weights.read_bytes() == sound


def test_check_links_no_object_that_was_damaged_in_the_library(adapt, tmp_path):
    weights = tmp_path / "repo" / "adapters" / "legal-qa" / WEIGHTS_FILE
    sound = weights.read_bytes()
    [blob] = [path for path in (tmp_path / "home" / "blobs").rglob("*") if path.is_file() and path.samefile(weights)]
    shutil.rmtree(tmp_path / "repo" / "adapters")
    edit_in_place(blob)

    adapt.ok("sync", "--project", "repo", "--frozen", "--check")

    assert weights.read_bytes() == sound


def test_check_reads_every_byte_and_plain_sync_none(library, add, tmp_path, monkeypatch):
    project = tmp_path / "project"
    project.mkdir()
    one, two = entry_of(add("legal-qa").build), entry_of(add("tables", seed=3).build)
    sync(library, project, lock_of(one, two))
    read: list[str] = []
    real = RealFolder.open_file
    monkeypatch.setattr(RealFolder, "open_file", lambda self, name: (read.append(name), real(self, name))[1])

    (project / "adapters" / "legal-qa" / CARD_FILE).write_text("edited")  # a card is its user's: no reason to read

    plain = sync(library, project, lock_of(one, two))
    assert ([what for _, what in plain.steps], read) == (["kept", "kept"], [])
    with_check = sync(library, project, lock_of(one, two), check=True)

    assert [what for _, what in with_check.steps] == ["kept", "kept"]
    assert read.count(WEIGHTS_FILE) == 2


def test_a_further_link_to_an_object_has_only_that_file_read_again(library, add, tmp_path, monkeypatch):
    """A link changes the inode's time: another project costs this one a look at the files they share, not an error."""
    first, second = tmp_path / "first", tmp_path / "second"
    first.mkdir()
    second.mkdir()
    one: LockedAdapter = entry_of(add("legal-qa").build)
    other = entry_of(add("tables", seed=3).build)  # the same config, other weights
    sync(library, first, lock_of(one))
    sync(library, second, lock_of(other))
    read: list[str] = []
    real = RealFolder.open_file
    monkeypatch.setattr(RealFolder, "open_file", lambda self, name: (read.append(name), real(self, name))[1])

    assert [s.state.standing for s in planned(library, first, [one]).steps] == ["right"]
    assert read == [CONFIG_FILE]
    assert [what for _, what in sync(library, first, lock_of(one)).steps] == ["kept"]
    read.clear()
    sync(library, first, lock_of(one))
    assert read == []
