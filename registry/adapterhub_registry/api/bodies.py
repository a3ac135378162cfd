"""Streams large request bodies to a worker thread, in constant memory."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TypeVar, cast

import anyio
from anyio import from_thread, to_thread
from fastapi import Request

from adapterhub_registry.errors import too_many

BLOCK_BYTES = 1 << 20
RETRY_AFTER_S = 2

T = TypeVar("T")


class Slots:
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
            Refusal: 429 when no slot is free for this token.
        """
        if self._free <= self._held[token_id]:
            raise too_many(f"too many {self._what} at the same time", after_s=RETRY_AFTER_S)
        self._free -= 1
        self._held[token_id] += 1
        try:
            yield
        finally:
            self._free += 1
            self._held[token_id] -= 1
            if not self._held[token_id]:
                del self._held[token_id]


class UploadSlots(Slots):
    """The slots of uploads, each with a thread."""

    def __init__(self, total: int) -> None:
        super().__init__(total, "uploads")
        self.threads = anyio.CapacityLimiter(total)


async def receive_with(request: Request, token_id: int | None, work: Callable[[Iterator[bytes]], T]) -> T:
    """Run `work` on the body in a worker thread and return its result; it gets blocks of about a mebibyte.

    Raises:
        Refusal: 429 when no slot is free for this token.
    """
    slots = cast("UploadSlots", request.app.state.upload_slots)
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

    with slots.hold(token_id):
        return await to_thread.run_sync(lambda: work(blocks()), limiter=slots.threads)
