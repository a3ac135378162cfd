"""The folders of `adapters/`: held open, compared with the lock, made, put in place, deleted and recorded.

A folder is filled with links under a temporary name and renamed when it is complete. To replace an older folder, the
two exchange names in one step, so that one of them exists at any moment.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from adapterhub.core.digests import Digest, copy_hashed, digest_of
from adapterhub.core.disk import files
from adapterhub.core.disk.files import NO_LINKS, RealFolder, clone_or_copy, not_written, read_plain
from adapterhub.core.disk.home import ADAPTERS_FOLDER
from adapterhub.core.errors import DigestMismatch, NotAllowed, shown
from adapterhub.formats.cards.card import make_card
from adapterhub.formats.manifest import CARD_FILE, MANIFEST_FILE, MEDIA_TYPES, SIGNATURE_FILE
from adapterhub.library.library import Library
from adapterhub.library.store.blobs import Store
from adapterhub.library.store.roots import synced_path
from adapterhub.projects.builds import ensure_locked_build
from adapterhub.projects.values import Locked

Standing = Literal["right", "new", "replace", "foreign"]

_PART_BYTES: Final = 1 << 16
_LEFTOVER: Final = re.compile(r"\.(.+)\.(new|old|gone)-[0-9a-f]{8}")
_OURS: Final = {*MEDIA_TYPES, MANIFEST_FILE, CARD_FILE, SIGNATURE_FILE}


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderState:
    """The state of a folder compared with the lock. `reasons` describe its faults.

    `placed` is what to record of it: everything for a right folder, the inode for one to replace.
    """

    standing: Standing
    reasons: tuple[str, ...] = ()
    placed: Placed | None = None


def state_of(
    adapters: RealFolder | None, entry: Locked, placed: Placed | None, *, reads_all: bool = False
) -> FolderState:
    """Return whether the folder holds exactly what is locked.

    A file with an unchanged stamp is not read again, unless `reads_all`.
    """
    try:
        facts = adapters.facts(entry.key) if adapters else None
    except FileNotFoundError:
        facts = None
    if adapters is None or facts is None:
        return FolderState(standing="new")
    if not stat.S_ISDIR(facts.st_mode):
        return FolderState(standing="foreign", reasons=("is no folder",))
    known = placed.files if placed is not None and placed.digest == entry.digest and not reads_all else {}
    if placed is not None and known and placed.inode == facts.st_ino and _is_untouched(adapters, entry, known):
        return FolderState(standing="right", placed=placed)
    try:
        with adapters.inside(entry.key) as folder:
            return _judge_read(folder, entry, placed, known)
    except OSError as error:
        return FolderState(standing="foreign", reasons=(f"cannot be read: {error.strerror}",))


def _judge_read(folder: RealFolder, entry: Locked, placed: Placed | None, known: Mapping[str, Stamp]) -> FolderState:
    """Return the state by the bytes of the files whose stamps differ from `known`."""
    inode = os.fstat(folder.handle).st_ino
    there = folder.names()  # the stamps are taken before reading, so that a later write shows next time
    stamps = {name: stamp_of(folder, name) for name in _locked_names(entry) if name in there}
    wrong = list(_differences(folder, entry, {name for name in known if known[name] == stamps.get(name)}))
    if not wrong:
        return FolderState(standing="right", placed=Placed(entry.digest, inode, stamps))
    if placed is None or not _is_ours(folder, placed, inode):
        return FolderState(standing="foreign", reasons=tuple(wrong))
    if strange := strangers_in(folder):
        reason = f"holds `{'`, `'.join(strange)}`, which sync did not create"
        return FolderState(standing="foreign", reasons=(reason,))
    was_changed = placed.digest == entry.digest
    return FolderState(
        standing="replace", reasons=tuple(wrong) if was_changed else (), placed=Placed(entry.digest, inode)
    )


def is_ours(adapters: RealFolder, key: str, placed: Placed) -> bool:
    """Return whether sync created the folder `key` and everything in it."""
    try:
        with adapters.inside(key) as folder:
            return _is_ours(folder, placed, os.fstat(folder.handle).st_ino) and not strangers_in(folder)
    except OSError:
        return False


def _is_ours(folder: RealFolder, placed: Placed, inode: int) -> bool:
    """Return whether it has the recorded inode or the same manifest: a copy of a project has other inodes."""
    return placed.inode == inode or next(_difference(folder, MANIFEST_FILE, None, Digest(placed.digest)), None) is None


def _is_untouched(adapters: RealFolder, entry: Locked, known: Mapping[str, Stamp]) -> bool:
    try:
        return all(known.get(name) == stamp for name, stamp in stamps_in(adapters, entry).items())
    except OSError:
        return False


def _differences(folder: RealFolder, entry: Locked, unread: Collection[str]) -> Iterator[str]:
    """Yield the differences from the lock; files in `unread` are not read."""
    expected: list[tuple[str, int | None, Digest]] = [(MANIFEST_FILE, None, entry.digest)]
    expected += [(file.path, file.size_bytes, file.sha256) for file in entry.files]
    for name, size_bytes, digest in expected:
        if name not in unread:
            yield from _difference(folder, name, size_bytes, digest)


def _difference(folder: RealFolder, name: str, size_bytes: int | None, expected: Digest) -> Iterator[str]:
    try:
        facts = folder.facts(name)
        if not stat.S_ISREG(facts.st_mode):
            yield f"`{name}` is not a regular file"
            return
        if size_bytes is not None and facts.st_size != size_bytes:
            yield f"`{name}` has {facts.st_size:,} bytes, expected {size_bytes:,}"
            return
        with open(folder.open_file(name), "rb", buffering=0) as stream:
            actual, _ = copy_hashed(stream, None)
        if actual != expected:
            yield f"`{name}` has digest {actual}, expected {expected}"
    except FileNotFoundError:
        yield f"`{name}` is missing"
    except OSError as error:
        yield f"`{name}` cannot be read: {error.strerror}"


def strangers_in(folder: RealFolder) -> list[str]:
    """Names in a folder that sync never creates, and every subfolder."""
    return [name for name in folder.names() if name not in _OURS or folder.is_folder(name)]


def _locked_names(entry: Locked) -> list[str]:
    """Return the files whose bytes the lock names: not the card, which may be edited, nor a signature."""
    return [MANIFEST_FILE, *(file.path for file in entry.files)]


def stamps_in(adapters: RealFolder, entry: Locked) -> dict[str, Stamp]:
    """Return the stamps of the locked files of an adapter.

    Raises:
        OSError: one is missing.
    """
    return {name: stamp_of(adapters, f"{entry.key}/{name}") for name in _locked_names(entry)}


# ---------------------------------------------------------------- making
def place(library: Library, entry: Locked, adapters: RealFolder, installed: str | None, *, replaces: bool) -> None:
    """Create the folder of an adapter from links into the store, with the card and the signature of `installed`.

    At any moment it is either the old or the new one.

    Raises:
        NotAllowed, DiskFull: it cannot be written; the old folder stays.
        BlobNotFound: the store has lost an object since the check.
    """
    fresh = f".{entry.key}.new-{os.urandom(4).hex()}"
    try:
        with adapters.make(fresh) as folder:
            _fill(library, entry, folder, installed)
        if not replaces:
            adapters.rename(fresh, entry.key)
            return
        _swap(adapters, fresh, entry.key)
    except OSError as error:
        _clear(adapters, fresh)
        raise not_written(error, adapters.path / entry.key) from error
    except BaseException:
        _clear(adapters, fresh)
        raise
    _clear(adapters, fresh)


def _fill(library: Library, entry: Locked, fresh: RealFolder, installed: str | None) -> None:
    store = library.store
    ensure_locked_build(entry, _locked_manifest(library, entry))
    for file in entry.files:
        store.link(file.sha256, file.path, into=fresh)
    store.link(entry.digest, MANIFEST_FILE, into=fresh, is_manifest=True)
    # The card is not in the store and users may edit it: with a link, an edit would change both folders.
    try:
        card = _bytes_of(f"{installed}/{CARD_FILE}") if installed else None
    except FileNotFoundError:
        card = None
    if card is None:  # removed from the library meanwhile
        card = make_card(store.read_manifest(entry.digest)).text.encode()
    fresh.write_new(CARD_FILE, card)
    if installed is not None:
        _link_signature(library, f"{installed}/{SIGNATURE_FILE}", fresh)


def _bytes_of(path: str) -> bytes:
    """Half as many system calls as `open` makes."""
    handle, parts = os.open(path, os.O_RDONLY | os.O_CLOEXEC), list[bytes]()
    try:
        while part := os.read(handle, _PART_BYTES):
            parts.append(part)
    finally:
        os.close(handle)
    return b"".join(parts)


def _locked_manifest(library: Library, entry: Locked) -> dict[str, Any]:
    """Return the JSON value of the locked manifest."""
    path = library.store.manifest_name(entry.digest)
    raw = _bytes_of(path)
    if (actual := digest_of(raw)) != entry.digest:
        raise DigestMismatch(path, expected=entry.digest, actual=actual, hint="`adapt doctor --repair` repairs it")
    # these bytes were parsed and checked on arrival; a second check would be slow
    value: dict[str, Any] = json.loads(raw)
    return value


def _link_signature(library: Library, signature: str, fresh: RealFolder) -> None:
    """Link the signature of the installed build if it has one."""
    if not os.path.lexists(signature):
        return
    try:
        blob = library.store.blob_name(digest_of(_bytes_of(signature)))
        os.link(blob if os.path.exists(blob) else signature, SIGNATURE_FILE, dst_dir_fd=fresh.handle)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        clone_or_copy(Path(signature), SIGNATURE_FILE, into=fresh)


def _swap(adapters: RealFolder, fresh: str, name: str) -> None:
    """Exchange `fresh` and `name`; the old folder is then called `fresh`, and is to be deleted."""
    if adapters.exchange(fresh, name):
        return
    old = f".{name}.old-{os.urandom(4).hex()}"
    try:  # begins before the first rename: a signal may interrupt any line
        adapters.rename(name, old)
        adapters.rename(fresh, name)
    except BaseException:
        if not adapters.has(name):
            adapters.rename(old, name)
        raise
    _clear(adapters, old)


# ---------------------------------------------------------------- taking away
def take_away(adapters: RealFolder, name: str) -> None:
    """Delete a folder or a link. The folder is renamed first, so that no half of it is ever visible.

    Raises:
        NotAllowed: it cannot be deleted, or something is mounted in it; then it is complete.
    """
    gone = f".{name}.gone-{os.urandom(4).hex()}"
    try:
        adapters.remove(name, only_look=True)
        if not adapters.is_folder(name):
            adapters.unlink(name)
            return
        adapters.rename(name, gone)
    except OSError as error:
        raise not_written(error, adapters.path / name) from error
    finally:
        _clear(adapters, gone)


def clear_leftovers(adapters: RealFolder) -> None:
    """Clean up after a killed sync: an old folder gets its name back if the new one is missing."""
    for name in adapters.names():
        found = _LEFTOVER.fullmatch(name)
        if found is None:
            continue
        with contextlib.suppress(OSError):
            if found[2] == "old" and not adapters.has(found[1]) and _has_manifest(adapters, name):
                adapters.rename(name, found[1])
        _clear(adapters, name)


def _has_manifest(adapters: RealFolder, name: str) -> bool:
    with adapters.inside(name) as folder:
        return folder.has(MANIFEST_FILE)


def _clear(adapters: RealFolder, name: str) -> None:
    """Delete a temporary folder as far as possible; nothing if it does not exist."""
    with contextlib.suppress(OSError):
        adapters.remove(name)


def folders_of(adapters: RealFolder, names: Iterable[str], *, but: Collection[str]) -> list[str]:
    """Other folders and links among `names` of `adapters/`, without hidden ones."""
    return [
        name
        for name in names
        if name not in but and not name.startswith(".") and (adapters.is_folder(name) or adapters.is_link(name))
    ]


_LIMIT_BYTES: Final = 64 << 20
_SCHEMA: Final = "adapterhub-sync/2"

Stamp = tuple[int, int, int, int]
"""Size in bytes, times of change of the bytes and of the inode in nanoseconds, and number of a file.

A program can keep the size and restore the first time. Only the kernel sets the second time: on each write, on a change
of mode or times, and when the file gains or loses a hard link.
"""


@dataclass(frozen=True, slots=True)
class Placed:
    """A folder that sync created: the manifest's digest, the folder's inode, the stamps of its locked files.

    While it is being created it has no stamps, and the inode is that of the folder it replaces, or 0.
    """

    digest: str
    inode: int = 0
    files: dict[str, Stamp] = field(default_factory=dict, hash=False)


def read_state(store: Store, project: Path) -> dict[str, Placed]:
    """Return the folders that sync created in the project, by key; none if the record is missing or damaged."""
    try:
        # a record of ours: the checks of `read_json` take as long as the rest of a sync that has nothing to do
        value = json.loads(read_plain(synced_path(store.root, project), _LIMIT_BYTES))
        if value["schema"] != _SCHEMA:
            return {}
        return {str(key): _placed(item) for key, item in value["folders"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return {}


def _placed(item: Any) -> Placed:
    files = {name: tuple(stamp) for name, stamp in item["files"].items()}  # a damaged one equals no stamp
    return Placed(str(item["digest"]), int(item["inode"]), files)


def write_state(store: Store, project: Path, placed: dict[str, Placed]) -> None:
    """Record the folders that sync created.

    Raises:
        NotAllowed, DiskFull: it cannot be written.
    """
    folders = {
        key: {"digest": one.digest, "inode": one.inode, "files": one.files} for key, one in sorted(placed.items())
    }
    value = {"schema": _SCHEMA, "project": os.path.realpath(project), "folders": folders}
    data = json.dumps(value, separators=(",", ":")).encode()
    store.write(synced_path(store.root, project), data, sync=False)


def stamp_of(folder: RealFolder, name: str) -> Stamp:
    """Return the stamp of a file in a folder; a link is not followed.

    Raises:
        OSError: there is none.
    """
    facts = os.stat(name, dir_fd=folder.handle, follow_symlinks=False)  # for thousands
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino


_NOTE_FOR_GIT: Final = b"*\n"


class SyncTarget:
    """The folder that a sync writes, and the store that records the folders that it created."""

    def __init__(self, store: Store, project: Path, inside: RealFolder, adapters: RealFolder | None) -> None:
        self.store = store
        self.project = project
        self.adapters = adapters
        self._inside = inside

    @property
    def path(self) -> Path:
        """The folder's path, for messages."""
        return self.project / ADAPTERS_FOLDER

    def make(self) -> RealFolder:
        """Return the folder, created with a `.gitignore` if it is missing: the lock can recreate its content.

        Raises:
            NotAllowed, DiskFull: it cannot be created, or something else appeared there.
        """
        if self.adapters is None:
            try:
                self.adapters = self._inside.make(ADAPTERS_FOLDER)
                self.adapters.write_new(".gitignore", _NOTE_FOR_GIT)
            except OSError as error:
                raise not_written(error, self.path) from error
        return self.adapters


@contextlib.contextmanager
def opened(store: Store, project: Path) -> Iterator[SyncTarget]:
    """Provide the project's `adapters/`.

    Raises:
        NotAllowed: it is a link, a file or a mount point, or it belongs to another user.
        NotFound: the project does not exist.
    """
    path = project / ADAPTERS_FOLDER
    with contextlib.ExitStack() as stack:
        try:
            inside = stack.enter_context(RealFolder.open(project))
            found = _found(inside)
        except OSError as error:
            raise _refused(path, f"cannot be opened: {error.strerror}") from error
        target = SyncTarget(store, project, inside, found)
        stack.callback(lambda: target.adapters.close() if target.adapters else None)
        if found is not None:
            _check_owner(found, inside)
        yield target


def _found(inside: RealFolder) -> RealFolder | None:
    try:
        return inside.inside(ADAPTERS_FOLDER)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.ENOTDIR:
            raise
        is_link = stat.S_ISLNK(inside.facts(ADAPTERS_FOLDER).st_mode)
        raise _refused(inside.path / ADAPTERS_FOLDER, "is a link" if is_link else "is not a folder") from None


def _check_owner(adapters: RealFolder, inside: RealFolder) -> None:
    if files.mount_of(adapters.handle) != files.mount_of(inside.handle):
        raise _refused(adapters.path, "is a mount point")
    # accept the owner of the project: root in a container often works in another user's checkout
    if os.fstat(adapters.handle).st_uid not in (os.geteuid(), os.fstat(inside.handle).st_uid):
        raise _refused(adapters.path, "belongs to another user")


def _refused(path: Path, why: str) -> NotAllowed:
    return NotAllowed(
        f"`{shown(str(path), 200)}` {why}; sync writes only in a real folder of the project. Nothing was changed",
        hint="move it away; `adapt sync` creates the folder",
    )
