"""Safe file access: reads accept regular files only; a write leaves either the old bytes or the new ones."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Final

from adapterhub.core.digests import CHUNK_BYTES, Digest, Json, Progress, copy_hashed, strict_json
from adapterhub.core.disk.real_folder import RealFolder, make_folder


def digest_of_file(path: Path, progress: Progress | None = None) -> tuple[Digest, int]:
    """Digest and size in bytes of a regular file, streamed.

    Raises:
        OSError: as `open_plain`.
    """
    with open_plain(path) as stream:
        return copy_hashed(stream, None, progress)


def open_plain(path: Path | str) -> IO[bytes]:
    """A regular file, opened for reading; links are followed.

    Raises:
        OSError: it cannot be opened, or is a folder, pipe, socket or device, whose reading may never end.
    """
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(0, "is not a regular file", str(path))
    return os.fdopen(handle, "rb")


def read_plain(path: Path, limit_bytes: int) -> bytes:
    """At most `limit_bytes + 1` bytes of a regular file, so that the caller can tell when it is too large.

    Raises:
        OSError: as `open_plain`.
    """
    with open_plain(path) as stream:
        return stream.read(limit_bytes + 1)


def read_json(path: Path, limit_bytes: int = 1 << 20, *, finite: bool = True) -> Json:
    """The JSON in a regular file, read as `strict_json` reads it.

    Raises:
        OSError: as `open_plain`.
        ValueError: as `strict_json`.
    """
    return strict_json(read_plain(path, limit_bytes), limit_bytes=limit_bytes, finite=finite)


NO_LINKS: Final = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP)
"""Error numbers of file systems that cannot make a hard link here."""


def is_sound(path: Path, digest: Digest) -> bool:
    """Whether `path` is a plain file whose bytes have that digest; every byte is read."""
    try:
        return not path.is_symlink() and path.is_file() and digest_of_file(path)[0] == digest
    except OSError:
        return False


def sync_file(path: Path, *, mode: int | None = None) -> None:
    """Make a file's bytes durable, and set its mode to `mode`."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if mode is not None:
            os.fchmod(handle, mode)
        os.fsync(handle)
    finally:
        os.close(handle)


def write_new(path: Path) -> IO[bytes]:
    """Open a file of the library for writing and empty it; links are refused, and only the owner may write it.

    Raises:
        OSError: it cannot be made.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o644), "wb")


def write_file(path: Path, data: bytes) -> None:
    """As `write_new`, all at once."""
    with write_new(path) as sink:
        sink.write(data)


def sync_folder(folder: Path) -> None:
    """Make the folder's entries durable."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def replaced(path: Path, *, sync: bool = True) -> Iterator[Path]:
    """A path in the same folder to write a file at; it takes the place of `path` when the block ends without an error.

    With `sync`, the file and its name are durable then. Without it a crash of the process still leaves the old bytes
    or the new ones, but a power cut may lose both. After an error nothing is left of the new file.

    Raises:
        OSError: the folder cannot be made, or the file cannot be put in its place.
    """
    make_folder(path.parent)
    temp = path.parent / f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}"
    try:
        yield temp
        if sync:
            sync_file(temp)
        temp.rename(path)
        if sync:
            sync_folder(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temp.unlink(missing_ok=True)


def write_durably(path: Path, data: bytes, *, mode: int = 0o644, sync: bool = True) -> None:
    """Replace `path` by `data`; see `replaced`."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    # private until it is whole: the data may be a token
    with replaced(path, sync=sync) as temp, os.fdopen(os.open(temp, flags, 0o600), "wb") as sink:
        sink.write(data)
        os.fchmod(sink.fileno(), mode)


_FICLONE = 0x40049409  # linux/fs.h: share the extents of another file (btrfs, xfs, bcachefs)


def clone_or_copy(source: Path, target: str | Path, *, into: RealFolder | None = None) -> None:
    """A read-only copy of `source` at `target`, sharing its disk blocks where the file system can."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    handle = os.open(target, flags, 0o600, dir_fd=into.handle if into else None)
    with source.open("rb") as reader, os.fdopen(handle, "wb") as writer:
        try:
            fcntl.ioctl(writer.fileno(), _FICLONE, reader.fileno())
        except OSError:
            import shutil  # 2 ms of the start of a command that copies nothing

            shutil.copyfileobj(reader, writer, CHUNK_BYTES)
        writer.flush()
        os.fchmod(writer.fileno(), 0o444)
        os.fsync(writer.fileno())
