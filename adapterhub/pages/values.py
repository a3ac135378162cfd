"""What the pages show, as values. Times are in milliseconds since 1970, sizes in bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import TYPE_CHECKING, Final, Literal

from adapterhub.formats.administration import (
    FreedSpace,
    Invitation,
    LogEntry,
    Member,
    NamespaceRule,
    Publisher,
    RefusedChange,
    Team,
    Token,
    User,
)
from adapterhub.formats.base.fingerprint import BaseVerdict

if TYPE_CHECKING:
    from adapterhub.formats.derived.comparison import Comparison
    from adapterhub.formats.derived.record import EngineRecord, ModuleRecord

Tone = Literal["good", "warn", "bad", "plain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A text and the address that it leads to, which begins with `/`; `is_here` if the reader is there.

    `count` is the number of what stands there.
    """

    text: str
    url: str
    is_here: bool = False
    count: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Badge:
    """One fact in two words, such as `signed` with the signer in `detail`; `tone` gives its colour."""

    text: str
    detail: str = ""
    tone: Tone = "plain"


_SIGNS: Final = {"good": "✓", "warn": "!", "bad": "×", "plain": ""}  # noqa: RUF001 - the sign, not the letter


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one check of a build came to, in a word or two, with the one next thing to read in `detail` at `url`."""

    name: str
    text: str
    tone: Tone = "plain"
    detail: str = ""
    url: str | None = None

    @property
    def sign(self) -> str:
        """The sign before the word, so that no colour stands for itself."""
        return _SIGNS[self.tone]


@dataclass(frozen=True, slots=True, kw_only=True)
class Snippet:
    """Lines to copy, for one program."""

    program: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """The person who looks at a page; `name` is None without a sign-in. `is_admin` may administer the whole home."""

    name: str | None = None
    is_admin: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A page that cannot be shown: the status of HTTP, and why, in words that give nothing away.

    `nearest` is a page with a similar address that the reader may see.
    """

    status: int
    title: str
    message: str
    nearest: Link | None = None


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
    tabs: tuple[Link, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobPage:
    """One file. `text` is None if the file is not text, or is too large; `why_not` holds the reason. Size in bytes."""

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
    """The bytes of a file as pieces, and its size in bytes; `media_type` is given for a picture, which a page shows."""

    path: str
    size: int
    is_text: bool
    etag: str
    content: Iterator[bytes] = field(repr=False)
    media_type: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChangeView:
    """One value of a config before and after, as JSON; None if it is absent. `key` is its path, as `a.b`."""

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
class Fact:
    """A name and a value; `url` leads to the thing that the value names."""

    name: str
    text: str
    url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """One sentence above a page, with the version to use in its place and another link."""

    text: str
    tone: Tone = "plain"
    rest: str = ""
    link: Link | None = None
    other: Link | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Head:
    """The top of each page about a build: what it is, the line that installs it, what checks found, and the pages.

    `at` is when it was released, or changed where no version `is_release`. `versions` are the newest ones, and `newest`
    is the one that an install without a version takes.
    """

    repo: str
    version: str
    is_release: bool
    description: str
    install: str
    at: int
    badges: tuple[Badge, ...] = ()
    versions: tuple[VersionLine, ...] = ()
    versions_url: str | None = None
    newest: str | None = None
    notices: tuple[Notice, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    tabs: tuple[Link, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A sample picture of the repository, and the words that it was made with."""

    url: str
    name: str
    caption: str = ""


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
    """Everything about one adapter. `card` is Markdown without its front matter.

    `tab` is `overview`, or `versions` for all of them; `more_versions` leads to older ones. `days` has the last 90, the
    oldest first. `digests` are pairs of a name and a digest. `also` are other forms of its base, on which it runs as
    well. `trigger` is the word that a picture's prompt needs.
    """

    repo: str
    head: Head
    card: str
    facts: tuple[Fact, ...]
    versions: tuple[VersionLine, ...]
    snippets: tuple[Snippet, ...]
    files: tuple[FileLine, ...]
    more_files: int
    answers: tuple[AnswerView, ...]
    downloads: int | None
    days: tuple[Day, ...]
    commit: str
    modified_at: int
    tab: str = "overview"
    digests: tuple[tuple[str, str], ...] = ()
    parents: tuple[Relative, ...] = ()
    children: tuple[Relative, ...] = ()
    lineage_url: str | None = None
    pictures: tuple[Picture, ...] = ()
    trigger: str = ""
    feed_url: str | None = None
    more_versions: str | None = None
    also: tuple[RelatedBase, ...] = ()

    @property
    def recent(self) -> int:
        """The downloads of `days`."""
        return sum(day.count for day in self.days)


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
    """One number; `shade` is its share of the largest magnitude in the map, from -1 to 1. None if there is none."""

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
    effective_rank: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPage:
    """The figures of one build. `state` is `made`, `waiting` for them, or `none`, and then `reason` holds the cause.

    `changes` are those since the version `before`. Size in bytes, of the weights.
    """

    repo: str
    version: str
    url: str
    commit: str
    head: Head
    digests: tuple[tuple[str, str], ...]
    state: str
    reason: str = ""
    before: Link | None = None
    changes: tuple[str, ...] = ()
    compare_url: str = ""
    size: int | None = None
    rank: int | None = None
    norm: float | None = None
    others: int = 0
    heats: tuple[HeatMap, ...] = ()
    spectra: tuple[SpectrumLine, ...] = ()
    modules: tuple[ModuleRecord, ...] = ()
    engines: tuple[EngineRecord, ...] = ()
    findings: tuple[tuple[str, str], ...] = ()
    looked_at: str = "its config and its numbers"

    @property
    def rank_used(self) -> float | None:
        """The median of the effective ranks of its modules."""
        found = [one.effective_rank for one in self.modules if one.effective_rank is not None]
        return median(found) if found else None


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceGroup:
    """Some choices of a list that belong together."""

    label: str
    choices: tuple[FormChoice, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One of two builds: its address, its base by content, its weight in the merge, and what its contract records.

    `choice` is the value of the list that chooses it, `label` its name and version, and `verdict` the latest test.
    """

    name: str
    label: str
    choice: str
    url: str
    base: str | None
    weight: float
    norm: float | None
    contract: tuple[str, ...]
    verdict: Badge | None = None
    badges: tuple[Badge, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageView:
    """One way to store a merge: the options of `adapt merge`, and in `notes` `Exact` and `Suggested`."""

    options: str
    ranks: str
    error: float
    size: int
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparePage:
    """Two builds beside each other; an empty page has only the form.

    `lists` are the choices for each of the two. `ways` are those to store the merge, and `command` makes the suggested
    one; `reason` is the cause of a missing result. `same_base` is None if a base is unknown.
    """

    a: str
    b: str
    lists: tuple[tuple[ChoiceGroup, ...], ...] = ()
    sides: tuple[Compared, ...] = ()
    same_base: bool | None = None
    config: tuple[ChangeView, ...] = ()
    found: Comparison | None = None
    heats: tuple[HeatMap, ...] = ()
    ways: tuple[StorageView, ...] = ()
    command: str = ""
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
    """The relatives of one build. `inherited` are licences and yanks of its ancestors, however far up.

    `left_out` says in sentences what of them the page does not show.
    """

    repo: str
    version: str
    url: str
    parents: tuple[Relative, ...]
    children: tuple[Relative, ...]
    others: tuple[Relative, ...]
    inherited: tuple[Relative, ...]
    tabs: tuple[Link, ...] = ()
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class MapPoint:
    """An adapter on the map of its base, at `x` and `y` from -1 to 1, and the one whose update is most alike."""

    name: str
    url: str
    x: float
    y: float
    nearest: str
    cosine: float | None


MOST_COUNTED: Final = 1000
"""Pages count the adapters of a base up to this number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RelatedBase:
    """Another base, and what it shares with this one; with `more`, it has at least so many `adapters`."""

    label: str
    url: str
    relation: str
    adapters: int
    more: bool = False


def relation_text(verdict: BaseVerdict, form: str | None, *, is_copy: bool, are_both: bool = False) -> str:
    """Return how another form of a base relates to it: `is_copy`, or `are_both`, quantised, in `form`."""
    if verdict is BaseVerdict.SAME_WEIGHTS:
        return "same tensors in other files"
    if verdict is BaseVerdict.SAME_WEIGHTS_OTHER_PRECISION:
        return "same weights in another precision"
    copy = f"{'accepted ' * (verdict is BaseVerdict.ACCEPTED_QUANTISED)}{form or 'quantised'} copy"
    if are_both:
        return f"{copy} of the same base"
    return f"{copy} of it" if is_copy else f"source of this {copy}"


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeCell:
    """What a test of an adapter on a base came to, in one word; `detail` says when, by whom and how."""

    outcome: str
    detail: str
    tone: str


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeRow:
    """The tests of one adapter; `cells` has one for each base, None if it was not tested there."""

    name: str
    version: str
    url: str
    cells: tuple[OutcomeCell | None, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutcomeTable:
    """Adapters and bases, and what became of each test of one on the other, the latest of each pair."""

    bases: tuple[Link, ...]
    rows: tuple[OutcomeRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SignInPage:
    """The form that takes a token; `problem` is the refusal of the last one. `then` is the page to return to.

    `other_url` leads to another way to sign in, whose link has the text `other_text`.
    """

    then: str
    problem: str = ""
    other_url: str = ""
    other_text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stream:
    """An answer that comes piece by piece; `on_end` is called when its reader has it, or went away."""

    content: Iterator[bytes] = field(repr=False)
    on_end: Callable[[], None] = field(repr=False)
    media_type: str = "text/event-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class TokensPage:
    """The newest tokens, and the end of their log; `made` is a new token, shown this once.

    With `user`, the tokens are those of one user. `given` is what a refused form had in its fields.
    """

    tokens: tuple[Token, ...]
    log: tuple[LogEntry, ...]
    roles: tuple[str, ...]
    user: str = ""
    made: str | None = None
    problem: str = ""
    given: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class UsersPage:
    """Some users; `more_url` leads to further ones."""

    users: tuple[User, ...]
    more_url: str | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountPage:
    """A person's memberships and tokens; `made` is a new token, shown this once."""

    user: str
    memberships: tuple[Member, ...]
    tokens: tuple[Token, ...]
    scopes: tuple[str, ...]
    made: str | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class JoinPage:
    """An invitation, to accept as the viewer or as a new user; `made` is the first token of a new user."""

    code: str
    invitation: Invitation | None = None
    user: str = ""
    made: str | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespacePage:
    """The members of a namespace and their rights; `link` is of a new invitation, shown once. `*` is all namespaces.

    `about` is the line of text about it.
    """

    namespace: str
    url: str
    members: tuple[Member, ...]
    teams: tuple[Team, ...]
    invitations: tuple[Invitation, ...]
    publishers: tuple[Publisher, ...]
    rule: NamespaceRule | None
    scopes: tuple[str, ...]
    about: str = ""
    more_url: str | None = None
    link: str | None = None
    done: str = ""
    problem: str = ""
    tabs: tuple[Link, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LogPage:
    """Entries of the log of changes, newest first; `asked` has the conditions as they were written.

    Without `namespace`, they are those of the whole registry.
    """

    entries: tuple[LogEntry, ...]
    asked: dict[str, str]
    namespace: str
    url: str
    export_url: str
    more_url: str | None = None
    problem: str = ""
    tabs: tuple[Link, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class NamespaceLine:
    """The repositories of a namespace, and no less than the bytes that they take of its quota."""

    namespace: str
    repos: int
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SpacePage:
    """The largest namespaces with their quotas (None: no limit), and the preview that a reader asked for."""

    namespaces: tuple[NamespaceLine, ...]
    has_more: bool
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
    more_versions: str | None = None
    problem: str = ""
