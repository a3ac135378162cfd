"""Kinds of routes: guarded ones read a body only from those who may send it, threaded ones read the database.

Each route that reads a body is a `GuardedRoute`: before the first byte it asks who sends it. That is a caller who may
change what the path names, unless the route says `sent_by` another.

The way to one of `Threads` and back takes half the time of anyio's.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, NamedTuple, TypeVar, cast

import anyio
from anyio import from_thread, to_thread
from fastapi import APIRouter, Request
from fastapi.responses import Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.routing import request_response

from adapterhub.core.digests import strict_json
from adapterhub_registry.access.callers import Caller, Right
from adapterhub_registry.api.context import Registry, administrator_of, caller_of, user_of
from adapterhub_registry.errors import bad_request, forbidden, too_large, too_many, unauthorized
from adapterhub_registry.names import known_repo_id

MOST: Final = 40
"""The most requests of these routes that look at the database at the same time."""


class _Job(NamedTuple):
    work: Callable[[], Any]
    answer: asyncio.Future[Any]


class Threads:
    """At most `most` threads of one event loop, made when they are needed; the one that worked last works next."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._made = 0
        self._idle: list[SimpleQueue[_Job | None]] = []
        self._waiting: deque[_Job] = deque()
        self._is_closed = False

    async def run(self, work: Callable[[], T]) -> T:
        """Return the result of `work` in a thread; call it from the event loop only."""
        job = _Job(work, asyncio.get_running_loop().create_future())
        if self._idle:
            self._idle.pop().put(job)
        elif self._made < self._most:
            self._made += 1
            jobs: SimpleQueue[_Job | None] = SimpleQueue()
            jobs.put(job)
            threading.Thread(target=self._serve, args=(jobs,), daemon=True).start()
        else:
            self._waiting.append(job)
        result: T = await job.answer
        return result

    def close(self) -> None:
        """End the threads, each after the work that it has."""
        self._is_closed = True
        while self._idle:
            self._idle.pop().put(None)

    def _serve(self, jobs: SimpleQueue[_Job | None]) -> None:
        while (job := jobs.get()) is not None:
            result, error = None, None
            try:
                result = job.work()
            except BaseException as problem:  # noqa: BLE001 - it is raised where the result is awaited
                error = problem
            try:
                job.answer.get_loop().call_soon_threadsafe(self._finish, jobs, job.answer, result, error)
            except RuntimeError:  # the loop has ended
                return
            del job, result, error  # nothing holds an answer until the next job

    def _finish(
        self, jobs: SimpleQueue[_Job | None], answer: asyncio.Future[Any], result: object, error: BaseException | None
    ) -> None:
        if self._waiting:
            jobs.put(self._waiting.popleft())
        elif self._is_closed:
            jobs.put(None)
        else:
            self._idle.append(jobs)
        if answer.cancelled():
            return
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(error)


class ThreadedRoute(APIRoute):
    """A route whose function gets the request and no more, in a thread of `app.state.threads`.

    The framework's dependencies would take a third of the time of the most frequent requests.
    """

    def __init__(self, path: str, endpoint: Callable[[Request], Response], **more: Any) -> None:
        super().__init__(path, endpoint, **more)

        async def answer(request: Request) -> Response:
            threads: Threads = request.app.state.threads
            return await threads.run(partial(endpoint, request))

        self.app = request_response(answer)


BLOCK_BYTES = 1 << 20
RETRY_AFTER_S = 2
OPEN_BODY_BYTES: Final = 2 << 20
MOST_VALUES: Final = 50_000
"""The most values in the JSON of a request: the 10,000 parts of the largest upload are 30,000."""
PARSED_AT_ONCE: Final = 2
SMALL_BYTES: Final = 1 << 14
_CHANGES: Final[tuple[Right, ...]] = ("write", "release", "manage")

T = TypeVar("T")
Sender = Callable[[Request, Registry], Awaitable[int | None]]
"""Raises a `HttpRefusal` unless the sender of a request may send its body; returns the most bytes of it, if it
knows."""


# ------------------------------------------------------------ who may send a body
async def changer(request: Request, registry: Registry) -> None:
    """Require a caller who may change the repository in the path, or without one, whose token changes anything."""
    caller, names = await caller_of(request, registry), request.path_params
    if {"namespace", "name"} <= names.keys():
        await run_in_threadpool(_check_repo, registry, caller, names["namespace"], names["name"])
    else:
        user_of(caller)
        if caller.only_reads:
            raise forbidden(f"the token `{caller.label}` (read) cannot change anything; use one that may write")


def _check_repo(registry: Registry, caller: Caller, namespace: str, name: str) -> None:
    """Raise unless the caller may change something there; the route decides about what it changes."""
    with registry.db.read() as connection:
        row = registry.repos.find(connection, caller, known_repo_id(namespace, name))
        right: Right = next((one for one in _CHANGES if caller.reaches(row.full_name, one)), "write")
        registry.repos.check_may(caller, row.full_name, right)


async def user(request: Request, registry: Registry) -> None:
    """Require a caller with any token."""
    user_of(await caller_of(request, registry))


async def administrator(request: Request, registry: Registry) -> None:
    """Require an administrator."""
    administrator_of(await caller_of(request, registry))


async def check_signer(registry: Registry, token_id: int | None) -> None:
    """Let a signed link or token end with the token for which it was signed.

    Raises:
        HttpRefusal: 401 when that one is revoked or has expired.
    """
    caller = None if token_id is None else await run_in_threadpool(registry.tokens.caller_numbered, token_id)
    if caller is None:
        raise unauthorized("the token for which this was signed is revoked or has expired; start the upload again")


async def anyone(request: Request, registry: Registry) -> int:
    """Everyone who may read here: such a body is smaller."""
    registry.repos.check_may_read(await caller_of(request, registry))
    return OPEN_BODY_BYTES


def sent_by(sender: Sender) -> Callable[[T], T]:
    """Let a route take its body from others than a `changer`."""

    def mark(endpoint: T) -> T:
        _SENDERS[endpoint] = sender
        return endpoint

    return mark


_SENDERS: Final[dict[object, Sender]] = {}


class GuardedRequest(Request):
    """A request whose body only its `sender` may send, with strict JSON: each key once, everything within bounds."""

    def __init__(self, request: Request, sender: Sender) -> None:
        super().__init__(request.scope, request.receive)
        self._sender = sender
        self.problem: Exception | None = None
        """Why the body was not read. The framework words what is raised meanwhile in its own way."""

    async def stream(self) -> AsyncGenerator[bytes, None]:
        """Yield the body in pieces; every other way to read it comes here.

        Raises:
            HttpRefusal: the sender may not send it, or sends too much.
        """
        try:
            most = await self._sender(self, self.app.state.registry)
            async for piece in _at_most(super().stream(), most):
                yield piece
        except Exception as error:
            self.problem = error
            raise

    async def json(self) -> object:
        """Return the body as JSON, parsed in a thread unless it is small.

        A few at the same time, so that memory is bounded.

        Raises:
            HttpRefusal: 400.
        """
        raw = await self.body()
        parse = partial(strict_json, raw, limit_bytes=max(len(raw), 1), most_values=MOST_VALUES)
        try:
            if len(raw) <= SMALL_BYTES:
                return parse()
            return await to_thread.run_sync(parse, limiter=self.app.state.parsing)
        except ValueError as error:
            raise bad_request(f"body: {error}; expected one JSON document of at most {MOST_VALUES} values") from None


async def _at_most(pieces: AsyncIterator[bytes], most: int | None) -> AsyncIterator[bytes]:
    size = 0
    async for piece in pieces:
        size += len(piece)
        if most is not None and size > most:
            raise too_large(most)
        yield piece


class GuardedRoute(APIRoute):
    """A route that checks the sender's rights before it reads the body."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Pass a `GuardedRequest` to the handler."""
        handle, sender = super().get_route_handler(), _SENDERS.get(self.endpoint, changer)

        async def handle_guarded(request: Request) -> Response:
            guarded = GuardedRequest(request, sender)
            try:
                return await handle(guarded)
            except Exception:
                if guarded.problem is not None:
                    raise guarded.problem from None
                raise

        return handle_guarded


def hub_router(kind: type[APIRoute] = GuardedRoute) -> APIRouter:
    """Return a router for routes of the Hub's API, which documents them."""
    return APIRouter(include_in_schema=False, route_class=kind)


# ------------------------------------------------------------ large bodies


class FairSlots:
    """Limits the requests of a kind (`what`) that run at the same time, and shares the slots fairly between tokens.

    A token gets another slot only while more are free than it holds. Alone it takes half of them, the next token half
    of the rest, and so on: a token without a slot is refused only when all are taken. (Dynamic thresholds of Choudhury
    and Hahne, 1998, with alpha = 1.)
    """

    def __init__(self, total: int, what: str) -> None:
        self._free = total
        self._what = what
        self._held: Counter[int | None] = Counter()

    @contextlib.contextmanager
    def hold(self, token_id: int | None) -> Iterator[None]:
        """Hold a slot for a request of this token; call it from the event loop only.

        Raises:
            HttpRefusal: 429 when no slot is free for this token.
        """
        if self._free <= self._held[token_id]:
            raise too_many(
                f"too many {self._what} at the same time; try again in {RETRY_AFTER_S} s", after_s=RETRY_AFTER_S
            )
        self._free -= 1
        self._held[token_id] += 1
        try:
            yield
        finally:
            self._free += 1
            self._held[token_id] -= 1
            if not self._held[token_id]:
                del self._held[token_id]


class UploadSlots(FairSlots):
    """The slots of uploads, each with a thread."""

    def __init__(self, total: int) -> None:
        super().__init__(total, "uploads")
        self.threads = anyio.CapacityLimiter(total)


async def in_slot(request: Request, token_id: int | None, work: Callable[[], T]) -> T:
    """Run work that reads whole uploads in the threads for uploads, so that it holds up no other route.

    Raises:
        HttpRefusal: 429 when no slot is free for this token.
    """
    slots = cast("UploadSlots", request.app.state.upload_slots)
    with slots.hold(token_id):
        return await to_thread.run_sync(work, limiter=slots.threads)


async def receive_with(request: Request, token_id: int | None, work: Callable[[Iterator[bytes]], T]) -> T:
    """Run `work` on the body in a worker thread and return its result; it gets blocks of about a mebibyte.

    Raises:
        HttpRefusal: 429 when no slot is free for this token.
    """
    stream = request.stream()

    async def next_block() -> bytes:
        block = bytearray()
        async for piece in stream:
            block += piece
            if len(block) >= BLOCK_BYTES:
                break
        return bytes(block)

    def blocks() -> Iterator[bytes]:
        while block := from_thread.run(next_block):
            yield block

    return await in_slot(request, token_id, lambda: work(blocks()))
