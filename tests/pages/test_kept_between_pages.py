"""What `adapt ui` keeps between pages, so that they do not count a whole library: each change of the library shows."""

from __future__ import annotations

import os
import time

import pytest

from adapterhub.api.library import Library
from adapterhub.api.pages import playing
from adapterhub.api.pages.playing import Playing
from adapterhub.api.steps.finding import lineage_of
from adapterhub.library.find.likeness import proposed_by_sketches
from adapterhub.library.store.aliases import Aliases
from adapterhub.library.store.rows import Filters
from adapterhub.pages.page import PageQuery
from adapterhub.projects.tree import Uses


@pytest.fixture
def here(library) -> Library:
    return Library(library.root)


def look_alikes(library: Library, name: str) -> list[str]:
    [audited] = library.audit(name, offline=True)
    return [one.message for one in audited.report.findings if one.code == "W_LOOK_ALIKE"]


def test_a_name_that_came_or_went_counts_in_the_next_audit(add, here: Library) -> None:
    add("legal-qa")
    assert look_alikes(here, "legal-qa") == []

    add("legal-qb")
    assert len(look_alikes(here, "legal-qa")) == 1

    here.remove("legal-qb")
    assert look_alikes(here, "legal-qa") == []


def test_an_alias_that_was_set_after_the_list_of_their_files_was_kept_is_shown(add, here: Library) -> None:
    first, other = add("legal-qa").build, add("triage").build
    here.set_alias("prod", "legal-qa")
    folder = here.root / "aliases"
    long_ago = time.time() - 60
    os.utime(folder, (long_ago, long_ago))
    shown = Aliases(here.root)
    assert shown.shown_with("legal-qa") == {first.manifest.digest: ["prod"]}
    assert shown.shown_with("triage") == {}

    here.set_alias("test", "triage")

    assert shown.shown_with("triage") == {other.manifest.digest: ["test"]}


def test_only_the_aliases_of_the_shown_name_are_read(add, here: Library) -> None:
    build = add("legal-qa").build
    here.set_alias("prod", "legal-qa")
    (here.root / "aliases" / "other@prod.json").write_text("damaged")
    uses = Uses(here.root, lineage_of(here.session), is_near=True)

    found = uses.of(build.manifest.digest, full_name="legal-qa")

    assert [(one.kind, one.who) for one in found] == [("alias", "legal-qa@prod")]


def test_sketches_of_strangers_propose_nothing(add, here: Library) -> None:
    for seed, name in enumerate(("legal-qa", "triage", "summarize")):
        add(name, seed=seed)
    rows = {row.name: row for row in here.catalog.search(Filters())}

    assert proposed_by_sketches(here.session.library, rows["legal-qa"], [*rows.values()], above=0.9) == []


def test_the_playground_takes_an_adapter_that_is_not_among_the_first(
    add, here: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(playing, "_MOST_PICKS", 1)
    for name in ("a-one", "b-two", "z-last"):
        add(name)
    spec = here.find("z-last").spec

    page = Playing(here).page(PageQuery(query={"pick": spec}))

    assert page.columns[0].name == "z-last 1.0.0"
    assert len(page.columns[0].picks) < 5
