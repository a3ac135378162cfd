"""The ASGI protocol, as far as the middleware here needs it: its types, a header of a request, an answer in JSON."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Final

from adapterhub.inference.serving.answers import refusal_body
from adapterhub.inference.serving.refusal import RequestRefused

MOST_BYTES: Final = 16 << 20
"""A longer body is refused before it is read."""

BODY_S: Final = 60.0
"""How long a client may take to send a body."""

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]


def header_of(scope: Message, name: str) -> bytes:
    """Return the first header `name`, which is in lower case; empty if the request has none."""
    return next((value for key, value in scope.get("headers", ()) if key.lower() == name.encode()), b"")


def is_json(scope: Message) -> bool:
    """Return whether the body of a request is JSON, by its type."""
    return header_of(scope, "content-type").partition(b";")[0].strip().lower() == b"application/json"


def is_stream(start: Message) -> bool:
    """Return whether an answer is a stream of events, by its start."""
    return any(key == b"content-type" and value.startswith(b"text/event-stream") for key, value in start["headers"])


async def send_whole(
    send: Send, status: int, body: bytes, kind: str = "application/json", headers: Sequence[tuple[bytes, bytes]] = ()
) -> None:
    """Answer a request with a whole body of the media type `kind`."""
    sent = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode()), *headers]
    await send({"type": "http.response.start", "status": int(status), "headers": sent})
    await send({"type": "http.response.body", "body": body})


async def answer(send: Send, status: int, value: object, *headers: tuple[bytes, bytes]) -> None:
    """Answer a request with a JSON value."""
    await send_whole(send, status, json.dumps(value).encode(), headers=headers)


async def refuse(send: Send, status: int, message: str, kind: str, *headers: tuple[bytes, bytes]) -> None:
    """Answer with an error as vLLM writes one."""
    await answer(send, status, refusal_body(status, message, kind), *headers)


async def refuse_request(send: Send, refusal: RequestRefused) -> None:
    """Answer with a refusal of our own."""
    headers = [(name.lower().encode(), value.encode()) for name, value in refusal.headers.items()]
    await refuse(send, refusal.status, refusal.message, refusal.kind, *headers)


async def read_body(scope: Message, receive: Receive) -> bytes:
    """Read a body of at most `MOST_BYTES`.

    Raises:
        RequestRefused: 413 for a longer one, 408 for a slow one, 400 where the client left.
    """
    length = header_of(scope, "content-length")
    if length and (len(length) > 12 or not length.isdigit() or int(length) > MOST_BYTES):
        raise RequestRefused(413, f"expected a body of at most {MOST_BYTES} bytes")
    pieces: list[bytes] = []
    try:
        size = 0
        end = asyncio.get_running_loop().time() + BODY_S
        while True:
            message = await asyncio.wait_for(receive(), end - asyncio.get_running_loop().time())
            if message["type"] == "http.disconnect":
                raise RequestRefused(400, "the client left before the end of the body")
            pieces.append(message.get("body", b""))
            size += len(pieces[-1])
            if size > MOST_BYTES:
                raise RequestRefused(413, f"expected a body of at most {MOST_BYTES} bytes")
            if not message.get("more_body", False):
                return b"".join(pieces)
    except asyncio.TimeoutError:
        raise RequestRefused(408, f"the body did not arrive within {BODY_S:g} s") from None
