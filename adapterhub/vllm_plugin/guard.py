"""Stops clients from giving vLLM a path.

The resolver needs runtime updating. With it, vLLM also opens routes by which any client can load any folder of the
machine, unchecked. `--middleware adapterhub.vllm_plugin.guard.Guard` answers those with 403.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LOADING: Final = ("/v1/load_lora_adapter", "/adapters")
"""Routes that take a path; the second is SageMaker's name for the first."""

_WORDS: Final = (
    "loading an adapter by path is switched off: name it as the `model` of a request, which checks and loads it"
)


class Guard:
    """ASGI middleware before vLLM's routes."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Refuse a POST to a loading route; pass on every other request."""
        path = str(scope.get("path", "")).rstrip("/")
        if scope["type"] != "http" or scope.get("method") != "POST" or not path.endswith(LOADING):
            await self._app(scope, receive, send)
            return
        body = json.dumps({"error": {"message": _WORDS, "type": "Forbidden", "param": None, "code": 403}}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 403, "headers": headers})
        await send({"type": "http.response.body", "body": body})
