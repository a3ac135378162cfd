"""Serves the pages of a library, only on this machine, to the browser that has the address with the token.

Other programs and users of the machine can reach a port on 127.0.0.1, and so can any web page by a name that leads
here (DNS rebinding). So every request must name this address in `Host`, and bring the cookie that the first address
gave; forms also bring a token of their page.
"""

from __future__ import annotations

import hmac
import secrets
import socket
import threading
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from adapterhub.api.pages.builds import adapter_page, blob_page, commit_page, raw_file, tree_page
from adapterhub.api.pages.home import library_page, updates_page
from adapterhub.api.pages.library import projects_page, search_page
from adapterhub.api.pages.making import contracts_page, make, make_page
from adapterhub.api.pages.playing import Playing
from adapterhub.api.pages.source import LibrarySource
from adapterhub.api.pages.weights import base_page, build_page, compare_page, lineage_page
from adapterhub.core.errors import NotAllowed
from adapterhub.library.find.ahead import make_ahead
from adapterhub.pages.page import REPO, Page
from adapterhub.pages.site import HEADERS, Home, refusal_page, routes
from adapterhub.pages.wire import StrictProtocol

if TYPE_CHECKING:
    import asyncio
    from types import TracebackType

    from typing_extensions import Self

    from adapterhub import Library, Project

HOST: Final = "127.0.0.1"
_TOKEN_BYTES: Final = 24
_MOST_REQUESTS: Final = 64
"""At the same time."""
_MOST_CONNECTIONS: Final = 256
_STOPS_IN_S: Final = 5
_COME_IN: Final = (
    '<!doctype html><html lang="en"><title>adapt ui</title><meta http-equiv="refresh" content="0; url=/">'
    '<p><a href="/">To the library</a>'
)
"""A page instead of a redirect: after a step from another site a browser would hold back the cookie."""


PAGES: Final = (
    Page(path="/", template="library.html", show=library_page, act=library_page),
    Page(path="/search", template="search.html", show=search_page, act=search_page, part="/search"),
    Page(path=REPO, template="adapter.html", show=adapter_page),
    Page(path=f"{REPO}/commit/{{revision}}", template="commit.html", show=commit_page),
    Page(path=f"{REPO}/tree/{{revision}}", template="tree.html", show=tree_page),
    Page(path=f"{REPO}/tree/{{revision}}/{{path:path}}", template="tree.html", show=tree_page),
    Page(path=f"{REPO}/blob/{{revision}}/{{path:path}}", template="blob.html", show=blob_page),
    Page(path=f"{REPO}/raw/{{revision}}/{{path:path}}", show=raw_file),
    Page(path=f"{REPO}/{{version}}", template="build.html", show=build_page),
    Page(path="/compare", template="compare.html", show=compare_page, part="/compare"),
    Page(path="/base/{fingerprint}", template="base.html", show=base_page),
    Page(path=f"/lineage{REPO}", template="lineage.html", show=lineage_page),
    Page(path="/projects", template="projects.html", show=projects_page, part="/projects"),
    Page(path="/contracts", template="contracts.html", show=contracts_page, part="/contracts"),
    Page(path=f"/make{REPO}", template="make.html", show=make_page, act=make),
    Page(path="/updates", template="updates.html", show=updates_page, act=updates_page, part="/updates"),
)


class _LocalHome(Home):
    title = "adapt ui"
    search_url = "/search"
    note = "Only this machine can open this page"

    def __init__(self, library: Library, project: Project | None, playing: Playing) -> None:
        super().__init__(secrets.token_bytes(32))
        self._source = LibrarySource(library, project)
        form: dict[str, Any] = {
            "template": "playground.html",
            "part": "/playground",
            "show": lambda _here, asked: playing.page(asked),
        }
        self.pages = (
            *PAGES,
            Page(path="/playground", act=lambda _here, asked: playing.play(asked), **form),
            Page(path="/playground-stream", act=lambda _here, asked: playing.stream(asked), **form),
        )

    async def source_of(self, request: Request) -> LibrarySource:  # noqa: ARG002 - the gate has checked who asks
        """Return the same for every request, as one person asks."""
        return self._source


class _Gate:
    """Lets requests through to `app` that name this address and bring the cookie, which the token gives."""

    def __init__(self, app: ASGIApp, port: int, token: str) -> None:
        self._app = app
        self._hosts = {f"{HOST}:{port}", f"localhost:{port}"}
        self._token = token
        self._cookie = f"adapt_ui_{port}"
        self._pass = secrets.token_urlsafe(_TOKEN_BYTES)
        self._running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        refusal = self._refusal(Request(scope))
        self._running += 1
        try:
            await (self._app if refusal is None else refusal)(scope, receive, send)
        finally:
            self._running -= 1

    def _refusal(self, request: Request) -> Response | None:
        """Return an answer instead of a page; None lets the request through."""
        if request.headers.getlist("host") not in [[host] for host in self._hosts]:
            return PlainTextResponse("adapt ui answers to its own address alone", 421, HEADERS)
        given = request.query_params.get("token")
        if given is not None and request.method == "GET" and request.url.path == "/" and _same(given, self._token):
            response = HTMLResponse(_COME_IN, headers={**HEADERS, "Cache-Control": "no-store"})
            response.set_cookie(self._cookie, self._pass, path="/", httponly=True, samesite="strict")
            return response
        if not _same(request.cookies.get(self._cookie, ""), self._pass):
            return PlainTextResponse("open the address that `adapt ui` printed: its token lets you in", 403, HEADERS)
        if self._running >= _MOST_REQUESTS:
            return PlainTextResponse("too many requests at once", 503, {**HEADERS, "Retry-After": "1"})
        return None


class _MakesRoom(StrictProtocol):
    """When there are too many connections, the oldest idle one is closed for a newer one.

    Anyone on the machine can open connections, and an idle one holds a file of the process.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn's
        super().connection_made(transport)
        self.opened_at = self.loop.time()
        if len(self.connections) > _MOST_CONNECTIONS:
            others = [one for one in self.connections if isinstance(one, _MakesRoom) and one is not self]
            oldest = min((one for one in others if one.is_idle), key=lambda one: one.opened_at, default=self)
            oldest.transport.close()

    @property
    def is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete


def _same(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode())


class Ui:
    """The pages of a library, which are served until `close`; a context manager."""

    def __init__(self, library: Library, *, port: int = 0, project: Project | None = None) -> None:
        """Listen on 127.0.0.1; port 0 takes a free one.

        Raises:
            NotAllowed: the port is taken, or may not be used.
        """
        listener = _bind(port)
        self.port: int = listener.getsockname()[1]
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        self.url = f"http://{HOST}:{self.port}/?token={token}"
        """The address for the browser; it lets in anyone who has it."""
        self._playing = Playing(library)
        home = _LocalHome(library, project, self._playing)

        async def refused(request: Request, error: Exception) -> Response:
            return await refusal_page(home, request, error)

        app = Starlette(routes=routes(home), exception_handlers={HTTPException: refused, Exception: refused})
        app.router.redirect_slashes = False
        self._server = uvicorn.Server(
            uvicorn.Config(
                _Gate(app, self.port, token),
                http=_MakesRoom,  # h11 refuses a second Host
                ws="none",
                lifespan="off",
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=_STOPS_IN_S,
            )
        )
        self._thread = threading.Thread(target=self._server.run, args=([listener],), name="adapt ui", daemon=True)
        self._thread.start()
        self._ended = threading.Event()
        self._ahead = threading.Thread(
            target=make_ahead, args=(library, self._ended), name="adapt ui, ahead", daemon=True
        )
        self._ahead.start()

    def wait(self) -> None:
        """Wait until the server ends, by `close` in another thread or an interruption of this one."""
        self._thread.join()

    def close(self) -> None:
        """End the server, and let go of the playground's base."""
        self._server.should_exit = True
        self._ended.set()
        self._playing.close()
        self._thread.join()
        self._ahead.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _bind(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
    except OSError as error:
        listener.close()
        raise NotAllowed(
            f"cannot listen on {HOST}:{port}: {error.strerror}", hint="pick a free port: leave out `--port`"
        ) from None
    listener.listen()
    return listener
