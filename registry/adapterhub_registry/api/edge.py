"""The outermost middleware: raw paths, bounded bodies, a number for each request, and a response to every error.

It corrects three behaviours of the server below that do not suit this protocol. ASGI decodes `%2F` before routing,
which would split a branch `feat/x`: this layer routes with `%2F` and `%25` still encoded, and handlers decode route
parameters. The server reads a body of any size to its end: this layer bounds it. An exception that leaves the
application closes the connection, and the client's next call fails: this layer turns it into JSON.
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
from adapterhub_registry.access.oidc import BACK, CODE_CHARACTERS
from adapterhub_registry.access.telemetry import RequestRecord, Telemetry
from adapterhub_registry.errors import HttpRefusal, bad_request, out_of_bounds, refusal_of, too_large, too_slow
from adapterhub_registry.settings import ServerLimits

log = logging.getLogger("adapterhub_registry")

_COMMIT = re.compile(r"/api/models/[^/]+/[^/]+/commit/")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ABSOLUTE = re.compile(rb"(?i:https?)://([^/]*)(/.*)?")
_SIGNED = ("/_lfs/", "/_xet/")  # a signature protects such a path, and its content reaches no database
UPLOAD_PACK = "/git-upload-pack"
MAX_PATH_BYTES = 2048  # of a whole route, of which a file's path may take 1024
MAX_PARAMETERS = 200
MAX_PARAMETER_CHARACTERS = 1024


class Edge:
    """ASGI middleware around the whole application."""

    def __init__(self, app: ASGIApp, limits: ServerLimits, telemetry: Telemetry) -> None:
        self._app = app
        self._limits = limits
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, and respond when nothing else does."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        number, record = secrets.token_hex(8), RequestRecord()
        inner: Scope = {**in_origin_form(scope), "adapterhub.record": record}

        async def respond(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-request-id", number.encode())]}
            else:
                record.sent_bytes += len(message.get("body", b"")) + message.get("count", 0)
            await send(message)

        self._telemetry.began()
        try:
            inner["path"] = routed_path(inner)
            _check_lengths(inner["path"], scope["query_string"])
            _check_fields(scope, inner["path"])
            limit = self._limit(inner["path"])
            _check_announced(scope, limit)
            await self._app(inner, _bounded(receive, limit, self._limits, record), respond)
        except Exception as error:  # the client gets a response to any error
            if record.status:
                raise
            await _response_to(error, scope, number).response()(scope, receive, respond)
        finally:
            record.route = getattr(inner.get("route"), "path", "none")
            self._telemetry.ended(scope, record, number)

    def _limit(self, path: str) -> int:
        if path.startswith(_SIGNED):
            return self._limits.file_bytes
        return self._limits.commit_body_bytes if _COMMIT.match(path) else self._limits.json_body_bytes


def in_origin_form(scope: Scope) -> Scope:
    """Turn a request for `http://host/path`, a proxy's form, into one for `/path` at that host (RFC 9112, 3.2.2)."""
    found = _ABSOLUTE.fullmatch(scope.get("raw_path") or b"")
    if found is None:
        return scope
    others = [field for field in scope["headers"] if field[0] != b"host"]
    return {**scope, "raw_path": found.group(2) or b"/", "headers": [(b"host", found.group(1)), *others]}


def routed_path(scope: Scope) -> str:
    """Return the path for routing: decoded once, except `%2F` and `%25`, which handlers decode in each parameter.

    Raises:
        HttpRefusal: 400 for a path that is not UTF-8 or contains control characters.
    """
    raw: bytes = scope.get("raw_path") or scope["path"].encode()
    kept = re.sub(rb"%(2[fF5])", rb"%25\1", raw.partition(b"?")[0])
    try:
        path = unquote_to_bytes(kept).decode("utf-8")
        whole = unquote_to_bytes(path).decode("utf-8")
    except UnicodeError:
        raise bad_request("the path is not UTF-8, expected UTF-8") from None
    if _CONTROL.search(whole):
        raise bad_request("the path contains control characters, expected printable characters")
    return path


def _check_lengths(path: str, query: bytes) -> None:
    """Raise unless the path and every parameter are within bounds; the database sees only what passes.

    Raises:
        HttpRefusal: 422.
    """
    if len(unquote_to_bytes(path)) > MAX_PATH_BYTES and not path.startswith(_SIGNED):
        raise out_of_bounds(f"path: expected at most {MAX_PATH_BYTES} bytes")
    if not query:
        return
    try:
        given = parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=MAX_PARAMETERS)
    except ValueError:
        raise out_of_bounds(f"expected at most {MAX_PARAMETERS} parameters") from None
    most = CODE_CHARACTERS if path == BACK else MAX_PARAMETER_CHARACTERS  # issuers make long codes
    for name, value in given:
        if max(len(name), len(value)) > most:
            raise out_of_bounds(f"{shown(name, 40)}: expected at most {most} characters")
        if _CONTROL.search(name) or _CONTROL.search(value):
            raise out_of_bounds(f"{shown(name, 40)}: expected no control characters")


def _check_fields(scope: Scope, path: str) -> None:
    """Raise 400 or 415 for fields that a proxy may read differently, or that this server does not support.

    Only git compresses what it sends; its route unpacks no more than it takes.
    """
    names = [name for name, _ in scope["headers"]]
    if names.count(b"authorization") > 1:
        raise bad_request("Authorization: expected one field")
    if b"content-encoding" in names and not path.endswith(UPLOAD_PACK):
        raise HttpRefusal(
            415, "BadRequest", "Content-Encoding: expected an uncompressed body", headers={"Connection": "close"}
        )


def _check_announced(scope: Scope, limit: int) -> None:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise too_large(limit)


def _bounded(receive: Receive, limit_bytes: int, limits: ServerLimits, record: RequestRecord) -> Receive:
    """Wrap `receive` to bound the size of a body and enforce the minimum rate.

    Only the time that the server waits for the client counts: a slow disk is not the client's fault.
    """
    waited_s, is_whole = 0.0, False

    async def bounded() -> Message:
        nonlocal waited_s, is_whole
        if is_whole:
            return await receive()  # waits for the end of the connection while the handler responds
        allowed_s = min(limits.body_s, limits.body_grace_s + record.received_bytes / limits.body_bytes_per_second)
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
            record.received_bytes += len(message.get("body", b""))
            if record.received_bytes > limit_bytes:
                raise too_large(limit_bytes)
            is_whole = not message.get("more_body", False)
        return message

    return bounded


def _response_to(error: Exception, scope: Scope, number: str) -> HttpRefusal:
    if isinstance(error, HttpRefusal):
        return error
    if isinstance(error, AdapterHubError):
        return refusal_of(error)
    if isinstance(error, ClientDisconnect):
        return bad_request("the connection closed before the end of the body; send it again")
    # signed links grant access by their path: only its first two segments go to the log
    place = "/".join(str(scope["path"]).split("/")[:3])
    log.error("request %s: %s %s failed", number, scope["method"], shown(place), exc_info=error)
    return HttpRefusal(500, "InternalError", f"internal error; see request {number} in the server's log")
