"""Which source says what an alias means: the owner of the namespace, after the library's own alias and any base."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from adapterhub.core.digests import Digest
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.choosing import exact_at, follow
from adapterhub.formats.alias import Alias, AliasMove, AliasTarget
from adapterhub.library.aliasing import point
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from adapterhub.library.remotes import Remotes

SPEC = AdapterSpec.parse("acme/legal-qa@prod")


@dataclass
class Registry:
    """A source with one alias, which counts how often it is asked."""

    place: str
    digit: str
    asked: list[str] = field(default_factory=list)
    label: str = "registry"

    def alias(self, spec: AdapterSpec) -> Alias | None:
        self.asked.append(str(spec))
        target = AliasTarget(version="1.2", digest=Digest(f"sha256:{self.digit * 64}"))
        move = AliasMove(action="set", at=0.0, by="ann", targets=(target,))
        return Alias(adapter="acme/legal-qa", name="prod", moves=(move,), place=self.place)


@pytest.fixture
def places() -> list[Any]:
    return [Registry("https://eve.example.org", "e"), Registry("https://ours.example.org", "a")]


def test_the_first_source_that_has_it_says_what_it_means_and_nothing_is_written_before_the_library_follows(
    library: Library, places: list[Any]
) -> None:
    spec, found = exact_at(library, SPEC, places)

    assert spec.digest_prefix == f"sha256:{'e' * 64}"
    assert library.aliases.all() == []
    assert found is not None
    follow(library, found)
    alias = library.aliases.get("acme/legal-qa", "prod")
    assert alias is not None
    assert (alias.place, alias.moves[-1].action) == ("https://eve.example.org", "follow")


def test_a_namespace_that_belongs_to_a_remote_is_asked_there_only(library: Library, places: list[Any]) -> None:
    Remotes(library.root).add("ours", "https://ours.example.org", namespaces=["acme"])

    assert exact_at(library, SPEC, places)[0].digest_prefix == f"sha256:{'a' * 64}"
    assert places[0].asked == []


def test_a_base_and_the_librarys_own_alias_come_before_every_source(
    library: Library, places: list[Any], add: Callable[..., Added]
) -> None:
    build = add("legal-qa", namespace="acme").build
    based = AdapterSpec.parse("acme/legal-qa@base-7b")
    point(library, "prod", [(build, 1.0)])

    assert exact_at(library, based, places) == (based, None)
    assert exact_at(library, SPEC, places)[0].digest_prefix == build.manifest.digest
    assert [place.asked for place in places] == [[], []]
