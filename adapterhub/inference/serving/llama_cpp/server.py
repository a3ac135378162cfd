"""Runs the front of llama.cpp's server: the chain of its parts, on uvicorn, in a thread with an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import TimeoutError as NotInTime
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import uvicorn

from adapterhub.core.errors import EngineFailed
from adapterhub.inference.serving.access.gate import Gate
from adapterhub.inference.serving.auto import Auto
from adapterhub.inference.serving.chain.entrance import Access, AllowedOrigins, Draining
from adapterhub.inference.serving.llama_cpp.app import App
from adapterhub.inference.serving.llama_cpp.engine import Address
from adapterhub.inference.serving.llama_cpp.generation import Generation
from adapterhub.inference.serving.llama_cpp.names import Names
from adapterhub.inference.serving.metrics import own_metrics
from adapterhub.inference.serving.refusal import RequestRefused
from adapterhub.pages.wire import StrictProtocol

if TYPE_CHECKING:
    from typing_extensions import Self

_BACKLOG: Final = 2048
_READ_BYTES: Final = 1 << 14
_KEEP_ALIVE_S: Final = 30
_MOST_CONNECTIONS: Final = 4096
_READY_S: Final = 600.0
_STOP_S: Final = 2
_T = TypeVar("_T")


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
    """Answers requests on `host` and `port` in a thread of its own, while it is used as a context manager.

    Each engine has `slots` places. `pids` are the processes of the engines, which then take turns. `auto` answers the
    model name `auto`.
    """

    def __init__(
        self,
        host: str,
        port: int,
        engines: Sequence[Address],
        names: Names,
        gate: Gate | None = None,
        auto: Auto | None = None,
        *,
        slots: int = 4,
        pids: Sequence[int] = (),
    ) -> None:
        self._host, self._port = host, port
        self._where, self._names, self._gate = engines, names, gate or Gate()
        self._slots, self._auto, self._pids = slots, auto, pids
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="adapt serve", daemon=True)
        self._open = contextlib.ExitStack()

    def __enter__(self) -> Self:
        """Return when requests are answered.

        Raises:
            OSError: the port is taken.
            RequestRefused: the engine does not answer the first questions.
        """
        with contextlib.ExitStack() as stack:
            family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
            self._listener = stack.enter_context(socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP))
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._listener.bind((self._host, self._port))
            self._listener.listen(_BACKLOG)
            stack.enter_context(self._gate.open())
            self._thread.start()
            self._ready.wait(_READY_S)
            if self._failure is not None:
                raise self._failure
            self._open = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        """End the server and what still runs."""
        self._server.should_exit = True
        self._thread.join()
        self._open.close()

    def drain(self, within_s: float) -> bool:
        """Refuse new requests and wait for those that run; False if some still run after `within_s` seconds."""
        return self._in_time(self._draining.drain(), within_s)

    # ------------------------------------------------------------ generations
    @property
    def now(self) -> Generation:
        """The generation that new requests go to."""
        return self._app.now

    def prepared(
        self, engines: Sequence[Address], names: Names, pids: Sequence[int], *, is_same: bool, within_s: float
    ) -> Generation:
        """Return a generation of engines that run, which were asked about each adapter.

        `is_same`: the program is that of the present engines, of which it is known where they read adapters.

        Raises:
            EngineFailed: they do not answer within `within_s` seconds.
        """

        async def make() -> Generation:
            proved = self.now.proved if is_same and self.now.names.served else None
            made = Generation(engines, names, self._metrics, slots=self._slots, pids=pids, proved=proved)
            await asyncio.wait_for(made.ready(), within_s)
            return made

        try:
            return self._on_loop(make())
        except (asyncio.TimeoutError, NotInTime):
            raise EngineFailed(
                f"the engine did not answer its first questions within {within_s:g} s",
                hint="a large model may need longer: `--start-timeout SECONDS`",
            ) from None
        except RequestRefused as refusal:
            raise EngineFailed(
                f"{refusal.message}, when it was asked about its adapters",
                hint="update llama.cpp; its log has the reason",
            ) from None

    def switch(self, to: Generation, then: Callable[[], None]) -> Generation:
        """Send new requests to another generation, and call `then` before any comes; the generation before."""

        async def switch() -> Generation:
            before, self._app.now = self._app.now, to
            then()
            return before

        return self._on_loop(switch())

    def is_idle(self, one: Generation, within_s: float) -> bool:
        """Return whether within `within_s` seconds no request runs on a generation that gets no new ones."""
        return self._in_time(one.idle(), within_s)

    def end(self, one: Generation) -> None:
        """Let the engines of a generation run, so that they can end."""

        async def close() -> None:
            one.close()

        self._on_loop(close())

    def rename(self, names: Names) -> None:
        """Let names mean other adapters that the present engines have loaded."""
        self.now.names = names

    def _on_loop(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _in_time(self, work: Coroutine[Any, Any, object], within_s: float) -> bool:
        waiting = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            waiting.result(within_s)
        except NotInTime:
            waiting.cancel()
            return False
        return True

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - `__enter__` raises it
            self._failure = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        registry, self._metrics = own_metrics()
        first = Generation(self._where, self._names, self._metrics, slots=self._slots, pids=self._pids)
        await first.ready()
        self._app = App(first, gate=self._gate, metrics=self._metrics, registry=registry, auto=self._auto)
        try:
            self._draining = Draining(self._app)
            inner = Access(self._draining, self._gate, self._metrics.refused)
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
        finally:
            self._app.now.close()
