"""The first parts of the chain: which pages may ask, who may enter, and that no one may once the server drains."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final
from urllib.parse import urlsplit

from adapterhub.core.hosts import is_loopback
from adapterhub.inference.serving.access.gate import OPEN_ROUTES, AskedName, Gate, request_id
from adapterhub.inference.serving.chain.asgi import (
    App,
    Message,
    Receive,
    Send,
    answer,
    header_of,
    is_stream,
    refuse,
    refuse_request,
)
from adapterhub.inference.serving.control import CONTROL_HEADER, DRAIN_PATH, REFUSED_WHILE_DRAINING, is_key
from adapterhub.inference.serving.refusal import RequestRefused

ASKED: Final = "adapterhub.asked"
"""The key in a request's scope, where the middleware inside finds the `Asked`."""


class Access:
    """ASGI middleware before all others but the guard of closed routes."""

    def __init__(self, app: App, gate: Gate, count_refusal: Callable[[int], None] = lambda _: None) -> None:
        self._app = app
        self._gate = gate
        self._count_refusal = count_refusal

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Pass a request with a key on; refuse every other one."""
        if scope["type"] == "websocket" and self._gate.tenants is not None:
            await send({"type": "websocket.close", "code": 1008})
            return
        path = str(scope.get("path", "")).removeprefix(scope.get("root_path", "")).rstrip("/")
        # Browsers send OPTIONS without a key, before a request to another origin.
        if scope["type"] != "http" or scope["method"] == "OPTIONS" or path in OPEN_ROUTES or path == DRAIN_PATH:
            try:
                await self._app(scope, receive, send)
            except RequestRefused as refusal:
                await refuse_request(send, refusal)
            return
        asked = AskedName(route=path, request_id=request_id(header_of(scope, "x-request-id").decode("latin-1")))
        exchange = _Exchange(asked, send)
        try:
            with self._gate.passing(asked, header_of(scope, "authorization")):
                await self._app(_with(scope, asked), receive, exchange.send)
        except RequestRefused as refusal:
            self._count_refusal(refusal.status)
            await refuse_request(exchange.send, refusal)


def _with(scope: Message, asked: AskedName) -> Message:
    """Return the scope with `asked`, and with its id for vLLM's own log."""
    headers = [(key, value) for key, value in scope["headers"] if key != b"x-request-id"]
    return {**scope, "headers": [*headers, (b"x-request-id", asked.request_id.encode("latin-1"))], ASKED: asked}


class _Exchange:
    """The answer to one request, as it goes to the client."""

    def __init__(self, asked: AskedName, send: Send) -> None:
        self._asked = asked
        self._send = send
        self._is_stream = False

    async def send(self, message: Message) -> None:
        """Send a part on, after noting its status and a stream's events."""
        asked = self._asked
        body = message.get("body", b"")
        if self._is_stream and body:
            asked.events += 1  # most parts of an answer
        elif message["type"] == "http.response.start":
            asked.status = message["status"]
            self._is_stream = is_stream(message)
            message["headers"] = [*message["headers"], (b"x-request-id", asked.request_id.encode("latin-1"))]
        elif body and asked.status is not None and asked.status >= 400:
            asked.failed(body)
        await self._send(message)


_ALLOWED: Final = (
    (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
    (b"access-control-allow-headers", b"authorization, content-type, x-request-id, x-request-key"),
    (b"access-control-max-age", b"600"),
)


class AllowedOrigins:
    """ASGI middleware before all others."""

    def __init__(self, app: App, *, has_keys: bool) -> None:
        self._app = app
        self._has_keys = has_keys

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a browser's first question; add the origin to every other answer."""
        origin = header_of(scope, "origin") if scope["type"] == "http" else b""
        allowed = [(b"access-control-allow-origin", origin), (b"vary", b"origin")] if self._allows(origin) else []
        if scope["type"] == "http" and scope["method"] == "OPTIONS":
            headers = [*allowed, *(_ALLOWED if allowed else ()), (b"content-length", b"0")]
            await send({"type": "http.response.start", "status": 204 if allowed else 403, "headers": headers})
            await send({"type": "http.response.body", "body": b""})
            return

        async def told(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *allowed]
            await send(message)

        await self._app(scope, receive, told if allowed else send)

    def _allows(self, origin: bytes) -> bool:
        if not origin:
            return False
        try:
            host = urlsplit(origin.decode("ascii")).hostname
        except ValueError:
            return False
        return self._has_keys or is_loopback(host)


class Draining:
    """ASGI middleware before the engine, which drains on a request with `key`; with "" it never does."""

    def __init__(self, app: App, key: str = "") -> None:
        self._app = app
        self._key = key
        self._running = 0
        self._is_idle = asyncio.Condition()
        self._drains = False

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Count a request and pass it on; while the server drains, refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["method"] == "POST" and scope["path"] == DRAIN_PATH:
            allowed = is_key(header_of(scope, CONTROL_HEADER), self._key)
            if allowed:
                await self.drain()
            await answer(send, 200 if allowed else 403, {"drained": allowed})
        elif self._drains:
            await refuse(send, 503, REFUSED_WHILE_DRAINING, "ServiceUnavailable", (b"connection", b"close"))
        else:
            await self._run(scope, receive, send)

    async def _run(self, scope: Message, receive: Receive, send: Send) -> None:
        self._running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._running -= 1
            async with self._is_idle:
                self._is_idle.notify_all()

    async def drain(self) -> None:
        """Refuse new requests, and return when those that run have ended."""
        self._drains = True
        async with self._is_idle:
            await self._is_idle.wait_for(lambda: not self._running)
