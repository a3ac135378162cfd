"""The data of a registry's pages, from the tables and blobs that the API serves."""

from __future__ import annotations

import time
from typing import Final

from adapterhub.pages.page import Asked
from adapterhub.pages.source import PageSource
from adapterhub.pages.values.adapters import AdapterPage, Feed, SearchPage
from adapterhub.pages.values.common import Viewer
from adapterhub.pages.values.files import BlobPage, CommitPage, RawFile, TreePage
from adapterhub.pages.values.sessions import Session
from adapterhub_registry.access.signing import seal
from adapterhub_registry.access.tokens import Caller
from adapterhub_registry.api.context import Registry
from adapterhub_registry.pages import adapter, commit, feeds, files, search

SESSION_S: Final = 12 * 3600


class RegistrySource(PageSource):
    """What one caller may see of a registry that clients reach at `address`."""

    def __init__(self, registry: Registry, caller: Caller, address: str) -> None:
        self.registry, self.caller, self.address = registry, caller, address
        self.viewer = Viewer(name=caller.user, is_admin=caller.is_admin)

    def search(self, asked: Asked, config: bytes | None = None) -> SearchPage:
        """As `PageSource`."""
        return search.search_page(self.registry, self.caller, asked, config)

    def adapter(self, repo: str, asked: Asked) -> AdapterPage:  # noqa: ARG002 - the page has no parameters here
        """As `PageSource`."""
        return adapter.adapter_page(self.registry, self.caller, repo, self.address)

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

    def feed(self, asked: Asked) -> Feed:
        """As `PageSource`."""
        return feeds.feed(self.registry, self.caller, asked, self.address)

    def sign_in(self, token: str) -> Session | None:
        """As `PageSource`. The cookie holds the token's number, sealed, and never the token."""
        caller = self.registry.tokens.authenticate(token)
        if caller is None:
            return None
        claims = f"session {caller.token_id} {int(time.time()) + SESSION_S}"
        return Session(cookie=seal(claims, self.registry.settings.secret), lasts_s=SESSION_S)
