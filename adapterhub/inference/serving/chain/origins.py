"""Lets pages of other origins ask a server that needs a key, and no server that needs none.

A browser asks with OPTIONS before it sends a request with a key or with JSON. A server without keys would answer any
page that its user opens, so it allows only pages of this machine.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import urlsplit

from adapterhub.inference.serving.chain.asgi import App, Message, Receive, Send, header_of

LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_ALLOWED: Final = (
    (b"access-control-allow-methods", b"GET, POST, OPTIONS"),
    (b"access-control-allow-headers", b"authorization, content-type, x-request-id, x-request-key"),
    (b"access-control-max-age", b"600"),
)


class Origins:
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
        return self._has_keys or host in LOOPBACK
