"""`adapters/` of a project against its lock: links, what is right, what is not ours, what was interrupted."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from adapterhub.core.disk.files import RealFolder
from adapterhub.core.errors import AdapterNotFound, Conflict, DigestMismatch, Malformed, StoreLocked
from adapterhub.formats.cards.card import make_card
from adapterhub.formats.manifest import CARD_FILE, CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE
from adapterhub.library.directory import PublishedDirectory
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from adapterhub.library.store.blobs import Store
from adapterhub.library.store.roots import KnownProjects, synced_path
from adapterhub.projects.sync import folders, syncing, wanted_entries
from adapterhub.projects.sync.bringing import _all_of
from adapterhub.projects.sync.folders import opened
from adapterhub.projects.values import Lock, LockedAdapter, digests_of
from adapterhub.trust.verify import verify_folder
from tests.support.locks import entry_of, lock_of, nowhere, planned, sync

Add = Callable[..., Added]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "adapters.toml").write_text("")
    return folder


@pytest.fixture
def one(add: Add) -> LockedAdapter:
    return entry_of(add("legal-qa").build)


@pytest.fixture
def states(library: Library) -> Callable[[Path, Lock], dict[str, str]]:
    def look(project: Path, lock: Lock) -> dict[str, str]:
        return {s.entry.key: s.state.standing for s in planned(library, project, wanted_entries(lock)).steps}

    return look


# ---------------------------------------------------------------- linking
def test_a_fresh_sync_links_the_store_and_copies_no_weights(library, project, one):
    done = sync(library, project, lock_of(one))

    folder = project / "adapters" / "legal-qa"
    assert [what for _, what in done.steps] == ["linked"]
    assert done.brought == ()
    assert (project / "adapters" / ".gitignore").read_text() == "*\n"
    for file in one.files:
        assert (folder / file.path).samefile(library.store.blob_path(file.sha256))
    assert (folder / MANIFEST_FILE).samefile(library.store.manifest_path(one.digest))
    assert sorted(p.name for p in folder.iterdir()) == sorted([CARD_FILE, CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE])


def test_the_folder_is_that_of_the_library_under_the_projects_name(library, project, add):
    build = add("summarize", namespace="acme").build
    sync(library, project, lock_of(entry_of(build, "brief")))

    folder = project / "adapters" / "brief"
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        p.name: p.read_bytes() for p in build.folder.iterdir()
    }
    assert verify_folder(folder, manifest=build.manifest).errors == ()


def test_the_card_of_a_project_is_its_own_file(library, project, one, add):
    sync(library, project, lock_of(one))
    (project / "adapters" / "legal-qa" / CARD_FILE).write_text("mine")

    [build] = library.builds_named("legal-qa")
    assert (build.folder / CARD_FILE).read_text() == make_card(build.manifest).text


def test_without_hard_links_the_files_are_copies_and_still_right(library, project, one, monkeypatch, states):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, "cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    sync(library, project, lock_of(one))

    weights = project / "adapters" / "legal-qa" / WEIGHTS_FILE
    assert weights.stat().st_nlink == 1
    assert states(project, lock_of(one)) == {"legal-qa": "right"}
    assert [what for _, what in sync(library, project, lock_of(one)).steps] == ["kept"]


def test_what_is_right_is_not_touched(library, project, one):
    sync(library, project, lock_of(one))
    folder, state = project / "adapters" / "legal-qa", synced_path(library.root, project)
    before = folder.stat(), state.stat()

    done = sync(library, project, lock_of(one))

    assert [what for _, what in done.steps] == ["kept"]
    assert (folder.stat(), state.stat()) == before


def test_a_right_folder_is_taken_over_though_nobody_noted_it(library, project, one):
    sync(library, project, lock_of(one))
    synced_path(library.root, project).unlink()

    assert [what for _, what in sync(library, project, lock_of(one)).steps] == ["kept"]
    assert "legal-qa" in json.loads(synced_path(library.root, project).read_bytes())["folders"]


# ---------------------------------------------------------------- what changed
def test_a_new_lock_replaces_the_folder_in_one_step(library, project, one, add, states, monkeypatch):
    sync(library, project, lock_of(one))
    newer = entry_of(add("legal-qa", version="1.1.0", seed=7).build)
    seen = []
    exchange = RealFolder.exchange

    def watched(adapters: RealFolder, fresh: str, name: str) -> bool:
        seen.append((project / "adapters" / name / WEIGHTS_FILE).exists())
        done = exchange(adapters, fresh, name)
        seen.append((project / "adapters" / name / WEIGHTS_FILE).exists())
        return done

    monkeypatch.setattr(RealFolder, "exchange", watched)
    done = sync(library, project, lock_of(newer))

    assert ([what for _, what in done.steps], seen) == (["replaced"], [True, True])
    assert states(project, lock_of(newer)) == {"legal-qa": "right"}
    assert [p.name for p in (project / "adapters").iterdir() if p.is_dir()] == ["legal-qa"]


def test_where_names_cannot_be_exchanged_two_renames_do(library, project, one, add, monkeypatch, states):
    sync(library, project, lock_of(one))
    newer = entry_of(add("legal-qa", version="1.1.0", seed=7).build)
    monkeypatch.setattr(RealFolder, "exchange", lambda *_: False)

    sync(library, project, lock_of(newer))

    assert states(project, lock_of(newer)) == {"legal-qa": "right"}


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE, MANIFEST_FILE])
def test_a_file_that_was_swapped_in_a_folder_of_ours_is_put_right(library, project, one, name, states):
    sync(library, project, lock_of(one))
    path = project / "adapters" / "legal-qa" / name
    path.unlink()
    path.write_bytes(b"other")

    [step] = planned(library, project, [one]).steps
    assert step.state.standing == "replace"
    assert f"`{name}`" in step.state.reasons[0]
    sync(library, project, lock_of(one))
    assert states(project, lock_of(one)) == {"legal-qa": "right"}


def test_a_file_that_was_written_to_through_a_link_is_fetched_anew(library, project, add, one, tmp_path, states):
    """The store shares the bytes, so they are damaged there, too: they go into quarantine, never into a folder."""
    other = Library(tmp_path / "other")
    [build] = library.builds_named("legal-qa")
    shutil.copytree(build.folder, tmp_path / "published" / "legal-qa")
    sync(library, project, lock_of(one))
    weights = project / "adapters" / "legal-qa" / WEIGHTS_FILE
    weights.chmod(0o644)
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)

    library.remove([build])
    sync(library, project, lock_of(one), PublishedDirectory(tmp_path / "published"))

    assert states(project, lock_of(one)) == {"legal-qa": "right"}
    assert len(list((library.root / "quarantine").iterdir())) == 1
    assert not other.root.exists()


# ---------------------------------------------------------------- what is not ours


def test_a_file_that_somebody_put_into_a_folder_of_ours_keeps_it_from_being_replaced(
    library, project, one, add, states
):
    sync(library, project, lock_of(one))
    (project / "adapters" / "legal-qa" / "notes.txt").write_text("mine")
    newer = entry_of(add("legal-qa", version="1.1.0", seed=7).build)

    assert states(project, lock_of(one)) == {"legal-qa": "right"}
    with pytest.raises(Conflict) as refused:
        sync(library, project, lock_of(newer))
    assert "notes.txt" in refused.value.message
    assert (project / "adapters" / "legal-qa" / "notes.txt").exists()


# ---------------------------------------------------------------- what the library lacks
def test_a_library_that_was_lost_is_filled_from_the_projects_own_folder(library, project, one):
    sync(library, project, lock_of(one))
    shutil.rmtree(library.root / "adapters")
    shutil.rmtree(library.root / "blobs")
    shutil.rmtree(library.root / "manifests")

    done = sync(library, project, lock_of(one))

    assert ([what for _, what in done.steps], len(done.brought)) == (["kept"], 1)
    assert [b.manifest.digest for b in library.builds_named("legal-qa")] == [one.digest]


def test_a_build_that_was_removed_from_the_library_comes_back_from_its_store(library, project, one):
    library.remove(library.builds_named("legal-qa"))

    sync(library, project, lock_of(one))

    assert [b.manifest.digest for b in library.builds_named("legal-qa")] == [one.digest]


def test_every_failure_is_told_at_once_and_nothing_is_changed(library, project, one, add, tmp_path):
    away = Library(tmp_path / "away")
    gone = [entry_of(add(name, seed=n, into=away).build) for n, name in enumerate(("tables", "charts"))]

    with pytest.raises(AdapterNotFound) as refused:
        sync(library, project, lock_of(one, *gone))

    assert all(entry.digest in refused.value.message for entry in gone)
    assert not (project / "adapters").exists()


def test_other_content_under_the_locked_version_is_refused_with_both_hashes(library, project, add, tmp_path):
    away = Library(tmp_path / "away")
    locked = entry_of(add("tables", seed=3, into=away).build)
    offered = add("tables", seed=4, into=Library(tmp_path / "other")).build

    with pytest.raises(DigestMismatch) as refused:
        sync(library, project, lock_of(locked), Library(tmp_path / "other"))

    assert (refused.value.expected, refused.value.actual) == (locked.digest, offered.manifest.digest)


def test_another_build_of_the_library_in_its_place_is_refused_with_both_hashes(library, project, add, tmp_path):
    away = Library(tmp_path / "away")
    locked = entry_of(add("tables", seed=3, into=away).build)
    mine = add("tables", seed=4).build

    with pytest.raises(DigestMismatch) as refused:
        sync(library, project, lock_of(locked), away)

    assert (refused.value.expected, refused.value.actual) == (locked.digest, mine.manifest.digest)
    assert "adapt remove" in refused.value.hint


def test_a_second_place_is_asked_when_the_first_has_other_content(library, project, add, tmp_path, states):
    right, wrong = Library(tmp_path / "right"), Library(tmp_path / "wrong")
    locked = entry_of(add("tables", seed=3, into=right).build)
    add("tables", seed=4, into=wrong)

    sync(library, project, lock_of(locked), wrong, right)

    assert states(project, lock_of(locked)) == {"tables": "right"}


def test_a_lock_whose_files_are_not_those_of_its_manifest_is_refused(library, project, one):
    from dataclasses import replace

    fewer = replace(one, files=one.files[:1])

    with pytest.raises(Malformed) as refused:
        sync(library, project, lock_of(fewer))

    assert f"`{WEIGHTS_FILE}` as no file" in refused.value.message
    assert not (project / "adapters" / "legal-qa").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": "1.2.0"}, "`version` as 1.2.0; in its manifest {digest} it is 1.0.0"),
        ({"name": "tables"}, "`name` as tables; in its manifest {digest} it is legal-qa"),
        ({"rank": 64}, "`rank` as 64; in its manifest {digest} it is 4"),
        ({"rank": None}, "`rank` as none"),
        ({"base": "sha256:" + "a" * 64}, "`base` as sha256:aaaa"),
    ],
)
@pytest.mark.parametrize("is_synced", [False, True])
def test_a_lock_that_says_something_else_than_its_manifest_is_refused(library, project, one, change, said, is_synced):
    from dataclasses import replace

    if is_synced:
        sync(library, project, lock_of(one))
    before = [build.folder for build in library.installed()]

    with pytest.raises(Malformed) as refused:
        sync(library, project, lock_of(replace(one, **change)))

    assert said.format(digest=one.digest) in refused.value.message
    assert (project / "adapters" / "legal-qa").exists() == is_synced
    assert [build.folder for build in library.installed()] == before


# ---------------------------------------------------------------- stops
def test_a_sync_that_was_killed_between_two_folders_is_finished_by_the_next(
    library, project, one, add, monkeypatch, states
):
    two = entry_of(add("tables", seed=3).build)
    place = folders.place
    import adapterhub.projects.sync as syncs

    def dies(library: Library, entry: LockedAdapter, *given: object, replaces: bool) -> None:
        if entry.key == "tables":
            raise KeyboardInterrupt
        place(library, entry, *given, replaces=replaces)

    monkeypatch.setattr(syncs, "place", dies)
    with pytest.raises(KeyboardInterrupt):
        sync(library, project, lock_of(one, two))
    assert states(project, lock_of(one, two)) == {"legal-qa": "right", "tables": "new"}

    monkeypatch.setattr(syncs, "place", place)
    sync(library, project, lock_of(one, two))
    assert states(project, lock_of(one, two)) == {"legal-qa": "right", "tables": "right"}


def test_two_syncs_wait_for_each_other_though_one_came_by_a_link(library, project, tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to(project)
    real = Store.lock
    monkeypatch.setattr(Store, "lock", lambda self, name, **named: real(self, name, **named | {"wait_s": 0.0}))

    with syncing(library, project), pytest.raises(StoreLocked), syncing(library, tmp_path / "link"):
        pass


def test_leftovers_of_a_killed_sync_are_put_right(library, project, one, states):
    sync(library, project, lock_of(one))
    adapters = project / "adapters"
    (adapters / "legal-qa").rename(adapters / ".legal-qa.old-0a1b2c3d")
    (adapters / ".legal-qa.new-0a1b2c3d").mkdir()

    with syncing(library, project):
        pass

    assert sorted(p.name for p in adapters.iterdir()) == [".gitignore", "legal-qa"]
    assert states(project, lock_of(one)) == {"legal-qa": "right"}


def test_a_folder_that_was_half_taken_away_never_comes_back(library, project, one, monkeypatch):
    sync(library, project, lock_of(one))

    def dies(folder: RealFolder, name: str, *, only_look: bool = False) -> None:
        if not only_look:
            (folder.path / name / WEIGHTS_FILE).unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as killed, opened(library.store, project) as target:
        killed.setattr(RealFolder, "remove", dies)
        with pytest.raises(KeyboardInterrupt):
            folders.take_away(target.adapters, "legal-qa")
    with syncing(library, project):
        pass

    assert [p.name for p in (project / "adapters").iterdir() if p.is_dir()] == []


# ---------------------------------------------------------------- roots
def test_what_a_known_project_locks_is_kept_by_gc(library, project, one):
    KnownProjects(library.root).remember(project, digests_of(lock_of(one)))
    library.remove(library.builds_named("legal-qa"))

    assert library.gc(grace_s=0).gone == ()

    shutil.rmtree(project)
    assert len(library.gc(grace_s=0).gone) == 2 + len(one.files)  # and the note of its origin


def test_what_a_lock_file_names_today_is_kept_though_it_was_never_synced(library, project, one):
    KnownProjects(library.root).remember(project, digests_of(lock_of()))
    (project / "adapters.lock").write_text("\n".join([one.digest, *(f.sha256 for f in one.files)]))
    library.remove(library.builds_named("legal-qa"))

    assert library.gc(grace_s=0).gone == ()


def test_projects_are_known_by_their_folder_once(library, project, one, tmp_path):
    known = KnownProjects(library.root)
    known.remember(project, digests_of(lock_of(one)))
    known.remember(project, digests_of(lock_of(one)))

    [found] = known.all()
    assert found.folder == project
    assert found.digests == {one.digest, *(f.sha256 for f in one.files)}
    project.rename(tmp_path / "moved")
    assert known.all() == []
    assert known.forget_gone() == [project]
    assert list((library.root / "projects").iterdir()) == []


def test_a_place_that_cannot_be_opened_is_told(library, project, add, tmp_path):
    from adapterhub.projects.sync import BuildSources, run_sync

    away = Library(tmp_path / "away")
    locked = entry_of(add("tables", seed=3, into=away).build)
    lock = lock_of(locked)

    with pytest.raises(AdapterNotFound) as refused:
        run_sync(
            library, lock, planned(library, project, [locked]), BuildSources(places=nowhere, rebuild=lambda _: None)
        )

    assert "nobody has `tables`" in refused.value.message


def test_one_reason_for_several_builds_is_told_once_and_line_by_line():
    """It was printed once for each build, the second time with a literal `\\n`."""
    same = [AdapterNotFound("`legal-qa` is not available:\n  it is gone", hint="sync again") for _ in range(3)]

    error = _all_of([*same, AdapterNotFound("`other` is gone")])

    assert error.message == "`legal-qa` is not available:\n  it is gone\nalso: `other` is gone"
