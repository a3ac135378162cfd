"""Short work in threads: results and errors come back, work waits for a free thread, and all threads end."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

import pytest
from adapterhub_registry.api.bodies import Threads


def test_results_and_errors_come_back_to_who_awaits_them() -> None:
    async def ask() -> tuple[int, int]:
        threads = Threads(2)
        with pytest.raises(ZeroDivisionError):
            await threads.run(lambda: 1 // 0)
        ours, other = await threads.run(threading.get_ident), threading.get_ident()
        threads.close()
        return ours, other

    ours, other = asyncio.run(ask())
    assert ours != other


def test_more_work_than_threads_waits_and_the_threads_end() -> None:
    running, most, lock, both = 0, 0, threading.Lock(), threading.Barrier(2)

    def work(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        both.wait(30)  # two at a time, neither more nor fewer
        with lock:
            running -= 1
        return number

    async def ask() -> list[int]:
        threads = Threads(2)
        found = await asyncio.gather(*(threads.run(partial(work, number)) for number in range(10)))
        threads.close()
        return found

    before = set(threading.enumerate())
    assert (asyncio.run(ask()), most) == (list(range(10)), 2)
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive()


def test_work_that_is_cancelled_gives_its_thread_back() -> None:
    async def ask() -> int:
        threads, begin, end = Threads(1), threading.Event(), threading.Event()
        task = asyncio.ensure_future(threads.run(lambda: (begin.set(), end.wait(30))))
        await asyncio.to_thread(begin.wait, 30)
        task.cancel()
        end.set()
        found = await threads.run(lambda: 7)
        threads.close()
        return found

    assert asyncio.run(ask()) == 7
