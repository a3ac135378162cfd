"""One build installed under two full names: the index, the lists and the graph hold both."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace

import pytest

from adapterhub.core.specs import AdapterSpec
from adapterhub.library.installed import Added
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed
from adapterhub.library.store.rows import Filters
from adapterhub.library.transfer import copy
from adapterhub.library.upkeep.lineage import Lineage

BOTH = ["legal-qa", "acme/legal-qa"]


def listed(library: Library) -> list[str]:
    return [row.full_name for row in library.catalog.search(Filters())]


def installed_as(library: Library, build: Installed, namespace: str) -> Installed:
    """The same build, installed under a namespace as from a server."""
    [release] = library.releases(AdapterSpec.parse(build.full_name))
    copy(replace(release, namespace=namespace), library, library)
    [theirs] = library.builds_named(build.manifest.name, namespace)
    return theirs


@pytest.fixture(params=[True, False], ids=["base-known", "base-unknown"])
def pair(request: pytest.FixtureRequest, library: Library, add: Callable[..., Added]) -> tuple[Installed, Installed]:
    local = add("legal-qa", known=request.param).build
    return local, installed_as(library, local, "acme")


def test_the_same_build_under_two_full_names_is_listed_twice(library, pair):
    local, theirs = pair

    assert local.manifest.digest == theirs.manifest.digest
    assert listed(library) == BOTH
    assert library.catalog.index.count() == 2
    assert library.catalog.differences() == []


def test_an_index_made_from_the_folders_has_both(library, pair):
    (library.root / "index.db").unlink()

    assert listed(library) == BOTH
    assert library.catalog.differences() == []


def test_removing_one_full_name_keeps_the_other(library, pair):
    library.remove([pair[0]])

    assert listed(library) == ["acme/legal-qa"]
    assert library.catalog.differences() == []


@pytest.mark.parametrize("pair", [False], indirect=True)
def test_a_base_pinned_for_one_full_name_is_pinned_for_the_build(library, base, pair):
    library.pin_base(pair[0], base)

    assert [row.base_weights for row in library.catalog.search(Filters())] == [base.fingerprint.weights] * 2
    assert library.catalog.differences() == []


def test_the_graph_names_both(library, pair):
    lineage = Lineage(library.root, library.catalog.read)

    assert [row.full_name for row in lineage.roots()] == BOTH
    assert [lineage.node_of(row).name for row in lineage.rows] == BOTH
    assert [row.full_name for row in lineage.named(AdapterSpec.parse("legal-qa"))] == BOTH


def test_an_index_with_one_row_a_digest_is_made_again(library, pair):
    path = library.root / "index.db"
    with closing(sqlite3.connect(path)) as index, index:
        index.execute("DELETE FROM builds WHERE namespace = 'acme'")
        index.execute("PRAGMA user_version = 2")

    assert listed(library) == BOTH
