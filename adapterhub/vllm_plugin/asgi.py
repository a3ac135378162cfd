"""The ASGI protocol, as far as the middleware here needs it: its types, a header of a request, an answer in JSON."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from adapterhub.inference.serving.answers import refusal_body

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def header_of(scope: Message, name: str) -> bytes:
    """The first header `name`, which is in lower case; empty where the request has none."""
    return next((value for key, value in scope.get("headers", ()) if key.lower() == name.encode()), b"")


async def answer(send: Send, status: int, value: object, *headers: tuple[bytes, bytes]) -> None:
    """Answer a request with a JSON value."""
    body = json.dumps(value).encode()
    sent = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": status, "headers": sent})
    await send({"type": "http.response.body", "body": body})


async def refuse(send: Send, status: int, message: str, kind: str, *headers: tuple[bytes, bytes]) -> None:
    """Answer with an error as vLLM writes one."""
    await answer(send, status, refusal_body(status, message, kind), *headers)
