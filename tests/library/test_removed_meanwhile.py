"""A build that another thread or process removes: listings pass over it, and whoever brings it back succeeds."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import adapterhub
from adapterhub.core.errors import AdapterNotFound
from adapterhub.library.audit import Surroundings, audit, subject_of_build
from adapterhub.library.installed import while_installed
from adapterhub.library.upkeep.space import space_of, unused_builds
from tests.support.tiny import make_adapter


@pytest.fixture
def library(tmp_path: Path) -> adapterhub.Library:
    library = adapterhub.Library(tmp_path / "home")
    for seed, name in enumerate(("one", "two", "three")):
        library.add(make_adapter(tmp_path / name, seed=seed), name=name, task="t")
    return library


def names(builds: object) -> list[str]:
    return [build.full_name for build in builds]  # type: ignore[attr-defined]


@pytest.mark.parametrize("asked", [lambda one: one.list(), lambda one: one.search("t")], ids=["list", "search"])
def test_a_listing_passes_over_what_was_removed_since(
    library: adapterhub.Library, asked: Callable[[adapterhub.Library], adapterhub.Listing]
) -> None:
    found = asked(library)
    at = names(found).index("two")
    library.remove("two")

    assert sorted(names(found)) == ["one", "three"]
    with pytest.raises(AdapterNotFound, match="no adapter `two`"):
        found[at]


def test_an_audit_passes_over_what_was_removed_since(library: adapterhub.Library) -> None:
    around = Surroundings(library=library)
    subjects = [subject_of_build(build) for build in library.installed()]
    library.remove("two")

    assert sorted(one.target.name for one in audit(subjects, around)) == ["one", "three"]


def test_what_is_removed_and_added_again_during_a_look_is_looked_at_again(
    library: adapterhub.Library, tmp_path: Path
) -> None:
    build, looks = library.list()[0], []

    def look() -> str:
        looks.append(build.folder.stat().st_ino)
        if len(looks) == 1:
            library.remove(build.full_name)
            library.add(tmp_path / build.full_name, name=build.full_name, task="t")
            raise FileNotFoundError
        return "seen"

    assert while_installed(build, look) == "seen"
    assert len(looks) == 2


def test_an_error_that_is_no_removal_is_not_hidden(library: adapterhub.Library) -> None:
    def look() -> None:
        raise FileNotFoundError

    with pytest.raises(FileNotFoundError):
        while_installed(library.list()[0], look)


@pytest.mark.slow
def test_one_build_is_installed_and_removed_by_many_threads_while_others_list(tmp_path: Path, amount) -> None:
    made = make_adapter(tmp_path / "made")
    library = adapterhub.Library(tmp_path / "home")
    library.add(made, name="x", task="t")
    library.push("x", to=tmp_path / "published")
    stop, wrong, counts = threading.Event(), [], dict.fromkeys(("install", "remove", "look"), 0)
    turns = amount(60, 2000)

    def again(what: str, act: Callable[[adapterhub.Library], object]) -> None:
        own = adapterhub.Library(tmp_path / "home")
        while not stop.is_set():
            counts[what] += 1
            try:
                act(own)
            except AdapterNotFound:
                assert what == "remove"
            except BaseException as error:  # noqa: BLE001 - whatever it is, it is reported
                wrong.append((what, error))
                stop.set()
            if counts["install"] >= turns:
                stop.set()

    def look(own: adapterhub.Library) -> None:
        names(own.list())
        names(own.search("t"))
        own.audit(offline=True)
        space_of(own)
        unused_builds(own)

    def install(own: adapterhub.Library) -> None:
        own.install("x", places=[tmp_path / "published"])

    acts = [("install", install), ("install", install), ("remove", lambda own: own.remove("x")), ("look", look)]
    threads = [threading.Thread(target=again, args=one) for one in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []
    assert min(counts.values()) > 0
