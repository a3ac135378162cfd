import json
import shutil

import pytest

from adapterhub.core.errors import MalformedManifest
from adapterhub.formats.manifest import MANIFEST_FILE
from adapterhub.library.library import Library
from adapterhub.library.store import sweep as sweeping
from adapterhub.library.store.roots import KnownProjects, ProjectRoots
from adapterhub.library.store.sweep import objects_in, sweep
from tests.support.disk_looks import looks


def blob(library, digits):
    path = library.store.blob_path(f"sha256:{digits:064x}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"unused")
    return path


def unshare(folder):
    """Give a folder files of its own, as on a file system without hard links."""
    for path in list(folder.iterdir()):
        copy = path.with_name(f"{path.name}.copy")
        shutil.copy2(path, copy)
        copy.replace(path)


def test_builds_whose_files_are_copies_keep_their_objects(library, add):
    build = add("legal-qa").build
    unshare(build.folder)
    unused = blob(library, 1)

    assert [path for path, _ in library.gc(grace_s=0).gone] == [unused]
    assert library.verify_build(build).errors == ()


def test_the_folders_of_builds_are_read_only_where_an_object_may_go(library, add):
    build = add("legal-qa").build
    with looks() as seen:
        library.gc(grace_s=0)

    assert not any(str(build.folder) in path for _, path in seen)


def test_what_a_writer_touches_after_the_look_stays(library):
    touched, unused = blob(library, 1), blob(library, 2)

    def needed(_steps):
        with library.store.intent("add x") as intent:  # no sweep holds the store meanwhile
            (intent.folder / "file").write_bytes(b"unused")
            touched.touch()
        return ()

    swept = sweep(library.store, needed, grace_s=0)

    assert [path for path, _ in swept.gone] == [unused]
    assert touched.exists()


def test_a_build_that_comes_back_during_a_sweep_keeps_its_records(library, add):
    build = add("legal-qa").build
    origin = library.root / "origins" / f"{build.manifest.digest[7:]}.json"
    library.remove([build])

    def needed(_steps):
        again = add("legal-qa").build
        unshare(again.folder)
        return ()

    swept = sweep(library.store, needed, grace_s=0)

    assert (swept.gone, origin.exists()) == ((), True)
    assert all(library.store.has_blob(entry.sha256) for entry in build.manifest.files)


def test_a_sweep_takes_turns_with_writers(library, monkeypatch):
    monkeypatch.setattr(sweeping, "_TURN_S", 0.0)  # one object a turn at most
    for number in range(3):
        blob(library, number)
    seen = []

    def steps(done, total):
        with Library(library.root).store.lock("store", exclusive=True, wait_s=0.0):
            seen.append((done, total))
            monkeypatch.setattr(sweeping, "_TURN_S", 60.0)

    swept = library.gc(grace_s=0, steps=steps)

    assert (seen, len(swept.gone)) == ([(0, 3), (3, 3)], 3)


@pytest.mark.parametrize("form", [json.dumps, lambda value: json.dumps(value, indent=1)], ids=["usual", "indented"])
def test_a_manifest_in_any_form_names_its_objects(add, form):
    build = add("legal-qa").build
    path = build.folder / MANIFEST_FILE
    text = form(json.loads(path.read_bytes())).replace("sha256:", "sha25\\u0036:")
    path.unlink()
    path.write_text(text)

    expected = {build.manifest.digest, *(entry.sha256 for entry in build.manifest.files)}
    assert set(objects_in(str(build.folder), lambda _: True)) == expected
    path.write_text("{}")
    with pytest.raises(MalformedManifest):
        objects_in(str(build.folder), lambda _: False)


def test_projects_are_read_again_only_where_their_files_changed(tmp_path, library):
    first, second = f"sha256:{1:064x}", f"sha256:{2:064x}"
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        KnownProjects(library.root).remember(tmp_path / name, [first])
    roots = ProjectRoots(library.root)
    assert set(roots.digests()) == {first}

    (tmp_path / "a" / "adapters.lock").write_text(second)
    with looks() as seen:
        assert set(roots.digests()) == {first, second}

    read = [path for event, path in seen if event == "open"]
    assert (sum("/a/" in path for path in read), sum("/b/" in path for path in read)) == (1, 0)
    shutil.rmtree(tmp_path / "a")
    KnownProjects(library.root).remember(tmp_path / "b", [second])
    assert set(roots.digests()) == {second}
