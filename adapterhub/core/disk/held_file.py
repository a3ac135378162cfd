"""A file that is opened once and whose bytes are used only if they were hashed.

Checking a file by its path does not protect a later `open` of that path: another file may have the name by then, or
another process may have written into the file. A `HeldFile` keeps the descriptor, which rules out the first, and
hashes the file in one pass, which rules out the second. During the pass it keeps the state of the hash at marks, the
beginnings of tensors. A later read of a part continues from the state at its first mark and returns the bytes only if
the hash reaches the state at its last mark. So any part can be read at any time, in any order and from several threads,
at the cost of hashing it again, and memory does not grow with the file.

`load` reads the whole file into memory instead, where no other process can change it, and hashes it once; `load_ahead`
does the latter while the caller goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import stat
import time
import weakref
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Final

from adapterhub.core.digests import Digest, digest_of_hash
from adapterhub.core.errors import DigestMismatch

PIECE_BYTES: Final = 1 << 20
"""Read at once: fits a core's cache. Larger pieces were slower."""

REPAIR_HINT: Final = "the file was changed or damaged; `adapt doctor --repair` fetches it again where it can"

_BUFFERS: Final = 3
"""One is filled while another is hashed and a third waits. More of them cost more to zero than they save."""
_SMALL_BYTES: Final = 128 << 10
_WORTH_A_THREAD_BYTES: Final = 8 << 20
_NEAREST_MARKS: Final = 16 << 10
"""The least distance of marks: without it, sixty thousand small tensors would cost more memory than their bytes."""


class HeldFile:
    """A regular file, open for reading until it is closed or no longer used.

    Raises:
        OSError: it does not exist, is a link, or is not a regular file; opening never waits for a pipe.
    """

    def __init__(self, path: Path) -> None:
        self._handle = -1
        flags = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        self._handle = os.open(path, flags)
        facts = os.fstat(self._handle)
        if not stat.S_ISREG(facts.st_mode):
            self.close()
            raise OSError(0, "is not a regular file", str(path))
        self._begin(path, facts.st_size)

    def _begin(self, path: Path, size_bytes: int) -> None:
        """Set what is known before the pass."""
        self.path, self.size_bytes = path, size_bytes
        self._start = b""
        self._marks: Sequence[int] = _spaced((), self.size_bytes)
        self._states: list[Any] = []
        self._memory: memoryview | None = None
        self._hash: _Hash | None = None
        self._digest: Digest | None = None

    def close(self) -> None:
        """Close the file; loaded bytes stay available."""
        handle, self._handle = self._handle, -1
        if handle >= 0:
            os.close(handle)

    def __del__(self) -> None:
        """Close the file; most users never call `close`."""
        self.close()

    def is_at(self, path: Path) -> bool:
        """Return whether `path` is a name of this very file, which is open; False for a link to it."""
        try:
            return self._handle >= 0 and os.path.samestat(os.fstat(self._handle), path.lstat())
        except OSError:
            return False

    @property
    def is_loaded(self) -> bool:
        """Whether the bytes are in memory."""
        return self._memory is not None

    # ------------------------------------------------------------ before the pass
    def start(self, count: int) -> bytes:
        """Return the first `count` bytes, or all. They are kept, so the pass hashes the same bytes."""
        if self._memory is not None or self._digest is not None:
            return bytes(self.read(0, min(count, self.size_bytes)))
        if len(self._start) < count:
            room = bytearray(count - len(self._start))
            filled = self._fill(memoryview(room), len(self._start))
            self._start += room[:filled]
        return self._start[:count]

    def mark(self, places: Iterable[int]) -> None:
        """Set where the parts that will be read begin, in rising order; otherwise reading a part hashes more bytes."""
        if self._digest is None:
            self._marks = _spaced(places, self.size_bytes)

    def load_ahead(self, room: memoryview) -> None:
        """As `load`, but into the caller's memory, if the file fits there, and only `digest` waits for the hash.

        Nothing may be written into that memory as long as this file is used. Raises OSError as `digest`.
        """
        if self._memory is None and self._digest is None and self.size_bytes <= len(room):
            at = len(self._start)
            room[:at] = self._start
            self._read_on(room[at : self.size_bytes], at)
            self._memory = room[: self.size_bytes]
            self._hash = _Hash(self._memory)
            self.close()

    # ------------------------------------------------------------ the pass
    @property
    def digest(self) -> Digest:
        """Digest of the whole file; the first use reads it.

        Raises:
            OSError: the file cannot be read, or its size changed during the pass.
        """
        if self._digest is None and self._hash is not None:
            self._digest = self._hash.digest()
        if self._digest is None:
            start = len(self._start)
            for _ in self.pieces(start, _even(self.size_bytes - start)):
                pass
        assert self._digest is not None  # the pass is over
        return self._digest

    def hold_to(self, expected: Digest | None) -> None:
        """Raise unless the file has this digest; None accepts any.

        Raises:
            DigestMismatch: it has another one; the message names both.
        """
        if expected is not None and self.digest != expected:
            raise DigestMismatch(str(self.path), expected=expected, actual=self.digest, hint=REPAIR_HINT)

    def pieces(self, start: int, sizes: Iterable[int]) -> Iterator[memoryview]:
        """Yield the bytes from `start` to the end in pieces of these sizes; a second thread hashes them in one pass.

        A piece has at most `PIECE_BYTES` and is valid until the next one. If the file was hashed before, every piece
        is checked against that hash.

        Raises:
            OSError: as `digest`.
            DigestMismatch: the file changed after it was hashed.
        """
        if self._memory is not None or self._digest is not None:
            for size in sizes:
                yield memoryview(self.read(start, start + size))
                start += size
            return
        with contextlib.closing(_Hashing(self._marks, in_thread=self.size_bytes > _SMALL_BYTES)) as hashing:
            hashing.put(self.start(start))
            for size in sizes:
                buffer = hashing.buffer()
                view = memoryview(buffer)[:size]
                self._read_on(view, start)
                hashing.put(view, buffer)
                start += size
                yield view
            if self._fill(memoryview(bytearray(1)), start):
                raise OSError(0, "became longer while it was read", str(self.path))
            self._states = hashing.close()
        self._digest = digest_of_hash(self._states[-1])

    def load(self) -> memoryview:
        """Read the whole file into memory; later reads use it. The memory is writable and page-aligned.

        Raises:
            OSError: as `digest`.
            DigestMismatch: the file changed since it was hashed.
        """
        if self._memory is None:
            kept = kept_memory(self.size_bytes)
            room = fresh_memory(self.size_bytes) if kept is None else kept
            # to read into memory that is there takes a seventh of the hash: a second thread would cost more
            found = self._load_into(room, in_thread=kept is None and self.size_bytes > _WORTH_A_THREAD_BYTES)
            if self._digest not in (None, found):
                raise self._changed()
            self._memory, self._digest = room, found
            self.close()
        return self._memory

    def _load_into(self, room: memoryview, *, in_thread: bool) -> Digest:
        at = len(self._start)
        room[:at] = self._start
        with contextlib.closing(_Hashing((0, self.size_bytes), in_thread=in_thread)) as hashing:
            hashing.put(room[:at])
            for size in _even(self.size_bytes - at):
                self._read_on(room[at : at + size], at)
                hashing.put(room[at : at + size])
                at += size
            return digest_of_hash(hashing.close()[-1])

    # ------------------------------------------------------------ after it
    def read(self, start: int, stop: int) -> bytearray | memoryview:
        """Return the bytes from `start` to `stop`, in writable memory.

        Raises:
            DigestMismatch: they changed after the file was hashed.
            OSError: as `digest`.
        """
        if self._memory is not None:
            return self._memory[start:stop]
        if not start < stop:
            return bytearray()
        room = bytearray(stop - start)
        self.read_into(memoryview(room), start)
        return room

    def read_into(self, room: memoryview, start: int) -> None:
        """As `read`, into the caller's memory, whose content is undefined after an error."""
        stop = start + len(room)
        if self._memory is not None:
            room[:] = self._memory[start:stop]
            return
        if self._digest is None:
            _ = self.digest  # the pass
        first, last = bisect_right(self._marks, start) - 1, bisect_left(self._marks, stop)
        begin, end = self._marks[first], self._marks[last]
        state = self._states[first].copy()
        before, after = memoryview(bytearray(start - begin)), memoryview(bytearray(end - stop))
        for part, at in ((before, begin), (room, start), (after, stop)):
            if self._fill(part, at) != len(part):  # it was cut short; what `part` held before may be the same bytes
                raise self._changed()
            state.update(part)
        if state.digest() != self._states[last].digest():
            raise self._changed()

    def chunks(self, start: int, stop: int, size_bytes: int) -> Iterator[bytearray | memoryview]:
        """As `read`, `size_bytes` at a time."""
        for at in range(start, stop, size_bytes):
            yield self.read(at, min(at + size_bytes, stop))

    def copy_to(self, path: Path) -> None:
        """Write the hashed bytes to a new file."""
        with path.open("xb") as sink:
            for chunk in self.chunks(0, self.size_bytes, PIECE_BYTES):
                sink.write(chunk)

    def _read_on(self, view: memoryview, at: int) -> None:
        if self._fill(view, at) != len(view):
            raise OSError(0, "became shorter while it was read", str(self.path))

    def _fill(self, view: memoryview, at: int) -> int:
        """Return how many bytes were read from `at`; fewer than the view holds only at the end of the file."""
        done = 0
        while done < len(view) and (count := os.preadv(self._handle, [view[done:]], at + done)):
            done += count
        return done

    def _changed(self) -> DigestMismatch:
        """Return the error for bytes that changed after the file was hashed."""
        hasher, room, at = hashlib.sha256(), memoryview(bytearray(PIECE_BYTES)), 0
        while count := self._fill(room, at):
            hasher.update(room[:count])
            at += count
        now = digest_of_hash(hasher)
        actual = now if now != self._digest else "other bytes for a moment"
        hint = "something writes to the file while it is in use; let it end and type the command again"
        return DigestMismatch(str(self.path), expected=str(self._digest), actual=actual, hint=hint)


class _Hashing:
    """A thread that hashes the bytes put into it and keeps the states at the marks; to be closed.

    Queues rather than futures, and enough buffers that the hash never waits. Without `in_thread`, `put` hashes itself.
    """

    def __init__(self, marks: Sequence[int], *, in_thread: bool) -> None:
        self._marks = marks
        self._hasher = hashlib.sha256()
        self._states = [self._hasher.copy()]
        self._reached = 0
        self._filled: SimpleQueue[tuple[memoryview, bytearray | None] | None] = SimpleQueue()
        self._free: SimpleQueue[bytearray] = SimpleQueue()
        self._made = 0
        self._thread = Thread(target=self._run, name="hash", daemon=True) if in_thread else None
        if self._thread is not None:
            self._thread.start()

    def buffer(self) -> bytearray:
        """Return a buffer for a piece that is not in use.

        A new one, which has to be zeroed, only where none is free.
        """
        with contextlib.suppress(Empty):
            return self._free.get_nowait()
        if self._made < _BUFFERS:
            self._made += 1
            return bytearray(min(PIECE_BYTES, self._marks[-1]))
        return self._free.get()

    def put(self, data: bytes | memoryview, buffer: bytearray | None = None) -> None:
        """Queue these bytes for hashing; `buffer`, which holds them, is reused afterwards."""
        if self._thread is None:
            self._hash(memoryview(data), buffer)
        else:
            self._filled.put((memoryview(data), buffer))

    def close(self) -> list[Any]:
        """Wait for the hash and return the states at the marks."""
        if self._thread is not None:
            self._filled.put(None)
            self._thread.join()
        return self._states

    def _run(self) -> None:
        while (item := self._filled.get()) is not None:
            self._hash(*item)

    def _hash(self, view: memoryview, buffer: bytearray | None) -> None:
        done = 0
        while done < len(view):
            mark = self._marks[len(self._states)]
            take = min(len(view) - done, mark - self._reached)
            self._hasher.update(view[done : done + take])
            done += take
            self._reached += take
            if self._reached == mark:
                self._states.append(self._hasher.copy())
        if buffer is not None:
            self._free.put(buffer)


class _Hash:
    """The hash of memory, by a thread where that is worth one.

    The thread makes one call for all of it: between two calls it would wait until the caller, who goes on, lets go of
    the interpreter.
    """

    def __init__(self, memory: memoryview) -> None:
        self._memory = memory
        self._digest: Digest | None = None
        self._thread = Thread(target=self._run, name="hash", daemon=True) if len(memory) > PIECE_BYTES else None
        if self._thread is not None:
            self._thread.start()

    def digest(self) -> Digest:
        """Wait for it."""
        if self._thread is not None:
            self._thread.join()
        if self._digest is None:
            self._run()
        assert self._digest is not None
        return self._digest

    def _run(self) -> None:
        self._digest = digest_of_hash(hashlib.sha256(self._memory))


def _spaced(marks: Iterable[int], size_bytes: int) -> tuple[int, ...]:
    """Return marks from 0 to the end of the file, so close that reading a part hashes little else."""
    found = [0]
    for mark in (*marks, size_bytes):
        while mark - found[-1] > PIECE_BYTES:
            found.append(found[-1] + PIECE_BYTES)
        if mark - found[-1] >= _NEAREST_MARKS or (mark == size_bytes and mark > found[-1]):
            found.append(mark)
    return tuple(found)


def _even(size_bytes: int) -> Iterator[int]:
    for at in range(0, size_bytes, PIECE_BYTES):
        yield min(PIECE_BYTES, size_bytes - at)


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
    """Provide `large_memory` only for the block; the next caller gets it."""
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
    """Return the memory that is kept, in that size and with any content.

    None if there is none, or its bytes are in use.
    """
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
