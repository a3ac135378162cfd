"""The pages of a local library as a whole: its search and its projects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from adapterhub.api.pages.source import address_of, number_in
from adapterhub.api.searching import SORTS, ask, base_name, filters_of, is_ranked, search_installed
from adapterhub.core.errors import AdapterHubError, NotFound, UsageProblem
from adapterhub.core.ranks import RankRange
from adapterhub.core.specs import BaseSpec, names_folder
from adapterhub.formats.manifest import MANIFEST_FILE, Manifest
from adapterhub.library.store.roots import KnownProjects
from adapterhub.library.store.rows import BuildFacts
from adapterhub.pages.facets import LABELS, facet_of, rank_of, value_text
from adapterhub.pages.lists import Facet, SearchPage
from adapterhub.pages.local_values import LockLine, ProjectsPage
from adapterhub.pages.values import MOST_COUNTED, FormChoice, Link

if TYPE_CHECKING:
    from adapterhub import Project
    from adapterhub.api.pages.source import LibrarySource
    from adapterhub.library.store.rows import BuildRow
    from adapterhub.pages.page import PageQuery

_AT_ONCE: Final = 50


def search_page(here: LibrarySource, asked: PageQuery) -> SearchPage:
    """Return the installed builds that match the query; the file `config` of a form names the base."""
    query, note = dict(asked.query), ""
    if asked.is_form:
        query["base"], note = _base_of(asked.files.get("config", b""))
    words, sort = query.get("q", "").strip(), query.get("sort", "name")
    start = max(number_in(query.get("from", "")) or 0, 0)
    rows: list[BuildRow] = []
    facets: tuple[Facet, ...] = ()
    counted = 0
    try:
        found = _Found(here, query)
        rows = found.page(start, _AT_ONCE + 1)
        facets, counted = _facets(here, query, found), found.counted
    except AdapterHubError as error:
        note = error.message
    kept = tuple((name, query[name]) for name in LABELS if query.get(name))
    return SearchPage(
        words=words,
        place="/search",
        total=max(min(counted, MOST_COUNTED), start + min(len(rows), _AT_ONCE)),
        more=counted > MOST_COUNTED,
        facets=facets,
        conditions=tuple(Link(text=value_text(name, text), url=_url(query, **{name: ""})) for name, text in kept),
        kept=kept,
        sorts=tuple(FormChoice(value=name, text=name.capitalize(), chosen=name == sort) for name in SORTS),
        adapters=tuple(here.lines(rows[:_AT_ONCE])),
        next_url=_url(query, **{"from": str(start + _AT_ONCE)}) if len(rows) > _AT_ONCE else None,
        note=note,
    )


def projects_page(here: LibrarySource, _asked: PageQuery) -> ProjectsPage:
    """Return the project of `adapt ui`, and the folders of the others that use the library."""
    library, project, problem = here.library, here.project, ""
    known = [str(one.folder) for one in KnownProjects(library.root).all()]
    lines: list[LockLine] = []
    folder = None if project is None else project.folder.resolve()
    if project is not None:
        try:
            lines = _locked(project)
        except AdapterHubError as error:
            problem = error.message
    others = tuple(sorted(path for path in known if path != str(folder)))
    base = None if project is None else project.base
    return ProjectsPage(
        folder=None if folder is None else str(folder),
        base=base,
        lines=tuple(lines),
        others=others,
        problem=problem,
    )


def _wanted(text: str) -> BaseSpec | None:
    if names_folder(text):
        raise UsageProblem(
            "expected a registered base to search for, not a folder", hint="give its name, Hub id or digest"
        )
    return BaseSpec.parse(text) if text else None


def _base_of(config: bytes) -> tuple[str, str]:
    """Return the base that an adapter's manifest declares, and a note."""
    try:
        base = Manifest.parse(config, MANIFEST_FILE).base
    except AdapterHubError as error:
        return "", f"{error.message}; expected an adapter's {MANIFEST_FILE}"
    found = base.fingerprint.weights if base.fingerprint else base.hints.hub_id or ""
    return found, f"Adapters for the base {found}." if found else "The file names no base."


def _filters(query: Mapping[str, str]) -> dict[str, Any]:
    """Return the conditions and the order of an address.

    Raises:
        UsageProblem: one of them is malformed.
    """
    given = {name: query.get(name, "") for name in ("task", "method", "license")}
    ranks = RankRange.of(query.get("rank") or None)
    return {"text": query.get("q", "").strip(), "ranks": ranks, "sort": query.get("sort", "name"), **given}


class _Found:
    """The builds that meet the conditions of an address. One search gives the page and its facets, if it can.

    Of more builds than pages count, any so many are counted, and a page looks for its own.

    Raises:
        UsageProblem, NotFound: a condition is malformed, or names an unknown base.
    """

    def __init__(self, here: LibrarySource, query: Mapping[str, str]) -> None:
        self._session, self._base, self._given = here.library.session, _wanted(query.get("base", "")), _filters(query)
        self._best: list[BuildRow] | None = None
        if is_ranked(self._given["text"]):
            self._best = search_installed(self._session, self._base, **self._given)
            self.counted = len(self._best)
            return
        asked = filters_of(self._session, self._base, **self._given, limit=MOST_COUNTED + 1)
        self._numbers = ask(self._session, lambda index: index.some(asked))
        self.counted = len(self._numbers)

    def page(self, start: int, most: int) -> list[BuildRow]:
        """Return the builds from one on, in their order."""
        if self._best is not None:
            return self._best[start:][:most]
        if self.counted > MOST_COUNTED and (self._given["text"] or start + most > self.counted):
            return search_installed(self._session, self._base, **self._given, skip=start, limit=most)
        return list(ask(self._session, lambda index: index.numbered(self._numbers[start:][:most])).values())

    def facts(self) -> Iterator[BuildFacts]:
        """Yield what the builds that are counted have in common."""
        if self._best is not None:
            of_one = attrgetter(*BuildFacts._fields[:-1])
            yield from (BuildFacts._make((*of_one(row), 1)) for row in self._best)
        else:
            yield from ask(self._session, lambda index: index.facts_of(self._numbers[:MOST_COUNTED]))


def _facets(here: LibrarySource, query: Mapping[str, str], mine: _Found) -> tuple[Facet, ...]:
    """Return the facets of a search. The other values of a condition in use are counted under the other conditions."""
    aliases = ask(here.library.session, lambda index: index.aliases())
    of_mine = list(mine.facts())
    found = []
    for name in LABELS:
        among = _Found(here, {**query, name: ""}) if query.get(name) else mine
        counts: Counter[str] = Counter()
        for one in of_mine if among is mine else among.facts():
            counts[_VALUES[name](one, aliases)] += one.builds
        del counts[""]
        facet = facet_of(
            name,
            counts,
            lambda value, name=name: _url(query, **{name: value, "all": ""}),  # type: ignore[misc]
            chosen=query.get(name, ""),
            all_url=None if query.get("all") == name else _url(query, all=name),
            more=among.counted > MOST_COUNTED,
        )
        found.append(facet)
    return tuple(facet for facet in found if facet.values)


_VALUES: Final[Mapping[str, Callable[[BuildFacts, dict[str, str]], str]]] = {
    "base": lambda row, aliases: base_name(row, aliases, ""),
    "task": lambda row, _: row.task,
    "method": lambda row, _: row.method.partition(",")[0].lower(),
    "rank": lambda row, _: rank_of(row.rank) if row.rank else "",
    "license": lambda row, _: row.license,
}


def _url(query: Mapping[str, str], **changed: str) -> str:
    """Return the address with some conditions changed, from the first page on."""
    kept = {key: text for key, text in ({**query, "from": ""} | changed).items() if text}
    return f"/search?{urlencode(kept)}" if kept else "/search"


def _locked(project: Project) -> list[LockLine]:
    """Return the project's requirements, each with the build in its lock."""
    try:
        entries = dict(project.locked.entries)
    except NotFound:
        entries = {}
    lines = []
    for name in project.names:
        entry = next((one for key, one in entries.items() if str(key) == name), None)
        line = LockLine(name=name, wanted=name, version=None, rank=None, source="", url=None)
        if entry is not None:
            full = getattr(entry, "name", name)
            namespace, _, own = str(full).rpartition("/")
            is_here = any(True for _ in project.library.builds_named(own, namespace or None))
            line = replace(
                line,
                wanted=str(getattr(entry, "wanted", "a merge")),
                version=entry.version,
                rank=entry.rank,
                source=f"{entry.source.kind or 'library'} {entry.source.address}".strip(),
                url=address_of(namespace or None, own, entry.digest) if is_here else None,
            )
        lines.append(line)
    return lines
