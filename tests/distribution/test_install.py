from __future__ import annotations

import io
import json
from pathlib import Path

import pytest

from adapterhub.core.errors import (
    AdapterNotFound,
    BaseMismatch,
    Conflict,
    DigestMismatch,
    NoCompatibleRelease,
    RefusedAdapter,
    ReleaseExists,
    RemoteUnreachable,
)
from adapterhub.core.ranks import RankRange
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.install import plan_install, run_install
from adapterhub.formats.release import Release
from adapterhub.library.bases.requested import requested_base
from adapterhub.library.directory import BuildFolder, PlainFolder, PublishedDirectory, open_source
from adapterhub.library.library import Library
from adapterhub.library.store.rows import Filters
from adapterhub.library.transfer import copy
from tests.support.tiny import make_adapter, make_base


@pytest.fixture
def far(tmp_path, base):
    """Another library root, with the same base registered under another name."""
    library = Library(tmp_path / "far")
    library.bases.add(tmp_path / "base", "their-base")
    return library


def plan(library, text, *sources, **options):
    spec = AdapterSpec.parse(text)
    bounds = RankRange.of(options.pop("rank", None))
    return plan_install(
        library, spec, sources, wanted=requested_base(spec.base, library.bases), bounds=bounds, **options
    )


def install(library, text, *sources, **options):
    return run_install(library, plan(library, text, *sources, **options))


def publish(library, add, folder: Path, **made) -> PublishedDirectory:
    build = add(into=library, **made).build
    place = PublishedDirectory(folder)
    copy(Release(manifest=build.manifest, namespace=None, origin="there"), library, place)
    return place


def test_install_from_another_library_gives_the_same_manifest(library, far, add):
    theirs = add("legal-qa", into=far).build

    added = install(library, "legal-qa@base-7b", far)

    assert added.build.manifest == theirs.manifest
    assert [r.name for r in library.catalog.search(Filters())] == ["legal-qa"]


def test_install_from_a_published_directory(library, far, add, tmp_path):
    publish(far, add, tmp_path / "published", name="legal-qa")

    added = install(library, "legal-qa@base-7b", open_source(tmp_path / "published"))

    assert (added.created, added.build.full_name) == (True, "legal-qa")


class RemovedMeanwhile(Library):
    """A library from which another process removes what it lists, right after it listed it."""

    def builds_for(self, spec):
        found = super().builds_for(spec)
        self.remove(self.builds_named(spec.name, spec.namespace))
        return found


def test_what_is_removed_while_an_install_looks_at_it_comes_from_the_next_place(library, far, add):
    add("legal-qa")
    theirs = add("legal-qa", into=far).build

    added = install(RemovedMeanwhile(library.root), "legal-qa@base-7b", far)

    assert added.build.manifest.digest == theirs.manifest.digest


def test_installing_what_is_present_copies_nothing(library, far, add):
    add("legal-qa", into=far)
    install(library, "legal-qa@base-7b", far)
    inodes = {p: p.stat().st_ino for p in library.root.rglob("*.safetensors")}

    again = plan(library, "legal-qa@base-7b", far)

    assert (again.copy_bytes, run_install(library, again)) == (0, None)
    assert {p: p.stat().st_ino for p in library.root.rglob("*.safetensors")} == inodes


def test_bytes_that_the_store_has_are_linked_and_not_fetched(library, far, add):
    add("mine", seed=3)
    add("theirs", seed=3, into=far)

    class Counting:
        label, place, provenance, asked = far.label, far.place, far.provenance, []
        releases = far.releases

        def open(self, release, entry):
            self.asked.append(entry.path)
            return far.open(release, entry)

    source = Counting()
    install(library, "theirs@base-7b", source)

    assert source.asked == []


def test_the_newest_version_in_range_is_chosen(library, far, add):
    for number, version in enumerate(("1.0.0", "1.2.0", "2.0.0")):
        add("legal-qa", version=version, seed=number, into=far)

    assert install(library, "legal-qa@base-7b>=1.0,<2", far).build.manifest.version == "1.2.0"


@pytest.mark.parametrize(("bounds", "rank"), [({}, 8), ({"rank": 4}, 4), ({"rank": "-6"}, 4), ({"rank": "5-"}, 8)])
def test_rank_chooses_among_the_builds_of_a_release(library, far, add, bounds, rank):
    add("legal-qa", rank=4, into=far)
    add("legal-qa", rank=8, into=far, variant=True)

    assert install(library, "legal-qa@base-7b", far, **bounds).build.manifest.rank == rank


def test_a_refusal_has_one_reason_per_release(library, far, add, tmp_path):
    library.bases.add(make_base(tmp_path / "other", seed=7), "other")
    library.bases.add(make_base(tmp_path / "wide", width=12), "wide")
    add("legal-qa", version="1.0.0", rank=4, into=far)
    add("legal-qa", version="1.1.0", rank=8, into=far)

    with pytest.raises(NoCompatibleRelease) as ranks:
        install(library, "legal-qa@base-7b", far, rank=16)
    with pytest.raises(NoCompatibleRelease) as base:
        install(library, "legal-qa@wide", far)

    assert [release.split()[0] for release, _ in ranks.value.refusals] == ["1.1.0", "1.0.0"]
    assert [release.split()[0] for release, _ in base.value.refusals] == ["1.1.0", "1.0.0"]
    assert "16" in ranks.value.refusals[0][1]


def test_a_fine_tune_of_the_base_is_refused_unless_allowed(library, far, add, tmp_path):
    library.bases.add(make_base(tmp_path / "tuned", seed=7), "tuned")
    add("legal-qa", into=far)

    with pytest.raises(NoCompatibleRelease, match="base"):
        install(library, "legal-qa@tuned", far)
    added = install(library, "legal-qa@tuned", far, allow_base_mismatch=True)

    assert added.created
    assert library.mismatch_allowed(added.build, library.bases.get("tuned").fingerprint)


def test_a_plain_folder_installs_under_the_name_asked_for(library, base, tmp_path):
    folder = make_adapter(tmp_path / "out")

    added = install(library, "legal-qa@base-7b", open_source(folder))
    pinned = install(library, "other-name@base-7b==2.1", PlainFolder(folder))

    manifest = added.build.manifest
    assert manifest.version == f"0+{manifest.file('adapter_model.safetensors').sha256[7:19]}"
    assert pinned.build.manifest.version == "2.1"
    assert manifest.base.fingerprint is None


def test_a_plain_folder_that_does_not_fit_the_base_asked_for_is_refused(library, base, tmp_path):
    folder = make_adapter(tmp_path / "out", width=12)

    with pytest.raises(BaseMismatch):
        install(library, "legal-qa@base-7b", open_source(folder))

    assert library.catalog.search(Filters()) == []


@pytest.mark.parametrize("change", ["flip", "cut", "grow"])
def test_wrong_bytes_from_a_source_are_refused_and_leave_nothing(library, far, add, tmp_path, change):
    publish(far, add, tmp_path / "published", name="legal-qa")
    [weights] = (tmp_path / "published").rglob("*.safetensors")
    data = bytearray(weights.read_bytes())
    if change == "flip":
        data[-3] ^= 1
    changed = data[:-8] if change == "cut" else data + b"x" if change == "grow" else data
    weights.unlink()
    weights.write_bytes(changed)

    with pytest.raises(DigestMismatch):
        install(library, "legal-qa@base-7b", PublishedDirectory(tmp_path / "published"))

    left = [p for d in ("blobs", "manifests", "adapters", "tmp") for p in (library.root / d).rglob("*") if p.is_file()]
    assert left == []


def test_a_manifest_that_names_a_file_outside_is_refused(library, far, add, tmp_path):
    publish(far, add, tmp_path / "published", name="legal-qa")
    [path] = (tmp_path / "published").rglob("adapterhub.json")
    value = json.loads(path.read_text())
    value["files"].append({"path": "../../escape", "sha256": "sha256:" + "0" * 64, "size_bytes": 1, "media_type": "x"})
    path.unlink()
    path.write_text(json.dumps(value))

    with pytest.raises(Exception, match=r"escape.*not a file of an adapter"):
        install(library, "legal-qa@base-7b", PublishedDirectory(tmp_path / "published"))


def test_a_link_out_of_a_published_directory_is_not_followed(library, far, add, tmp_path):
    publish(far, add, tmp_path / "published", name="legal-qa")
    [weights] = (tmp_path / "published").rglob("*.safetensors")
    (tmp_path / "outside").write_bytes(weights.read_bytes())
    weights.unlink()
    weights.symlink_to(tmp_path / "outside")

    with pytest.raises(RefusedAdapter, match="E_LINK"):
        install(library, "legal-qa@base-7b", PublishedDirectory(tmp_path / "published"))


def test_an_earlier_place_decides_before_a_later_one(library, far, add, tmp_path):
    publish(Library(tmp_path / "third"), add, tmp_path / "published", name="legal-qa", version="9.0.0", seed=5)
    add("legal-qa", version="1.0.0", into=far)

    added = install(library, "legal-qa@base-7b", far, PublishedDirectory(tmp_path / "published"))

    assert added.build.manifest.version == "1.0.0"


def test_an_unknown_name_says_where_it_was_looked_for(library, base, far):
    with pytest.raises(AdapterNotFound, match=r"nothing.*home.*far"):
        install(library, "nothing@base-7b", far)


def test_publishing_a_version_twice_with_other_bytes_is_refused(library, far, add, tmp_path):
    publish(far, add, tmp_path / "published", name="legal-qa", seed=1)

    with pytest.raises(ReleaseExists):
        publish(Library(tmp_path / "third"), add, tmp_path / "published", name="legal-qa", seed=2)

    assert [p.name for p in (tmp_path / "published" / "legal-qa").iterdir()] == ["1.0.0-r4"]


def test_publishing_the_same_again_changes_nothing(far, add, tmp_path, base):
    build = add("legal-qa", into=far).build
    place, release = PublishedDirectory(tmp_path / "p"), Release(manifest=build.manifest, namespace=None, origin="x")
    copy(release, far, place)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "p").rglob("*")}

    copied = copy(release, far, place)

    assert copied.sent_files == 0
    assert {p: p.stat().st_mtime_ns for p in before if p.is_file()} == {p: t for p, t in before.items() if p.is_file()}


def test_a_pulled_folder_is_the_build_and_nothing_else(far, add, tmp_path):
    build = add("legal-qa", into=far).build
    release = Release(manifest=build.manifest, namespace=None, origin="x")

    copy(release, far, BuildFolder(tmp_path / "plain"))
    again = copy(release, far, BuildFolder(tmp_path / "plain"))

    assert {p.name: p.read_bytes() for p in (tmp_path / "plain").iterdir()} == {
        p.name: p.read_bytes() for p in build.folder.iterdir()
    }
    assert again.sent_files == 0


def test_pulling_never_touches_a_folder_that_holds_something_else(far, add, tmp_path):
    build = add("legal-qa", into=far).build
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")

    with pytest.raises(Conflict, match="not empty"):
        copy(Release(manifest=build.manifest, namespace=None, origin="x"), far, BuildFolder(tmp_path / "mine"))

    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["thesis.txt"]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".mine")] == []


def test_a_cut_source_leaves_a_part_that_the_next_install_goes_on_from(library, far, add):
    add("legal-qa", into=far)
    asked = []

    class Cut:
        label, releases, place, provenance = far.label, far.releases, far.place, far.provenance

        def open(self, release, entry):
            stream = far.open(release, entry)
            if not entry.path.endswith(".safetensors"):
                return stream
            asked.append(stream)
            data = stream.read(500)
            stream.seek(0)
            if len(asked) > 1:
                return stream

            class Broken(io.BytesIO):
                def readinto(self, buffer):
                    return super().readinto(buffer) or _cut()

            return Broken(data)

    def _cut():
        raise RemoteUnreachable("cut")

    with pytest.raises(RemoteUnreachable):
        install(library, "legal-qa@base-7b", Cut())
    [part] = (library.root / "tmp").iterdir()
    assert part.stat().st_size == 500
    added = install(library, "legal-qa@base-7b", Cut())

    assert added.created
    assert list((library.root / "tmp").iterdir()) == []
