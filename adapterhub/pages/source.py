"""What a home answers: one method for each page. A home overrides the methods of the pages that it has.

One source serves one request and knows who sent it. A method raises `HTTPException` of starlette, or an
`AdapterHubError`, where the page cannot be shown; the site turns either into a page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from adapterhub.core.errors import NotFound
from adapterhub.pages.values.common import Link, Viewer

if TYPE_CHECKING:
    from adapterhub.pages.page import Asked, Elsewhere
    from adapterhub.pages.values.adapters import AdapterPage, Feed, SearchPage
    from adapterhub.pages.values.admin import HandledPage, RefusalsPage, SpacePage, UsersPage
    from adapterhub.pages.values.files import BlobPage, CommitPage, RawFile, TreePage
    from adapterhub.pages.values.local import LibraryPage, OutdatedPage, PlaygroundPage, ProjectsPage, Stream
    from adapterhub.pages.values.sessions import Session
    from adapterhub.pages.values.weights import BasePage, BuildPage, ComparePage, LineagePage


def no_such_page() -> NoReturn:
    """Raise for a page that this home does not have."""
    raise NotFound("there is no such page")


class PageSource:
    """The data of the pages, as one viewer may see them."""

    viewer: Viewer = Viewer()

    def menu(self) -> tuple[Link, ...]:
        """The links at the top of every page."""
        return (Link(text="Adapters", url="/"),)

    def search(self, asked: Asked, config: bytes | None = None) -> SearchPage:
        """The adapters that match the query; `config` is an uploaded file that names the base."""
        no_such_page()

    def adapter(self, repo: str, asked: Asked) -> AdapterPage:
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

    def compare(self, asked: Asked) -> ComparePage:
        """The builds `a` and `b` of the query beside each other, merged with the weights `wa` and `wb`."""
        no_such_page()

    def lineage(self, repo: str, version: str) -> LineagePage:
        """The relatives of one build; an empty version is the newest."""
        no_such_page()

    def base(self, fingerprint: str) -> BasePage:
        """A base by its digest, or by at least eight of its first digits."""
        no_such_page()

    def feed(self, asked: Asked) -> Feed:
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

    def playground(self, asked: Asked) -> PlaygroundPage:
        """The form of the playground."""
        no_such_page()

    def play(self, asked: Asked) -> PlaygroundPage:
        """The playground with its answers, or with a merge that was saved."""
        no_such_page()

    def stream(self, asked: Asked) -> Stream:
        """The answers of the playground while they are written, as server-sent events."""
        no_such_page()

    # ------------------------------------------------------------ administration
    def users(self) -> UsersPage:
        """Users and tokens."""
        no_such_page()

    def change_tokens(self, asked: Asked) -> UsersPage | Elsewhere:
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

    def withdraw(self, asked: Asked) -> HandledPage | Elsewhere:
        """Yank, take a yank back, or delete, as the form says."""
        no_such_page()
