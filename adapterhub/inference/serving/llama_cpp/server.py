"""Runs the front of llama.cpp's server: the chain of its parts, on uvicorn, in a thread with an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import TimeoutError as NotInTime
from typing import Any, Final, cast

import uvicorn

from adapterhub.inference.serving.access.gate import Gate
from adapterhub.inference.serving.auto import Auto
from adapterhub.inference.serving.chain.entrance import Access, AllowedOrigins, Draining
from adapterhub.inference.serving.llama_cpp.app import App
from adapterhub.inference.serving.llama_cpp.engine import Address, Engine
from adapterhub.inference.serving.llama_cpp.names import Names
from adapterhub.inference.serving.llama_cpp.routes import proved_routes
from adapterhub.inference.serving.llama_cpp.turns import EngineSlots
from adapterhub.inference.serving.metrics import own_metrics
from adapterhub.pages.wire import StrictProtocol

_BACKLOG: Final = 2048
_READ_BYTES: Final = 1 << 14
_KEEP_ALIVE_S: Final = 30
_MOST_CONNECTIONS: Final = 4096
_READY_S: Final = 600.0
_STOP_S: Final = 2


class _Joining:
    """A transport that sends at once what is written in one turn of the loop: a head, and the events that are there."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._pieces: list[bytes] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if not self._pieces:
            asyncio.get_running_loop().call_soon(self.flush)
        self._pieces.append(data)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def flush(self) -> None:
        """Send what was written."""
        if self._pieces:
            self._transport.write(b"".join(self._pieces))
            self._pieces.clear()


class _Protocol(StrictProtocol):
    """Reads little at a time: what a client without a key sends is kept until it is refused."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Wait for the first request."""
        transport.max_size = _READ_BYTES  # type: ignore[attr-defined]  # asyncio's own, and without effect elsewhere
        self._joining = _Joining(transport)
        super().connection_made(cast("asyncio.Transport", self._joining))

    def eof_received(self) -> None:
        """Send the answer before the end of the connection, which follows."""
        self._joining.flush()
        super().eof_received()


class Front:
    """The front's server, which runs in a thread of its own."""

    def __init__(
        self,
        listener: socket.socket,
        engines: Sequence[Address],
        names: Names,
        gate: Gate,
        *,
        slots: int,
        pids: Sequence[int] = (),
        auto: Auto | None = None,
    ) -> None:
        self._listener, self._where, self._names, self._gate = listener, engines, names, gate
        self._count, self._auto, self._pids = slots, auto, pids
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._draining: Draining | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._server: uvicorn.Server | None = None
        self._thread = threading.Thread(target=self._run, name="adapt serve", daemon=True)

    def start(self) -> None:
        """Return when requests are answered.

        Raises:
            RequestRefused: the engine does not answer the first questions.
        """
        self._thread.start()
        self._ready.wait(_READY_S)
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """End the server and what still runs."""
        if self._server is not None:
            self._server.should_exit = True
        self._thread.join()

    def drain(self, within_s: float) -> bool:
        """Refuse new requests and wait for those that run; False if some still run after `within_s` seconds."""
        assert self._loop is not None  # it is ready
        assert self._draining is not None
        try:
            asyncio.run_coroutine_threadsafe(self._draining.drain(), self._loop).result(within_s)
        except NotInTime:
            return False
        return True

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - `start` raises it
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        registry, metrics = own_metrics()
        with contextlib.ExitStack() as stack:
            engines = [Engine(where) for where in self._where]
            slots = EngineSlots(self._count, self._pids, engines=len(engines))
            stack.callback(slots.close)
            proved = await proved_routes(engines[0], self._names)
            app = App(
                engines,
                self._names,
                slots,
                proved=proved,
                gate=self._gate,
                metrics=metrics,
                registry=registry,
                auto=self._auto,
            )
            self._draining = Draining(app)
            inner = Access(self._draining, self._gate, metrics.refused)
            self._server = uvicorn.Server(
                uvicorn.Config(
                    AllowedOrigins(inner, has_keys=self._gate.has_keys),
                    http=_Protocol,
                    ws="none",
                    lifespan="off",
                    log_level="error",
                    access_log=False,
                    proxy_headers=False,
                    server_header=False,
                    backlog=_BACKLOG,
                    limit_concurrency=_MOST_CONNECTIONS,
                    timeout_keep_alive=_KEEP_ALIVE_S,
                    timeout_graceful_shutdown=_STOP_S,
                )
            )
            self._ready.set()  # the listener queues what comes until it is served
            await self._server.serve([self._listener])


@contextlib.contextmanager
def front(
    host: str,
    port: int,
    engines: Sequence[Address],
    names: Names,
    gate: Gate | None = None,
    auto: Auto | None = None,
    *,
    slots: int = 4,
    pids: Sequence[int] = (),
) -> Iterator[Front]:
    """Answer requests on `host` and `port` while the block runs; `auto` answers the model name `auto`.

    Each engine has `slots` places. `pids` are the processes of the engines, which then take turns.

    Raises:
        OSError: the port is taken.
        RequestRefused: the engine does not answer.
    """
    gate = gate or Gate()
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
        with gate.open():
            server = Front(listener, engines, names, gate, slots=slots, pids=pids, auto=auto)
            server.start()
            try:
                yield server
            finally:
                server.stop()
    finally:
        listener.close()
