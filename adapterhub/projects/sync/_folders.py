"""One folder of `adapters/`: whether it is right, and how it is made, put in its place and taken away.

A folder is made of links beside its place and gets its name when it is whole. Where it takes the place of an older one
the two change names in one step, so that there is no moment without either.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from adapterhub.core.digests import Digest, copy_hashed, digest_of
from adapterhub.core.disk.files import NO_LINKS, clone_or_copy
from adapterhub.core.disk.new_folder import not_written
from adapterhub.core.disk.real_folder import RealFolder
from adapterhub.core.errors import DigestMismatch
from adapterhub.formats.card import card_for
from adapterhub.formats.manifest import CARD_FILE, MANIFEST_FILE, MEDIA_TYPES, SIGNATURE_FILE
from adapterhub.library.library import Library
from adapterhub.projects.builds import ensure_locked_build, installed_folder
from adapterhub.projects.sync._state import Placed, Stamp, stamp_of
from adapterhub.projects.values import Locked

Standing = Literal["right", "new", "replace", "foreign"]

_LEFTOVER: Final = re.compile(r"\.(.+)\.(new|old|gone)-[0-9a-f]{8}")
_OURS: Final = {*MEDIA_TYPES, MANIFEST_FILE, CARD_FILE, SIGNATURE_FILE}


@dataclass(frozen=True, slots=True, kw_only=True)
class FolderState:
    """How a folder stands to the lock. `reasons` say what is wrong with it.

    `placed` is what to note of it: of a right one all, of one to replace its inode.
    """

    standing: Standing
    reasons: tuple[str, ...] = ()
    placed: Placed | None = None


def state_of(
    adapters: RealFolder | None, entry: Locked, placed: Placed | None, *, reads_all: bool = False
) -> FolderState:
    """Whether the folder holds exactly what is locked.

    A file whose stamp is as sync left it is not read again, unless `reads_all` asks for every byte.
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
    """The verdict by the bytes of those files that have not the stamps in `known`."""
    inode = os.fstat(folder.handle).st_ino
    stamps = stamps_of(folder)  # before a byte is read: what is written to meanwhile has another one next time
    wrong = list(_differences(folder, entry, {name for name in known if known[name] == stamps.get(name)}))
    if not wrong:
        return FolderState(standing="right", placed=Placed(entry.digest, inode, stamps))
    if placed is None or not _is_ours(folder, placed, inode):
        return FolderState(standing="foreign", reasons=tuple(wrong))
    if strange := strangers_in(folder):
        reason = f"holds `{'`, `'.join(strange)}`, which sync did not put there"
        return FolderState(standing="foreign", reasons=(reason,))
    was_changed = placed.digest == entry.digest
    return FolderState(
        standing="replace", reasons=tuple(wrong) if was_changed else (), placed=Placed(entry.digest, inode)
    )


def is_ours(adapters: RealFolder, key: str, placed: Placed) -> bool:
    """Whether `key` is the folder that sync made, with nothing in it that sync did not put there."""
    try:
        with adapters.inside(key) as folder:
            return _is_ours(folder, placed, os.fstat(folder.handle).st_ino) and not strangers_in(folder)
    except OSError:
        return False


def _is_ours(folder: RealFolder, placed: Placed, inode: int) -> bool:
    """Whether it is the very folder, or one with the same manifest: a copy or backup of a project has other inodes."""
    return placed.inode == inode or next(_difference(folder, MANIFEST_FILE, None, Digest(placed.digest)), None) is None


def _is_untouched(adapters: RealFolder, entry: Locked, known: Mapping[str, Stamp]) -> bool:
    if not all(file.path in known for file in entry.files):
        return False
    try:
        return all(stamp_of(adapters, f"{entry.key}/{name}") == stamp for name, stamp in known.items())
    except OSError:
        return False


def _differences(folder: RealFolder, entry: Locked, unread: Collection[str]) -> Iterator[str]:
    """What is not as locked; every byte is read but those of files in `unread`."""
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
            yield f"`{name}` has {facts.st_size:,} bytes, locked are {size_bytes:,}"
            return
        with open(folder.open_file(name), "rb", buffering=0) as stream:
            actual, _ = copy_hashed(stream, None)
        if actual != expected:
            yield f"`{name}` is {actual}, locked is {expected}"
    except FileNotFoundError:
        yield f"`{name}` is missing"
    except OSError as error:
        yield f"`{name}` cannot be read: {error.strerror}"


def strangers_in(folder: RealFolder) -> list[str]:
    """Names in a folder that sync never puts there, and folders by any name."""
    return [name for name in folder.names() if name not in _OURS or folder.is_folder(name)]


def stamps_of(folder: RealFolder) -> dict[str, Stamp]:
    """The stamps of our files in a folder."""
    return {name: stamp_of(folder, name) for name in folder.names() if name in _OURS}


# ---------------------------------------------------------------- making
def place(library: Library, entry: Locked, adapters: RealFolder, *, replaces: bool) -> None:
    """Make the folder of an adapter out of links into the store. At any moment it is the old or the new one.

    Raises:
        NotAllowed, DiskFull: it cannot be written; what was there is there.
        BlobNotFound: the store lost an object since it was looked at.
    """
    fresh = f".{entry.key}.new-{secrets.token_hex(4)}"
    try:
        with adapters.make(fresh) as folder:
            _fill(library, entry, folder)
        if replaces:
            _swap(adapters, fresh, entry.key)
        else:
            adapters.rename(fresh, entry.key)
    except OSError as error:
        raise not_written(error, adapters.path / entry.key) from error
    finally:
        _clear(adapters, fresh)


def _fill(library: Library, entry: Locked, fresh: RealFolder) -> None:
    store, installed = library.store, installed_folder(library, entry)
    ensure_locked_build(entry, _locked_manifest(library, entry))
    for file in entry.files:
        store.link(file.sha256, file.path, into=fresh)
    store.link_manifest(entry.digest, MANIFEST_FILE, into=fresh)
    # The card is no object of the store and may be written to: a link would let one folder change the other.
    try:
        card = _bytes_of(f"{installed}/{CARD_FILE}") if installed else None
    except FileNotFoundError:
        card = None
    if card is None:  # somebody removed it, or the whole build, from the library a moment ago
        card = card_for(store.read_manifest(entry.digest)).encode()
    fresh.write_new(CARD_FILE, card)
    if installed is not None:
        _link_signature(library, f"{installed}/{SIGNATURE_FILE}", fresh)


def _bytes_of(path: str) -> bytes:
    with open(path, "rb", buffering=0) as stream:
        return stream.read()


def _locked_manifest(library: Library, entry: Locked) -> dict[str, Any]:
    """The JSON value of the locked manifest."""
    path = library.store.manifest_name(entry.digest)
    raw = _bytes_of(path)
    if (actual := digest_of(raw)) != entry.digest:
        raise DigestMismatch(path, expected=entry.digest, actual=actual, hint="`adapt doctor --repair` mends it")
    # parsed and checked when it came in, and since then these very bytes: not once more, it takes a while
    value: dict[str, Any] = json.loads(raw)
    return value


def _link_signature(library: Library, signature: str, fresh: RealFolder) -> None:
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
    """Give `fresh` the name `name`; what had it is `fresh` afterwards, to be taken away."""
    if adapters.exchange(fresh, name):
        return
    old = f".{name}.old-{secrets.token_hex(4)}"
    try:  # from before the old one loses its name: a signal may end us at any line
        adapters.rename(name, old)
        adapters.rename(fresh, name)
    except BaseException:
        if not adapters.has(name):
            adapters.rename(old, name)
        raise
    _clear(adapters, old)


# ---------------------------------------------------------------- taking away
def take_away(adapters: RealFolder, name: str) -> None:
    """Delete a folder, or a link: it loses its name first, for good, so that nobody ever sees a half of it.

    Raises:
        NotAllowed: it cannot be deleted, or something is mounted in it; then it is all there.
    """
    gone = f".{name}.gone-{secrets.token_hex(4)}"
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
    """Put right what a sync that was killed left: an older folder gets its name back where the new one never came."""
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
    """Delete a folder that is nobody's, as far as that can be done now; nothing when there is none."""
    with contextlib.suppress(OSError):
        adapters.remove(name)


def folders_in(adapters: RealFolder, *, but: Collection[str]) -> list[str]:
    """Whatever else lies there that may be an adapter: folders and links, no hidden names and no plain files."""
    return [
        name
        for name in adapters.names()
        if name not in but and not name.startswith(".") and (adapters.is_folder(name) or adapters.is_link(name))
    ]
