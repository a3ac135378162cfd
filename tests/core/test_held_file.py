from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapterhub.core.digests import digest_of
from adapterhub.core.disk.held_file import PIECE_BYTES, HeldFile
from adapterhub.core.errors import DigestMismatch

Change = Callable[[Path, bytes], None]


def in_place(path: Path, data: bytes) -> None:
    """Other bytes in the same inode."""
    with path.open("r+b") as stream:
        stream.write(data)


def by_rename(path: Path, data: bytes) -> None:
    """Another file under the same name."""
    other = path.with_name("other")
    other.write_bytes(data)
    other.replace(path)


def held_at(path: Path, size: int, seed: int = 0) -> tuple[bytes, HeldFile]:
    data = (hashlib.sha256(bytes([seed])).digest() * (size // 32 + 1))[:size]
    path.write_bytes(data)
    return data, HeldFile(path)


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_part_is_read_in_any_order(tmp_path: Path, data: st.DataObject) -> None:
    size = data.draw(st.sampled_from([0, 1, 20_000, 70_001, PIECE_BYTES, 2 * PIECE_BYTES + 17]))
    places = st.integers(0, size)
    content, held = held_at(tmp_path / "file", size)
    held.start(data.draw(places))
    held.mark(sorted(data.draw(st.lists(places, max_size=8))))
    if data.draw(st.booleans()):
        held.load()

    assert held.digest == digest_of(content)
    for one, other in data.draw(st.lists(st.tuples(places, places), max_size=8)):
        start, stop = sorted((one, other))
        assert bytes(held.read(start, stop)) == content[start:stop]


@pytest.mark.parametrize("size", [100, 70_000, 3 * PIECE_BYTES])
@pytest.mark.parametrize("at", [0, 0.5, 1])
def test_a_byte_that_changes_after_the_pass_is_never_given(tmp_path: Path, size: int, at: float) -> None:
    path = tmp_path / "file"
    data, held = held_at(path, size)
    assert held.digest == digest_of(data)
    place = round(at * (size - 1))
    in_place(path, data[:place] + bytes([data[place] ^ 1]))

    with pytest.raises(DigestMismatch, match=digest_of(data)):
        held.read(place, place + 1)
    with pytest.raises(DigestMismatch):
        held.load()


def test_bytes_beside_a_changed_one_are_still_given(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data, held = held_at(path, 3 * PIECE_BYTES)
    held.mark([PIECE_BYTES, 2 * PIECE_BYTES])
    assert held.digest == digest_of(data)
    in_place(path, b"x")

    assert bytes(held.read(PIECE_BYTES, 2 * PIECE_BYTES)) == data[PIECE_BYTES : 2 * PIECE_BYTES]


@pytest.mark.parametrize("change", [in_place, by_rename])
def test_the_beginning_is_hashed_as_it_was_read(tmp_path: Path, change: Change) -> None:
    path = tmp_path / "file"
    data, held = held_at(path, 100_000)

    assert held.start(1000) == data[:1000]
    change(path, b"x" * 1000)

    assert held.start(2000)[:1000] == data[:1000]
    assert held.digest == digest_of(data)


@pytest.mark.parametrize("change", [in_place, by_rename])
def test_what_was_loaded_no_change_of_the_file_reaches(tmp_path: Path, change: Change) -> None:
    path = tmp_path / "file"
    data, held = held_at(path, 2 * PIECE_BYTES)
    memory = held.load()

    change(path, b"x" * 2 * PIECE_BYTES)
    path.unlink()

    assert (bytes(memory), held.digest) == (data, digest_of(data))


@pytest.mark.parametrize("size", [100, 3 * PIECE_BYTES + 5])
@pytest.mark.parametrize("begun", [0, 70])
def test_bytes_loaded_ahead_are_given_before_their_hash_is_asked_for(tmp_path: Path, size: int, begun: int) -> None:
    path = tmp_path / "file"
    data, held = held_at(path, size)
    held.start(begun)

    held.load_ahead(memoryview(bytearray(4 * PIECE_BYTES)))
    in_place(path, b"x" * size)

    assert held.is_loaded
    assert held.start(90) == data[:90]
    assert bytes(held.read(7, size - 3)) == data[7 : size - 3]
    assert b"".join(map(bytes, held.pieces(60, [30, size - 90]))) == data[60:]
    held.hold_to(digest_of(data))
    with pytest.raises(DigestMismatch):
        held.hold_to(digest_of(b"wrong"))


def test_a_file_is_not_loaded_ahead_where_it_does_not_fit_or_its_hash_is_known(tmp_path: Path) -> None:
    data, held = held_at(tmp_path / "file", 100)

    held.load_ahead(memoryview(bytearray(99)))
    assert held.digest == digest_of(data)
    held.load_ahead(memoryview(bytearray(100)))

    assert not held.is_loaded


def test_a_file_that_shrinks_while_it_is_loaded_ahead_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    _, held = held_at(path, 2 * PIECE_BYTES)
    os.truncate(path, PIECE_BYTES + 1)

    with pytest.raises(OSError, match="became shorter"):
        held.load_ahead(memoryview(bytearray(2 * PIECE_BYTES)))


def test_another_file_of_the_same_name_is_not_seen(tmp_path: Path) -> None:
    data, held = held_at(tmp_path / "file", 100)

    by_rename(tmp_path / "file", b"other")

    assert (held.digest, bytes(held.read(0, 100))) == (digest_of(data), data)


def test_a_file_that_shrinks_or_grows_in_the_pass_is_an_error(tmp_path: Path) -> None:
    _, shrinks = held_at(tmp_path / "shrinks", 100)
    _, grows = held_at(tmp_path / "grows", 100)
    os.truncate(tmp_path / "shrinks", 99)
    os.truncate(tmp_path / "grows", 101)

    with pytest.raises(OSError, match="became shorter"):
        _ = shrinks.digest
    with pytest.raises(OSError, match="became longer"):
        _ = grows.digest


def test_a_file_cut_short_after_the_pass_gives_nothing(tmp_path: Path) -> None:
    data, held = held_at(tmp_path / "file", 100)
    assert held.digest == digest_of(data)

    os.truncate(tmp_path / "file", 50)

    with pytest.raises(DigestMismatch):
        held.read(0, 100)
    with pytest.raises(DigestMismatch):
        held.read_into(memoryview(bytearray(data)), 0)  # memory that holds the right bytes by chance


def test_a_wrong_digest_names_the_file_and_both(tmp_path: Path) -> None:
    data, held = held_at(tmp_path / "file", 100)
    wrong = digest_of(b"wrong")

    held.hold_to(digest_of(data))
    held.hold_to(None)
    with pytest.raises(DigestMismatch) as refused:
        held.hold_to(wrong)

    assert (refused.value.where, refused.value.expected, refused.value.actual) == (
        str(tmp_path / "file"),
        wrong,
        digest_of(data),
    )
    assert "adapt doctor --repair" in refused.value.hint


def test_a_copy_has_the_bytes_that_were_hashed(tmp_path: Path) -> None:
    data, held = held_at(tmp_path / "file", PIECE_BYTES + 5)
    held.copy_to(tmp_path / "copy")
    in_place(tmp_path / "file", b"x")

    assert (tmp_path / "copy").read_bytes() == data
    with pytest.raises(DigestMismatch):
        held.copy_to(tmp_path / "second")


def _link(path: Path) -> Any:
    path.with_name("target").write_bytes(b"x")
    path.symlink_to("target")


def _socket(path: Path) -> Any:
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    return listening


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, _link, _socket, lambda path: path.symlink_to("/dev/zero")])
def test_only_a_plain_file_is_opened_and_nothing_is_waited_for(tmp_path: Path, make: Callable[[Path], Any]) -> None:
    kept = make(tmp_path / "x")

    with pytest.raises(OSError) as refused:  # noqa: PT011 - each kind has its own words
        HeldFile(tmp_path / "x")

    assert refused.value.errno in (0, errno.ELOOP, errno.ENXIO)
    if isinstance(kept, socket.socket):
        kept.close()


def test_a_closed_file_leaves_no_descriptor(tmp_path: Path) -> None:
    def is_open(handle: int) -> bool:  # another thread may have the number by now, for another file
        with contextlib.suppress(OSError):
            return os.path.samestat(os.fstat(handle), (tmp_path / "file").stat())
        return False

    _, closed = held_at(tmp_path / "file", 10)
    _, loaded = held_at(tmp_path / "file", 10)
    _, dropped = held_at(tmp_path / "file", 10)
    handles = [held._handle for held in (closed, loaded, dropped)]
    assert all(map(is_open, handles))

    closed.close()
    closed.close()
    loaded.load()
    del dropped

    assert not any(map(is_open, handles))
