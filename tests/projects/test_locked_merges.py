"""Merges of a project: made once, made again to the same bytes, and never taken for the locked ones when they differ."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from adapterhub.core.errors import AdapterNotFound, DigestMismatch, ReleaseExists
from adapterhub.core.specs import AdapterSpec, parse_name
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from adapterhub.projects.lock.lockfile import lock_problems, lock_text, parse_lock
from adapterhub.projects.merges import Merges, version_of
from adapterhub.projects.values import AdapterRequirement, LockedMerge, MergeRequirement, Project
from adapterhub.weights.recipes.toml import Inner, Leaf, MergeStep
from tests.support.locks import entry_of, lock_of, sync

Add = Callable[..., Added]


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


def wanted(key: str, *inputs: tuple[str, float], method: str = "cat", **said: object) -> MergeRequirement:
    leaves = tuple(Leaf(spec=name, weight=weight) for name, weight in inputs)
    options = said.pop("options", {})
    return MergeRequirement(key=parse_name(key), step=MergeStep(method=method, inputs=leaves, options=options), **said)  # type: ignore[arg-type]


@pytest.fixture
def two(add: Add) -> dict[str, object]:
    return {name: entry_of(add(name, seed=n).build) for n, name in enumerate(("legal-qa", "tables"))}


def make(library: Library, asked: MergeRequirement, inputs: dict[str, object], *places: Library) -> LockedMerge:
    return Merges(library=library, base=None, places=lambda _entry: places).make(asked, inputs)  # type: ignore[arg-type]


def test_a_merge_is_made_and_described_by_its_recipe_with_the_digests_of_its_inputs(library, two):
    asked = wanted("both", ("legal-qa", 0.7), ("tables", 0.3), task="law", group="eval")

    locked = make(library, asked, two)

    [build] = library.builds_named("both")
    assert (locked.digest, locked.version) == (build.manifest.digest, build.manifest.version)
    assert [(leaf.spec, leaf.digest) for leaf in locked.step.leaves()] == [
        ("legal-qa==1.0.0", two["legal-qa"].digest),
        ("tables==1.0.0", two["tables"].digest),
    ]
    assert {f.path: f.sha256 for f in locked.files} == {f.path: f.sha256 for f in build.manifest.files}
    assert (locked.task, locked.group, locked.base) == ("law", "eval", build.manifest.base.fingerprint.weights)


def test_its_version_says_which_recipe_and_which_inputs(library, two):
    first = make(library, wanted("both", ("legal-qa", 0.7), ("tables", 0.3)), two)
    second = make(library, wanted("both", ("legal-qa", 0.6), ("tables", 0.4)), two)

    assert first.version == version_of(first.step) != second.version
    assert first.version.startswith("1.0.0+")
    assert len(library.builds_named("both")) == 2


def test_a_version_that_the_project_gives_is_kept(library, two):
    assert make(library, wanted("both", ("legal-qa", 1), ("tables", 1), version="2.1"), two).version == "2.1"


def test_another_recipe_under_a_given_version_is_refused_with_what_to_change(library, two):
    make(library, wanted("both", ("legal-qa", 1), ("tables", 1), version="2.1"), two)

    with pytest.raises(ReleaseExists) as refusal:
        make(library, wanted("both", ("legal-qa", 1), ("tables", 2), version="2.1"), two)

    assert "another `version` in adapters.toml" in refusal.value.hint


def test_the_lock_of_a_merge_is_current_and_survives_its_text(library, two):
    asked = wanted("both", ("legal-qa", 0.7), ("tables", 0.3), method="svd", options={"rank": 4})
    lock = lock_of(*two.values(), make(library, asked, two))
    adapters = tuple(AdapterRequirement(key=parse_name(n), spec=AdapterSpec.parse(n)) for n in two)
    project = Project(folder=Path(), adapters=adapters, merges=(asked,))

    assert parse_lock(lock_text(lock), "lock") == lock
    assert lock_problems(project, lock) == []


@pytest.mark.parametrize(
    ("method", "options"),
    [("cat", {}), ("svd", {"rank": 4}), ("ties", {"density": 0.5}), ("dare_ties_svd", {"density": 0.5, "rank": 4})],
)
def test_a_second_machine_makes_the_very_same_merge_from_the_inputs(library, two, tmp_path, project, method, options):
    asked = wanted("both", ("legal-qa", 0.7), ("tables", 0.3), method=method, options=options)
    lock = lock_of(*two.values(), make(library, asked, two))
    second = Library(tmp_path / "second")

    done = sync(second, project, lock, library_without(library, "both", tmp_path))

    assert [b.origin for b in done.brought if b.entry.key == "both"] == ["its recipe"]
    [build] = second.builds_named("both")
    assert build.manifest.digest == lock.merges[0].digest
    assert sorted(p.name for p in (project / "adapters").iterdir() if p.is_dir()) == ["both", "legal-qa", "tables"]


def library_without(library: Library, name: str, tmp_path: Path) -> Library:
    """A place that has all but one."""
    import shutil

    there = tmp_path / f"without-{name}"
    shutil.copytree(library.root, there)
    found = Library(there)
    found.remove(found.builds_named(name))
    found.gc(grace_s=0)
    return found


def test_a_merge_of_merges_is_made_again_inner_ones_first(library, two, tmp_path, project):
    inner = make(library, wanted("inner", ("legal-qa", 1), ("tables", 1)), two)
    outer = make(library, wanted("a-outer", ("inner", 0.5), ("tables", 0.5)), two | {"inner": inner})
    lock = lock_of(*two.values(), inner, outer)
    second, place = Library(tmp_path / "second"), library_without(library, "inner", tmp_path)
    place.remove(place.builds_named("a-outer"))

    sync(second, project, lock, place)

    assert second.builds_named("a-outer")[0].manifest.digest == outer.digest


def test_an_inner_merge_without_a_name_is_made_again_too(library, two, tmp_path, project):
    inner = MergeStep(method="cat", inputs=(Leaf(spec="legal-qa", weight=1.0), Leaf(spec="tables", weight=1.0)))
    step = MergeStep(method="cat", inputs=(Inner(weight=0.5, step=inner), Leaf(spec="tables", weight=0.5)))
    locked = make(library, MergeRequirement(key=parse_name("both"), step=step), two)
    second = Library(tmp_path / "second")

    sync(second, project, lock_of(*two.values(), locked), library_without(library, "both", tmp_path))

    assert second.builds_named("both")[0].manifest.digest == locked.digest


def test_inputs_in_a_group_that_nobody_asked_for_are_brought_for_the_merge_alone(library, two, tmp_path, project):
    inputs = {name: replace(entry, group="parts") for name, entry in two.items()}
    lock = lock_of(*inputs.values(), make(library, wanted("both", ("legal-qa", 1), ("tables", 1)), inputs))
    second = Library(tmp_path / "second")

    sync(second, project, lock, library_without(library, "both", tmp_path))

    assert sorted(p.name for p in (project / "adapters").iterdir() if p.is_dir()) == ["both"]
    assert len(second.builds_named("tables")) == 1


def test_another_result_is_refused_with_both_hashes_and_does_not_come_in(library, two, tmp_path, project):
    made = make(library, wanted("both", ("legal-qa", 0.7), ("tables", 0.3)), two)
    other = make(library, wanted("both", ("legal-qa", 0.5), ("tables", 0.5), version="9"), two)
    claimed = replace(made, digest=other.digest, files=other.files)  # as if other numbers came out there
    lock, second = lock_of(*two.values(), claimed), Library(tmp_path / "second")

    with pytest.raises(DigestMismatch) as refused:
        sync(second, project, lock, library_without(library, "both", tmp_path))

    assert (refused.value.expected, refused.value.actual) == (other.digest, made.digest)
    assert second.builds_named("both") == []
    assert not (project / "adapters").exists()


def test_the_locked_bytes_are_fetched_where_the_recipe_gives_others(library, two, tmp_path, project):
    made = make(library, wanted("both", ("legal-qa", 0.7), ("tables", 0.3)), two)
    other = make(library, wanted("both", ("legal-qa", 0.5), ("tables", 0.5), version=f"{made.version}.1"), two)
    claimed = replace(made, version=other.version, digest=other.digest, files=other.files)
    second = Library(tmp_path / "second")

    sync(second, project, lock_of(*two.values(), claimed), library)

    assert [b.manifest.digest for b in second.builds_named("both")] == [other.digest]


def test_an_input_that_cannot_be_had_is_named(library, two, tmp_path, project):
    lock = lock_of(make(library, wanted("both", ("legal-qa", 0.7), ("tables", 0.3)), two), *two.values())

    with pytest.raises(AdapterNotFound) as refused:
        sync(Library(tmp_path / "second"), project, lock)

    assert two["tables"].digest in refused.value.message
