"""The first page of `adapt ui`: the bases of a library with their adapters, and what servers have that is newer."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from adapterhub.api.listed import copy_text
from adapterhub.api.pages.source import address_of, has_folder
from adapterhub.api.searching import ask, base_name
from adapterhub.api.steps.finding import lineage_of
from adapterhub.core.digests import Digest
from adapterhub.core.errors import StoreLocked
from adapterhub.library.results import KeptResults
from adapterhub.library.store.rows import Filters
from adapterhub.pages.figures import verdict_badge
from adapterhub.pages.local_values import BaseGroup, LibraryLine, LibraryPage, UpdatesPage
from adapterhub.pages.values import Badge, Link
from adapterhub.projects.tree import MOST_NEAR, Uses

if TYPE_CHECKING:
    from adapterhub.api.pages.source import LibrarySource
    from adapterhub.distribution.outdated import Offer
    from adapterhub.library.store.rows import BaseCount, BaseRow, BuildRow
    from adapterhub.pages.page import PageQuery

_MOST_GROUPS: Final = 12
_MOST_LINES: Final = 25
_MOST_IN_ALL: Final = 150
"""Adapters of all bases together; with many bases, each shows fewer."""
_MOST_UNUSED: Final = 200
BEGIN: Final = (
    ("Register a base", "adapt base add ./models/base-7b --as base-7b"),
    ("Add an adapter that you trained", "adapt add ./out/legal-qa --name legal-qa --base base-7b"),
    ("Install an adapter from a registry", "adapt install acme/legal-qa@base-7b"),
)
"""The first commands for an empty library, each with its purpose."""


def library_page(here: LibrarySource, asked: PageQuery) -> LibraryPage:
    """Every base with its adapters, and where the reader sends the form: the space, and the builds without use."""
    library = here.library
    per_base = ask(library.session, lambda index: index.per_base())
    space = library.space().size_bytes if asked.is_form else None
    unused = library.unused() if asked.is_form else ()
    whole, builds = sum(one.size_bytes for one in per_base), sum(one.builds for one in per_base)
    groups = _Groups(here, per_base)
    return LibraryPage(
        folder=str(library.root),
        builds=builds,
        size=whole if space is None else space,
        is_measured=space is not None,
        shared=0 if space is None else max(whole - space, 0),
        groups=tuple(groups.first()),
        more_bases=max(groups.count - _MOST_GROUPS, 0),
        newer=tuple(
            Link(text=f"{one.request.key} {version_of(one)}", url="/updates") for one in here.newer() if version_of(one)
        ),
        unused=tuple(
            Link(text=one.spec, url=address_of(one.namespace, one.manifest.name, one.manifest.digest))
            for one in unused[:_MOST_UNUSED]
        ),
        more_unused=max(len(unused) - _MOST_UNUSED, 0),
        begin=() if builds else BEGIN,
    )


def updates_page(here: LibrarySource, asked: PageQuery) -> UpdatesPage:
    """Show the servers' versions; they are asked only if the reader sends the form, and the last answers stay."""
    where = here.project or here.library
    if asked.is_form:
        here.offers = tuple(offer for offer in where.upgrade(check=True) if offer.is_worth_telling)
    return UpdatesPage(
        is_asked=here.offers is not None,
        is_project=here.project is not None,
        command="adapt upgrade",
        offers=here.offers or (),
    )


def version_of(offer: Offer) -> str:
    """Return the version that an upgrade would take, otherwise the newest; "" if there is none that is newer."""
    if offer.has_allowed and offer.allowed is not None:
        return offer.allowed.version
    return offer.newest.version if offer.has_newer and offer.newest is not None else ""


class _Groups:
    """The bases of a library, each with the builds that declare it; those with weights on this machine come first."""

    def __init__(self, here: LibrarySource, per_base: Sequence[BaseCount]) -> None:
        session = here.library.session
        self._here = here
        self._bases = ask(session, lambda index: index.bases())
        self._aliases = ask(session, lambda index: index.aliases())
        self._names = {base.weights: base.alias for base in self._bases}
        self._counts: Counter[str] = Counter()
        self._declared: dict[str, list[str]] = {base.alias: [] for base in self._bases}
        for one in per_base:
            key = self._aliases.get(one.weights, one.weights)
            self._counts[key] += one.builds
            self._declared.setdefault(key, []).append(one.weights)
        self.count = len(self._declared)
        self._uses = Uses(session.root, lineage_of(session), is_near=True)
        self._results = KeptResults(here.library.store)
        self._noted = here.library.yanks.noted()
        # of several offers for a build, the first
        self._newer = {str(one.request.digest): version_of(one) for one in reversed(here.newer())}

    def first(self) -> Iterator[BaseGroup]:
        """Yield the first groups."""
        known = {base.alias: base for base in self._bases}
        keys = sorted(self._declared, key=lambda key: (not _has_weights(known.get(key)), -self._counts[key], key))
        rows: dict[str, list[BuildRow]] = {}
        most = min(_MOST_LINES, _MOST_IN_ALL // max(min(len(keys), _MOST_GROUPS), 1))
        for key in keys[:_MOST_GROUPS]:
            newest = Filters(bases=tuple(self._declared[key]), limit=most)
            rows[key] = ask(self._here.library.session, lambda index: index.search(newest)) if self._counts[key] else []  # noqa: B023 - called at once
        self._uses.look_ahead([row.digest for some in rows.values() for row in some])
        for key, some in rows.items():
            yield self._group(key, known.get(key), some)

    def _group(self, key: str, base: BaseRow | None, rows: Sequence[BuildRow]) -> BaseGroup:
        name = base.alias if base else base_name(rows[0], {}, "Base unknown") if rows and key else "Base unknown"
        weights = base.weights if base else key
        about = [f"{base.model_type} {copy_text(base, self._names) if base.form else base.dtype}"] if base else []
        if base and base.hub_id:
            about.insert(0, base.hub_id)
        has_weights = _has_weights(base)
        is_folder = base is not None and has_folder(base)
        alias = name.rpartition("/")[2].lower() if key else "NAME"
        return BaseGroup(
            name=name,
            url=f"/base/{weights.removeprefix('sha256:')}" if weights else "",
            about=tuple(text.strip() for text in about if text.strip()),
            adapters=self._counts[key],
            has_weights=has_weights,
            playground_url=f"/playground?{urlencode({'base': name})}" if is_folder else "",
            command="" if has_weights else f"adapt base add PATH --as {shlex.quote(alias)}",
            lines=tuple(self._line(row) for row in rows),
            all_url=f"/search?{urlencode({'base': name if base else key})}" if key else "/search",
        )

    def _line(self, row: BuildRow) -> LibraryLine:
        return LibraryLine(
            name=row.full_name,
            url=address_of(row.namespace, row.name, row.digest),
            version=row.version,
            newer=self._newer.get(row.digest, ""),
            is_merge=bool(row.parents),
            is_yanked=row.digest in self._noted and self._here.is_yanked(row),
            task=row.task,
            rank=row.rank,
            contract=self._contract(row),
            used_by=self._used_by(row),
            size=row.size_bytes,
            added_at=round(row.added_at * 1000),
        )

    def _contract(self, row: BuildRow) -> Badge | None:
        """Return the latest result on the base of the build, otherwise on another; None without a contract."""
        if not row.has_tests:
            return None
        kept = [one.result for one in self._results.all(Digest(row.digest))]
        if not kept:
            return Badge(text="Recorded, not run")
        own = [one for one in kept if one.base_weights == row.base_weights]
        badge = verdict_badge((own or kept)[-1].verdict)
        return badge if own else replace(badge, detail="on another base")

    def _used_by(self, row: BuildRow) -> str:
        """Return who needs a build, in a few words."""
        try:
            uses = self._uses.of(row.digest, full_name=row.full_name)
        except StoreLocked:
            return "unknown"
        who: dict[str, set[str]] = {}
        for use in uses:
            who.setdefault(use.kind, set()).add(use.who)
        return ", ".join(_who(kind, names) for kind, names in who.items())


def _who(kind: str, names: Collection[str]) -> str:
    """`alias prod`, `2 aliases`, `1 project`."""
    if len(names) == 1:
        return f"alias {min(names).rpartition('@')[2]}" if kind == "alias" else f"1 {kind}"
    more = "+" if len(names) == MOST_NEAR else ""
    return f"{len(names)}{more} {kind}{'es' if kind.endswith('s') else 's'}"


def _has_weights(base: BaseRow | None) -> bool:
    return base is not None and bool(base.path) and Path(base.path).exists()
