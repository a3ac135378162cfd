"""A folder held by its descriptor: operations act on that folder even if its path now names another one.

Names are looked up in the open folder, one at a time, and links are never followed. So a prepared link has no effect,
and neither has one that is swapped in between a check and the use of the checked file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Final, final

FOLDER_MODE: Final = 0o755
"""The mode of every folder made here, before the umask."""

OTHERS_MAY_WRITE: Final = 0o022

_EXCHANGE: Final = 2  # linux/fs.h: RENAME_EXCHANGE
_OPEN: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_DEEPEST: Final = 200
"""How many levels `remove` descends: each costs a descriptor, and a process has about a thousand."""


@final
class RealFolder:
    """An open folder at `path`. A `with` block closes it."""

    def __init__(self, around: Path | RealFolder, handle: int, name: str = "") -> None:
        self._around, self._name = around, name
        self.handle = handle

    @cached_property
    def path(self) -> Path:
        """Its path, for messages; made when it is wanted, because thousands never are."""
        around = self._around.path if isinstance(self._around, RealFolder) else self._around
        return around / self._name

    @classmethod
    def open(cls, path: Path) -> RealFolder:
        """The folder at a path that the user gave; links in it are followed.

        Raises:
            OSError: there is none.
        """
        return cls(path, os.open(path, _OPEN))

    def inside(self, name: str) -> RealFolder:
        """The folder `name` of this one.

        Raises:
            OSError: there is none; ENOTDIR when it is a link or a file.
        """
        try:
            return RealFolder(self, os.open(name, _OPEN | os.O_NOFOLLOW, dir_fd=self.handle), name)
        except OSError as error:
            code = errno.ENOTDIR if error.errno == errno.ELOOP else error.errno  # systems differ here
            raise OSError(code, error.strerror, str(self.path / name)) from None

    def __enter__(self) -> RealFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self.handle)

    # ------------------------------------------------------------ look
    def names(self) -> list[str]:
        """The names in it, sorted."""
        return sorted(os.listdir(self.handle))  # noqa: PTH208 - of a descriptor

    def facts(self, name: str) -> os.stat_result:
        """The status of `name`, without following a link. A `name` with a slash may pass through a link."""
        return os.stat(name, dir_fd=self.handle, follow_symlinks=False)

    def has(self, name: str) -> bool:
        """Whether something has that name."""
        with contextlib.suppress(FileNotFoundError):
            self.facts(name)
            return True
        return False

    def is_folder(self, name: str) -> bool:
        """Whether it is a folder and not a link to one."""
        with contextlib.suppress(OSError):
            return stat.S_ISDIR(self.facts(name).st_mode)
        return False

    def is_link(self, name: str) -> bool:
        """Whether it is a link."""
        with contextlib.suppress(OSError):
            return stat.S_ISLNK(self.facts(name).st_mode)
        return False

    def open_file(self, name: str) -> int:
        """A descriptor for reading the plain file `name`.

        Raises:
            OSError: there is none, or it is a link, a pipe or a device.
        """
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=self.handle)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise OSError(errno.EINVAL, "is not a plain file", name)
        return handle

    # ------------------------------------------------------------ change
    def make(self, name: str) -> RealFolder:
        """Make and open a new folder in it.

        Raises:
            OSError: something has the name.
        """
        os.mkdir(name, FOLDER_MODE, dir_fd=self.handle)
        return self.inside(name)

    def write_new(self, name: str, data: bytes) -> None:
        """Write a new file in it.

        Raises:
            OSError: something has the name.
        """
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(name, flags, 0o644, dir_fd=self.handle)
        try:
            while data:
                data = data[os.write(handle, data) :]
        finally:
            os.close(handle)

    def rename(self, old: str, new: str) -> None:
        """Rename `old` to `new`."""
        os.rename(old, new, src_dir_fd=self.handle, dst_dir_fd=self.handle)

    def exchange(self, one: str, other: str) -> bool:
        """Swap the names of two entries atomically; False where the system cannot."""
        import ctypes

        rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
        if rename is None:
            return False
        if rename(self.handle, os.fsencode(one), self.handle, os.fsencode(other), _EXCHANGE) == 0:
            return True
        code = ctypes.get_errno()
        if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
            return False
        raise OSError(code, os.strerror(code), str(self.path / other))

    def unlink(self, name: str) -> None:
        """Delete a file or a link."""
        os.unlink(name, dir_fd=self.handle)

    def remove(self, name: str, *, only_look: bool = False) -> None:
        """Delete `name` and everything in it; for a link, the link only. `only_look` checks whether that is possible.

        Raises:
            OSError: it cannot be deleted; EBUSY when another file system is mounted in it, which is left alone.
        """
        self._remove(name, 1, only_look=only_look)

    def _remove(self, name: str, level: int, *, only_look: bool) -> None:
        if not stat.S_ISDIR(self.facts(name).st_mode):
            if not only_look:
                self.unlink(name)
            return
        if level > _DEEPEST:
            raise OSError(errno.ELOOP, f"has folders more than {_DEEPEST} deep", str(self.path / name))
        with self.inside(name) as folder:
            if mount_of(folder.handle) != mount_of(self.handle):
                raise OSError(errno.EBUSY, "something else is mounted there", str(folder.path))
            for inner in folder.names():
                folder._remove(inner, level + 1, only_look=only_look)  # noqa: SLF001 - of this class
        if not only_look:
            os.rmdir(name, dir_fd=self.handle)


def matching(folder: RealFolder, levels: Sequence[str], pattern: str) -> Iterator[tuple[RealFolder, str]]:
    """The names that match `pattern` in the folders below `folder` given by `levels`, each a name or `*`.

    Each comes with its folder, which stays open until the next one is requested. Links are not entered.
    """
    if not levels:
        yield from ((folder, name) for name in folder.names() if fnmatchcase(name, pattern))
        return
    for name in folder.names() if levels[0] == "*" else levels[:1]:
        if folder.is_folder(name):
            with folder.inside(name) as inner:
                yield from matching(inner, levels[1:], pattern)


def mount_of(handle: int) -> int:
    """The id of the mount that an open folder lies on, or of its device where the system has no mount ids."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/self/fdinfo/{handle}").read_text(encoding="ascii").splitlines():
            if line.startswith("mnt_id:"):
                return int(line.split()[1])
    return os.fstat(handle).st_dev


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents. Others may not write in the new folders, whatever the umask.

    Raises:
        OSError: it cannot be made.
    """
    try:
        folder.mkdir(FOLDER_MODE)
    except FileExistsError:
        if not folder.is_dir():
            raise
    except FileNotFoundError:
        if folder.parent == folder:
            raise
        make_folder(folder.parent)
        make_folder(folder)
