"""One folder of `adapters/`: compares it with the lock, creates it, puts it in place and deletes it.

A folder is filled with links under a temporary name and renamed when it is complete. To replace an older folder, the
two exchange names in one step, so that one of them exists at any moment.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from adapterhub.core.digests import Digest, copy_hashed, digest_of
from adapterhub.core.disk.files import NO_LINKS, clone_or_copy
from adapterhub.core.disk.new_folder import not_written
from adapterhub.core.disk.real_folder import RealFolder
from adapterhub.core.errors import DigestMismatch
from adapterhub.formats.cards.card import card_for
from adapterhub.formats.manifest import CARD_FILE, MANIFEST_FILE, MEDIA_TYPES, SIGNATURE_FILE
from adapterhub.library.library import Library
from adapterhub.projects.builds import ensure_locked_build
from adapterhub.projects.sync._state import Placed, Stamp, stamp_of
from adapterhub.projects.values import Locked

Standing = Literal["right", "new", "replace", "foreign"]

_PART_BYTES: Final = 1 << 16
_LEFTOVER: Final = re.compile(r"\.(.+)\.(new|old|gone)-[0-9a-f]{8}")
_OURS: Final = {*MEDIA_TYPES, MANIFEST_FILE, CARD_FILE, SIGNATURE_FILE}


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderState:
    """The state of a folder compared with the lock. `reasons` say what is wrong with it.

    `placed` is what to record of it: everything for a right folder, the inode for one to replace.
    """

    standing: Standing
    reasons: tuple[str, ...] = ()
    placed: Placed | None = None


def state_of(
    adapters: RealFolder | None, entry: Locked, placed: Placed | None, *, reads_all: bool = False
) -> FolderState:
    """Whether the folder holds exactly what is locked.

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
    """The state by the bytes of the files whose stamps differ from `known`."""
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
    """Whether sync created the folder `key` and everything in it."""
    try:
        with adapters.inside(key) as folder:
            return _is_ours(folder, placed, os.fstat(folder.handle).st_ino) and not strangers_in(folder)
    except OSError:
        return False


def _is_ours(folder: RealFolder, placed: Placed, inode: int) -> bool:
    """Whether it has the recorded inode or the same manifest: a copy of a project has other inodes."""
    return placed.inode == inode or next(_difference(folder, MANIFEST_FILE, None, Digest(placed.digest)), None) is None


def _is_untouched(adapters: RealFolder, entry: Locked, known: Mapping[str, Stamp]) -> bool:
    try:
        return all(known.get(name) == stamp for name, stamp in stamps_in(adapters, entry).items())
    except OSError:
        return False


def _differences(folder: RealFolder, entry: Locked, unread: Collection[str]) -> Iterator[str]:
    """The differences from the lock; files in `unread` are not read."""
    expected: list[tuple[str, int | None, Digest]] = [(MANIFEST_FILE, None, entry.digest)]
    expected += [(file.path, file.size_bytes, file.sha256) for file in entry.files]
    for name, size_bytes, digest in expected:
        if name not in unread:
            yield from _difference(folder, name, size_bytes, digest)


def _difference(folder: RealFolder, name: str, size_bytes: int | None, expected: Digest) -> Iterator[str]:
    try:
        facts = folder.facts(name)
        if not stat.S_ISREG(facts.st_mode):
            yield f"`{name}` is no plain file"
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
    """The files whose bytes the lock names: not the card, which may be edited, nor a signature."""
    return [MANIFEST_FILE, *(file.path for file in entry.files)]


def stamps_in(adapters: RealFolder, entry: Locked) -> dict[str, Stamp]:
    """The stamps of the locked files of an adapter.

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
    store.link_manifest(entry.digest, MANIFEST_FILE, into=fresh)
    # The card is not in the store and users may edit it: with a link, an edit would change both folders.
    try:
        card = _bytes_of(f"{installed}/{CARD_FILE}") if installed else None
    except FileNotFoundError:
        card = None
    if card is None:  # removed from the library meanwhile
        card = card_for(store.read_manifest(entry.digest)).encode()
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
    """The JSON value of the locked manifest."""
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
