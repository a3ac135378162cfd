"""Large request bodies, read in a worker thread: a stream for the blob store, in constant memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar, cast

import anyio
from anyio import from_thread, to_thread
from fastapi import Request

from adapterhub_registry.errors import too_many

BLOCK_BYTES = 1 << 20
RETRY_AFTER_S = 2

T = TypeVar("T")


async def receive_with(request: Request, work: Callable[[Iterator[bytes]], T]) -> T:
    """What `work` makes of the body, which it gets in blocks of about a mebibyte; it runs in a worker thread.

    Raises:
        Refusal: 429 when as many uploads run as the server takes at once.
    """
    places = cast("anyio.CapacityLimiter", request.app.state.upload_places)
    if places.available_tokens < 1:
        raise too_many("too many uploads at once", after_s=RETRY_AFTER_S)
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

    return await to_thread.run_sync(lambda: work(blocks()), limiter=places)
