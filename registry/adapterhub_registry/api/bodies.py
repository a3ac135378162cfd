"""Large request bodies, read in a worker thread: a stream for the blob store, in constant memory."""

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


class Places:
    """Places for uploads that run at the same time, shared so that one token leaves room for others.

    A token gets another place only while more are free than it holds. Alone it takes half of them, the next one half of
    the rest, and so on: one that holds none is refused only when all are taken. (Dynamic thresholds of Choudhury and
    Hahne, 1998, with alpha = 1.)
    """

    def __init__(self, total: int) -> None:
        self._free = total
        self._held: Counter[int | None] = Counter()
        self.threads = anyio.CapacityLimiter(total)

    @contextlib.contextmanager
    def one_for(self, token_id: int | None) -> Iterator[None]:
        """Hold a place for an upload of this token; from the event loop only.

        Raises:
            Refusal: 429 when there is none for it now.
        """
        if self._free <= self._held[token_id]:
            raise too_many("too many uploads at once", after_s=RETRY_AFTER_S)
        self._free -= 1
        self._held[token_id] += 1
        try:
            yield
        finally:
            self._free += 1
            self._held[token_id] -= 1
            if not self._held[token_id]:
                del self._held[token_id]


async def receive_with(request: Request, token_id: int | None, work: Callable[[Iterator[bytes]], T]) -> T:
    """What `work` makes of the body, which it gets in blocks of about a mebibyte; it runs in a worker thread.

    Raises:
        Refusal: 429 when this token has to wait for a place.
    """
    places = cast("Places", request.app.state.upload_places)
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

    with places.one_for(token_id):
        return await to_thread.run_sync(lambda: work(blocks()), limiter=places.threads)
