"""Serves a registry: `serve` binds, announces its URL and runs until interrupted.

`adapterhub.pages.wire` bounds slow clients and refuses ambiguous requests; this adds refusals in the words of a
registry. `sendfile` copies no bytes into this process (ASGI's extension `http.response.zerocopysend`).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import gc
import hashlib
import json
import os
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any, BinaryIO, ClassVar, cast

import h11
import uvicorn
from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.types import Message, Receive, Scope, Send
from uvicorn.config import LOGGING_CONFIG, Config
from uvicorn.server import ServerState

from adapterhub.core.disk.root import myself, read_holder
from adapterhub.core.errors import Conflict, NotAllowed, UsageProblem, shown
from adapterhub.pages.wire import TOO_LARGE, Patience, StrictProtocol
from adapterhub_registry.access.telemetry import log_as_json
from adapterhub_registry.access.tokens import door
from adapterhub_registry.api.context import Registry
from adapterhub_registry.api.events_api import STOPPING
from adapterhub_registry.app import create_app, open_registry
from adapterhub_registry.database.postgresql import look_up_by_index
from adapterhub_registry.errors import HttpRefusal, too_slow
from adapterhub_registry.pages.home import read_ahead
from adapterhub_registry.settings import ServerLimits, Settings

KEEP_ALIVE_S = 75
BACKLOG = 512
LOCK_FILE = "serving.lock"
PLACE_FILE = "place"
_PLACE_CHARACTERS = 64
M_ARENA_MAX = -8  # `mallopt(3)`
GARBAGE_AT = 20_000


def serve(
    settings: Settings, *, host: str, port: int, announce: Callable[[str], None], replace_secret: bool = False
) -> None:
    """Serve until interrupted. `announce` gets the URL and, on the first start, the administrator's token.

    Port 0 picks a free one. `replace_secret` makes the secret of `settings` the valid one for the database.

    Raises:
        Conflict: another server serves the database in the folder.
        NotAllowed: the server cannot bind the address.
        UsageProblem: another server of the same database has another secret, or keeps its files in another folder.
    """
    os.umask(0o077)  # other users of the machine read nothing that this process writes
    keep_one_heap()
    if settings.log_requests:
        log_as_json()
    with _alone_in(settings):
        registry = open_registry(settings)
        look_up_by_index(registry.db.engine)
        _check_secret(registry, replace=replace_secret)
        _check_place(registry)
        listener = _bind(host, port)
        token = registry.tokens.create_first()
        shown_host = f"[{host}]" if ":" in host else host
        with door(settings.root, _address(listener), registry.operator):
            announce(f"url: {settings.public_url or f'http://{shown_host}:{listener.getsockname()[1]}'}")
            if token is not None:
                announce(f"admin token (shown this once): {token}")
            app = create_app(settings, registry)
            threading.Thread(target=warm_up, name="warm-up").start()  # requests need not wait
            uvicorn.Server(config_of(app)).run(sockets=[listener])


def keep_one_heap() -> None:
    """Let all threads share one heap, where the C library (glibc) gives each its own by default.

    A heap keeps what its largest request took, so the server's memory grew with the number of threads
    that had served a large one. To be called before the first thread starts.
    """
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_ARENA_MAX, 1)


def warm_up() -> None:
    """Load what the first pages need, and keep the collector of garbage off all that stays for good.

    To look through these objects takes it 90 ms, in the middle of some request. It looks for garbage less often
    than by default, as a page makes thousands of objects and no cycles: that takes 4 % of a request, and 25 % of a long
    one.
    """
    read_ahead()
    gc.collect()
    gc.freeze()
    gc.set_threshold(GARBAGE_AT)


def config_of(app: FastAPI) -> uvicorn.Config:
    """Return the uvicorn configuration for the application of `create_app`."""
    settings = cast("Registry", app.state.registry).settings
    return uvicorn.Config(
        app,
        http=protocol_of(settings.limits),  # fixed, so that refusals do not depend on installed packages
        ws="none",
        timeout_keep_alive=KEEP_ALIVE_S,
        access_log=False,  # signed links grant access by their path
        log_config=None if settings.log_requests else LOGGING_CONFIG,  # else `log_as_json` has configured logging
        log_level="error",  # no line for each malformed request: clients could fill the disk
        proxy_headers=False,  # `public_url` replaces a forwarded host
        server_header=False,
        lifespan="on",
    )


@contextlib.contextmanager
def _alone_in(settings: Settings) -> Iterator[None]:
    """Keep other servers off the SQLite database in a folder; any number of servers share PostgreSQL.

    Rates, upload places and the memory of each server count for one server, and SQLite has one writer.
    """
    if settings.database_url is not None and not settings.database_url.startswith("sqlite"):
        yield
        return
    handle = os.open(settings.root / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = read_holder(handle)
            raise Conflict(
                f"`{shown(str(settings.root))}` is served by {holder or 'another process'}; nothing was changed",
                hint="stop that server first; several servers can share PostgreSQL: `--database postgresql://…`",
            ) from None
        facts = json.dumps(asdict(myself())).encode()
        os.pwrite(handle, facts, 0)
        os.ftruncate(handle, len(facts))
        yield
    finally:
        os.close(handle)  # ends the lock; the file stays, as another server may wait for it


def _check_secret(registry: Registry, *, replace: bool) -> None:
    """Raise when the servers of this database have another secret: each must accept the links of the others."""
    if not registry.db.is_shared:
        return
    mark = hashlib.sha256(b"secret of a registry " + registry.settings.secret).hexdigest()
    if not registry.db.agree("secret", mark, replace=replace):
        raise UsageProblem(
            "the servers of this database use another secret",
            hint="give all of them the same `--secret-file`; to change it, start one with `--replace-secret`",
        )


def _check_place(registry: Registry) -> None:
    """Raise when the files of this database lie in another folder: each server would miss what the other one stored."""
    if registry.settings.s3 is not None:
        return
    mark = registry.settings.root / PLACE_FILE
    with contextlib.suppress(FileExistsError), mark.open("x") as file:  # the folder may move, and keeps its mark
        file.write(secrets.token_hex(16))
    if not registry.db.agree("folder of the files", mark.read_text()[:_PLACE_CHARACTERS]):
        raise UsageProblem(
            f"the files of this database lie in another folder than `{shown(str(registry.settings.root))}`",
            hint=f"give `--root` that folder, or a copy of it with its file `{PLACE_FILE}`",
        )


def _address(listener: socket.socket) -> str:
    """Return the address of the server for this machine; one that listens on all addresses is also on loopback."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - it is not bound
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # IPPROTO_TCP: only then asyncio disables Nagle's delay, which would add 40 ms to every response
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        raise NotAllowed(
            f"cannot listen on {shown(host)}:{port}: {getattr(error, 'strerror', None) or error}",
            hint="pick a free port: `--port 0`",
        ) from None
    listener.listen(BACKLOG)
    listener.set_inheritable(True)
    return listener


TURN_S = 0.1  # how long a thread sends from a slow disk before others get it
FAST_MS = 5  # a thread waits as long for a client to read; then the client waits for a thread
SLOW = 408


class Protocol(StrictProtocol):
    """The strict protocol with the limits of a registry."""

    limits: ClassVar[Patience] = ServerLimits()

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
            made = HttpRefusal(status, "TooLarge" if status == TOO_LARGE else "BadRequest", message)
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


def protocol_of(bounds: ServerLimits) -> type[Protocol]:
    """Return the protocol class of a server with these limits, in the form that uvicorn expects."""

    class Bounded(Protocol):
        limits = bounds

    return Bounded
