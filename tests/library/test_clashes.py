"""One name, one meaning: what joins a version, what is refused, and which version is next."""

import shutil
from dataclasses import replace

import pytest

from adapterhub.core.errors import ReleaseExists, UsageProblem
from adapterhub.library.intake.clashes import next_version
from adapterhub.library.library import Library
from adapterhub.library.transfer import copy
from tests.support.tiny import make_adapter, make_base


def versions(library):
    return sorted((b.manifest.version, b.manifest.rank) for b in library.builds_named("qa"))


@pytest.fixture
def eight(add):
    return add("qa", rank=8).build


def test_another_rank_under_a_version_is_refused_and_names_both_and_the_next_version(library, add, eight):
    with pytest.raises(ReleaseExists) as refusal:
        add("qa", rank=4)

    assert "`qa` 1.0.0 (rank 8) is installed for base-7b" in refusal.value.message
    assert "qa-1` (rank 4)" in refusal.value.message
    assert refusal.value.hint == "`--bump patch` makes it 1.0.1; `--variant` adds another rank to 1.0.0 on purpose"
    assert versions(library) == [("1.0.0", 8)]


def test_the_refusal_reads_no_weights(tmp_path, library, base, add, eight):
    folder = make_adapter(tmp_path / "qa-4", rank=4)
    read = []

    with pytest.raises(ReleaseExists):
        library.add(folder, describing(eight), base=base, progress=read.append)

    assert read == []


def describing(build):
    from adapterhub.library.intake.description import Description

    return Description(name=build.manifest.name, version=build.manifest.version)


def test_a_variant_joins_the_version_at_another_rank_only(library, add, eight):
    assert add("qa", rank=4, variant=True).created
    with pytest.raises(ReleaseExists, match="differs in: files"):
        add("qa", rank=4, seed=9, variant=True)

    assert versions(library) == [("1.0.0", 4), ("1.0.0", 8)]


def test_the_same_content_again_changes_nothing_whatever_is_asked(library, add, eight):
    add("qa", rank=4, variant=True)

    again = [add("qa", rank=8), add("qa", rank=4), add("qa", rank=4, variant=True), add("qa", rank=8, bump="patch")]

    assert [one.created for one in again] == [False] * 4
    assert versions(library) == [("1.0.0", 4), ("1.0.0", 8)]


@pytest.mark.parametrize(("bump", "version"), [("patch", "1.0.1"), ("minor", "1.1.0"), ("major", "2.0.0")])
def test_a_bump_takes_the_next_version(library, add, eight, bump, version):
    assert add("qa", rank=4, bump=bump).build.manifest.version == version


def test_a_bump_follows_the_newest_version_and_takes_the_given_one_where_there_is_none(library, add):
    assert add("qa", version="0.1.0", bump="minor").build.manifest.version == "0.1.0"
    add("qa", version="0.4.2", seed=1)

    assert add("qa", version="0.1.0", seed=2, bump="minor").build.manifest.version == "0.5.0"


def test_bump_and_variant_exclude_each_other(library, add):
    with pytest.raises(UsageProblem, match="exclude each other"):
        add("qa", bump="patch", variant=True)
    with pytest.raises(UsageProblem, match="expected one of patch, minor, major"):
        add("qa", bump="tiny")


def test_other_names_versions_namespaces_and_bases_are_no_clash(tmp_path, library, add, eight):
    other = library.bases.add(make_base(tmp_path / "other", seed=5), "other-7b")
    folder = make_adapter(tmp_path / "qa-4", rank=4)

    add("qa-2", rank=4)
    add("qa", version="1.1.0", rank=4)
    add("qa", namespace="acme", rank=4)
    library.add(folder, describing(eight), base=other)

    assert len(library.builds_named("qa")) == 4


def test_the_same_base_in_another_precision_is_the_same_base(tmp_path, library, eight):
    half = library.bases.add(make_base(tmp_path / "half", dtype="f2"), "base-half")

    with pytest.raises(ReleaseExists, match="rank 8"):
        library.add(make_adapter(tmp_path / "qa-4", rank=4), describing(eight), base=half)


def test_a_build_that_was_pinned_to_the_base_counts(library, base, add):
    library.pin_base(add("qa", known=False, rank=8).build, base)

    with pytest.raises(ReleaseExists, match="installed for base-7b"):
        add("qa", rank=4)
    with pytest.raises(ReleaseExists, match="differs in: base"):
        add("qa", rank=8)


def test_a_damaged_build_of_the_name_does_not_stop_the_next_one(library, add, eight):
    (eight.folder / "adapterhub.json").unlink()

    assert add("qa", rank=4).created


def test_a_build_that_appears_while_another_is_checked_is_found(tmp_path, library, base, add, monkeypatch):
    """The second look happens under the lock: two trainers may finish at the same moment."""
    rival = add("qa", rank=8, into=Library(tmp_path / "elsewhere")).build
    checked = Library.publish_staged

    def while_checked(self, *args, **more):
        if self is library:
            shutil.copytree(rival.folder, library.folder_for(rival.manifest, None))
        return checked(self, *args, **more)

    monkeypatch.setattr(Library, "publish_staged", while_checked)

    with pytest.raises(ReleaseExists, match=r"rank 8.* is installed"):
        add("qa", rank=4)


def test_variants_that_an_author_published_are_installed_side_by_side(tmp_path, library, add):
    far = Library(tmp_path / "far")
    add("qa", rank=4, into=far)
    add("qa", rank=8, into=far, variant=True)

    for build in far.installed():
        [release] = [r for r in far.releases(_spec("qa")) if r.digest == build.manifest.digest]
        copy(replace(release), far, library)

    assert versions(library) == [("1.0.0", 4), ("1.0.0", 8)]


def _spec(text):
    from adapterhub.core.specs import AdapterSpec

    return AdapterSpec.parse(text)


@pytest.mark.parametrize(
    ("there", "bump", "following"),
    [
        (["1.0.0"], "patch", "1.0.1"),
        (["1.9", "1.10"], "minor", "1.11.0"),
        (["2.0.0rc1"], "patch", "2.0.0"),
        (["2.0.0rc1"], "major", "2.0.0"),
        (["2.0.1rc1"], "major", "3.0.0"),
        (["1.2.3.4"], "patch", "1.2.4"),
        (["1.0.0.post1", "1.0.0"], "patch", "1.0.1"),
        (["1!1.0"], "minor", "1!1.1.0"),
        (["0+0123456789ab"], "patch", "0.0.1"),
    ],
)
def test_the_next_version_is_newer_than_all(there, bump, following):
    from packaging.version import Version

    assert next_version(there, bump) == following
    assert Version(following) > max(map(Version, there))
