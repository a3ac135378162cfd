"""A registry as a home of pages: who asks, by a token or by the cookie of a session."""

from __future__ import annotations

import contextlib
from typing import Final
from urllib.parse import unquote

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from adapterhub.core.errors import AdapterHubError
from adapterhub.pages.rendering import read_templates
from adapterhub.pages.site import Home, refusal_page, routes, wants_page
from adapterhub.pages.values import Session
from adapterhub_registry.access import tokens
from adapterhub_registry.access.tokens import ANONYMOUS, BrowserSession, Caller, session_of
from adapterhub_registry.api.context import Registry, admitted, base_url, caller_of
from adapterhub_registry.errors import HttpRefusal, refusal_of
from adapterhub_registry.pages import administering
from adapterhub_registry.pages.adapter import adapter_page, feed_of
from adapterhub_registry.pages.builds import base_page, build_page, compare_page, lineage_page
from adapterhub_registry.pages.files import blob_page, commit_page, raw_file, tree_page
from adapterhub_registry.pages.search import search_page
from adapterhub_registry.pages.visit import Visit

_API = ("/api/", "/_lfs/", "/_xet/")


class RegistryHome(Home):
    """The pages of one registry."""

    title = "adapterhub registry"
    can_sign_in = True

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry.settings.secret)
        self._registry = registry

    async def source_of(self, request: Request) -> RegistrySource:
        """The registry as the sender may see it: a token of the header counts, else the cookie of a session."""
        if "authorization" in request.headers:
            caller, session = await caller_of(request, self._registry), None
        else:
            cookie = request.cookies.get(self.cookies.session, "")
            caller, session = await run_in_threadpool(self._caller_of, cookie)
            admitted(request, self._registry, caller)
        return RegistrySource(self._registry, caller, await self.address_of(request), session)

    async def address_of(self, request: Request) -> str:
        """The address as the API gives it to clients."""
        return await base_url(request, self._registry)

    def decoded(self, parameter: str) -> str:
        """A parameter, in which `edge` left slashes and percent signs encoded."""
        return unquote(parameter)

    def json_refusal(self, error: Exception) -> Response:
        """The answer of the API."""
        if isinstance(error, AdapterHubError):
            return refusal_of(error).response()
        return error.response() if isinstance(error, HttpRefusal) else super().json_refusal(error)

    async def nothing_here(self, request: Request, error: Exception) -> Response | None:
        """The page for an address without a route; None for the API and for programs."""
        if request.method != "GET" or request.url.path.startswith(_API) or not wants_page(request):
            return None
        return await refusal_page(self, request, error)

    def _caller_of(self, cookie: str) -> tuple[Caller, BrowserSession | None]:
        """The caller of a session, anonymous where its token is expired or revoked, and the session."""
        session = session_of(cookie, self._registry.settings.secret, self._registry.db) if cookie else None
        caller = None if session is None else self._registry.tokens.caller_numbered(session.token_id)
        return caller or ANONYMOUS, session


def add_pages(app: FastAPI, registry: Registry) -> RegistryHome:
    """Let `app` serve the pages of `registry`, behind all its other routes."""
    home = RegistryHome(registry)
    app.router.routes.extend(routes(home))
    return home


def read_ahead() -> None:
    """Load the templates, and numpy where it is, so that no page waits for them."""
    read_templates()
    with contextlib.suppress(ImportError):
        import adapterhub.formats.derived.likeness  # noqa: F401 - a server starts without numpy


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
        cookie = tokens.cookie_for(caller.token_id, self.registry.settings.secret, lasts_s=SESSION_S)
        return Session(cookie=cookie, lasts_s=SESSION_S)

    def sign_out(self) -> None:
        """As `PageSource`."""
        if self.session is not None:
            tokens.end(self.registry.db, self.session)
