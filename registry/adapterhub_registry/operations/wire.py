"""The registry's side of the wire: its refusals, files sent by `sendfile`, and requests that end with the server.

`adapterhub.pages.wire` bounds slow clients and refuses ambiguous requests. `sendfile` copies no bytes into this process
(ASGI's extension `http.response.zerocopysend`).
"""

from __future__ import annotations

import asyncio
import os
import select
import time
from typing import Any, BinaryIO, ClassVar, cast

import h11
from starlette.concurrency import run_in_threadpool
from starlette.types import Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from adapterhub.pages.wire import TOO_LARGE, Patience, StrictProtocol
from adapterhub_registry.api.events_api import STOPPING
from adapterhub_registry.errors import Refusal, too_slow
from adapterhub_registry.settings import Limits

TURN_S = 0.1  # how long a thread sends from a slow disk before others get it
FAST_MS = 5  # a thread waits as long for a client to read; then the client waits for a thread
SLOW = 408


class Protocol(StrictProtocol):
    """The strict protocol with the limits of a registry."""

    limits: ClassVar[Patience] = Limits()

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._room: asyncio.Future[None] | None = None
        self._answered_by, self.app = self.app, cast("Any", self._with_files)

    def refusal(self, status: int, message: str) -> tuple[list[tuple[bytes, bytes]], bytes]:
        """Word a refusal as every other of the registry."""
        if status == SLOW:
            made = too_slow("the head of a request", self.limits.head_s)
        else:
            made = Refusal(status, "TooLarge" if status == TOO_LARGE else "BadRequest", message)
        answer = made.response()
        return answer.raw_headers, bytes(answer.body)

    def shutdown(self) -> None:
        """Let a request that waits for an event answer now, so that the server can stop."""
        if self.scope is not None:
            cast("dict[str, Any]", self.scope)["state"][STOPPING] = True
        super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._found_room()
        super().connection_lost(exc)

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
