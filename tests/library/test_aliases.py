"""Aliases of a library: what they mean, how they move and go back, and what must not take their targets away."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from adapterhub.core.errors import (
    AdapterNotFound,
    AmbiguousSpec,
    BaseNotFound,
    Conflict,
    Malformed,
    NoCompatibleRelease,
    NotFound,
    SpecError,
    UsageProblem,
)
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.choosing import find_installed
from adapterhub.distribution.finding import Finder
from adapterhub.library.aliasing import point
from adapterhub.library.library import Library
from adapterhub.library.transfer import copy
from adapterhub.library.upkeep.lineage import Lineage
from adapterhub.library.upkeep.space import unused_builds
from adapterhub.projects.session import wanted_from
from adapterhub.projects.tree import Uses


@pytest.fixture
def builds(add):
    return [add("legal-qa", version=version, seed=number).build for number, version in enumerate(("1.2", "1.3", "1.4"))]


def found(library: Library, text: str) -> str:
    spec = AdapterSpec.parse(text)
    return find_installed(library, spec, wanted=wanted_from(library, spec, None))[0].manifest.version


def in_acme(library: Library, build):
    [release] = [r for r in library.releases(AdapterSpec.parse("legal-qa")) if r.digest == build.manifest.digest]
    copy(replace(release, namespace="acme"), library, library)
    return next(b for b in library.builds_named("legal-qa", "acme") if b.manifest.digest == release.digest)


def test_an_alias_means_its_target_and_moves(library, builds):
    point(library, "prod", [(builds[0], 1.0)])
    assert found(library, "legal-qa@prod") == "1.2"
    assert found(library, "legal-qa") == "1.4"

    point(library, "prod", [(builds[1], 1.0)])

    assert found(library, "legal-qa@prod") == "1.3"
    assert found(library, "legal-qa@prod>=1.3") == "1.3"
    with pytest.raises(NoCompatibleRelease):
        found(library, "legal-qa@prod==1.2")


def test_the_target_with_the_largest_weight_is_taken_and_a_note_says_so(library, builds):
    notes: list[str] = []
    library.note_choice = notes.append
    point(library, "prod", [(builds[0], 0.9), (builds[1], 0.1)])

    assert found(library, "legal-qa@prod") == "1.2"
    assert notes == ["`legal-qa@prod` is 1.2 90 %, 1.3 10 %; this takes 1.2, the one with the largest weight"]


def test_a_finder_for_attach_takes_aliases(library, builds):
    point(library, "prod", [(builds[0], 1.0)])

    finder = Finder(library, "base-7b", lambda: None, allow_base_mismatch=False)

    assert finder.find("legal-qa@prod", 1.0).label == "legal-qa==1.2"


def test_the_history_says_who_moved_it_and_a_rollback_goes_one_step_back_each_time(library, builds):
    for build in builds:
        point(library, "prod", [(build, 1.0)])

    back = [library.aliases.roll_back("legal-qa", "prod").text() for _ in range(2)]

    assert back == ["1.3", "1.2"]
    with pytest.raises(NotFound, match="has no earlier target to roll back to"):
        library.aliases.roll_back("legal-qa", "prod")
    alias = library.aliases.roll_back("legal-qa", "prod", to=3)
    assert alias.text() == "1.4"
    assert [move.action for move in alias.moves] == ["set"] * 3 + ["rollback"] * 3
    assert all("@" in move.by and move.at > 1.7e9 for move in alias.moves)
    with pytest.raises(NotFound, match="no move 9"):
        library.aliases.roll_back("legal-qa", "prod", to=9)


def test_setting_what_it_is_already_is_no_move(library, builds):
    point(library, "prod", [(builds[0], 1.0)])

    assert len(point(library, "prod", [(builds[0], 1.0)]).moves) == 1


def test_a_removed_alias_means_nothing_and_comes_back_by_a_rollback(library, builds):
    point(library, "prod", [(builds[0], 1.0)])
    library.aliases.remove("legal-qa", "prod")

    assert library.aliases.all() == []
    with pytest.raises(NotFound):
        library.aliases.remove("legal-qa", "prod")
    assert library.aliases.roll_back("legal-qa", "prod").text() == "1.2"


def test_each_adapter_has_its_own(library, builds, add):
    point(library, "prod", [(builds[0], 1.0)])
    point(library, "prod", [(add("summarize", version="2.0").build, 1.0)])

    assert (found(library, "legal-qa@prod"), found(library, "summarize@prod")) == ("1.2", "2.0")
    with pytest.raises(UsageProblem, match="belongs to one adapter"):
        point(library, "prod", [(builds[0], 1.0), (library.builds_named("summarize")[0], 1.0)])


def test_a_bare_name_means_the_only_namespace_with_that_alias(library, builds):
    point(library, "prod", [(in_acme(library, builds[1]), 1.0)])
    assert found(library, "legal-qa@prod") == "1.3"

    point(library, "prod", [(builds[0], 1.0)])

    assert found(library, "legal-qa@prod") == "1.2"
    assert found(library, "acme/legal-qa@prod") == "1.3"


def test_a_bare_name_with_two_namespaces_is_ambiguous(library, builds):
    release = next(r for r in library.releases(AdapterSpec.parse("legal-qa")))
    for namespace in ("acme", "other"):
        copy(replace(release, namespace=namespace), library, library)
        point(library, "prod", [(library.builds_named("legal-qa", namespace)[0], 1.0)])

    with pytest.raises(AmbiguousSpec, match="acme/legal-qa@prod"):
        found(library, "legal-qa@prod")


# ---------------------------------------------------------------- one word, one meaning
def test_an_alias_is_never_called_like_a_base(library, builds):
    with pytest.raises(Conflict, match="is a base"):
        point(library, "base-7b", [(builds[0], 1.0)])
    with pytest.raises(SpecError):
        point(library, "main", [(builds[0], 1.0)])
    assert not (library.root / "aliases").exists()


# ---------------------------------------------------------------- a target that goes
def test_a_target_is_not_removed(library, builds):
    point(library, "prod", [(builds[0], 0.9), (builds[1], 0.1)])

    with pytest.raises(Conflict, match=r"legal-qa 1\.3.* is `legal-qa@prod`"):
        library.remove(builds[1:])

    assert len(library.builds_named("legal-qa")) == 3
    library.remove(builds[2:])


def test_a_target_that_was_deleted_by_hand_is_named(library, builds):
    point(library, "prod", [(builds[0], 1.0)])
    shutil.rmtree(builds[0].folder)

    with pytest.raises(AdapterNotFound, match=r"`legal-qa@prod` is legal-qa 1\.2 .*, which is not installed here"):
        found(library, "legal-qa@prod")


def test_a_damaged_file_is_named_and_leaves_the_others_usable(library, builds):
    point(library, "prod", [(builds[0], 1.0)])
    point(library, "beta", [(builds[1], 1.0)])
    (library.root / "aliases" / "legal-qa@prod.json").write_text('{"adapter": "legal-qa"')

    with pytest.raises(Malformed, match="is damaged"):
        found(library, "legal-qa@prod")
    assert found(library, "legal-qa@beta") == "1.3"
    assert library.aliases.by_build() == {("legal-qa", builds[1].manifest.digest): ["beta"]}


def test_moves_at_the_same_time_are_all_kept(library, builds):
    def move(number: int) -> None:
        point(Library(library.root), "prod", [(builds[number % 3], float(number + 1))])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(move, range(12)))

    alias = library.aliases.get("legal-qa", "prod")
    assert alias is not None
    assert {move.targets[0].weight for move in alias.moves} == {float(number + 1) for number in range(12)}


def test_a_target_is_in_use_and_what_no_alias_means_is_not(library, builds):
    point(library, "prod", [(builds[0], 0.9), (builds[1], 0.1)])

    assert [build.manifest.version for build in unused_builds(library)] == ["1.4"]
    uses = Uses(library.root, Lineage(library.root, library.catalog.read)).of(builds[1].manifest.digest)
    assert [(use.kind, use.who, use.why) for use in uses] == [("alias", "legal-qa@prod", "means it")]


def test_a_word_that_is_neither_says_where_both_are_listed(library, builds):
    with pytest.raises(BaseNotFound) as caught:
        found(library, "legal-qa@proud")

    assert "`adapt alias list`" in caught.value.hint
