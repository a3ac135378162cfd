"""Lets a server end without cutting an answer off: running requests finish, new ones go to another server."""

from __future__ import annotations

import asyncio

from adapterhub.inference.serving.chain.asgi import App, Message, Receive, Send, answer, header_of, refuse
from adapterhub.inference.serving.control import CONTROL_HEADER, DRAIN_PATH, REFUSED_WHILE_DRAINING, is_key


class Draining:
    """ASGI middleware before the engine. `adapt serve`, which alone knows `key`, asks it to drain; "" asks nothing."""

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
