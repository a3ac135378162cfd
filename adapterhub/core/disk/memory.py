"""Fresh memory for whole files and for many tensors: in huge pages, where the system has them."""

from __future__ import annotations

import contextlib
import mmap
from typing import Final

_HUGE_PAGE: Final = 2 << 20
_SMALL: Final = 1 << 20


def fresh_memory(size_bytes: int) -> memoryview:
    """Writable bytes, all zero and page-aligned. Large ones return to the system when nothing refers to them.

    Filling pages of 4 KiB takes several times as long as the copy. So all of it is in huge pages, except the end where
    another one would waste an eighth.
    """
    if size_bytes < _SMALL:
        return memoryview(bytearray(size_bytes))
    whole = -(-size_bytes // _HUGE_PAGE) * _HUGE_PAGE  # Linux begins such a mapping at a huge page, and no other
    room = mmap.mmap(-1, whole, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(AttributeError, OSError):  # Linux alone has it, and not every Linux
        room.madvise(mmap.MADV_HUGEPAGE, 0, whole if (whole - size_bytes) * 8 <= size_bytes else whole - _HUGE_PAGE)
    return memoryview(room)[:size_bytes]
