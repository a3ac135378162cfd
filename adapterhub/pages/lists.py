"""The pages that list adapters and bases, as values. Times are in milliseconds since 1970."""

from __future__ import annotations

from dataclasses import dataclass

from adapterhub.pages.figures import method_name
from adapterhub.pages.values import Badge, FormChoice, Link, MapPoint, OutcomeTable, RelatedBase


@dataclass(frozen=True, slots=True, kw_only=True)
class FacetValue:
    """One value of a facet and the address with it, or without it where it is chosen.

    `count` is how many adapters have it under the other conditions, and with `more` a least number.
    """

    text: str
    url: str
    count: int | None = None
    more: bool = False
    is_chosen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Facet:
    """A condition of the search with its most frequent values; `all_url` shows all of them, as `all_text` says."""

    name: str
    label: str
    values: tuple[FacetValue, ...]
    all_url: str | None = None
    all_text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterLine:
    """One adapter in a list; `downloads` is None if none are counted. Times are in milliseconds since 1970.

    `example` is a prompt for it that matches the words of the search. `picture_url` is of a sample, "" without one.
    """

    repo: str
    url: str
    version: str | None
    description: str
    task: str | None
    base: str | None
    base_sha256: str | None
    method: str
    rank: int | None
    license: str | None
    downloads: int | None
    modified_at: int
    example: str = ""
    picture_url: str = ""
    badges: tuple[Badge, ...] = ()

    @property
    def how(self) -> str:
        """Its method and rank in a few words."""
        return ", ".join(filter(None, (method_name(self.method), f"rank {self.rank}" if self.rank else "")))


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPage:
    """The adapters that match; `next_url` leads on, and is None on the last page.

    `total` is how many match, and with `more` at least so many. `conditions` are the filters in use, each with the
    address without it; `kept` are the same as fields of a form. `place` is the path of the page. `begin` has the
    commands, each with its purpose, for a page without any adapter.
    """

    words: str
    total: int
    facets: tuple[Facet, ...]
    sorts: tuple[FormChoice, ...]
    adapters: tuple[AdapterLine, ...]
    next_url: str | None
    conditions: tuple[Link, ...] = ()
    kept: tuple[tuple[str, str], ...] = ()
    feed_url: str | None = None
    note: str = ""
    more: bool = False
    place: str = "/"
    begin: tuple[tuple[str, str], ...] = ()

    @property
    def count(self) -> str:
        """`214 adapters`, or `1,000+ adapters`."""
        return f"{self.total:,}{'+' * self.more} adapter{'s' if self.total != 1 else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyLine:
    """A key that a namespace knows."""

    name: str
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened in a namespace, at milliseconds since 1970."""

    title: str
    url: str
    at: int
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespacePage:
    """A namespace: the `list` of its adapters, its newest events, or its keys, as `tab` says.

    `total` and `downloads` are those of the adapters that the reader may see, and with `more` at least so many.
    `members` is how many people it has, for those who administer it.
    """

    name: str
    tab: str
    tabs: tuple[Link, ...]
    total: int
    more: bool
    downloads: int
    list: SearchPage
    keys: tuple[KeyLine, ...]
    events: tuple[Event, ...]
    feed_url: str
    members: int | None = None
    members_url: str = ""
    about: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseCount:
    """A base and how many adapters name it; `is_known` by its content, or else by its name only."""

    name: str
    url: str
    is_known: bool
    adapters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BasesPage:
    """The bases of the adapters that the reader may see; with `more`, those of the newest."""

    bases: tuple[BaseCount, ...]
    more: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class BasePage:
    """One base by content: its names, related bases, its newest adapters on a map of their updates, and their tests.

    With `more`, it has at least `count` adapters.
    """

    sha256: str
    names: tuple[str, ...]
    count: int
    related: tuple[RelatedBase, ...]
    points: tuple[MapPoint, ...]
    outcomes: OutcomeTable | None
    adapters: tuple[AdapterLine, ...]
    search_url: str
    feed_url: str | None
    more: bool = False
