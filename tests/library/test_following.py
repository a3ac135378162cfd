"""Following an alias of a library: the order of what comes, what is passed over, and how long it is leased."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable

import pytest

from adapterhub.core.errors import Malformed, SpecError, StoreLocked
from adapterhub.core.specs import AdapterSpec
from adapterhub.library.aliasing import point, roll_back
from adapterhub.library.following import Published, followed
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed

Add = Callable[..., Added]
LIVE = AdapterSpec.parse("legal-qa@live")


@pytest.fixture
def builds(add: Add) -> list[Installed]:
    return [add("legal-qa", version=f"0.0.{number}", seed=number).build for number in (1, 2, 3)]


def live(library: Library, build: Installed) -> None:
    point(library, "live", [(build, 1.0)])


def versions(found: list[Published]) -> list[str]:
    return [one.build.manifest.version for one in found]


def test_each_move_comes_once_and_in_order_also_back(library: Library, builds: list[Installed]) -> None:
    live(library, builds[0])
    found = followed(library, LIVE, timeout_s=30)
    got = [next(found)]
    live(library, builds[1])
    got.append(next(found))
    live(library, builds[2])
    got.append(next(found))
    roll_back(library, "legal-qa", "live")
    got.append(next(found))
    found.close()

    assert versions(got) == ["0.0.1", "0.0.2", "0.0.3", "0.0.2"]
    assert [one.moved_at for one in got] == sorted(one.moved_at for one in got)
    assert (got[0].alias, got[0].label) == ("live", "legal-qa==0.0.1")


def test_who_was_away_gets_the_newest_and_who_has_it_gets_nothing(library: Library, builds: list[Installed]) -> None:
    for build in builds:
        live(library, build)

    assert versions([*followed(library, LIVE, since="0.0.1", timeout_s=0)]) == ["0.0.3"]
    assert versions([*followed(library, LIVE, timeout_s=0)]) == ["0.0.3"]
    assert [*followed(library, LIVE, since="0.0.3", timeout_s=0)] == []
    assert [*followed(library, LIVE, since=builds[2].manifest.digest, timeout_s=0.05)] == []


def test_an_alias_that_is_not_there_yet_or_was_removed_gives_nothing(library: Library, builds: list[Installed]) -> None:
    assert [*followed(library, LIVE, timeout_s=0.05)] == []
    live(library, builds[0])
    found = followed(library, LIVE, timeout_s=0.05)
    assert versions([next(found)]) == ["0.0.1"]
    library.aliases.remove("legal-qa", "live")
    assert [*found] == []


def test_a_build_is_leased_until_the_next_one_comes(library: Library, builds: list[Installed]) -> None:
    live(library, builds[0])
    found = followed(library, LIVE, timeout_s=30)
    next(found)
    live(library, builds[1])
    with pytest.raises(StoreLocked, match="is in use"):
        library.remove([builds[0]])
    next(found)
    library.remove([builds[0]])
    with pytest.raises(StoreLocked, match="is in use"):
        library.remove([builds[1]])
    live(library, builds[2])
    found.close()
    library.remove([builds[1]])


def test_a_build_that_is_not_installed_is_passed_over_until_it_is(library: Library, builds: list[Installed]) -> None:
    live(library, builds[0])
    found = followed(library, LIVE, timeout_s=0.1)
    next(found)
    live(library, builds[1])
    away = library.root / "away"
    builds[1].folder.rename(away)
    assert [*found] == []

    found = followed(library, LIVE, since="0.0.1", timeout_s=30)
    threading.Timer(0.1, away.rename, [builds[1].folder]).start()
    assert versions([next(found)]) == ["0.0.2"]


def test_another_process_is_heard_and_a_stop_ends_it(library: Library, builds: list[Installed]) -> None:
    live(library, builds[0])
    stopped = threading.Event()
    found = followed(library, LIVE, since="0.0.1", stopped=stopped)
    child = os.fork()
    if not child:
        live(library, builds[1])
        os._exit(0)
    assert versions([next(found)]) == ["0.0.2"]
    os.waitpid(child, 0)
    stopped.set()
    assert [*found] == []


def test_what_is_no_alias_or_damaged_is_told(library: Library, builds: list[Installed]) -> None:
    with pytest.raises(SpecError, match="names no alias to follow"):
        next(followed(library, AdapterSpec.parse("legal-qa==1")))
    live(library, builds[0])
    (library.root / "aliases" / "legal-qa@live.json").write_text("{")
    with pytest.raises(Malformed, match="is damaged"):
        next(followed(library, LIVE))
