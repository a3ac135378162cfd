"""Lets requests in by the key of a tenant, and notes each in the audit log; see `inference.serving.access.gate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from adapterhub.inference.serving.access.gate import OPEN_ROUTES, Asked, Gate, request_id
from adapterhub.inference.serving.access.refused import RequestRefused
from adapterhub.inference.serving.chain.asgi import (
    App,
    Message,
    Receive,
    Send,
    header_of,
    is_stream,
    refuse_request,
)
from adapterhub.inference.serving.control import DRAIN_PATH

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
        asked = Asked(route=path, request_id=request_id(header_of(scope, "x-request-id").decode("latin-1")))
        exchange = _Exchange(asked, send)
        try:
            with self._gate.passing(asked, header_of(scope, "authorization")):
                await self._app(_with(scope, asked), receive, exchange.send)
        except RequestRefused as refusal:
            self._count_refusal(refusal.status)
            await refuse_request(exchange.send, refusal)


def _with(scope: Message, asked: Asked) -> Message:
    """The scope with `asked`, and with its id for vLLM's own log."""
    headers = [(key, value) for key, value in scope["headers"] if key != b"x-request-id"]
    return {**scope, "headers": [*headers, (b"x-request-id", asked.request_id.encode("latin-1"))], ASKED: asked}


class _Exchange:
    """The answer to one request, as it goes to the client."""

    def __init__(self, asked: Asked, send: Send) -> None:
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
        elif body and asked.status is not None and asked.status >= 400:  # noqa: PLR2004 - an error
            asked.failed(body)
        await self._send(message)
