"""The pages of an adapter with many relatives: they read no more where there are more, and say what they leave out."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace

import pytest

from adapterhub.api.library import Library
from adapterhub.api.pages.builds import adapter_page
from adapterhub.api.pages.home import library_page
from adapterhub.api.pages.source import LibrarySource
from adapterhub.api.pages.weights import lineage_page
from adapterhub.core.specs import parse_name
from adapterhub.formats.manifest import MANIFEST_FILE, Manifest, Parent
from adapterhub.library.store.catalog import Installed
from adapterhub.pages.page import PageQuery
from tests.support.disk_looks import looks

PAGES: dict[str, Callable[..., object]] = {"lineage": lineage_page, "adapter": adapter_page, "home": library_page}


def put(first: Installed, name: str, version: str, *parents: Manifest) -> Manifest:
    """A build that calls itself a merge of others."""
    made = tuple(Parent(spec=f"{one.name}=={one.version}", digest=one.digest, weight=0.5) for one in parents)
    manifest = replace(first.manifest, name=parse_name(name), version=version, parents=made)
    folder = first.folder.parent.parent / name / f"{version}-r{manifest.rank}"
    shutil.copytree(first.folder, folder)
    (folder / MANIFEST_FILE).unlink()
    (folder / MANIFEST_FILE).write_bytes(manifest.to_bytes())
    return manifest


def opened(library: Library, name: str) -> dict[str, int]:
    """How many files each page of an adapter opens when it comes again, and the sketches that it compares are made."""
    found = {}
    for page, make in PAGES.items():
        asked = PageQuery(path={"namespace": "-", "name": name}, query={})
        for _ in range(3):
            make(LibrarySource(library, None), asked)
        with looks() as seen:
            make(LibrarySource(library, None), asked)
        found[page] = sum(event == "open" for event, _ in seen)
    return found


@pytest.fixture
def first(add) -> Installed:
    return add("root", version="1.0.0").build


def lineage(library: Library, name: str):
    return lineage_page(LibrarySource(library, None), PageQuery(path={"namespace": "-", "name": name}, query={}))


def test_builds_that_were_each_made_from_the_two_before_are_looked_at_once(library, first):
    """The paths through such a history double with every second build."""
    history, counts = [first.manifest, put(first, "h1", "1.0.0", first.manifest)], {}
    for number in range(2, 27):
        history.append(put(first, f"h{number}", "1.0.0", *history[-2:]))
    library.catalog.rebuild()
    here = Library(library.root)
    counts = {number: opened(here, f"h{number}") for number in (22, 26)}
    root = opened(here, "root")

    assert all(counts[26][page] - counts[22][page] <= 16 for page in PAGES), counts
    assert all(many < 400 for many in root.values()), root
    page = lineage(here, "h26")
    assert [one.name for one in page.parents] == ["h24 1.0.0 (rank 4)", "h25 1.0.0 (rank 4)"]
    assert page.left_out == ()


def test_of_many_versions_that_were_made_from_one_the_newest_are_listed(library, first):
    found = {}
    for number in range(160):
        put(first, "child", f"1.0.{number}", first.manifest)
        if number + 1 in (140, 160):
            library.catalog.rebuild()
            here = Library(library.root)
            found[number + 1] = (opened(here, "root")["lineage"], lineage(here, "root"))

    assert found[140][0] == found[160][0]
    assert {count: (len(page.children), page.left_out[0]) for count, (_, page) in found.items()} == {
        140: (25, "115 more were made from it."),
        160: (25, "135 more were made from it."),
    }


def test_a_long_line_of_ancestors_ends_with_a_word_about_the_rest(library, first):
    before = first.manifest
    for number in range(120):
        before = put(first, f"h{number}", "1.0.0", before, first.manifest)
    library.catalog.rebuild()

    page = lineage(Library(library.root), "h119")

    assert "Only the nearest 100 of its ancestors were looked at." in page.left_out
    assert any(text.startswith("Likeness was looked for among the newest 120 for its base;") for text in page.left_out)
