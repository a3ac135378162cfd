"""The pages of a registry, from the tables and blobs that the API serves."""

from __future__ import annotations

from typing import Final

from adapterhub.pages.values.sessions import Session
from adapterhub_registry.access import sessions
from adapterhub_registry.pages import administering
from adapterhub_registry.pages.adapter import adapter_page
from adapterhub_registry.pages.bases import base_page
from adapterhub_registry.pages.builds import build_page
from adapterhub_registry.pages.commit import commit_page
from adapterhub_registry.pages.compare import compare_page
from adapterhub_registry.pages.feeds import feed_of
from adapterhub_registry.pages.files import blob_page, raw_file, tree_page
from adapterhub_registry.pages.lineage import lineage_page
from adapterhub_registry.pages.search import search_page
from adapterhub_registry.pages.visit import Visit

SESSION_S: Final = 12 * 3600


class RegistrySource(Visit):
    """What one caller may see of a registry."""

    search = search_page
    adapter = adapter_page
    commit = commit_page
    tree = tree_page
    blob = blob_page
    raw = raw_file
    build = build_page
    compare = compare_page
    lineage = lineage_page
    base = base_page
    feed = feed_of
    users = administering.users_page
    change_tokens = administering.change_tokens
    space = administering.space_page
    refusals = administering.refusals_page
    handled = administering.handled_page
    withdraw = administering.withdraw

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
        if self.session is not None:
            sessions.end(self.registry.db, self.session)
