"""What `adapt ui` shows of a local library and its projects. Times are in milliseconds since 1970, sizes in bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from adapterhub.pages.values.adapters import Choice
from adapterhub.pages.values.common import Link


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseLine:
    """A registered base; `has_weights` says whether its weights are on this machine."""

    name: str
    url: str
    hub_id: str
    kind: str
    parameters: int
    adapters: int
    has_weights: bool
    playground_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryPage:
    """The library as a whole: its bases, the builds that nothing uses, and its space."""

    folder: str
    builds: int
    size: int
    shared: int
    bases: tuple[BaseLine, ...]
    unused: tuple[Link, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class LockLine:
    """One adapter of a project: what it asks for, and what its lock holds."""

    name: str
    wanted: str
    version: str | None
    rank: int | None
    source: str
    url: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectsPage:
    """The project that `adapt ui` was started in, and the other projects that use this library."""

    folder: str | None
    base: str | None
    lines: tuple[LockLine, ...]
    others: tuple[str, ...]
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OfferLine:
    """What one place has of an adapter; `note` tells of yanks and of places that did not answer."""

    name: str
    version: str
    allowed: str | None
    newest: str | None
    place: str
    note: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutdatedPage:
    """Newer releases and yanks, once the reader lets the servers be asked (`is_asked`)."""

    is_asked: bool
    is_project: bool
    offers: tuple[OfferLine, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One adapter of a column with its weight: the fields `pick-COLUMN-TERM` and `weight-COLUMN-TERM`."""

    number: int
    picks: tuple[Choice, ...]
    weight: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The answer of a column: text, or the `problem`; `ended` says why it ended, `form` how it was asked."""

    label: str
    text: str
    tokens: int
    seconds: float
    ended: str
    form: str
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One answer of the playground: the adapters that are added up for it; `is_sum` unless it is one with weight 1."""

    number: int
    terms: tuple[Term, ...]
    is_sum: bool
    answer: Answered | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaygroundPage:
    """The playground on one base. `saved` tells of a merge that was just saved, with the command that makes it."""

    bases: tuple[Choice, ...]
    base: str
    prompt: str
    most_characters: int
    forms: tuple[Choice, ...]
    tokens: int
    most_tokens: int
    temperature: str
    columns: tuple[Column, ...]
    warnings: tuple[str, ...] = ()
    problem: str = ""
    saved: Link | None = None
    command: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """An answer that comes piece by piece; `on_end` is called when its reader has it, or went away."""

    content: Iterator[bytes] = field(repr=False)
    on_end: Callable[[], None] = field(repr=False)
    media_type: str = "text/event-stream"
