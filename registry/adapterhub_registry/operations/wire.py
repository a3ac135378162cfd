"""Hardens HTTP/1.1 below the application: timeouts for slow clients, and no request that two servers parse differently.

uvicorn with h11 has four gaps, which only a protocol class can close. It waits forever for the first byte of a
connection and for the end of a head. It accepts a request whose end two servers see at different positions
(Content-Length with Transfer-Encoding, two lengths, a folded field), with which an attacker smuggles a second request
past a proxy. After its response, it reads the rest of a body as long as the client sends. It waits forever for a
client that reads nothing.

It also sends files by `sendfile`, which copies no bytes into this process (ASGI's extension
`http.response.zerocopysend`).
"""

from __future__ import annotations

import asyncio
import os
import re
import select
import time
from http import HTTPStatus
from typing import Any, BinaryIO, ClassVar, cast

import h11
from starlette.concurrency import run_in_threadpool
from starlette.types import Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from adapterhub_registry.api.events_api import STOPPING
from adapterhub_registry.errors import Refusal, too_slow
from adapterhub_registry.settings import Limits

MAX_HEAD_BYTES = 1 << 16
TURN_S = 0.1  # how long a thread sends from a slow disk before others get it
FAST_MS = 5  # a thread waits as long for a client to read; then the client waits for a thread
TOO_LARGE = 431
_END_OF_HEAD = re.compile(rb"\n\r?\n")
_FOLD = re.compile(rb"\n[ \t]")
_FRAMING = re.compile(rb"(?im)^(content-length|transfer-encoding)[ \t]*:[ \t]*(.*?)[ \t]*\r?$")


class StrictConnection(h11.Connection):
    """h11 that refuses requests with ambiguous framing, which RFC 9112 allows a server to do."""

    problem: h11.RemoteProtocolError | None = None
    """The reason why it refused the last event."""

    def next_event(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        """The next event. It checks a head before h11 joins repeated fields."""
        head = self.trailing_data[0] if self.their_state is h11.IDLE else b""
        try:
            event = super().next_event()
            if isinstance(event, h11.Request):
                check_framing(head, event.http_version)
        except h11.RemoteProtocolError as problem:
            self.problem = problem
            raise
        return event


def check_framing(buffered: bytes, http_version: bytes) -> None:
    """Raise unless the head at the beginning of `buffered` defines the end of the request unambiguously.

    Raises:
        h11.RemoteProtocolError: with the rule that the head breaks.
    """
    end = _END_OF_HEAD.search(buffered)
    head = buffered[: end.start()] if end else buffered
    if len(head) > MAX_HEAD_BYTES:  # h11 counts only incomplete heads, so its limit depends on timing
        raise h11.RemoteProtocolError("too long", error_status_hint=TOO_LARGE)
    if http_version not in {b"1.0", b"1.1"}:
        raise h11.RemoteProtocolError("expected HTTP/1.1 or HTTP/1.0")
    if _FOLD.search(head):
        raise h11.RemoteProtocolError("a header field continues on a second line")
    framing = _FRAMING.findall(head)
    if len(framing) > 1:
        raise h11.RemoteProtocolError("Content-Length and Transfer-Encoding: expected at most one of them, once")
    for name, value in framing:
        if name.lower() == b"content-length" and not value.isdigit():
            raise h11.RemoteProtocolError("Content-Length: expected one whole number")
        if name.lower() == b"transfer-encoding" and http_version != b"1.1":
            raise h11.RemoteProtocolError("Transfer-Encoding in an HTTP/1.0 request")


class Protocol(H11Protocol):
    """uvicorn's h11 protocol with the limits of a registry."""

    limits: ClassVar[Limits] = Limits()

    conn: StrictConnection

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.conn = StrictConnection(h11.SERVER, MAX_HEAD_BYTES)
        self._waits_for: str | None = None
        self._timer: Any = None
        self._writing: Any = None
        self._room: asyncio.Future[None] | None = None
        self._answered_by, self.app = self.app, cast("Any", self._with_files)

    # ------------------------------------------------------------ clients that send slowly
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Wait for the first request."""
        super().connection_made(transport)
        self._wait("head", self.limits.head_s)

    def data_received(self, data: bytes) -> None:
        """Receive bytes; after an incomplete head, wait for its rest."""
        super().data_received(data)
        self._watch(began=True)

    def on_response_complete(self) -> None:
        """Wait for the rest of a request that is still arriving."""
        super().on_response_complete()
        self._watch(began=bool(self.conn.trailing_data[0]))

    def shutdown(self) -> None:
        """Let a request that waits for an event answer now, so that the server can stop."""
        if self.scope is not None:
            cast("dict[str, Any]", self.scope)["state"][STOPPING] = True
        super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._wait(None, 0)
        self.resume_writing()
        self._found_room()
        super().connection_lost(exc)

    def _watch(self, *, began: bool) -> None:
        if self.transport.is_closing():
            self._wait(None, 0)
        elif self.conn.their_state is h11.IDLE and began:
            self._wait("head", self.limits.head_s)
        elif self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE:
            self._wait("rest", self.limits.body_grace_s)
        else:
            self._wait(None, 0)

    def _wait(self, what: str | None, seconds: float) -> None:
        """Start the timeout for `what`, unless it is running already."""
        if what == self._waits_for:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._waits_for = what
        self._timer = self.loop.call_later(seconds, self._give_up) if what else None

    def _give_up(self) -> None:
        if self.transport.is_closing():
            return
        if self._waits_for == "head" and self.conn.trailing_data[0]:
            self._reject(too_slow("the head of a request", self.limits.head_s))
        self.transport.close()

    # ------------------------------------------------------------ clients that read slowly
    def pause_writing(self) -> None:
        """Disconnect a client that reads nothing for too long."""
        super().pause_writing()
        self._writing = self.loop.call_later(self.limits.answer_stall_s, self.transport.abort)

    def resume_writing(self) -> None:
        """The client has read something."""
        if self._writing is not None:
            self._writing.cancel()
            self._writing = None
        if self.flow is not None:
            super().resume_writing()

    # ------------------------------------------------------------ files
    async def _with_files(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application, which may send files."""

        async def send_any(message: Message) -> None:
            if message["type"] != "http.response.zerocopysend":
                await send(message)
                return
            await self._send_file(message["file"], message["offset"], message["count"])
            if not message.get("more_body", False):
                await send({"type": "http.response.body"})

        extended = {**scope, "extensions": {"http.response.zerocopysend": {}}}
        await self._answered_by(cast("Any", extended), cast("Any", receive), cast("Any", send_any))

    async def _send_file(self, file: BinaryIO, start: int, count: int) -> None:
        """Send `count` bytes of a file from `start` on. A thread waits for the disk.

        Raises:
            OSError: the file cannot be read, or ends before.
        """
        self.transport.set_write_buffer_limits(0)
        await self.flow.drain()
        self.transport.set_write_buffer_limits()
        if self.transport.is_closing():
            return
        self.conn.send_with_data_passthrough(h11.Data(data=cast("bytes", range(count))))  # h11 only takes its length
        # asyncio alone waits for the transport's own descriptor
        to = os.dup(self.transport.get_extra_info("socket").fileno())
        try:
            while count and not self.transport.is_closing():
                sent = await run_in_threadpool(_send_some, to, file, start, count)
                start, count = start + sent, count - sent
                if not sent:
                    await self._wait_for_room(to)
        except ConnectionError:
            return  # the transport notices, too
        finally:
            os.close(to)

    async def _wait_for_room(self, descriptor: int) -> None:
        """Wait until the client has read something; disconnect one that reads nothing for too long."""
        self._room = self.loop.create_future()
        self.loop.add_writer(descriptor, self._found_room)
        try:
            await asyncio.wait_for(self._room, self.limits.answer_stall_s)
        except asyncio.TimeoutError:
            self.transport.abort()
        finally:
            self.loop.remove_writer(descriptor)

    def _found_room(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    # ------------------------------------------------------------ malformed requests
    def send_400_response(self, msg: str) -> None:
        """Refuse a malformed request and close the connection, as the start of the next request is unknown."""
        if self.conn.our_state in {h11.IDLE, h11.SEND_RESPONSE}:
            if self.conn.problem is not None and self.conn.problem.error_status_hint == TOO_LARGE:
                refusal = Refusal(431, "TooLarge", f"the head of a request may have at most {MAX_HEAD_BYTES} bytes")
            else:
                refusal = Refusal(400, "BadRequest", f"malformed request: {self.conn.problem or msg}")
            self._reject(refusal)
        self.transport.close()

    def _reject(self, refusal: Refusal) -> None:
        if self.cycle is not None:
            self.cycle.disconnected = True  # discards what the application still sends
        answer = refusal.response()
        fields = b"".join(b"%s: %s\r\n" % field for field in answer.raw_headers if field[0] != b"connection")
        line = f"HTTP/1.1 {answer.status_code} {HTTPStatus(answer.status_code).phrase}\r\n".encode("ascii")
        self.transport.write(line + fields + b"connection: close\r\n\r\n" + bytes(answer.body))


def _send_some(descriptor: int, file: BinaryIO, start: int, count: int) -> int:
    """Send bytes of a file for one turn, as long as the client reads fast; how many of `count` it sent.

    Raises:
        OSError: the file cannot be read, or ends before.
    """
    sent, room, end = 0, select.poll(), time.monotonic() + TURN_S
    room.register(descriptor, select.POLLOUT)
    while sent < count and time.monotonic() < end:
        try:
            step = os.sendfile(descriptor, file.fileno(), start + sent, count - sent)
        except BlockingIOError:
            if not room.poll(FAST_MS):
                break
            continue
        if not step:
            raise OSError(f"{file.name}: ends {count - sent} bytes too early")
        sent += step
    return sent


def protocol_of(bounds: Limits) -> type[Protocol]:
    """The protocol class of a server with these limits, in the form that uvicorn expects."""

    class Bounded(Protocol):
        limits = bounds

    return Bounded
