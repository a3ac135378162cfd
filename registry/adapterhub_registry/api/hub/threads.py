"""Threads for the shortest work, such as HEAD of a file: the way to one and back takes half the time of anyio's."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from queue import SimpleQueue
from typing import Any, Final, NamedTuple, TypeVar

from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import request_response

T = TypeVar("T")
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
        """The result of `work` in a thread; call it from the event loop only."""
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

    The framework's dependencies would take a third of the time of what is requested most often.
    """

    def __init__(self, path: str, endpoint: Callable[[Request], Response], **more: Any) -> None:  # noqa: ANN401 - as in the parent
        super().__init__(path, endpoint, **more)

        async def answer(request: Request) -> Response:
            threads: Threads = request.app.state.threads
            return await threads.run(partial(endpoint, request))

        self.app = request_response(answer)
