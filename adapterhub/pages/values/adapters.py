"""The search, one adapter, and the feeds."""

from __future__ import annotations

from dataclasses import dataclass

from adapterhub.pages.values.common import Badge, Link, Snippet
from adapterhub.pages.values.files import FileLine


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One choice of a facet: its value in the URL, its text, and whether it is chosen."""

    value: str
    text: str
    chosen: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Facet:
    """A condition of the search: one of `choices`, or a text where it has none."""

    name: str
    label: str
    value: str = ""
    choices: tuple[Choice, ...] = ()
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterLine:
    """One adapter in a list; `downloads` is None where none are counted. Times are in milliseconds since 1970.

    `example` is a prompt for it that matches the words of the search.
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
    badges: tuple[Badge, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchPage:
    """The adapters that match; `next_url` leads on, and is None on the last page."""

    words: str
    facets: tuple[Facet, ...]
    sorts: tuple[Choice, ...]
    adapters: tuple[AdapterLine, ...]
    next_url: str | None
    conditions: tuple[Link, ...] = ()
    feed_url: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionLine:
    """One version, with the reason when it is yanked. Times are in milliseconds since 1970."""

    version: str
    url: str
    commit: str
    digest: str
    released_at: int
    yanked_at: int | None = None
    yanked_by: str | None = None
    yanked_reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One recorded question: what the adapter answered, and the base where it is known. Losses in nats per token."""

    question: str
    answer: str
    loss: float | None
    base_loss: float | None
    base_answer: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Day:
    """The downloads of one day (`2026-01-31`, UTC)."""

    day: str
    count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterPage:
    """Everything about one adapter. `card` is Markdown without its front matter; `facts` are pairs to show.

    `note` says why there are no `snippets`.
    """

    repo: str
    namespace: str
    name: str
    private: bool
    description: str
    card: str
    badges: tuple[Badge, ...]
    facts: tuple[tuple[str, str], ...]
    versions: tuple[VersionLine, ...]
    snippets: tuple[Snippet, ...]
    files: tuple[FileLine, ...]
    more_files: int
    answers: tuple[Answer, ...]
    downloads: int | None
    days: tuple[Day, ...]
    commit: str
    modified_at: int
    links: tuple[Link, ...] = ()
    feed_url: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedEntry:
    """One entry of a feed. `id` never changes, `at` is in milliseconds since 1970."""

    id: str
    title: str
    url: str
    at: int
    summary: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Feed:
    """An Atom feed; its URLs are absolute."""

    id: str
    title: str
    url: str
    page_url: str
    updated_at: int
    entries: tuple[FeedEntry, ...]
