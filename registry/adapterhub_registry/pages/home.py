"""A registry as a home of pages: who asks, by a token or by the cookie of a session."""

from __future__ import annotations

import contextlib
from typing import Final
from urllib.parse import unquote

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool

from adapterhub.core.errors import AdapterHubError
from adapterhub.pages.page import REPO, Elsewhere, Page, PageSource
from adapterhub.pages.rendering import read_templates
from adapterhub.pages.site import Home, refusal_page, routes, wants_page
from adapterhub.pages.values import Link
from adapterhub_registry.access import oidc
from adapterhub_registry.access.callers import ANONYMOUS, Caller
from adapterhub_registry.access.tokens import BrowserSession, session_of
from adapterhub_registry.api.context import Registry, admitted, base_url, caller_of
from adapterhub_registry.api.sign_in_api import DEVICE_PAGE
from adapterhub_registry.errors import HttpRefusal, refusal_of
from adapterhub_registry.pages.adapter import adapter_page, feed_of
from adapterhub_registry.pages.administering import (
    change_tokens,
    handled_page,
    refusals_page,
    revoke_user,
    space_page,
    tokens_page,
    users_page,
    withdraw,
)
from adapterhub_registry.pages.builds import base_page, build_page, lineage_page
from adapterhub_registry.pages.comparing import compare_page
from adapterhub_registry.pages.files import blob_page, commit_page, raw_file, tree_page
from adapterhub_registry.pages.namespace import bases_page, namespace_page, nearest_page
from adapterhub_registry.pages.people import (
    account_page,
    change_account,
    change_namespace,
    join,
    join_page,
    log_page,
    settings_page,
)
from adapterhub_registry.pages.pictures import picture
from adapterhub_registry.pages.search import search_page
from adapterhub_registry.pages.signing_in import (
    answer_device,
    begin,
    device_form,
    finish,
    sign_in,
    sign_in_form,
    sign_out,
)
from adapterhub_registry.pages.visit import Visit

_API = ("/api/", "/_lfs/", "/_xet/")
PAGES: Final = (
    Page(path="/", template="search.html", show=search_page, act=search_page),
    Page(path="/feed", template="feed.xml", show=feed_of, media_type="application/atom+xml"),
    Page(path="/sign-in", template="sign-in.html", show=sign_in_form, act=sign_in, part=""),
    Page(path=oidc.BEGIN, template="sign-in.html", show=begin, part=""),
    Page(path=oidc.BACK, template="sign-in.html", show=finish, part=""),
    Page(path=DEVICE_PAGE, template="device.html", show=device_form, act=answer_device, part=""),
    Page(path="/sign-out", show=lambda _here, _asked: Elsewhere(url="/"), act=sign_out),
    Page(path="/bases", template="bases.html", show=bases_page, part="/bases"),
    Page(path="/{namespace}", template="namespace.html", show=namespace_page),
    Page(path="/{namespace}/-/settings", template="namespace-settings.html", show=settings_page, act=change_namespace),
    Page(path="/{namespace}/-/log", template="log.html", show=log_page),
    Page(path=REPO, template="adapter.html", show=adapter_page),
    Page(path=f"{REPO}/commit/{{revision}}", template="commit.html", show=commit_page),
    Page(path=f"{REPO}/tree/{{revision}}", template="tree.html", show=tree_page),
    Page(path=f"{REPO}/tree/{{revision}}/{{path:path}}", template="tree.html", show=tree_page),
    Page(path=f"{REPO}/blob/{{revision}}/{{path:path}}", template="blob.html", show=blob_page),
    Page(path=f"{REPO}/picture/{{revision}}/{{path:path}}", show=picture),
    Page(path=f"{REPO}/raw/{{revision}}/{{path:path}}", show=raw_file),
    Page(path=f"{REPO}/{{version}}", template="build.html", show=build_page),
    Page(path="/compare", template="compare.html", show=compare_page, part="/compare"),
    Page(path="/base/{fingerprint}", template="base.html", show=base_page, part="/bases"),
    Page(path=f"/lineage{REPO}", template="lineage.html", show=lineage_page),
    Page(path="/settings", template="account.html", show=account_page, act=change_account, part="/settings"),
    Page(path="/join", template="join.html", show=join_page, act=join, part=""),
    # administration, with paths of one part, which no repository `namespace/name` can have
    Page(path="/admin", template="admin-tokens.html", show=tokens_page, act=change_tokens, part="/admin"),
    Page(path="/admin-users", template="admin-users.html", show=users_page, act=revoke_user, part="/admin"),
    Page(
        path="/admin-members",
        template="namespace-settings.html",
        show=settings_page,
        act=change_namespace,
        part="/admin",
    ),
    Page(path="/admin-log", template="log.html", show=log_page, part="/admin"),
    Page(path="/admin-space", template="admin-space.html", show=space_page, act=space_page, part="/admin"),
    Page(path="/admin-refusals", template="admin-refusals.html", show=refusals_page, part="/admin"),
    Page(path="/admin-adapter", template="admin-adapter.html", show=handled_page, act=withdraw, part="/admin"),
)


class RegistryHome(Home):
    """The pages of one registry."""

    title = "adapterhub registry"
    can_sign_in = True
    pages = PAGES

    def __init__(self, registry: Registry) -> None:
        super().__init__(registry.settings.secret)
        self._registry = registry

    async def source_of(self, request: Request) -> Visit:
        """Return the registry as the sender may see it: a token of the header counts, or the cookie of a session."""
        if "authorization" in request.headers:
            caller, session = await caller_of(request, self._registry), None
        else:
            cookie = request.cookies.get(self.cookies.session, "")
            caller, session = await run_in_threadpool(self._caller_of, cookie)
            caller = admitted(request, self._registry, caller)
        peer = str(request.scope["adapterhub.record"].address)
        return Visit(self._registry, caller, await self.address_of(request), session, peer)

    async def address_of(self, request: Request) -> str:
        """Return the address as the API gives it to clients."""
        return await base_url(request, self._registry)

    def decoded(self, parameter: str) -> str:
        """Return a parameter, in which `edge` left slashes and percent signs encoded."""
        return unquote(parameter)

    def nearest(self, source: PageSource, path: str) -> Link | None:
        """Return a repository or a namespace of the caller with nearly this name."""
        return nearest_page(source, unquote(path)) if isinstance(source, Visit) else None

    def json_refusal(self, error: Exception) -> Response:
        """Return the answer of the API."""
        if isinstance(error, AdapterHubError):
            return refusal_of(error).response()
        return error.response() if isinstance(error, HttpRefusal) else super().json_refusal(error)

    async def nothing_here(self, request: Request, error: Exception) -> Response | None:
        """Return the page for an address without a route; None for the API and for programs."""
        if request.method != "GET" or request.url.path.startswith(_API) or not wants_page(request):
            return None
        return await refusal_page(self, request, error)

    def _caller_of(self, cookie: str) -> tuple[Caller, BrowserSession | None]:
        """Return the caller of a session, anonymous where its token is expired or revoked, and the session."""
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
