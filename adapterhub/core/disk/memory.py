"""Memory for whole files and for many tensors: memory that was used before, or huge pages where they are cheap."""

from __future__ import annotations

import contextlib
import mmap
import time
from collections import deque
from collections.abc import Callable
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
    """Writable bytes with any content, page-aligned. Large ones return to the system when nothing refers to them.

    Memory that was kept comes first. To fill pages of 4 KiB takes several times as long as the copy. So fresh memory is
    in huge pages, except the end where another one would waste an eighth, until one of them was slow.
    """
    if size_bytes < _SMALL:
        return memoryview(bytearray(size_bytes))
    whole = -(-size_bytes // _HUGE_PAGE) * _HUGE_PAGE  # Linux begins such a mapping at a huge page, and no other
    return memoryview(_kept(whole) or _fresh(whole, size_bytes))[:size_bytes]


def keep(memory: Callable[[], object]) -> None:
    """Keep the large memory to which a weak reference leads for the next caller, one piece in all.

    Nothing happens to it while something still refers to its bytes.
    """
    room = memory()
    if isinstance(room, mmap.mmap):
        _spare.append(room)


def keep_none() -> None:
    """Return what is kept to the system."""
    _spare.clear()


def _kept(size_bytes: int) -> mmap.mmap | None:
    """The memory that is kept, in that size; None if there is none, or its bytes are in use."""
    with contextlib.suppress(IndexError, BufferError, OSError, SystemError):  # not every system can resize
        room = _spare.pop()
        room.resize(size_bytes)
        return room
    return None


def _fresh(size_bytes: int, used_bytes: int) -> mmap.mmap:
    room = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if _Pages.huge:
        huge = size_bytes if (size_bytes - used_bytes) * 8 <= used_bytes else size_bytes - _HUGE_PAGE
        with contextlib.suppress(OSError):  # not every Linux has them
            room.madvise(mmap.MADV_HUGEPAGE, 0, huge)
            begun = time.thread_time()
            room[0] = 0
            if time.thread_time() - begun > _SLOW_SECONDS:
                _Pages.huge = False
                room.madvise(mmap.MADV_NOHUGEPAGE)
    return room
