"""Safe file access: reads accept regular files only; a write leaves either the old bytes or the new ones."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import IO, Final, final

from adapterhub.core.digests import CHUNK_BYTES, Digest, Json, Progress, copy_hashed, strict_json
from adapterhub.core.disk.home import FOLDERS
from adapterhub.core.errors import (
    AdapterHubError,
    AdapterNotFound,
    Conflict,
    CouldNotTell,
    DiskFull,
    NotAllowed,
    NotFound,
    shown,
)


def digest_of_file(path: Path, progress: Progress | None = None) -> tuple[Digest, int]:
    """Digest and size in bytes of a regular file, streamed.

    Raises:
        OSError: as `open_plain`.
    """
    with open_plain(path) as stream:
        return copy_hashed(stream, None, progress)


def open_plain(path: Path | str) -> IO[bytes]:
    """Return a regular file, opened for reading; links are followed.

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
    """Return the JSON in a regular file, read as `strict_json` reads it.

    Raises:
        OSError: as `open_plain`.
        ValueError: as `strict_json`.
    """
    return strict_json(read_plain(path, limit_bytes), limit_bytes=limit_bytes, finite=finite)


NO_LINKS: Final = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP)
"""Error numbers of file systems that cannot make a hard link here."""


def is_sound(path: Path, digest: Digest) -> bool:
    """Return whether `path` is a plain file whose bytes have that digest; every byte is read."""
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
    """Provide a path in the same folder to write a file at.

    It takes the place of `path` when the block ends without an error.

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
    """Copy `source` to `target` read-only, sharing its disk blocks where the file system can."""
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
        """Return the folder at a path that the user gave; links in it are followed.

        Raises:
            OSError: there is none.
        """
        return cls(path, os.open(path, _OPEN))

    def inside(self, name: str) -> RealFolder:
        """Return the folder `name` of this one.

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
        """Return the names in it, sorted."""
        return sorted(os.listdir(self.handle))  # noqa: PTH208 - of a descriptor

    def facts(self, name: str) -> os.stat_result:
        """Return the status of `name`, without following a link. A `name` with a slash may pass through a link."""
        return os.stat(name, dir_fd=self.handle, follow_symlinks=False)

    def has(self, name: str) -> bool:
        """Return whether something has that name."""
        with contextlib.suppress(FileNotFoundError):
            self.facts(name)
            return True
        return False

    def is_folder(self, name: str) -> bool:
        """Return whether it is a folder and not a link to one."""
        with contextlib.suppress(OSError):
            return stat.S_ISDIR(self.facts(name).st_mode)
        return False

    def is_link(self, name: str) -> bool:
        """Return whether it is a link."""
        with contextlib.suppress(OSError):
            return stat.S_ISLNK(self.facts(name).st_mode)
        return False

    def open_file(self, name: str) -> int:
        """Return a descriptor for reading the plain file `name`.

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
        """Swap the names of two entries atomically; False if the system cannot."""
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
    """Yield the names that match `pattern` in the folders below `folder` given by `levels`, each a name or `*`.

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
    """Return the id of the mount that an open folder lies on, or of its device where the system has no mount ids."""
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


def read_owned(path: Path, says: str, *, limit_bytes: int) -> bytes:
    """At most `limit_bytes + 1` bytes of `path`. `says` completes the sentence "`path` …" in refusals.

    Its folder is checked too: anyone who may write there can put another file in its place.

    Raises:
        NotAllowed: others may write the file or its folder, or own one of them.
        OSError: it cannot be read.
    """
    raw = read_plain(path, limit_bytes)
    real = Path(os.path.realpath(path))
    for place in dict.fromkeys([real, path.parent, real.parent]):
        facts = place.stat()
        which = f"`{shown(str(place), 200)}`" if place == real else f"its folder `{shown(str(place), 200)}`"
        said = f"`{shown(str(path), 200)}` {says}, and "
        if facts.st_uid not in (0, os.geteuid()):
            hint = f"look at what it holds, then `sudo chown {os.geteuid()} {place}`"
            raise NotAllowed(f"{said}{which} belongs to another user", hint=hint)
        if stat.S_IMODE(facts.st_mode) & OTHERS_MAY_WRITE:
            hint = f"look at what it holds, then `chmod go-w {place}`"
            raise NotAllowed(f"{said}others may write {which if place != real else 'it'}", hint=hint)
    return raw


def check_private(path: Path, what: str) -> None:
    """Refuse a secret file that other users can read; `what` completes the sentence "`path` …".

    Raises:
        NotAllowed: they can.
        OSError: it cannot be looked at.
    """
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise NotAllowed(f"`{path}` {what} that others can read", hint=f"`chmod 600 {path}`")


_SPARE_BYTES: Final = 16 << 20
_HINT_TAKEN: Final = "give a name that does not exist yet"


@contextlib.contextmanager
def new_folder(out_folder: Path, *, size_bytes: int = 0, durable: bool = False) -> Iterator[Path]:
    """Provide a folder to write into. It gets its name when the block ends without an error; otherwise it is removed.

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
    """Provide a file to write.

    It takes the place of `out` when the block ends without an error; otherwise it is removed.

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
    """Write a file at `out`, replacing any file there; returns its path with the links resolved.

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


def ensure_new_file(out: Path, undone: str) -> None:
    """Raise unless `out` can be made, before the work for it; `undone` is that work, such as `drawn`.

    Raises:
        Conflict: something is there.
        NotFound: its folder does not exist.
        NotAllowed: nothing can be written there, or not at this path; see `output_place`.
    """
    where = shown(str(out), 200)
    output_place(out)
    if out.exists() or out.is_symlink():
        raise Conflict(f"`{where}` exists. Nothing was {undone}", hint="name a file that does not exist yet")
    if not out.absolute().parent.is_dir():
        raise NotFound(f"the folder of `{where}` does not exist", hint=f"`mkdir -p {out.parent}`")
    if not os.access(out.absolute().parent, os.W_OK):
        raise NotAllowed(f"cannot write `{where}`: its folder is not writable", hint="name a file in another folder")


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
    """Return the refusal for an operating-system error while `final` was written."""
    where = f"`{shown(str(final), 200)}` cannot be written: {error.strerror}. Nothing was kept"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return DiskFull(where, hint="free some space, or name a folder on another disk")
    return NotAllowed(where, hint="name another folder")


def not_read(error: OSError, path: object, kind: type[NotAllowed | CouldNotTell]) -> AdapterHubError:
    """Return the refusal of that kind for an operating-system error while `path` was read."""
    disk = " and the disk" if kind is CouldNotTell else ""
    return kind(f"`{path}` cannot be read: {error.strerror}", hint=f"check its permissions{disk} with `ls -l`")


NO_LINK: Final = "replace the link with the file"


class LeadsOut(OSError):
    """A link leads out of its folder; `strerror` names its target."""

    strerror: str


def inside(folder: Path, name: str, *, within: Path | None = None) -> Path:
    """Return the target of the name in the folder: itself, or the resolved target of a link.

    `within` is a folder around `folder`; links may also lead anywhere inside it. A name with slashes passes no folder
    that is a link out.

    Raises:
        LeadsOut: a link leads out of the folder.
        OSError: nothing is there, or a link leads nowhere.
    """
    path = folder / name
    facts = path.lstat()
    if not stat.S_ISLNK(facts.st_mode) and os.sep not in name:
        return path
    try:
        target, home = path.resolve(strict=True), folder.resolve(strict=True)
    except RuntimeError as error:  # Python before 3.13 says so of a loop
        raise OSError(errno.ELOOP, str(error), str(path)) from None
    if target.is_relative_to(home) or (within is not None and target.is_relative_to(within.resolve())):
        return target
    # snapshots/<commit>[/subfolder…]/file; both sides are resolved, so the cache itself may lie behind a link
    cache = next((parent.parent for parent in home.parents if parent.name == "snapshots"), None)
    if cache is not None and target.parent == cache / "blobs":
        return target
    where = str(path.readlink()) if stat.S_ISLNK(facts.st_mode) else str(target)
    raise LeadsOut(errno.ELOOP, f"is a link out of its folder, to {shown(where)}", str(path))


def is_own(folder: Path, name: str) -> bool:
    """Return whether the name leads to something in the folder, as `inside` decides."""
    try:
        inside(folder, name)
    except OSError:
        return False
    return True


_MOST_LOOKED_AT: Final = 10_000
_FILES: Final = (".safetensors", ".gguf", ".json", ".jsonl", ".pub", ".txt", ".toml")


def read_typed(path: Path, limit_bytes: int, *, hint: str = "") -> bytes:
    """At most `limit_bytes + 1` bytes of a file that the user named, so that the caller can tell when it is too large.

    Raises:
        NotFound: there is no such file, or it is not a regular one that can be read.
    """
    ensure_there(path, NotFound, what="file", hint=hint)
    try:
        return read_plain(path, limit_bytes)
    except OSError as error:
        raise NotFound(f"cannot read `{shown(str(path), 200)}`: {error.strerror}", hint=hint) from None


def ensure_there(path: Path, kind: type[NotFound] = AdapterNotFound, *, what: str = "", hint: str = "") -> None:
    """Raise if nothing is at `path`, a file or folder; `hint` is for where nothing has a like name.

    Raises:
        NotFound: of the class `kind`; the hint offers the nearest path.
    """
    if os.path.lexists(path):
        return
    near = nearest(path)
    what = what or ("file" if path.suffix in _FILES else "folder")
    raise kind(
        f"no such {what}: `{shown(str(path), 200)}`", hint=f"did you mean `{shown(near, 200)}`?" if near else hint
    )


def nearest(path: Path) -> str:
    """Return the path that is there and differs least in the first part that is not; "" if no name is like it."""
    import difflib

    around, name = path.parent, path.name
    while not os.path.lexists(around):
        around, name = around.parent, around.name
    try:
        with os.scandir(around) as entries:
            names = [entry.name for entry in islice(entries, _MOST_LOOKED_AT)]
    except OSError:
        return ""
    found = difflib.get_close_matches(name, sorted(names), n=1)
    if not found:
        return ""
    rest = path.relative_to(around / name)
    whole = around / found[0] / rest
    near = whole if os.path.lexists(whole) else around / found[0]
    is_here = str(path) == path.name or not path.is_absolute()
    return f"./{near}" if is_here and not str(near).startswith((".", "/", "~")) else str(near)


_PREPARED: Final = ("adapters.toml", ".git")
"""A folder that holds one of these (a project, a checkout) may come from a stranger."""

_OF_LIBRARIES: Final = frozenset(name.partition("/")[0] for name in FOLDERS)


def output_place(out: Path) -> Path:
    """Return the path of an output with the links above it resolved.

    A link at the path is followed inside the same project.

    Raises:
        NotAllowed: a link leads out of the project or checkout in which the path begins, or it ends in a library.
    """
    named = Path(os.path.abspath(out))  # noqa: PTH100 - the links are what is looked at
    real = Path(os.path.realpath(named))
    for folder in named.parents:
        if any(os.path.lexists(folder / name) for name in _PREPARED):
            inside = Path(os.path.realpath(folder))
            if not real.is_relative_to(inside):
                raise NotAllowed(
                    f"`{shown(str(out), 200)}` leads out of `{shown(str(folder), 200)}` through a link. "
                    "Nothing was written",
                    hint=f"to write there, name the path itself: `{shown(str(real), 200)}`",
                )
    ensure_outside_library(real)
    return real if named.is_symlink() else Path(os.path.realpath(named.parent), named.name)


def ensure_outside_library(real: Path) -> None:
    """Raise if a resolved path is in the folders of a library, other than the staging folder of a running command.

    Raises:
        NotAllowed: a library keeps its own files there.
    """
    for root in real.parents:
        below = real.relative_to(root).parts
        if below[0] not in _OF_LIBRARIES or not is_library(root):
            continue
        if below[0] == "tmp" and below[1:] and (root / "intents" / below[1]).exists():
            return  # the staging folder of a command, which passes it to a child
        raise NotAllowed(
            f"`{shown(str(real), 200)}` is in the library `{shown(str(root), 200)}`, which keeps its own files there. "
            "Nothing was written",
            hint="name a folder outside of it; `adapt add` and `adapt install` put adapters into a library",
        )


def is_library(folder: Path) -> bool:
    """Return whether `folder` is the root of a library that was written to at least once."""
    return (folder / "locks").is_dir() and any(
        (folder / name).exists() for name in ("blobs", "bases", "adapters", "intents", "index.db", "remotes.json")
    )


SQLITE_ENDS: Final = ("", "-wal", "-shm", "-journal")
"""The ends of the names of a SQLite database: its own file, and those that SQLite puts beside it."""


def remove_sqlite(path: Path, *, only_beside: bool = False) -> None:
    """Remove a SQLite database, or only the files beside it, without an error if there is none."""
    for end in SQLITE_ENDS[only_beside:]:
        Path(f"{path}{end}").unlink(missing_ok=True)
