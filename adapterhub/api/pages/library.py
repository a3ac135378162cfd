"""The pages of a local library as a whole: its search and its projects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from adapterhub.api.pages.source import address_of, number_in
from adapterhub.api.searching import SORTS, ask, base_name, is_ranked, search_installed
from adapterhub.core.errors import AdapterHubError, NotFound, UsageProblem
from adapterhub.core.ranks import RankRange
from adapterhub.core.specs import BaseSpec, names_folder
from adapterhub.formats.manifest import MANIFEST_FILE, Manifest
from adapterhub.library.store.roots import KnownProjects
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
    page: dict[str, int] = {} if is_ranked(words) else {"skip": start, "limit": _AT_ONCE + 1}
    rows: list[BuildRow] = []
    facets: tuple[Facet, ...] = ()
    counted = 0
    try:
        rows = _matching(here, query, sort=sort, **page)
        facets, counted = _facets(here, query, rows if is_ranked(words) else None)
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
            "expected a registered base to search for, not a folder", hint="name one by its alias, Hub id or digest"
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


def _matching(here: LibrarySource, query: Mapping[str, str], **more: Any) -> list[BuildRow]:
    """Return the builds that meet the conditions of an address.

    Raises:
        UsageProblem, NotFound: one of them is malformed, or names an unknown base.
    """
    return search_installed(
        here.library.session,
        _wanted(query.get("base", "")),
        text=query.get("q", "").strip(),
        ranks=RankRange.of(query.get("rank") or None),
        task=query.get("task", ""),
        method=query.get("method", ""),
        license=query.get("license", ""),
        **more,
    )


def _facets(
    here: LibrarySource, query: Mapping[str, str], best: list[BuildRow] | None
) -> tuple[tuple[Facet, ...], int]:
    """Return the facets of a search, and how many builds it found: at most one more than pages count.

    `best` are all that it found where the order is by relevance. The other values of a condition in use are counted
    under the other conditions.
    """
    aliases = ask(here.library.session, lambda index: index.aliases())

    def count(asked: Mapping[str, str]) -> list[BuildRow]:
        return _matching(here, asked, limit=MOST_COUNTED + 1)

    mine = count(query) if best is None else best
    found = []
    for name in LABELS:
        rows = count({**query, name: ""}) if query.get(name) else mine
        counts = Counter(filter(None, (_VALUES[name](row, aliases) for row in rows[:MOST_COUNTED])))
        facet = facet_of(
            name,
            counts,
            lambda value, name=name: _url(query, **{name: value, "all": ""}),  # type: ignore[misc]
            chosen=query.get(name, ""),
            all_url=None if query.get("all") == name else _url(query, all=name),
            more=len(rows) > MOST_COUNTED,
        )
        found.append(facet)
    return tuple(facet for facet in found if facet.values), len(mine)


_VALUES: Final[Mapping[str, Callable[[BuildRow, dict[str, str]], str]]] = {
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
