"""Outputs that appear complete under their names, or not at all: folders, and single files."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from adapterhub.core.disk.files import replaced, sync_file, sync_folder, write_durably
from adapterhub.core.disk.output_place import output_place
from adapterhub.core.disk.real_folder import RealFolder
from adapterhub.core.errors import AdapterHubError, Conflict, DiskFull, NotAllowed, shown

_SPARE_BYTES: Final = 16 << 20
_HINT_TAKEN: Final = "give a name that does not exist yet"


@contextlib.contextmanager
def new_folder(out_folder: Path, *, size_bytes: int = 0, durable: bool = False) -> Iterator[Path]:
    """A folder to write into. It gets its name when the block ends without an error; otherwise it is removed.

    `size_bytes`, if given, must be free on that disk beforehand. `durable` adds an fsync of every file and folder.

    Raises:
        Conflict: `out_folder` exists and is not empty.
        DiskFull: fewer than `size_bytes` are free, or the disk became full.
        NotAllowed: the folder cannot be written, or not at this path; see `output_place`.
    """
    ensure_new(out_folder)
    final = output_place(out_folder)
    partial = f".{final.name}.partial-{os.urandom(4).hex()}"
    with contextlib.ExitStack() as stack:
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            if size_bytes:
                _ensure_room(final.parent, size_bytes + _SPARE_BYTES)
            around = stack.enter_context(RealFolder.open(final.parent))
            stack.callback(_clear, around, partial)
            os.mkdir(partial, dir_fd=around.handle)
            yield final.parent / partial
            if durable:
                sync_tree(final.parent / partial)
            if around.is_folder(final.name):
                os.rmdir(final.name, dir_fd=around.handle)  # empty; not every system renames onto an empty folder
            around.rename(partial, final.name)
            if durable:
                os.fsync(around.handle)
        except OSError as error:
            raise not_written(error, final) from error


@contextlib.contextmanager
def new_file(out: Path) -> Iterator[Path]:
    """A file to write. It takes the place of `out` when the block ends without an error; otherwise it is removed.

    Raises:
        DiskFull, NotAllowed: the file cannot be written, or not at this path; see `output_place`.
    """
    final = output_place(out)
    try:
        with replaced(final) as partial:
            yield partial
    except OSError as error:
        raise not_written(error, final) from error


def write_output(out: Path, data: bytes) -> Path:
    """Write a file at `out`, in place of one that is there; returns its path with the links resolved.

    Raises:
        DiskFull, NotAllowed: as for `new_file`.
    """
    final = output_place(out)
    try:
        write_durably(final, data)
    except OSError as error:
        raise not_written(error, final) from error
    return final


def _clear(around: RealFolder, partial: str) -> None:
    with contextlib.suppress(OSError):
        around.remove(partial)


def ensure_new(out_folder: Path) -> None:
    """Raise unless the folder can be made.

    Raises:
        Conflict: it exists and is not empty, or is not a folder; or it is the working directory, and replacing it
            would leave the shell in a deleted folder.
        NotAllowed: it is in a library, or a link leads there out of a project; see `output_place`.
    """
    output_place(out_folder)
    is_there = out_folder.exists() or out_folder.is_symlink()
    if is_there and (out_folder.is_symlink() or not out_folder.is_dir() or any(out_folder.iterdir())):
        raise Conflict(f"`{shown(str(out_folder), 200)}` exists. Nothing was written", hint=_HINT_TAKEN)
    if is_there and out_folder.samefile("."):
        raise Conflict(
            f"`{shown(str(out_folder), 200)}` is the folder you are in. Nothing was written", hint=_HINT_TAKEN
        )


def sync_tree(folder: Path) -> None:
    """Make a folder and everything in it durable."""
    for path in sorted(folder.iterdir()):
        if path.is_dir():
            sync_tree(path)
            continue
        sync_file(path)
    sync_folder(folder)


def _ensure_room(folder: Path, needed: int) -> None:
    import shutil

    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DiskFull(
            f"`{shown(str(folder), 200)}` has {free:,} bytes free, {needed:,} are needed. Nothing was written",
            hint="free some space, or name a folder on another disk",
        )


def not_written(error: OSError, final: Path) -> AdapterHubError:
    """The refusal for an operating-system error while `final` was written."""
    where = f"`{shown(str(final), 200)}` cannot be written: {error.strerror}. Nothing was kept"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskFull(where, hint="free some space, or name a folder on another disk")
    return NotAllowed(where, hint="name another folder")
