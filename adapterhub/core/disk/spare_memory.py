"""Memory that is used again: to get fresh memory for a file may take longer than to fill it."""

from __future__ import annotations

import contextlib
import mmap
from collections import deque
from collections.abc import Iterator


class SpareMemory:
    """Memory of one size for one user after another. It keeps one piece that is not in use, of the last user."""

    def __init__(self, size_bytes: int) -> None:
        self._size_bytes = size_bytes
        self._spare: deque[memoryview] = deque(maxlen=1)

    @contextlib.contextmanager
    def use(self) -> Iterator[memoryview]:
        """Writable bytes with any content, for the block alone; kept after it, unless it ends with an error."""
        try:
            room = self._spare.pop()
        except IndexError:
            room = memoryview(mmap.mmap(-1, self._size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
        yield room
        self._spare.append(room)
