"""Files and folders that are written whole or not at all."""

import io
import stat

import pytest

from adapterhub.core.digests import CHUNK_BYTES, copy_hashed, digest_of
from adapterhub.core.disk.files import new_file, new_folder, replaced, write_durably
from adapterhub.core.errors import NotAllowed


def test_a_block_without_an_error_replaces_the_file(tmp_path):
    path = tmp_path / "deep" / "a.txt"

    for text in ("old", "new"):
        with replaced(path) as temp:
            temp.write_text(text)
            assert path.exists() == (text == "new")

    assert path.read_text() == "new"
    assert [entry.name for entry in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("sync", [True, False])
def test_an_error_leaves_the_old_bytes_and_nothing_else(tmp_path, sync):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def interrupted():
        with replaced(path, sync=sync) as temp:
            temp.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]


def test_a_secret_is_never_readable_by_others(tmp_path):
    path = tmp_path / "token"

    write_durably(path, b"secret", mode=0o600)

    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_an_output_that_cannot_be_written_is_a_plain_refusal(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(NotAllowed, match="cannot be written"), new_file(tmp_path / "file" / "out") as partial:
        partial.write_text("x")


def test_a_folder_that_failed_leaves_nothing(tmp_path):
    def interrupted():
        with new_folder(tmp_path / "out") as partial:
            (partial / "a").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()

    assert list(tmp_path.iterdir()) == []


class _Rooms(io.BytesIO):
    """Bytes that remember how much room each read of them had."""

    def __init__(self, data):
        super().__init__(data)
        self.rooms = []

    def readinto(self, buffer):
        self.rooms.append(len(buffer))
        return super().readinto(buffer)


@pytest.mark.parametrize("size", [0, 1, 1 << 16, CHUNK_BYTES, 2 * CHUNK_BYTES + 1])
def test_a_copy_makes_room_for_a_chunk_only_where_the_file_is_large(size):
    data = bytes(range(251)) * (size // 251 + 1)
    source, sink, done = _Rooms(data[:size]), io.BytesIO(), []

    assert copy_hashed(source, sink, done.append) == (digest_of(data[:size]), size)

    assert sink.getvalue() == data[:size]
    assert sum(done) == size
    assert source.rooms[0] < CHUNK_BYTES
    assert source.rooms[-1] == (CHUNK_BYTES if size >= 1 << 16 else source.rooms[0])
