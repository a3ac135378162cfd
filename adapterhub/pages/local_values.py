"""What the pages of `adapt ui` show beside those that it shares with a registry, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.pages.values import Badge, FormChoice, Link, OutcomeTable

if TYPE_CHECKING:
    from adapterhub.distribution.outdated import Offer


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryLine:
    """One installed build: `newer` is the version that a server has, `used_by` is "" if nothing uses it."""

    name: str
    url: str
    version: str
    newer: str
    is_merge: bool
    is_yanked: bool
    task: str
    rank: int | None
    contract: Badge | None
    used_by: str
    size: int
    added_at: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseGroup:
    """One base with its first adapters of `adapters` in all; `all_url` leads to the others.

    `url` is "" if the library does not know its content. `playground_url` is "" if its weights are not a folder of
    this machine; without `has_weights`, `command` registers them.
    """

    name: str
    url: str
    about: tuple[str, ...]
    adapters: int
    has_weights: bool
    playground_url: str
    command: str
    lines: tuple[LibraryLine, ...]
    all_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LibraryPage:
    """The library as a whole: its bases with their adapters, and where they were looked for, the builds without use.

    `size` is that of all builds, less what they share where the space was measured. `newer` are the adapters with a
    newer release, once servers were asked. `begin` are commands for a library without anything.
    """

    folder: str
    builds: int
    size: int
    is_measured: bool
    shared: int
    groups: tuple[BaseGroup, ...]
    more_bases: int
    newer: tuple[Link, ...]
    unused: tuple[Link, ...]
    more_unused: int
    begin: tuple[tuple[str, str], ...] = ()


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
class UpdatesPage:
    """Newer releases and yanks, once the reader lets the servers be asked (`is_asked`); `command` takes them."""

    is_asked: bool
    is_project: bool
    command: str
    offers: tuple[Offer, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractsPage:
    """Which adapters work on which base, by the tests of this machine; `command` asks all of them on `base`."""

    outcomes: OutcomeTable | None
    without: int
    base: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MakePage:
    """A build that is moved to another base, or written for another program, by a command that the page shows.

    `port` and `convert` are the commands, "" if there is nothing to choose. `made` is the port, `written` the new
    file or folder.
    """

    repo: str
    version: str
    url: str
    form_url: str
    bases: tuple[FormChoice, ...]
    methods: tuple[FormChoice, ...]
    formats: tuple[FormChoice, ...]
    port: str
    convert: str
    made: Link | None = None
    written: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class TermView:
    """One adapter of a sum with its weight: the fields `term-COLUMN-TERM` and `weight-COLUMN-TERM`."""

    number: int
    name: str
    picks: tuple[FormChoice, ...]
    weight: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The answer of a column, or why there is none; `about` gives its length, its time and its speed.

    `label` names the adapters with their weights, so that the page keeps an answer while the column has the same.
    """

    label: str
    text: str
    about: str
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One column of the playground: its choice of `picks`, and the adapters that are added up where it is a sum."""

    number: int
    name: str
    spec: str
    picks: tuple[FormChoice, ...]
    is_sum: bool
    terms: tuple[TermView, ...]
    can_grow: bool
    merge_name: str
    answer: Answered | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaygroundPage:
    """The playground on one base; `asked` is the prompt of the answers.

    `saved` reports a merge that was just saved, with the command that makes it. `marks` says that words which the
    first column lacks are marked.
    """

    bases: tuple[FormChoice, ...]
    base: str
    prompt: str
    asked: str
    most_characters: int
    forms: tuple[FormChoice, ...]
    tokens: int
    most_tokens: int
    temperature: str
    columns: tuple[Column, ...]
    can_grow: bool
    marks: bool
    warnings: tuple[str, ...] = ()
    problem: str = ""
    saved: Link | None = None
    command: str = ""
