"""Who may write what decides over others: files of the library, and the files that say whom and what to trust.

Modes and owners are compared, so that the tests say the same when root runs them.
"""

from __future__ import annotations

import io
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapterhub.core.errors import RemoteUnreachable
from adapterhub.core.specs import AdapterSpec
from adapterhub.library.library import Library
from adapterhub.library.transfer import copy
from tests.support.command_line import Adapt
from tests.support.tiny import make_adapter, make_base

NOT_ALLOWED = 14
SOMEBODY = 54_321


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def writable_by_others(folder: Path) -> list[str]:
    """Everything in a folder, and the folder itself, that its group or anybody may write."""
    paths = [path for path in (folder, *folder.rglob("*")) if not path.is_symlink()]
    return [f"{stat.S_IMODE(p.stat().st_mode):o} {p.relative_to(folder)}" for p in paths if p.stat().st_mode & 0o022]


def fill(adapt: Adapt) -> None:
    """Everything that makes a file in a library, or nearly."""
    folder = adapt.folder
    make_base(folder / "base")
    old = 1_000_000_000_000_000_000
    for path in (folder / "base").iterdir():
        os.utime(path, ns=(old, old))  # settled, so that its fingerprint is cached
    for seed, name in enumerate(("one", "two", "away", "unknown")):
        make_adapter(folder / name, seed=seed)
    (folder / "one" / "README.md").write_text("A card.")
    adapt.ok("base", "add", "./base", "--as", "base-7b")
    for name in ("one", "two", "away"):
        adapt.ok("add", f"./{name}", "--name", name, "--base", "base-7b")
    adapt.ok("add", "./unknown", "--no-base")
    adapt.ok("key", "new", "mine", "--unencrypted")
    adapt.ok("key", "trust", "mine", folder / "home" / "keys" / "mine.pub")
    adapt.ok("key", "sign", "one", "--key", "mine")
    adapt.ok("push", "away", "--to", "./published", "--sign", "--key", "mine")
    adapt.ok("remove", "away", "--yes")
    adapt.ok("install", "away@base-7b", "--from", "./published")
    adapt.ok("merge", "one", "two", "-o", "both")
    adapt.ok("key", "policy", "warn")
    (folder / "project").mkdir()
    adapt.ok("init", "./project", "--base", "base-7b")
    with (folder / "project" / "adapters.toml").open("a") as sink:
        sink.write('one = "one"\n')
    adapt.ok("lock", "--project", "project")
    adapt.ok("sync", "--project", "project")
    damaged = next(path for path in (folder / "home" / "blobs").rglob("*") if path.is_file())
    damaged.chmod(0o644)
    damaged.write_bytes(b"damaged")
    adapt("doctor", "--repair", "--offline", "--from", "./published")
    adapt("doctor", "--rebuild-index", "--offline")
    adapt.ok("cache", "clean", "--grace", "0")
    adapt.ok("remote", "add", "ours", "http://127.0.0.1:9", "--namespaces", "acme")


@pytest.mark.usefixtures("no_umask")
def test_umask_000_leaves_nothing_of_a_library_writable_by_others(tmp_path):
    adapt = Adapt(tmp_path)

    fill(adapt)

    home = tmp_path / "home"
    made = {path.relative_to(home).parts[0] for path in home.rglob("*")}
    assert {"adapters", "bases", "blobs", "cache", "index.db", "keys", "locks", "manifests", "origins"} <= made
    assert {"projects", "quarantine", "remotes.json", "seen_signatures.json", "synced", "trusted_keys.json"} <= made
    assert writable_by_others(home) == []


@pytest.mark.usefixtures("no_umask")
def test_umask_000_leaves_what_sync_and_lock_write_in_a_project_unwritable_by_others(tmp_path):
    adapt = Adapt(tmp_path)

    fill(adapt)

    project = tmp_path / "project"
    assert (project / "adapters" / "one").is_dir()
    assert writable_by_others(project / "adapters") == []
    assert not [name for name in ("adapters.toml", "adapters.lock") if (project / name).stat().st_mode & 0o022]


@pytest.mark.usefixtures("no_umask")
def test_a_download_that_was_cut_is_kept_where_others_cannot_write(library, add, tmp_path, monkeypatch):
    class Cut(io.BytesIO):
        def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
            if self.tell():
                raise RemoteUnreachable("cut")
            return super().readinto(buffer[:100])

        def seekable(self) -> bool:
            return False

    monkeypatch.setattr(library, "open", lambda _release, entry: Cut(bytes(entry.size_bytes)))
    add("legal-qa")
    [release] = library.releases(AdapterSpec.parse("legal-qa"))
    into = Library(tmp_path / "into")
    with pytest.raises(RemoteUnreachable):
        copy(release, library, into)

    assert [path.name[:5] for path in (tmp_path / "into" / "tmp").iterdir()] == ["part-"]
    assert writable_by_others(tmp_path / "into") == []


# ---------------------------------------------------------------- files that decide
DECIDING = {
    "trusted_keys.json": ("key", "list"),
    "remotes.json": ("remote", "list"),
    "config.json": ("contract", "policy"),
}


@pytest.fixture
def decided(tmp_path: Path) -> Adapt:
    adapt = Adapt(tmp_path)
    adapt.ok("key", "new", "mine", "--unencrypted")
    adapt.ok("key", "trust", "mine", tmp_path / "home" / "keys" / "mine.pub")
    adapt.ok("remote", "add", "ours", "http://127.0.0.1:9")
    adapt.ok("contract", "policy", "warn")
    return adapt


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make it another user's; who may not do that becomes another user, as far as the program can tell."""
    if os.geteuid() == 0:
        os.chown(path, SOMEBODY, SOMEBODY)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: SOMEBODY)


@pytest.mark.parametrize("name", DECIDING)
@pytest.mark.parametrize("mode", [0o020, 0o002, 0o022])
@pytest.mark.parametrize("at", ["file", "folder"])
def test_a_file_that_decides_is_refused_when_others_may_write_it_or_its_folder(decided, tmp_path, name, mode, at):
    place = tmp_path / "home" / name if at == "file" else tmp_path / "home"
    decided.ok(*DECIDING[name])
    place.chmod(stat.S_IMODE(place.stat().st_mode) | mode)

    said = decided.fails(NOT_ALLOWED, *DECIDING[name])

    assert f"chmod go-w {place}" in said
    place.chmod(stat.S_IMODE(place.stat().st_mode) & ~0o022)
    decided.ok(*DECIDING[name])


@pytest.mark.parametrize("name", DECIDING)
@pytest.mark.parametrize("at", ["file", "folder"])
def test_a_file_that_decides_is_refused_when_it_or_its_folder_is_anothers(decided, tmp_path, monkeypatch, name, at):
    give_away(tmp_path / "home" / name if at == "file" else tmp_path / "home", monkeypatch)

    assert "another user" in decided.fails(NOT_ALLOWED, *DECIDING[name])


def test_a_link_to_a_file_that_decides_is_judged_by_the_folder_behind_it(decided, tmp_path):
    away = tmp_path / "away"
    away.mkdir(0o755)
    (tmp_path / "home" / "trusted_keys.json").rename(away / "keys.json")
    (tmp_path / "home" / "trusted_keys.json").symlink_to(away / "keys.json")
    decided.ok("key", "list")
    away.chmod(0o777)

    assert f"chmod go-w {away}" in decided.fails(NOT_ALLOWED, "key", "list")


def test_an_install_asks_no_server_of_a_list_that_others_may_write(decided, tmp_path):
    (tmp_path / "home" / "remotes.json").chmod(0o666)

    assert "others may write it" in decided.fails(NOT_ALLOWED, "install", "acme/legal-qa@base-7b")


def test_what_was_seen_of_signatures_is_not_believed_when_others_may_write_it(tmp_path):
    adapt = Adapt(tmp_path)
    fill(adapt)
    adapt.ok("remove", "away", "--yes")
    (tmp_path / "home" / "seen_signatures.json").chmod(0o666)

    assert "others may write it" in adapt.fails(NOT_ALLOWED, "install", "away@base-7b", "--from", "./published")


def test_doctor_says_that_others_may_write_in_the_library(decided, tmp_path):
    (tmp_path / "home").chmod(0o775)

    done = decided("doctor", "--offline", "--json")

    lines = json.loads(done.stdout)
    [line] = [line for line in lines if line["check"] == "permissions"]
    assert (line["state"], "chmod -R go-w" in line["hint"]) == ("warning", True)
    assert done.exit_code == 3, "what decides lies there, so it is not read"
    assert {line["check"] for line in lines if line["state"] == "failed"} == {"settings", "records"}
