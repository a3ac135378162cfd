"""One library as the pages see it, and the addresses of its builds.

A build without a namespace has the address `/-/NAME`, as no namespace begins with a dash. `?build=` and the revision of
a file name a build by the first digits of its digest.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from adapterhub.api.searching import ask, base_name, method_text, search_installed
from adapterhub.core.errors import AdapterHubError, NotFound, SpecError, shown
from adapterhub.core.specs import parse_version
from adapterhub.pages.lists import AdapterLine
from adapterhub.pages.page import PageSource
from adapterhub.pages.values import Badge, Link, RelatedBase, relation_text

if TYPE_CHECKING:
    from adapterhub import Library, Project
    from adapterhub.distribution.outdated import Offer
    from adapterhub.formats.base.fingerprint import BaseFingerprint
    from adapterhub.library.store.catalog import Installed
    from adapterhub.library.store.rows import BaseRow, BuildRow

_MOST_DIGITS: Final = 9
_NEWEST: Final = 50
"""Among so many builds of a name, one that is not yanked is looked for."""
NO_NAMESPACE: Final = "-"
DIGITS: Final = 12
"""So many digits of a digest name a build in an address."""


def address_of(namespace: str | None, name: str, digest: str) -> str:
    """Return the address of a build's page."""
    return f"/{namespace or NO_NAMESPACE}/{quote(name)}?build={digest.removeprefix('sha256:')[:DIGITS]}"


def make_url(build: Installed) -> str:
    """Return the address of the page that moves a build to another base, or converts it."""
    digits = build.manifest.digest.removeprefix("sha256:")[:DIGITS]
    return f"/make/{build.namespace or NO_NAMESPACE}/{quote(build.manifest.name)}?build={digits}"


def has_folder(base: BaseRow) -> bool:
    """Return whether the weights of a base are a folder on this machine."""
    return bool(base.path) and Path(base.path).is_dir()


def problem_text(error: AdapterHubError) -> str:
    """Word a refusal and its hint for a page."""
    return f"{error.message}. {error.hint}".removesuffix(". ")


def number_in(text: str) -> int | None:
    """Return the whole number that a field or an address gives; None for anything else, such as `²`."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else None


class LibrarySource(PageSource):
    """One library, and the project that `adapt ui` was started in."""

    def __init__(self, library: Library, project: Project | None) -> None:
        self.library, self.project = library, project
        self.offers: tuple[Offer, ...] | None = None
        """The last answers of the servers."""

    def newer(self) -> tuple[Offer, ...]:
        """Return the offers with a newer release."""
        return tuple(offer for offer in self.offers or () if offer.has_allowed or offer.has_newer)

    def menu(self) -> tuple[Link, ...]:
        """Return the links at the top of every page; updates have a count once servers were asked."""
        count = None if self.offers is None else len(self.newer())
        return (
            Link(text="Library", url="/"),
            Link(text="Search", url="/search"),
            Link(text="Projects", url="/projects"),
            Link(text="Updates", url="/updates", count=count),
            Link(text="Contracts", url="/contracts"),
            Link(text="Compare", url="/compare"),
            Link(text="Playground", url="/playground"),
        )

    def rows(self, repo: str, most: int | None = None) -> list[BuildRow]:
        """Return the builds of `namespace/name`, newest first, and after them those that are yanked; at most so many.

        Raises:
            NotFound: there are none.
        """
        namespace, _, name = repo.partition("/")
        wanted = "" if namespace == NO_NAMESPACE else namespace
        session = self.library.session
        rows = search_installed(session, None, name=name, namespace=wanted, sort="date", limit=most)
        if not rows:
            raise self.library.not_installed(repo)
        noted = self.library.yanks.noted()
        return sorted(rows, key=lambda row: row.digest in noted and self.is_yanked(row))

    def is_yanked(self, row: BuildRow) -> bool:
        """Return whether the repository that a build came from has yanked it."""
        builds = self.library.still_in([self.library.root / row.folder])
        return any(self.library.yanked(build) is not None for build in builds)

    def build(self, repo: str, digits: str) -> Installed:
        """Return the newest build of `namespace/name` whose digest begins with `digits`, or that has this version."""
        if not digits:
            for build in self.library.still_in(self.library.root / row.folder for row in self.rows(repo, _NEWEST)):
                return build
            raise self.library.not_installed(repo)
        namespace, _, name = repo.partition("/")
        look = partial(self.library.catalog.folders, name, "" if namespace == NO_NAMESPACE else namespace)
        folders = set(look(digest=f"sha256:{digits}"))
        with suppress(SpecError):  # it is no version
            folders |= {*look(version=parse_version(digits))}
        if not folders:
            raise self.library.not_installed(repo)
        builds = [
            build
            for build in self.library.still_in(sorted(folders))
            if build.manifest.digest.startswith(f"sha256:{digits}") or build.manifest.version == digits
        ]
        if not builds:
            raise NotFound(f"`{shown(repo, 200)}` has no build `{shown(digits, 80)}`", hint="open its newest build")
        return min(builds, key=lambda build: (self.library.yanked(build) is not None, -build.added_at))

    def other_forms(self, base: BaseFingerprint | None) -> Iterator[RelatedBase]:
        """Yield the registered bases that are the same model as `base`, on which its adapters run as well."""
        if base is None:
            return
        forms = self.library.bases.forms_of(base)
        per_base = ask(self.library.session, lambda index: index.per_base()) if forms else ()
        counts = {one.weights: one.builds for one in per_base}
        for record, found in forms:
            other = record.fingerprint
            copy, are_both = other.copy or base.copy, other.copy is not None and base.copy is not None
            form, is_copy = copy.form if copy else None, other.copy is not None
            yield RelatedBase(
                label=record.alias,
                url=f"/base/{other.weights.removeprefix('sha256:')}",
                relation=relation_text(found.verdict, form, is_copy=is_copy, are_both=are_both),
                adapters=counts.get(other.weights, 0),
            )

    def lines(self, rows: Sequence[BuildRow]) -> Iterator[AdapterLine]:
        """Return the rows as a list shows them."""
        aliases = ask(self.library.session, lambda index: index.aliases())
        return (_line(row, aliases) for row in rows)


def _line(row: BuildRow, aliases: dict[str, str]) -> AdapterLine:
    return AdapterLine(
        repo=row.full_name,
        url=address_of(row.namespace, row.name, row.digest),
        version=row.version,
        description=row.description,
        task=row.task or None,
        base=base_name(row, aliases),
        base_sha256=row.base_weights.removeprefix("sha256:") or None,
        method=method_text(row.method.split(",")),
        rank=row.rank,
        license=None,
        downloads=None,
        modified_at=round(row.added_at * 1000),
        badges=(Badge(text="merge"),) if row.parents else (),
    )
