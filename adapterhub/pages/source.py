"""What a home answers: one method for each page. A home overrides the methods of the pages that it has.

One source serves one request and knows who sent it. A method raises `HTTPException` of starlette, or an
`AdapterHubError`, where the page cannot be shown; the site turns either into a page.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NoReturn

from adapterhub.core.errors import NotFound
from adapterhub.pages.values.common import Link, Viewer

if TYPE_CHECKING:
    from adapterhub.pages.page import Asked
    from adapterhub.pages.values.adapters import AdapterPage, Feed, SearchPage
    from adapterhub.pages.values.files import BlobPage, CommitPage, RawFile, TreePage
    from adapterhub.pages.values.sessions import Session


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

    def feed(self, asked: Asked) -> Feed:
        """New versions and yanks of the namespace or base that the query names."""
        no_such_page()

    def sign_in(self, token: str) -> Session | None:
        """The session of a token; None for a token that is not valid."""
        no_such_page()
