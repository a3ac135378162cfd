"""What the pages show of a local library: the same ones as of a registry, and those that only `adapt ui` has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from adapterhub.api.pages.addresses import address_of, number_in
from adapterhub.api.pages.weights import WithFigures
from adapterhub.api.searching import SORTS, ask, search_installed
from adapterhub.core.errors import AdapterHubError, NotFound, UsageProblem
from adapterhub.core.ranks import RankRange
from adapterhub.core.specs import BaseSpec, names_folder
from adapterhub.formats.manifest import MANIFEST_FILE, Manifest
from adapterhub.library.store.roots import KnownProjects
from adapterhub.pages.values import (
    BaseLine,
    Facet,
    FormChoice,
    LibraryPage,
    Link,
    LockLine,
    OfferLine,
    OutdatedPage,
    PlaygroundPage,
    ProjectsPage,
    SearchPage,
    Stream,
)

if TYPE_CHECKING:
    from adapterhub.api.library import Library
    from adapterhub.api.pages.playing import Playing
    from adapterhub.api.project import Project
    from adapterhub.library.store.rows import BuildRow
    from adapterhub.pages.page import PageQuery

_AT_ONCE: Final = 50


class LibrarySource(WithFigures):
    """The pages of one library, and of the project that `adapt ui` was started in."""

    def __init__(self, library: Library, project: Project | None, playing: Playing) -> None:
        super().__init__(library)
        self._project = project
        self._playing = playing

    def menu(self) -> tuple[Link, ...]:
        """The links at the top of every page."""
        names = ("Library", "Projects", "Outdated", "Compare", "Playground")
        return (Link(text="Adapters", url="/"), *(Link(text=name, url=f"/{name.lower()}") for name in names))

    # ------------------------------------------------------------ adapters
    def search(self, asked: PageQuery, config: bytes | None = None) -> SearchPage:
        """The installed builds that match the query; `config` is the manifest of an adapter for the wanted base."""
        query, note = dict(asked.query), ""
        if config is not None:
            query["base"], note = _base_of(config)
        words, sort = query.get("q", "").strip(), query.get("sort", "name")
        library = self._library
        rows: list[BuildRow] = []
        try:
            rows = search_installed(
                library.session,
                _wanted(query.get("base", "")),
                sort=sort,
                text=words,
                ranks=_ranks(query),
                task=query.get("task", ""),
                method=query.get("method", ""),
            )
        except AdapterHubError as error:
            note = error.message
        start = max(number_in(query.get("from", "")) or 0, 0)
        more = {**{name: text for name, text in query.items() if text}, "from": str(start + _AT_ONCE)}
        return SearchPage(
            words=words,
            facets=(
                _choice("base", "Base", query, [base.alias for base in ask(library.session, lambda i: i.bases())]),
                Facet(name="task", label="Task", value=query.get("task", "")),
                Facet(name="rank", label="Rank", value=query.get("rank", ""), hint="8"),
                Facet(name="method", label="Method", value=query.get("method", ""), hint="lora"),
            ),
            sorts=tuple(FormChoice(value=name, text=name, chosen=name == sort) for name in SORTS),
            adapters=tuple(self._lines(rows[start : start + _AT_ONCE])),
            next_url=f"/?{urlencode(more)}" if len(rows) > start + _AT_ONCE else None,
            note=note,
        )

    # ------------------------------------------------------------ the library
    def library(self) -> LibraryPage:
        """Bases, space, and builds that nothing uses."""
        library = self._library
        rows = search_installed(library.session, None)
        counts: dict[str, int] = {}
        for row in rows:
            counts[row.base_weights] = counts.get(row.base_weights, 0) + 1
        space = library.space()
        return LibraryPage(
            folder=str(library.root),
            builds=len(rows),
            size=space.size_bytes,
            shared=max(sum(row.size_bytes for row in rows) - space.size_bytes, 0),
            bases=tuple(
                BaseLine(
                    name=base.alias,
                    url=f"/base/{base.weights.removeprefix('sha256:')}",
                    hub_id=base.hub_id,
                    kind=f"{base.model_type} {base.dtype}".strip(),
                    parameters=base.parameters or 0,
                    adapters=counts.get(base.weights, 0),
                    has_weights=bool(base.path) and Path(base.path).is_dir(),
                    playground_url=f"/playground?{urlencode({'base': base.alias})}",
                )
                for base in ask(library.session, lambda index: index.bases())
            ),
            unused=tuple(
                Link(text=one.spec, url=address_of(one.namespace, one.manifest.name, one.manifest.digest))
                for one in library.unused()
            ),
        )

    def projects(self) -> ProjectsPage:
        """The project of `adapt ui`, and the folders of the others that use the library."""
        library, project, problem = self._library, self._project, ""
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

    def outdated(self, *, ask: bool) -> OutdatedPage:
        """What servers have; they are asked only if the reader says so."""
        where = self._project or self._library
        found = [offer for offer in where.outdated() if offer.is_worth_telling] if ask else []
        return OutdatedPage(
            is_asked=ask,
            is_project=self._project is not None,
            offers=tuple(
                OfferLine(
                    name=str(offer.request.key),
                    version=offer.request.version,
                    allowed=offer.allowed.version if offer.allowed else None,
                    newest=offer.newest.version if offer.newest else None,
                    place=offer.place,
                    note=offer.problem or (f"yanked: {offer.yanked}" if offer.yanked is not None else ""),
                )
                for offer in found
            ),
        )

    # ------------------------------------------------------------ the playground
    def playground(self, asked: PageQuery) -> PlaygroundPage:
        """The form, with the adapters that fit the base."""
        return self._playing.page(asked)

    def play(self, asked: PageQuery) -> PlaygroundPage:
        """The form with its answers, or with the merge that it saved."""
        return self._playing.play(asked)

    def stream(self, asked: PageQuery) -> Stream:
        """The answers while they are written."""
        return self._playing.stream(asked)


# ---------------------------------------------------------------- parts
def _wanted(text: str) -> BaseSpec | None:
    if names_folder(text):
        raise UsageProblem("a folder is no base to search for", hint="name one by its alias, Hub id or digest")
    return BaseSpec.parse(text) if text else None


def _base_of(config: bytes) -> tuple[str, str]:
    """The base that an adapter's manifest declares, and a note."""
    try:
        base = Manifest.parse(config, MANIFEST_FILE).base
    except AdapterHubError as error:
        return "", f"{error.message}; expected an adapter's {MANIFEST_FILE}"
    found = base.fingerprint.weights if base.fingerprint else base.hints.hub_id or ""
    return found, f"Adapters for the base {found}." if found else "The file names no base."


def _ranks(query: Mapping[str, str]) -> RankRange:
    return RankRange.of(number_in(query.get("rank", "")) or None)


def _choice(name: str, label: str, query: Mapping[str, str], values: list[str]) -> Facet:
    value = query.get(name, "")
    named = ["", *values, *([] if value in ("", *values) else [value])]
    choices = tuple(FormChoice(value=one, text=one or "any", chosen=one == value) for one in named)
    return Facet(name=name, label=label, value=value, choices=choices)


def _locked(project: Project) -> list[LockLine]:
    """What the project wants, each with what its lock holds."""
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
