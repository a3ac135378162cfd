"""When a server gets requests: from the moment at which it has its adapters, until it drains.

A server that ends cuts no answer off: running requests finish, new ones go to another server.
"""

from __future__ import annotations

import asyncio

from adapterhub.inference.serving.control import (
    CONTROL_HEADER,
    DRAIN_PATH,
    HEALTH_PATH,
    LOADED_PATH,
    REFUSED_WHILE_DRAINING,
    is_key,
)
from adapterhub.vllm_plugin.asgi import App, Message, Receive, Send, answer, header_of, refuse


class Draining:
    """ASGI middleware before all others. `adapt serve`, which alone knows `key`, asks it to drain.

    With `loads_first`, it answers questions for the health of the server with 503 until `adapt serve` has loaded the
    named adapters. Only requests with the key learn the health before.
    """

    def __init__(self, app: App, key: str, *, loads_first: bool = False) -> None:
        self._app = app
        self._key = key
        self._running = 0
        self._is_idle = asyncio.Condition()
        self._drains = False
        self._is_loaded = not loads_first

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Count a request and pass it on; while the server drains, refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["method"] == "POST" and scope["path"] in {DRAIN_PATH, LOADED_PATH}:
            allowed = self._is_ours(scope)
            if allowed and scope["path"] == DRAIN_PATH:
                await self._drain()
            elif allowed:
                self._is_loaded = True
            await answer(send, 200 if allowed else 403, {"done": allowed})
        elif self._drains:
            await refuse(send, 503, REFUSED_WHILE_DRAINING, "ServiceUnavailable", (b"connection", b"close"))
        elif not self._is_loaded and scope["path"] == HEALTH_PATH and not self._is_ours(scope):
            await refuse(send, 503, "this server loads its adapters", "ServiceUnavailable")
        else:
            await self._run(scope, receive, send)

    def _is_ours(self, scope: Message) -> bool:
        return is_key(header_of(scope, CONTROL_HEADER), self._key)

    async def _run(self, scope: Message, receive: Receive, send: Send) -> None:
        self._running += 1
        try:
            await self._app(scope, receive, send)
        finally:
            self._running -= 1
            async with self._is_idle:
                self._is_idle.notify_all()

    async def _drain(self) -> None:
        self._drains = True
        async with self._is_idle:
            await self._is_idle.wait_for(lambda: not self._running)
