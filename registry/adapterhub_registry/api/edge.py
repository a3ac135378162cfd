"""The outermost layer: paths as they were sent, bodies that end, a number for each request, and an answer to any error.

Three things that the server underneath gets wrong for this protocol are put right here. ASGI decodes `%2F` before
routing, so a branch `feat/x` would fall apart: a path is routed with `%2F` and `%25` still encoded, and route
parameters are decoded where they are read. A body is read to its end whatever its size: here it is counted. An
exception that leaves the application closes the connection, on which the client's next call dies: here it becomes JSON.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from urllib.parse import parse_qsl, unquote_to_bytes

import anyio
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapterhub.core.errors import AdapterHubError, shown
from adapterhub_registry.access.telemetry import Telemetry, Told
from adapterhub_registry.errors import Refusal, bad_request, out_of_bounds, refusal_of, too_large, too_slow
from adapterhub_registry.settings import Limits

log = logging.getLogger("adapterhub_registry")

_COMMIT = re.compile(r"/api/models/[^/]+/[^/]+/commit/")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/]*)(/.*)?")
_SIGNED = ("/_lfs/", "/_xet/")  # what such a path holds is checked by its signature, and reaches no database
MAX_PATH_BYTES = 2048  # of a whole route; the path of a file takes up to 1024 of them
MAX_PARAMETERS = 200
MAX_PARAMETER_CHARACTERS = 1024


class Edge:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, limits: Limits, telemetry: Telemetry) -> None:
        self._app = app
        self._limits = limits
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, and answer when nothing else does."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        number, told = secrets.token_hex(8), Told()
        inner: Scope = {**in_origin_form(scope), "adapterhub.told": told}

        async def tell(message: Message) -> None:
            if message["type"] == "http.response.start":
                told.status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", number.encode())]}
            else:
                told.sent_bytes += len(message.get("body", b""))
            await send(message)

        self._telemetry.began()
        try:
            inner["path"] = routed_path(inner)
            _refuse_long(inner["path"], scope["query_string"])
            _refuse_fields(scope)
            limit = self._limit(inner["path"])
            _refuse_announced(scope, limit)
            await self._app(inner, _bounded(receive, limit, self._limits, told), tell)
        except Exception as error:  # whatever it is, the client gets an answer
            if told.status:
                raise
            await _answer_to(error, scope, number).response()(scope, receive, tell)
        finally:
            told.route = getattr(inner.get("route"), "path", "none")
            self._telemetry.ended(scope, told, number)

    def _limit(self, path: str) -> int:
        if path.startswith(_SIGNED):
            return self._limits.file_bytes
        return self._limits.commit_body_bytes if _COMMIT.match(path) else self._limits.json_body_bytes


def in_origin_form(scope: Scope) -> Scope:
    """A request for `http://host/path`, as proxies ask, as one for `/path` at that host (RFC 9112, section 3.2.2)."""
    found = _ABSOLUTE.fullmatch(scope.get("raw_path") or b"")
    if found is None:
        return scope
    others = [field for field in scope["headers"] if field[0] != b"host"]
    return {**scope, "raw_path": found.group(2) or b"/", "headers": [(b"host", found.group(1)), *others]}


def routed_path(scope: Scope) -> str:
    """The path to route on: decoded once, except `%2F` and `%25`, which stay for whoever reads the parameter.

    Raises:
        Refusal: 400 for a path that is not UTF-8 or holds control characters.
    """
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    kept = re.sub(rb"%(2[fF5])", rb"%25\1", raw.partition(b"?")[0])
    try:
        path = unquote_to_bytes(kept).decode("utf-8")
        whole = unquote_to_bytes(path).decode("utf-8")
    except UnicodeError:
        raise bad_request("the path is not UTF-8") from None
    if _CONTROL.search(whole):
        raise bad_request("the path holds control characters")
    return path


def _refuse_long(path: str, query: bytes) -> None:
    """Bound everything that a request names, in one place: what passes may go to a database.

    Raises:
        Refusal: 422.
    """
    if len(unquote_to_bytes(path)) > MAX_PATH_BYTES and not path.startswith(_SIGNED):
        raise out_of_bounds(f"the path: expected at most {MAX_PATH_BYTES} bytes")
    if not query:
        return
    try:
        given = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_PARAMETERS)
    except ValueError:
        raise out_of_bounds(f"expected at most {MAX_PARAMETERS} parameters") from None
    for name, value in given:
        if max(len(name), len(value)) > MAX_PARAMETER_CHARACTERS:
            raise out_of_bounds(f"{shown(name, 40)}: expected at most {MAX_PARAMETER_CHARACTERS} characters")
        if _CONTROL.search(name) or _CONTROL.search(value):
            raise out_of_bounds(f"{shown(name, 40)}: expected no control characters")


def _refuse_fields(scope: Scope) -> None:
    """Refuse fields that a proxy before this server may read in another way, or that promise what is not done here."""
    names = [name for name, _ in scope["headers"]]
    if names.count(b"authorization") > 1:
        raise bad_request("Authorization: expected it once")
    if b"content-encoding" in names:
        raise Refusal(415, "BadRequest", "Content-Encoding: expected a plain body", headers={"Connection": "close"})


def _refuse_announced(scope: Scope, limit: int) -> None:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise too_large(limit)


def _bounded(receive: Receive, limit_bytes: int, limits: Limits, told: Told) -> Receive:
    """`receive` for a body of so many bytes, at no less than the least rate.

    Only the time in which the server waits for the client counts: a slow disk is not the client's fault.
    """
    waited_s, is_whole = 0.0, False

    async def bounded() -> Message:
        nonlocal waited_s, is_whole
        if is_whole:
            return await receive()  # waits for the end of the connection, as long as the answer takes
        allowed_s = min(limits.body_s, limits.body_grace_s + told.received_bytes / limits.body_bytes_per_second)
        if waited_s > allowed_s:
            raise too_slow("the body", allowed_s)
        began = time.monotonic()
        try:
            with anyio.fail_after(allowed_s - waited_s):
                message = await receive()
        except TimeoutError:
            raise too_slow("the body", allowed_s) from None
        waited_s += time.monotonic() - began
        if message["type"] == "http.request":
            told.received_bytes += len(message.get("body", b""))
            if told.received_bytes > limit_bytes:
                raise too_large(limit_bytes)
            is_whole = not message.get("more_body", False)
        return message

    return bounded


def _answer_to(error: Exception, scope: Scope, number: str) -> Refusal:
    if isinstance(error, Refusal):
        return error
    if isinstance(error, AdapterHubError):
        return refusal_of(error)
    if isinstance(error, ClientDisconnect):
        return bad_request("the connection ended before the body did")
    # signed links carry their rights in the path: only its first two segments go to the log
    place = "/".join(str(scope["path"]).split("/")[:3])
    log.error("request %s: %s %s failed", number, scope["method"], shown(place), exc_info=error)
    return Refusal(500, "InternalError", f"the server failed; its log says more under request {number}")
