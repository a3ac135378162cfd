"""Large memory: kept for the next caller once nothing uses it, and never given away before."""

import weakref
from collections.abc import Iterator

import pytest

from adapterhub.core.disk.held_file import keep, keep_none, large_memory, used_memory

SIZE = 3 << 20


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    keep_none()
    yield
    keep_none()


def test_kept_memory_goes_to_the_next_caller_in_the_size_it_needs() -> None:
    for size in (SIZE, SIZE, 2 * SIZE + 5, SIZE):
        memory = large_memory(size)
        assert len(memory) == size
        memory[0] = memory[-1] = 7
        room = memory.obj
        keep(weakref.ref(room))
        del memory
        taken = large_memory(size)
        assert taken.obj is room
        taken[:] = b"x" * size
        keep(weakref.ref(room))
        del taken


def test_memory_in_use_keeps_its_bytes() -> None:
    memory = large_memory(SIZE)
    part = memory[5:7]
    part[:] = b"ab"
    keep(weakref.ref(memory.obj))
    del memory

    taken = large_memory(SIZE)
    taken[:] = b"x" * SIZE

    assert taken.obj is not part.obj
    assert bytes(part) == b"ab"


def test_memory_that_was_not_kept_goes_back_to_the_system() -> None:
    memory = large_memory(SIZE)
    room = weakref.ref(memory.obj)
    keep(room)
    del memory

    keep_none()

    assert room() is None
    keep(room)  # it is gone: nothing to keep


def test_small_memory_is_never_kept() -> None:
    keep(lambda: bytearray(5))

    assert bytes(large_memory(3)) == bytes(3)


def test_the_memory_of_a_block_goes_to_the_next_one_unless_something_still_refers_to_it() -> None:
    with used_memory(SIZE) as room:
        first = room.obj
        room[:2] = b"ab"
    del room
    with used_memory(SIZE) as room:
        assert room.obj is first
        part = room[:2]
    del room

    with used_memory(SIZE) as room:
        assert room.obj is not first
        room[:2] = b"xy"
    assert bytes(part) == b"ab"
