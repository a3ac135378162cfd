"""What the pages show, as values. Times are in milliseconds since 1970, sizes in bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Literal

from adapterhub.formats.administration import FreedSpace, LogEntry, RefusedChange, Token, User

Tone = Literal["good", "bad", "plain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A text and the address that it leads to, which begins with `/`."""

    text: str
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Badge:
    """One fact in two words, such as `signed` with the signer in `detail`; `tone` gives its colour."""

    text: str
    detail: str = ""
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True, kw_only=True)
class Snippet:
    """Lines to copy, for one program."""

    program: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """Who looks at a page; `name` is None without a sign-in. `is_admin` may administer the whole home."""

    name: str | None = None
    is_admin: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A page that cannot be shown: the status of HTTP, and why, in words that give nothing away."""

    status: int
    title: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FileLine:
    """A file or folder of a commit; a folder has no sha256. Size in bytes."""

    path: str
    name: str
    url: str
    is_folder: bool = False
    size: int = 0
    sha256: str | None = None
    changed_at: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TreePage:
    """The files and folders in one folder of a revision; `trail` leads from the repository down to it."""

    repo: str
    revision: str
    commit: str
    folder: str
    trail: tuple[Link, ...]
    entries: tuple[FileLine, ...]
    next_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobPage:
    """One file. `text` is None where the file is not text, or is too large; `why_not` says which. Size in bytes."""

    repo: str
    revision: str
    commit: str
    path: str
    trail: tuple[Link, ...]
    sha256: str
    size: int
    text: str | None
    why_not: str
    raw_url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RawFile:
    """The bytes of a file as pieces, and its size in bytes."""

    path: str
    size: int
    is_text: bool
    etag: str
    content: Iterator[bytes] = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeView:
    """One value of a config before and after, as JSON; None where it is absent. `key` is its path, as `a.b`."""

    key: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """A file that a commit added, changed or removed, and for a config the values that differ."""

    path: str
    kind: str
    url: str | None
    before_sha256: str | None
    after_sha256: str | None
    changes: tuple[ChangeView, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitPage:
    """One commit, and what differs from `before`: its parent, or the commit that the reader chose."""

    repo: str
    id: str
    title: str
    message: str
    author: str
    at: int
    tree_url: str
    parent: str | None
    parent_url: str | None
    before: str | None
    files: tuple[FileChange, ...]
    more_files: int
    versions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FormChoice:
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
    choices: tuple[FormChoice, ...] = ()
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
    sorts: tuple[FormChoice, ...]
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
class AnswerView:
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
    answers: tuple[AnswerView, ...]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatCell:
    """One number; `shade` is its share of the largest magnitude in the map, from -1 to 1. None where there is none."""

    name: str
    value: float | None
    text: str
    shade: float


@dataclass(frozen=True, slots=True, kw_only=True)
class HeatMap:
    """A number for each layer and kind of module; `largest` is the largest magnitude.

    A cell of several modules, such as experts, has their mean.
    """

    title: str
    largest: float
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[HeatCell, ...]], ...]

    @property
    def has_less(self) -> bool:
        """Whether a number is below zero."""
        return any(cell.shade < 0 for _, cells in self.rows for cell in cells)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpectrumLine:
    """The singular values of one kind of module, divided by the largest of each module; means over the layers."""

    name: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleLine:
    """One module of an adapter; without figures, `reason` says why."""

    name: str
    shape: str
    rank: int
    scale: float
    norm: float | None
    effective_rank: float | None
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLine:
    """An engine, whether it reads the adapter as trained, and why not; `notes` are what its user should know."""

    name: str
    reads: bool
    reasons: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPage:
    """One build. `state` is `made`, `waiting` for its figures, or `none`, and then `reason` says why."""

    repo: str
    version: str
    url: str
    commit: str
    digest: str
    badges: tuple[Badge, ...]
    links: tuple[Link, ...]
    state: str
    reason: str = ""
    norm: float | None = None
    others: int = 0
    heats: tuple[HeatMap, ...] = ()
    spectra: tuple[SpectrumLine, ...] = ()
    modules: tuple[ModuleLine, ...] = ()
    engines: tuple[EngineLine, ...] = ()
    findings: tuple[tuple[str, str], ...] = ()
    looked_at: str = "its config and its numbers"


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One of two builds: its address, its weight in the merge, and what its contract records."""

    name: str
    url: str
    weight: float
    norm: float | None
    contract: tuple[str, ...]
    badges: tuple[Badge, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageLine:
    """One way to store a merge, with the command that makes it. `error` is relative; `size` is in bytes."""

    options: str
    rank: str
    error: float
    size: int
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecasted:
    """The expected merge: its norm, the share of the magnitudes that cancels (with its error), and ways to store it."""

    norm: float
    cancelled: float
    cancelled_error: float
    choices: tuple[StorageLine, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparePage:
    """Two builds beside each other; an empty page has only the form. `obstacles` say why there is no forecast."""

    a: str
    b: str
    sides: tuple[Compared, ...] = ()
    config: tuple[ChangeView, ...] = ()
    cosine: float | None = None
    opposite: float | None = None
    opposite_error: float = 0.0
    heats: tuple[HeatMap, ...] = ()
    alone: tuple[str, ...] = ()
    unlike: tuple[str, ...] = ()
    obstacles: tuple[str, ...] = ()
    forecast: Forecasted | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Relative:
    """A build beside another: how they are related, and its address where the reader may see it."""

    relation: str
    name: str
    url: str | None
    weight: float | None = None
    digest: str | None = None
    license: str | None = None
    yanked: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LineagePage:
    """The relatives of one build. `inherited` are licences and yanks of what it was made from, however far up."""

    repo: str
    version: str
    url: str
    parents: tuple[Relative, ...]
    children: tuple[Relative, ...]
    others: tuple[Relative, ...]
    inherited: tuple[Relative, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class MapPoint:
    """An adapter on the map of its base, at `x` and `y` from -1 to 1, and the one whose update is most alike."""

    name: str
    url: str
    x: float
    y: float
    nearest: str
    cosine: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class RelatedBase:
    """Another base, and what it shares with this one."""

    label: str
    url: str
    relation: str
    adapters: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BasePage:
    """One base by content: its names, related bases, and its newest adapters on a map of their updates."""

    sha256: str
    names: tuple[str, ...]
    count: int
    related: tuple[RelatedBase, ...]
    points: tuple[MapPoint, ...]
    adapters: tuple[AdapterLine, ...]
    search_url: str
    feed_url: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInPage:
    """The form that takes a token; `problem` says why the last one was refused. `then` is the page to return to."""

    then: str
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """A session that a sign-in opened: the value of its cookie, and its length in seconds."""

    cookie: str
    lasts_s: int


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
class TermView:
    """One adapter of a column with its weight: the fields `pick-COLUMN-TERM` and `weight-COLUMN-TERM`."""

    number: int
    picks: tuple[FormChoice, ...]
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
    terms: tuple[TermView, ...]
    is_sum: bool
    answer: Answered | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaygroundPage:
    """The playground on one base. `saved` tells of a merge that was just saved, with the command that makes it."""

    bases: tuple[FormChoice, ...]
    base: str
    prompt: str
    most_characters: int
    forms: tuple[FormChoice, ...]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class UsersPage:
    """Users, tokens and the end of their log; `made` is a token that was just created, shown this once."""

    users: tuple[User, ...]
    tokens: tuple[Token, ...]
    log: tuple[LogEntry, ...]
    roles: tuple[str, ...]
    made: str | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceLine:
    """What a namespace holds."""

    namespace: str
    repos: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpacePage:
    """The largest namespaces with their quotas (None: no limit), and the preview that a reader asked for."""

    namespaces: tuple[NamespaceLine, ...]
    more_namespaces: int
    blobs: int
    blob_bytes: int
    namespace_bytes: int | None
    namespace_repos: int | None
    token_bytes_a_day: int | None
    preview: FreedSpace | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusalsPage:
    """The newest refusals, of one user if `user` is given; the log keeps `kept`."""

    refusals: tuple[RefusedChange, ...]
    user: str
    kept: int


@dataclass(frozen=True, slots=True, kw_only=True)
class HandledPage:
    """One repository that an administrator yanks from or deletes; `repo` is empty before one is named."""

    repo: str
    versions: tuple[VersionLine, ...] = ()
    problem: str = ""
