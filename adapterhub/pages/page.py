"""The form of a page (its path, what it shows, how it looks), and what a home answers: one method for each page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from adapterhub.core.errors import NotFound
from adapterhub.pages.values import Link, Session, Viewer

if TYPE_CHECKING:
    from adapterhub.pages.values import (
        AdapterPage,
        BasePage,
        BlobPage,
        BuildPage,
        CommitPage,
        ComparePage,
        Feed,
        HandledPage,
        LibraryPage,
        LineagePage,
        OutdatedPage,
        PlaygroundPage,
        ProjectsPage,
        RawFile,
        RefusalsPage,
        SearchPage,
        SpacePage,
        Stream,
        TreePage,
        UsersPage,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PageQuery:
    """A request for a page.

    `path` holds the parameters of the page's path, `query` the first value of each parameter of the URL, and `form`
    the fields of a sent form; a file of the form is in `files`, of at most 1 MiB. `address` is the address of the home
    without a slash at its end, `url` the path and query of the request.
    """

    path: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    form: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, bytes] = field(default_factory=dict)
    address: str = ""
    url: str = "/"

    @property
    def repo(self) -> str:
        """`namespace/name` of the path."""
        return f"{self.path['namespace']}/{self.path['name']}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Elsewhere:
    """The answer to a form: the page to show next, and with `session` the session that opens; "" closes it."""

    url: str
    session: Session | None = None
    signs_out: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page. `show` answers GET with the value that the template gets as `page`; `act` answers a form by POST.

    Either may return an `Elsewhere`, or a `RawFile` of `values.files`. The site has checked the form's origin and its
    token before it calls `act`. A page with a form writes `{{ form_token() }}` inside it.
    """

    path: str
    template: str
    show: Callable[[PageSource, PageQuery], object]
    act: Callable[[PageSource, PageQuery], object] | None = None
    media_type: str = "text/html"


def no_such_page() -> NoReturn:
    """Raise for a page that this home does not have."""
    raise NotFound("there is no such page")


class PageSource:
    """The data of the pages, as one viewer may see them."""

    viewer: Viewer = Viewer()

    def menu(self) -> tuple[Link, ...]:
        """The links at the top of every page."""
        return (Link(text="Adapters", url="/"),)

    def search(self, asked: PageQuery, config: bytes | None = None) -> SearchPage:
        """The adapters that match the query; `config` is an uploaded file that names the base."""
        no_such_page()

    def adapter(self, repo: str, asked: PageQuery) -> AdapterPage:
        """The adapter `namespace/name`."""
        no_such_page()

    def commit(self, repo: str, revision: str, before: str | None) -> CommitPage:
        """A commit, and its differences from `before` (default: its parent)."""
        no_such_page()

    def tree(self, repo: str, revision: str, folder: str, after: str) -> TreePage:
        """A folder of a revision; its list begins behind the path `after`."""
        no_such_page()

    def blob(self, repo: str, revision: str, path: str) -> BlobPage:
        """A file at a revision."""
        no_such_page()

    def raw(self, repo: str, revision: str, path: str) -> RawFile:
        """The bytes of a file at a revision."""
        no_such_page()

    def build(self, repo: str, version: str) -> BuildPage:
        """The figures of one build, by its version, or a revision."""
        no_such_page()

    def compare(self, asked: PageQuery) -> ComparePage:
        """The builds `a` and `b` of the query beside each other, merged with the weights `wa` and `wb`."""
        no_such_page()

    def lineage(self, repo: str, version: str) -> LineagePage:
        """The relatives of one build; an empty version is the newest."""
        no_such_page()

    def base(self, fingerprint: str) -> BasePage:
        """A base by its digest, or by at least eight of its first digits."""
        no_such_page()

    def feed(self, asked: PageQuery) -> Feed:
        """New versions and yanks of the namespace or base that the query names."""
        no_such_page()

    def sign_in(self, token: str) -> Session | None:
        """The session of a token; None for a token that is not valid."""
        no_such_page()

    def sign_out(self) -> None:
        """End the session of the sender, so that its cookie opens nothing any more."""

    # ------------------------------------------------------------ a local library
    def library(self) -> LibraryPage:
        """The library as a whole."""
        no_such_page()

    def projects(self) -> ProjectsPage:
        """The project of the home, and the others that use its library."""
        no_such_page()

    def outdated(self, *, ask: bool) -> OutdatedPage:
        """Newer releases and yanks; servers are asked only if `ask` is set."""
        no_such_page()

    def playground(self, asked: PageQuery) -> PlaygroundPage:
        """The form of the playground."""
        no_such_page()

    def play(self, asked: PageQuery) -> PlaygroundPage:
        """The playground with its answers, or with a merge that was saved."""
        no_such_page()

    def stream(self, asked: PageQuery) -> Stream:
        """The answers of the playground while they are written, as server-sent events."""
        no_such_page()

    # ------------------------------------------------------------ administration
    def users(self) -> UsersPage:
        """Users and tokens."""
        no_such_page()

    def change_tokens(self, asked: PageQuery) -> UsersPage | Elsewhere:
        """Create or revoke tokens, as the form says."""
        no_such_page()

    def space(self, *, preview: bool) -> SpacePage:
        """Quotas and space; with `preview`, also what a collection would remove."""
        no_such_page()

    def refusals(self, user: str) -> RefusalsPage:
        """The log of refused changes, of one user if given."""
        no_such_page()

    def handled(self, repo: str) -> HandledPage:
        """One repository, to yank from or to delete."""
        no_such_page()

    def withdraw(self, asked: PageQuery) -> HandledPage | Elsewhere:
        """Yank, take a yank back, or delete, as the form says."""
        no_such_page()
