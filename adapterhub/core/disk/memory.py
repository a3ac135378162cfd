"""Memory for whole files and for many tensors: in huge pages, where the system has them and they are cheap."""

from __future__ import annotations

import contextlib
import mmap
import time
from typing import Final

_HUGE_PAGE: Final = 2 << 20
_SMALL: Final = 1 << 20
_SLOW_SECONDS: Final = 1.5e-3
"""A huge page that takes longer costs more than the same memory in pages of 4 KiB: it takes 0.1 ms, and 5 ms on a
virtual machine whose host took the memory back."""


class _Pages:
    """Whether this process asks for huge pages: until one was slow."""

    huge = hasattr(mmap, "MADV_HUGEPAGE")  # Linux alone has them


def fresh_memory(size_bytes: int) -> memoryview:
    """Writable bytes, all zero and page-aligned. Large ones return to the system when nothing refers to them.

    Filling pages of 4 KiB takes several times as long as the copy. So all of it is in huge pages, except the end where
    another one would waste an eighth, until one of them was slow.
    """
    if size_bytes < _SMALL:
        return memoryview(bytearray(size_bytes))
    whole = -(-size_bytes // _HUGE_PAGE) * _HUGE_PAGE  # Linux begins such a mapping at a huge page, and no other
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
