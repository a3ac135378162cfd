"""The data of a registry's pages, from the tables and blobs that the API serves."""

from __future__ import annotations

from dataclasses import replace
from typing import Final
from urllib.parse import urlencode

from adapterhub.pages.page import Asked, Elsewhere
from adapterhub.pages.source import PageSource
from adapterhub.pages.values.adapters import AdapterPage, Feed, SearchPage
from adapterhub.pages.values.admin import HandledPage, RefusalsPage, SpacePage, UsersPage
from adapterhub.pages.values.common import Link, Viewer
from adapterhub.pages.values.files import BlobPage, CommitPage, RawFile, TreePage
from adapterhub.pages.values.sessions import Session
from adapterhub.pages.values.weights import BasePage, BuildPage, ComparePage, LineagePage
from adapterhub_registry.access import sessions
from adapterhub_registry.access.sessions import BrowserSession
from adapterhub_registry.access.tokens import Caller
from adapterhub_registry.api.context import Registry
from adapterhub_registry.pages import (
    adapter,
    administering,
    bases,
    builds,
    commit,
    compare,
    feeds,
    files,
    lineage,
    search,
)

SESSION_S: Final = 12 * 3600


class RegistrySource(PageSource):
    """What one caller may see of a registry that clients reach at `address`."""

    def __init__(self, registry: Registry, caller: Caller, address: str, session: BrowserSession | None = None) -> None:
        self.registry, self.caller, self.address, self._session = registry, caller, address, session
        self.viewer = Viewer(name=caller.user, is_admin=caller.is_admin)

    def menu(self) -> tuple[Link, ...]:
        """As `PageSource`, and the way to administration for those who may."""
        more = (Link(text="Administration", url="/admin"),) if self.viewer.is_admin else ()
        return (*super().menu(), *more)

    def search(self, asked: Asked, config: bytes | None = None) -> SearchPage:
        """As `PageSource`."""
        return search.search_page(self.registry, self.caller, asked, config)

    def adapter(self, repo: str, asked: Asked) -> AdapterPage:  # noqa: ARG002 - the page has no parameters here
        """As `PageSource`."""
        page = adapter.adapter_page(self.registry, self.caller, repo, self.address)
        if not self.viewer.is_admin:
            return page
        link = Link(text="Yank or delete", url=f"/admin-adapter?{urlencode({'repo': page.repo})}")
        return replace(page, links=(*page.links, link))

    def commit(self, repo: str, revision: str, before: str | None) -> CommitPage:
        """As `PageSource`."""
        return commit.commit_page(self.registry, self.caller, repo, revision, before)

    def tree(self, repo: str, revision: str, folder: str, after: str) -> TreePage:
        """As `PageSource`."""
        return files.tree_page(self.registry, self.caller, repo, revision, folder, after)

    def blob(self, repo: str, revision: str, path: str) -> BlobPage:
        """As `PageSource`."""
        return files.blob_page(self.registry, self.caller, repo, revision, path)

    def raw(self, repo: str, revision: str, path: str) -> RawFile:
        """As `PageSource`."""
        return files.raw_file(self.registry, self.caller, repo, revision, path)

    def build(self, repo: str, version: str) -> BuildPage:
        """As `PageSource`."""
        return builds.build_page(self.registry, self.caller, repo, version)

    def compare(self, asked: Asked) -> ComparePage:
        """As `PageSource`."""
        return compare.compare_page(self.registry, self.caller, asked)

    def lineage(self, repo: str, version: str) -> LineagePage:
        """As `PageSource`."""
        return lineage.lineage_page(self.registry, self.caller, repo, version)

    def base(self, fingerprint: str) -> BasePage:
        """As `PageSource`."""
        return bases.base_page(self.registry, self.caller, fingerprint)

    def feed(self, asked: Asked) -> Feed:
        """As `PageSource`."""
        return feeds.feed(self.registry, self.caller, asked, self.address)

    def sign_in(self, token: str) -> Session | None:
        """As `PageSource`. The cookie holds the token's number, sealed, and never the token."""
        caller = self.registry.tokens.authenticate(token)
        if caller is None:
            return None
        assert caller.token_id is not None  # of a token
        cookie = sessions.cookie_for(caller.token_id, self.registry.settings.secret, lasts_s=SESSION_S)
        return Session(cookie=cookie, lasts_s=SESSION_S)

    def sign_out(self) -> None:
        """As `PageSource`."""
        if self._session is not None:
            sessions.end(self.registry.db, self._session)

    # ------------------------------------------------------------ administration
    def users(self) -> UsersPage:
        """As `PageSource`."""
        return administering.users_page(self.registry, self.caller)

    def change_tokens(self, asked: Asked) -> UsersPage | Elsewhere:
        """As `PageSource`."""
        return administering.change_tokens(self.registry, self.caller, asked)

    def space(self, *, preview: bool) -> SpacePage:
        """As `PageSource`."""
        return administering.space_page(self.registry, self.caller, preview=preview)

    def refusals(self, user: str) -> RefusalsPage:
        """As `PageSource`."""
        return administering.refusals_page(self.registry, self.caller, user)

    def handled(self, repo: str) -> HandledPage:
        """As `PageSource`."""
        return administering.handled_page(self.registry, self.caller, repo)

    def withdraw(self, asked: Asked) -> HandledPage | Elsewhere:
        """As `PageSource`."""
        return administering.withdraw(self.registry, self.caller, asked)
