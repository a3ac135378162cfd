"""Memory for whole files and for many tensors: memory that was used before, or huge pages where they are cheap."""

from __future__ import annotations

import contextlib
import mmap
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

_HUGE_PAGE: Final = 2 << 20
_SMALL: Final = 1 << 20
_SLOW_SECONDS: Final = 1.5e-3
"""A huge page that takes longer costs more than the same memory in pages of 4 KiB: it takes 0.1 ms, and 5 ms on a
virtual machine whose host took the memory back."""

_spare: Final[deque[mmap.mmap]] = deque(maxlen=1)


class _Pages:
    """Whether this process asks for huge pages: until one was slow."""

    huge = hasattr(mmap, "MADV_HUGEPAGE")  # Linux alone has them


def large_memory(size_bytes: int) -> memoryview:
    """Writable bytes with any content: those that are kept, or fresh ones."""
    kept = kept_memory(size_bytes)
    return fresh_memory(size_bytes) if kept is None else kept


def keep(memory: Callable[[], object]) -> None:
    """Keep the large memory to which a weak reference leads for the next caller, one piece in all.

    Nothing happens to it while something still refers to its bytes.
    """
    room = memory()
    if isinstance(room, mmap.mmap):
        _spare.append(room)


@contextlib.contextmanager
def used_memory(size_bytes: int) -> Iterator[memoryview]:
    """`large_memory` for the block alone; the next caller gets it."""
    room = large_memory(size_bytes)
    try:
        yield room
    finally:
        if isinstance(room.obj, mmap.mmap):
            keep(weakref.ref(room.obj))


def keep_none() -> None:
    """Return what is kept to the system."""
    _spare.clear()


def kept_memory(size_bytes: int) -> memoryview | None:
    """The memory that is kept, in that size and with any content; None if there is none, or its bytes are in use."""
    if size_bytes < _SMALL:
        return None
    with contextlib.suppress(IndexError, BufferError, OSError, SystemError):  # not every system can resize
        room = _spare.pop()
        room.resize(_whole(size_bytes))
        return memoryview(room)[:size_bytes]
    return None


def fresh_memory(size_bytes: int) -> memoryview:
    """Writable bytes, all zero and page-aligned. Large ones return to the system when nothing refers to them.

    Filling pages of 4 KiB takes several times as long as the copy. So all of it is in huge pages, except the end where
    another one would waste an eighth, until one of them was slow.
    """
    if size_bytes < _SMALL:
        return memoryview(bytearray(size_bytes))
    whole = _whole(size_bytes)
    room = mmap.mmap(-1, whole, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if _Pages.huge:
        huge = whole if (whole - size_bytes) * 8 <= size_bytes else whole - _HUGE_PAGE
        with contextlib.suppress(OSError):  # not every Linux has them
            room.madvise(mmap.MADV_HUGEPAGE, 0, huge)
            begun = time.thread_time()
            room[0] = 0
            if time.thread_time() - begun > _SLOW_SECONDS:
                _Pages.huge = False
                room.madvise(mmap.MADV_NOHUGEPAGE)
    return memoryview(room)[:size_bytes]


def _whole(size_bytes: int) -> int:
    """Whole huge pages: Linux begins such a mapping at a huge page, and no other."""
    return -(-size_bytes // _HUGE_PAGE) * _HUGE_PAGE
