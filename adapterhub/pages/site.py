"""Puts the pages before a home: routes, forms, cookies, the JSON twins, the pages of refusals, and protection.

Its headers, cookies and form tokens protect a page from other sites.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from http import HTTPStatus
from pathlib import PurePosixPath
from types import MappingProxyType
from typing import Any, Final, Literal
from urllib.parse import quote, urlencode

from markupsafe import Markup
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from adapterhub.core.errors import AdapterHubError, NotAllowed, NotFound, UsageProblem
from adapterhub.pages.page import FLOW_S, Elsewhere, Page, PageQuery, PageSource
from adapterhub.pages.rendering import MEDIA_TYPES, STATIC_PATH, render, static_files, static_url, twin
from adapterhub.pages.values import Link, Problem, RawFile, Stream

HEADERS: Final = MappingProxyType(
    {
        "Content-Security-Policy": (
            "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
            "frame-ancestors 'none'"
        ),
        "Cross-Origin-Opener-Policy": "same-origin",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "same-origin",
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
    }
)
"""On every answer. `data:` is for the signs in Pico's style sheet; no template has such an address."""
FORM_FIELD: Final = "form_token"


class Cookies:
    """The cookies of one home: the session, and a random number that forms of visitors without one rely on.

    A third one, of a visit to another site, comes back with the visitor; the others do not, until this home leads on.

    Cookies reach every port of a host. Their names depend on the home's secret, so that two homes on one machine do
    not overwrite each other's.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self.session = f"adapt_session_{self._digest('session cookie')[:8]}"
        self.visitor = f"adapt_visitor_{self._digest('visitor cookie')[:8]}"
        self.flow = f"adapt_flow_{self._digest('flow cookie')[:8]}"

    def visitor_of(self, request: Request) -> str:
        """Return the visitor's number, a new one on the first visit."""
        return request.cookies.get(self.visitor) or secrets.token_urlsafe(24)

    def form_token(self, request: Request, visitor: str) -> str:
        """Return the token that a form of this visitor must send back."""
        return self._digest(f"form {request.cookies.get(self.session, '')} {visitor}")

    def check_form(self, request: Request, sent: str, address: str) -> None:
        """Raise 403 unless the form comes from a page that this home showed to this visitor.

        Raises:
            HTTPException: 403.
        """
        origin, visitor = request.headers.get("origin"), request.cookies.get(self.visitor, "")
        is_own = origin in {None, address} and request.headers.get("sec-fetch-site", "same-origin") == "same-origin"
        if not (is_own and visitor and hmac.compare_digest(self.form_token(request, visitor), sent)):
            raise HTTPException(403, "the form is out of date, or comes from another site; load the page again")

    def put(self, response: Response, name: str, value: str, *, lasts_s: int | None, is_secure: bool) -> None:
        """Set a cookie for this host only, which no script reads and no other site sends; but a link sends `flow`."""
        site: Literal["lax", "strict"] = "lax" if name == self.flow else "strict"
        response.set_cookie(name, value, max_age=lasts_s, path="/", httponly=True, samesite=site, secure=is_secure)

    def _digest(self, text: str) -> str:
        return hmac.new(self._secret, f"pages: {text}".encode(), hashlib.sha256).hexdigest()


MAX_UPLOAD_BYTES: Final = 1 << 20
MAX_FIELDS: Final = 64
_TITLES: Final = MappingProxyType(
    {
        401: "Sign in first",
        403: "Not allowed",
        404: "Not found",
        405: "Not allowed",
        410: "Gone",
        413: "Too large",
        429: "Too many requests",
        503: "Busy",
    }
)
_NOT_FOUND: Final = "There is no such page, or it is not yours to see."
_SIGN_IN: Final = "This registry shows its adapters to those who sign in."


class Home:
    """What serves the pages: its secret signs cookies and forms, and it knows who asks.

    `title` stands at the top of each of its `pages`, and `note` at the foot. `can_sign_in` shows the link to the form
    that takes a token. `search_url` is the address of the search.
    """

    title: str = "adapters"
    search_url: str = "/"
    note: str = ""
    can_sign_in: bool = False
    pages: Sequence[Page] = ()

    def __init__(self, secret: bytes) -> None:
        self.cookies = Cookies(secret)

    async def source_of(self, request: Request) -> PageSource:
        """Return the data as the sender of a request may see them. May raise what a page may raise."""
        raise NotImplementedError

    async def address_of(self, request: Request) -> str:
        """Return the address of this home, such as `https://hub.example.org`, without a slash at its end."""
        return f"{request.url.scheme}://{request.url.netloc}"

    def decoded(self, parameter: str) -> str:
        """Return a parameter of a path, decoded."""
        return parameter

    def nearest(self, source: PageSource, path: str) -> Link | None:  # noqa: ARG002 - a home may look
        """Return the page of an adapter with nearly this address that the reader may see; None if there is none."""
        return None

    def json_refusal(self, error: Exception) -> Response:
        """Return the answer to a program."""
        problem = problem_of(error)
        return JSONResponse({"error": problem.message}, status_code=problem.status)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Visit:
    """One request, as the pages of a home see it."""

    home: Home
    request: Request
    source: PageSource
    address: str
    visitor: str
    part: str = ""

    def context(self, value: object) -> dict[str, Any]:
        request, asked_json = self.request, [*self.request.query_params.multi_items(), ("format", "json")]
        return {
            "page": value,
            "home": self.home,
            "viewer": self.source.viewer,
            "menu": tuple(replace(link, is_here=link.url == self.part) for link in self.source.menu()),
            "address": self.address,
            "form_token": cache(self.form_token),  # a page may have hundreds of forms
            "json_url": f"?{urlencode(asked_json)}",
            "sign_in_url": f"/sign-in?then={quote(_target(request), safe='')}",
        }

    def form_token(self) -> Markup:
        token = self.home.cookies.form_token(self.request, self.visitor)
        return Markup('<input type="hidden" name="{}" value="{}">').format(FORM_FIELD, token)


def routes(home: Home) -> list[Route]:
    """Return the routes of a home; paths with fewer parameters come first, so that a fixed one wins."""
    found = [Route(f"{STATIC_PATH}/{{name}}", _static, methods=["GET"])]
    for page in sorted(home.pages, key=lambda page: (page.path.count("{"), page.path)):
        methods = ["GET", "POST"] if page.act is not None else ["GET"]
        found.append(Route(page.path, partial(_answer, home, page), methods=methods, name=page.template or page.path))
    return found


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    content = static_files().get(name)
    if content is None:
        raise HTTPException(404, "no such file")
    is_pinned = static_url(name).endswith(f"?{request.url.query}")
    kept = "public, max-age=31536000, immutable" if is_pinned else "no-cache"
    kind = MEDIA_TYPES[PurePosixPath(name).suffix]
    return Response(content, media_type=kind, headers={**HEADERS, "Cache-Control": kept})


async def _answer(home: Home, page: Page, request: Request) -> Response:
    request.scope["route"] = page  # whose path stands in logs and metrics
    try:
        source = await home.source_of(request)
        address = await home.address_of(request)
        visit = _Visit(
            home=home,
            request=request,
            source=source,
            address=address,
            visitor=home.cookies.visitor_of(request),
            part=page.part,
        )
        form = await _form(request) if request.method == "POST" else {}
        texts = {name: text for name, text in form.items() if isinstance(text, str)}
        if request.method == "POST":
            home.cookies.check_form(request, texts.pop(FORM_FIELD, ""), address)
        asked = PageQuery(
            path={name: home.decoded(text) for name, text in request.path_params.items()},
            query=dict(reversed(request.query_params.multi_items())),
            form=texts,
            files={name: content for name, content in form.items() if isinstance(content, bytes)},
            address=address,
            url=_target(request),
            is_form=request.method == "POST",
            flow=request.cookies.get(home.cookies.flow, ""),
        )
        work = page.act if request.method == "POST" and page.act is not None else page.show
        return await run_in_threadpool(_respond, visit, page, lambda: work(source, asked))
    except (HTTPException, AdapterHubError) as error:
        return await refusal_page(home, request, error)


def _target(request: Request) -> str:
    """Return the path and query of a request, unchanged."""
    path: bytes = request.scope.get("raw_path") or quote(request.scope["path"]).encode("ascii")
    return path.partition(b"?")[0].decode("ascii") + (f"?{request.url.query}" if request.url.query else "")


def _respond(visit: _Visit, page: Page, work: Callable[[], object]) -> Response:
    value = work()
    cookies, request, is_secure = visit.home.cookies, visit.request, visit.address.startswith("https:")
    if isinstance(value, Elsewhere):
        response = Response(status_code=303, headers={"Location": value.url})
        if value.text:
            response = Response(render("onward.html", visit.context(value)), media_type="text/html")
        if value.session is not None:
            cookies.put(response, cookies.session, value.session, lasts_s=value.lasts_s, is_secure=is_secure)
        if value.flow is not None:
            lasts_s = FLOW_S if value.flow else 0
            cookies.put(response, cookies.flow, value.flow, lasts_s=lasts_s, is_secure=is_secure)
    elif isinstance(value, RawFile):
        kind = value.media_type or ("text/plain; charset=utf-8" if value.is_text else "application/octet-stream")
        response = StreamingResponse(value.content, media_type=kind, headers=_raw_headers(value))
    elif isinstance(value, Stream):
        response = _Streaming(value)
    elif request.query_params.get("format") == "json":
        response = Response(twin(value), media_type="application/json")
    else:
        response = Response(render(page.template, visit.context(value)), media_type=page.media_type)
        if cookies.visitor not in request.cookies and page.media_type == "text/html":
            cookies.put(response, cookies.visitor, visit.visitor, lasts_s=None, is_secure=is_secure)
    if visit.source.viewer.name is not None:  # nothing of it is there after signing out
        response.headers["Cache-Control"] = "private, no-store"
    _protect(response)
    return response


class _Streaming(StreamingResponse):
    """A `Stream`: calls its `on_end` also where the reader goes away."""

    def __init__(self, value: Stream) -> None:
        super().__init__(value.content, media_type=value.media_type, headers={"Cache-Control": "no-store"})
        self._on_end = value.on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end()


def _protect(response: Response) -> None:
    for name, text in HEADERS.items():
        response.headers.setdefault(name, text)
    response.headers.setdefault("Cache-Control", "private, no-cache")
    response.headers["Vary"] = "Cookie, Authorization, Accept"


def _raw_headers(value: RawFile) -> Mapping[str, str]:
    name = quote(PurePosixPath(value.path).name, safe="")
    kind = "inline" if value.is_text or value.media_type else "attachment"
    return {
        "Content-Length": str(value.size),
        "Content-Disposition": f"{kind}; filename*=UTF-8''{name}",
        "Content-Security-Policy": "sandbox; default-src 'none'; frame-ancestors 'none'",
        "ETag": f'"{value.etag}"',
    }


async def _form(request: Request) -> dict[str, str | bytes]:
    """Return the fields of a form; a file as its bytes.

    Raises:
        HTTPException: 400 for a malformed form, 413 for a large one.
    """
    length = request.headers.get("content-length", "")
    if not length.isdecimal() or int(length) > MAX_UPLOAD_BYTES:
        raise HTTPException(413, f"the form must state its length, of at most {MAX_UPLOAD_BYTES} bytes")
    found: dict[str, str | bytes] = {}
    async with request.form(max_files=4, max_fields=MAX_FIELDS, max_part_size=MAX_UPLOAD_BYTES) as form:
        for name, value in form.multi_items():
            found[name] = await value.read() if isinstance(value, UploadFile) else value
    return found


def wants_page(request: Request) -> bool:
    """Return whether a refusal goes to a reader: a browser names `text/html`, a client of the API does not."""
    return "text/html" in request.headers.get("accept", "") and request.query_params.get("format") != "json"


async def refusal_page(home: Home, request: Request, error: Exception) -> Response:
    """Return the page of a refusal, or its JSON for a program."""
    if not wants_page(request):
        response = home.json_refusal(error)
    else:
        problem, source = problem_of(error), PageSource()
        with suppress(HTTPException, AdapterHubError):
            source = await home.source_of(request)
        if problem.status == HTTPStatus.NOT_FOUND:
            with suppress(HTTPException, AdapterHubError):
                near = await run_in_threadpool(home.nearest, source, request.url.path)
                problem = replace(problem, nearest=near)
        visitor = home.cookies.visitor_of(request)
        visit = _Visit(home=home, request=request, source=source, address="", visitor=visitor)
        text = await run_in_threadpool(render, "problem.html", visit.context(problem))
        kept = {name: text for name, text in (getattr(error, "headers", None) or {}).items() if name == "Retry-After"}
        response = Response(text, status_code=problem.status, media_type="text/html", headers=kept)
    _protect(response)
    return response


def problem_of(error: Exception) -> Problem:
    """Word a refusal for a reader: what does not exist and what is hidden look the same."""
    status, message = 500, "The server failed; its log has the cause."
    if isinstance(error, HTTPException):
        status, message = error.status_code, str(error.detail)
    elif isinstance(error, AdapterHubError):
        kinds = {NotFound: 404, NotAllowed: 403, UsageProblem: 400}
        status = next((status for kind, status in kinds.items() if isinstance(error, kind)), 500)
        message = error.message
    message = {404: _NOT_FOUND, 401: _SIGN_IN}.get(status, message)
    return Problem(status=status, title=_TITLES.get(status, "Not possible"), message=message)
