"""Threads for the shortest work, such as HEAD of a file: the way to one and back takes half the time of anyio's."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, NamedTuple, TypeVar

T = TypeVar("T")


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
