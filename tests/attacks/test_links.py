"""Links in folders that a stranger prepared: no command writes, moves or deletes anything behind them.

Each attack puts `work/`, a folder of the user with files of their own, behind a link. Afterwards every name and byte in
it must be the same.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from adapterhub.core.digests import digest_of
from adapterhub.core.disk.files import RealFolder
from adapterhub.core.disk.home import FOLDERS
from adapterhub.core.errors import NotAllowed
from adapterhub.formats.manifest import MANIFEST_FILE
from adapterhub.projects.sync import plan_sync, run_sync, syncing, wanted_entries
from tests.support.command_line import Adapt
from tests.support.locks import entry_of, lock_of, means, sync
from tests.support.tiny import make_adapter, make_base

pytestmark = pytest.mark.slow

NOT_ALLOWED, CONFLICT, NOT_FOUND, SOME_FAILED, USAGE = 14, 15, 10, 3, 2


def content_of(folder: Path) -> dict[str, str]:
    """Every path below a folder with its kind and bytes; links are not followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        where = path.relative_to(folder).as_posix()
        if path.is_symlink():
            found[where] = f"link {path.readlink()}"
        else:
            found[where] = digest_of(path.read_bytes()) if path.is_file() else "folder"
    return found


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A folder of the user: a run, a file whose name is a digest, and notes in several depths."""
    folder = tmp_path / "work"
    make_adapter(folder / "run-1", seed=5)
    (folder / "run-1" / "checkpoints").mkdir()
    (folder / "run-1" / "checkpoints" / "notes.txt").write_text("mine")
    (folder / "notes.txt").write_text("mine")
    (folder / ("ab" + "0" * 62)).write_text("mine")
    (folder / ("ab" + "0" * 62 + ".json")).write_text("{}")
    old = 1_000_000_000
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (old, old))
    return folder


@pytest.fixture
def adapt(tmp_path: Path) -> Adapt:
    """A library with the adapter `legal-qa`, and a project `repo` that locks it."""
    adapt = Adapt(tmp_path)
    make_adapter(tmp_path / "made" / "legal-qa", seed=1)
    adapt.ok("add", "made/legal-qa", "--name", "legal-qa")
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "adapters.toml").write_text('[adapters]\nlegal-qa = ""\n')
    adapt.ok("lock", "--project", "repo")
    return adapt


# ---------------------------------------------------------------- sync
@pytest.mark.parametrize("options", [(), ("--prune",), ("--prune", "--yes"), ("--frozen", "--prune", "--yes")])
@pytest.mark.parametrize("target", ["../work", "../work/run-1", "..", "."])
def test_sync_refuses_an_adapters_folder_that_is_a_link(adapt, work, tmp_path, options, target):
    (tmp_path / "repo" / "adapters").symlink_to(target)
    before = content_of(work), content_of(tmp_path / "repo")

    said = adapt.fails(NOT_ALLOWED, "sync", "--project", "repo", *options)

    assert "is a link" in said
    assert (content_of(work), content_of(tmp_path / "repo")) == before


def test_upgrade_refuses_an_adapters_folder_that_is_a_link(adapt, work, tmp_path):
    (tmp_path / "repo" / "adapters").symlink_to("../work")
    before = content_of(work)

    adapt.fails(NOT_ALLOWED, "upgrade", "--project", "repo")
    adapt.fails(NOT_ALLOWED, "upgrade", "--project", "repo", "--dry-run")

    assert content_of(work) == before


def test_prune_deletes_the_link_in_adapters_and_nothing_behind_it(adapt, work, tmp_path):
    (tmp_path / "repo" / "adapters").mkdir()
    (tmp_path / "repo" / "adapters" / "mine").symlink_to("../../work")
    (tmp_path / "repo" / "adapters" / "legal-qa").symlink_to("../../work/run-1")
    before = content_of(work)

    adapt.ok("sync", "--project", "repo", "--prune", "--yes")

    assert content_of(work) == before
    assert sorted(p.name for p in (tmp_path / "repo" / "adapters").glob("[!.]*")) == ["legal-qa"]


def test_prune_deletes_a_folder_with_links_in_it_and_nothing_behind_them(adapt, work, tmp_path):
    mine = tmp_path / "repo" / "adapters" / "mine"
    (mine / "below").mkdir(parents=True)
    (mine / "a").symlink_to("../../../work")
    (mine / "below" / "b").symlink_to("../../../../work/run-1")
    before = content_of(work)

    adapt.ok("sync", "--project", "repo", "--prune", "--yes")

    assert not mine.exists()
    assert content_of(work) == before


@pytest.mark.parametrize("kind", ["new", "old", "gone"])
def test_leftovers_that_a_repository_brings_are_cleared_without_following_links(adapt, work, tmp_path, kind):
    adapters = tmp_path / "repo" / "adapters"
    adapters.mkdir()
    (adapters / f".x.{kind}-0a1b2c3d").symlink_to("../../work")
    (adapters / f".y.{kind}-0a1b2c3d").mkdir()
    (adapters / f".y.{kind}-0a1b2c3d" / "z").symlink_to("../../../work")
    before = content_of(work)

    adapt.ok("sync", "--project", "repo")

    assert content_of(work) == before


def test_a_sync_state_that_a_repository_brings_deletes_nothing(adapt, tmp_path):
    """The state lies in the library: whatever lies in the project names nothing that `--prune` may delete."""
    adapters = tmp_path / "repo" / "adapters"
    mine = make_adapter(adapters / "mine", seed=5)
    digest = adapt.json("list")[0]["digest"]
    forged = f'{{"schema":"adapterhub-sync/%d","folders":{{"mine":{{"digest":"{digest}","files":{{}},"inode":%d}}}}}}'
    for number in (1, 2, 3):
        text = forged % (number, mine.stat().st_ino)
        (adapters / ".adapterhub-sync.json").write_text(text)
        adapt.ok("sync", "--project", "repo", "--prune")

    assert mine.exists()


def test_a_folder_that_the_user_put_in_the_place_of_a_synced_one_is_not_pruned(adapt, tmp_path):
    adapt.ok("sync", "--project", "repo")
    folder = tmp_path / "repo" / "adapters" / "legal-qa"
    folder.rename(tmp_path / "away")
    make_adapter(folder, seed=7)
    (tmp_path / "repo" / "adapters.toml").write_text("[adapters]\n")
    before = content_of(folder)

    adapt.ok("sync", "--project", "repo", "--prune")

    assert content_of(folder) == before


def test_a_link_that_appears_after_the_check_changes_nothing_behind_it(library, add, tmp_path, work):
    project = tmp_path / "project"
    project.mkdir()
    one, two = entry_of(add("legal-qa").build), entry_of(add("tables", seed=3).build)
    sync(library, project, lock_of(one, two))
    newer = entry_of(add("legal-qa", version="1.1.0", seed=7).build)
    lock = lock_of(newer)
    for name in ("legal-qa", "tables"):
        make_adapter(work / name, seed=8)
    before = content_of(work)

    with syncing(library, project) as target:
        plan = plan_sync(target, wanted_entries(lock))
        (project / "adapters").rename(project / "elsewhere")
        (project / "adapters").symlink_to(work)
        run_sync(library, lock, plan, means(library, lock=lock), prune=True)

    assert content_of(work) == before
    assert [p.name for p in (project / "elsewhere").glob("[!.]*")] == ["legal-qa"]
    assert (project / "elsewhere" / "legal-qa" / MANIFEST_FILE).samefile(library.store.manifest_path(newer.digest))


def test_a_folder_that_appears_after_the_check_is_not_replaced(library, add, tmp_path):
    project = tmp_path / "project"
    project.mkdir()
    lock = lock_of(entry_of(add("legal-qa").build))

    with syncing(library, project) as target:
        plan = plan_sync(target, wanted_entries(lock))
        mine = make_adapter(project / "adapters" / "legal-qa", seed=8)
        target.adapters = RealFolder.open(project / "adapters")
        before = content_of(mine)
        with pytest.raises(NotAllowed):
            run_sync(library, lock, plan, means(library, lock=lock))

    assert content_of(mine) == before


def test_sync_writes_nothing_elsewhere_while_adapters_is_swapped_in_a_loop(library, add, tmp_path, work):
    project = tmp_path / "project"
    project.mkdir()
    entries = [entry_of(add(f"a{n}", seed=n).build) for n in range(4)]
    sync(library, project, lock_of(*entries))
    (tmp_path / "link").symlink_to(work)
    before, stop = content_of(work), threading.Event()

    def swap() -> None:
        with RealFolder.open(tmp_path) as around:
            while not stop.is_set():
                around.exchange("project/adapters", "link")

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        for turn in range(50):
            asked = entries[turn % 2 :: 2]
            try:
                sync(library, project, lock_of(*asked), prune=True)
            except NotAllowed:
                continue
    finally:
        stop.set()
        swapper.join()

    assert content_of(work) == before


def test_an_adapters_folder_on_another_mount_is_refused(adapt, tmp_path, monkeypatch):
    """Without root nobody can mount here: the number that the kernel gives to a mount is what is told apart."""
    from adapterhub.core.disk import files

    adapt.ok("sync", "--project", "repo")
    adapters = (tmp_path / "repo" / "adapters").stat().st_ino
    real = files.mount_of
    monkeypatch.setattr(files, "mount_of", lambda handle: -1 if os.fstat(handle).st_ino == adapters else real(handle))

    assert "is a mount point" in adapt.fails(NOT_ALLOWED, "sync", "--project", "repo", "--prune", "--yes")


def test_prune_deletes_nothing_of_a_folder_in_which_something_is_mounted(adapt, tmp_path, monkeypatch):
    from adapterhub.core.disk import files

    mine = tmp_path / "repo" / "adapters" / "mine"
    (mine / "mounted").mkdir(parents=True)
    (mine / "mounted" / "notes.txt").write_text("mine")
    (mine / "a.txt").write_text("mine")
    before, mounted, real = content_of(mine), (mine / "mounted").stat().st_ino, files.mount_of
    monkeypatch.setattr(files, "mount_of", lambda handle: -1 if os.fstat(handle).st_ino == mounted else real(handle))

    assert "something else is mounted there" in adapt.fails(
        NOT_ALLOWED, "sync", "--project", "repo", "--prune", "--yes"
    )

    assert content_of(mine) == before


def test_an_adapters_folder_of_another_user_is_refused(adapt, tmp_path, monkeypatch):
    adapt.ok("sync", "--project", "repo")
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    adapters = (tmp_path / "repo" / "adapters").stat().st_ino
    real = os.fstat

    class Other:
        def __init__(self, facts: os.stat_result) -> None:
            self._facts, self.st_uid = facts, 54321

        def __getattr__(self, name: str) -> object:
            return getattr(self._facts, name)

    monkeypatch.setattr(os, "fstat", lambda h: Other(real(h)) if real(h).st_ino == adapters else real(h))

    assert "another user" in adapt.fails(NOT_ALLOWED, "sync", "--project", "repo")


# ---------------------------------------------------------------- the library
def stock(adapt: Adapt) -> None:
    """Something to add, to install and to register."""
    for seed, name in enumerate(("tables", "extract")):
        make_adapter(adapt.folder / "made" / name, seed=seed + 2)
    make_base(adapt.folder / "base")
    adapt.ok("add", "made/extract", "--name", "extract")
    adapt.ok("push", "extract", "--to", "./published")
    adapt.ok("remove", "extract", "--yes")


LIBRARY_COMMANDS: dict[str, tuple[str, ...]] = {
    "gc": ("cache", "clean", "--grace", "0"),
    "gc --unused": ("cache", "clean", "--grace", "0", "--unused", "--yes"),
    "doctor --repair": ("doctor", "--repair", "--offline"),
    "doctor --rebuild-index": ("doctor", "--rebuild-index", "--offline"),
    "add": ("add", "made/tables", "--name", "tables"),
    "install": ("install", "extract", "--from", "./published"),
    "remove": ("remove", "legal-qa", "--yes"),
    "sync": ("sync", "--project", "repo", "--prune", "--yes"),
    "base add": ("base", "add", "base", "--as", "base-7b"),
    "remote add": ("remote", "add", "ours", "http://127.0.0.1:9"),
    "key new": ("key", "new", "mine", "--unencrypted"),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_a_library_folder_that_is_a_link_is_refused_and_nothing_behind_it_changes(adapt, work, tmp_path, name):
    stock(adapt)
    place = tmp_path / "home" / name
    place.parent.mkdir(exist_ok=True)
    if place.exists():
        place.rename(tmp_path / "away")
    place.symlink_to(work)
    before = content_of(work)

    for command, arguments in LIBRARY_COMMANDS.items():
        done = adapt(*arguments)
        assert content_of(work) == before, command
        if (name, command) == ("adapters", "remove"):  # what lies behind the link is not installed
            assert done.exit_code == NOT_FOUND
        else:
            assert (done.exit_code, "is a link" in done.stderr) == (NOT_ALLOWED, True), (command, done)
    assert adapt("doctor", "--offline").exit_code == SOME_FAILED


INNER_LINKS = (
    "blobs/sha256/ab", "blobs/sha256/zz", "tmp/x", "quarantine/x", "intents/x", "leases/x", "adapters/x",
    "adapters/unknown/x", "adapters/unknown/legal-qa/9.0", "origins/x", "projects/x",
)  # fmt: skip


@pytest.mark.parametrize("command", LIBRARY_COMMANDS)
def test_links_deeper_in_the_library_lead_no_command_out_of_it(adapt, work, tmp_path, command):
    stock(adapt)
    for name in INNER_LINKS:
        place = tmp_path / "home" / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(work)
    before = content_of(work)

    done = adapt(*LIBRARY_COMMANDS[command])

    assert "Traceback" not in done.stderr
    assert content_of(work) == before


def test_what_stands_behind_a_link_in_the_library_is_not_installed(adapt, tmp_path):
    home = tmp_path / "home"
    (home / "adapters" / "unknown").rename(tmp_path / "elsewhere")
    (home / "adapters" / "unknown").symlink_to(tmp_path / "elsewhere")

    assert "is a link" in adapt("verify", "--all").stdout
    adapt("doctor", "--rebuild-index", "--offline")
    assert adapt.json("list") == []


# ---------------------------------------------------------------- outputs
def outputs(place: str) -> dict[str, tuple[str, ...]]:
    """Every command that writes a new folder or file, with an output at `place`."""
    return {
        "pull": ("pull", "legal-qa", place),
        "export peft": ("export", "legal-qa", "--format", "peft", "-o", place),
        "export vllm": ("export", "legal-qa", "--format", "vllm", "-o", place),
        "export gguf": ("export", "legal-qa", "--format", "gguf", "-o", place),
        "export ollama": ("export", "legal-qa", "--format", "ollama", "-o", place, "--gguf", "x"),
        "export merged": ("export", "legal-qa", "--format", "merged", "-o", place),
        "export list": ("export", "--library", "-o", place),
        "merge": ("merge", "legal-qa", "second", "-o", f"./{place}"),
        "resize": ("resize", "legal-qa", "--rank", "2", "-o", f"./{place}"),
        "fuse": ("fuse", "legal-qa", "-o", place),
        "extract": ("extract", "./tuned", "--base", "base-7b", "--rank", "2", "-o", f"./{place}"),
        "push": ("push", "legal-qa", "--to", f"./{place}"),
        "init": ("init", place),
        "plot": ("compare", "legal-qa", "second", "--plot", f"{place}.svg"),
    }


@pytest.fixture
def with_base(adapt: Adapt, tmp_path: Path) -> Adapt:
    make_base(tmp_path / "base")
    make_base(tmp_path / "tuned", seed=1)
    adapt.ok("base", "add", "base", "--as", "base-7b")
    adapt.ok("remove", "legal-qa", "--yes")
    adapt.ok("add", "made/legal-qa", "--name", "legal-qa", "--base", "base-7b")
    make_adapter(tmp_path / "made" / "second", seed=9)
    adapt.ok("add", "made/second", "--name", "second", "--base", "base-7b")
    return adapt


@pytest.mark.parametrize("marker", ["adapters.toml", ".git"])
def test_no_output_goes_through_a_link_out_of_a_project_or_checkout(with_base, work, tmp_path, marker):
    clone = tmp_path / "clone"
    (clone / "deeper").mkdir(parents=True)
    (clone / marker).touch()
    (clone / "out").symlink_to("../work")
    (clone / "deeper" / "out").symlink_to("../../work")
    (clone / "again").symlink_to("deeper")
    (work / ".git").mkdir()  # a checkout of the user behind the link makes it no more welcome
    before = content_of(work)

    for place in ("clone/out/new", "clone/again/out/new", "clone/deeper/out/a/b"):
        for command, arguments in outputs(place).items():
            done = with_base(*arguments)
            assert content_of(work) == before, command
            assert (done.exit_code, "through a link" in done.stderr) == (NOT_ALLOWED, True), (command, done)


def test_an_output_that_is_a_link_itself_is_not_written_through(with_base, work, tmp_path):
    clone = tmp_path / "clone"
    clone.mkdir()
    (clone / ".git").mkdir()
    (clone / "file").symlink_to("../work/notes.txt")
    (clone / "file.svg").symlink_to("../work/notes.txt")
    (clone / "nothing").symlink_to("../work/new.txt")
    (clone / "nothing.svg").symlink_to("../work/new.svg")
    (clone / "folder").symlink_to("../work/empty")
    (work / "empty").mkdir()
    before = content_of(work)

    for place in ("clone/file", "clone/nothing", "clone/folder"):
        for command, arguments in outputs(place).items():
            if (command, place) == ("plot", "clone/folder"):
                continue
            done = with_base(*arguments)
            assert content_of(work) == before, command
            assert done.exit_code in (NOT_ALLOWED, CONFLICT, USAGE), (command, done)


@pytest.mark.parametrize(
    "below", ["adapters/unknown/x", "blobs/sha256/x", "manifests/x", "tmp/x", "tmp/x/y", "cache/x"]
)
def test_no_output_goes_into_a_library(with_base, tmp_path, below):
    (tmp_path / "link").symlink_to("home")

    for root in ("home", "link"):
        before = content_of(tmp_path / "home")
        for command, arguments in outputs(f"{root}/{below}").items():
            done = with_base(*arguments)
            now = {k: v for k, v in content_of(tmp_path / "home").items() if not k.startswith(("locks", "cache"))}
            assert now == {k: v for k, v in before.items() if not k.startswith(("locks", "cache"))}, command
            assert (done.exit_code, "in the library" in done.stderr) == (NOT_ALLOWED, True), (command, done)


def test_outputs_go_through_links_that_lie_outside_of_projects(with_base, work, tmp_path):
    (tmp_path / "models").symlink_to(work)

    with_base.ok("pull", "legal-qa", "models/legal-qa")
    with_base.ok("export", "--library", "-o", "models/list.txt")

    assert (work / "legal-qa" / MANIFEST_FILE).is_file()
    assert (work / "list.txt").is_file()


# ---------------------------------------------------------------- project files
@pytest.mark.parametrize("name", ["adapters.toml", "adapters.lock"])
def test_project_files_that_are_links_out_of_the_project_are_not_written(adapt, work, tmp_path, name):
    stock(adapt)
    repo = tmp_path / "repo"
    (repo / name).rename(work / name)
    (repo / name).symlink_to(f"../work/{name}")
    (repo / "adapters.toml").touch()
    before = content_of(work), content_of(repo)

    for command in (
        ("install", "extract", "--from", "./published", "--save", "--project", "repo"),
        ("lock", "--upgrade", "--project", "repo", "--from", "./published"),
        ("uninstall", "legal-qa", "--save", "--yes", "--project", "repo"),
    ):
        done = adapt(*command)
        assert (content_of(work), content_of(repo)) == before, done
    assert "through a link" in adapt.fails(NOT_ALLOWED, "uninstall", "legal-qa", "--save", "--yes", "--project", "repo")


def test_push_follows_no_link_inside_a_directory_of_builds(adapt, work, tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared" / "legal-qa").symlink_to(work)
    before = content_of(work)

    adapt.fails(NOT_ALLOWED, "push", "legal-qa", "--to", "./shared")

    assert content_of(work) == before


def test_the_demo_truncates_no_file_behind_a_link(work, tmp_path):
    from adapterhub.cli.start.demo_run.base import prepare_base

    (tmp_path / "models").mkdir()
    (tmp_path / "models" / ".smollm2.lock").symlink_to(work / "notes.txt")
    before = content_of(work)

    with pytest.raises(NotAllowed):
        prepare_base(tmp_path / "models" / "smollm2", offline=True)

    assert content_of(work) == before
