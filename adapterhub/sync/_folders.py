"""One folder of `adapters/`: whether it is right, and how it is made, put in its place and taken away.

A folder is made of links beside its place and gets its name when it is whole. Where it takes the place of an older one
the two change names in one step, so that there is no moment without either.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from adapterhub.cards import card_for
from adapterhub.digests import Digest, digest_of, digest_of_file
from adapterhub.errors import DigestMismatch
from adapterhub.library import Library
from adapterhub.locked_builds import Locked, installed_folder, refuse_other_build
from adapterhub.manifest import CARD_FILE, MANIFEST_FILE, MEDIA_TYPES, SIGNATURE_FILE
from adapterhub.new_folder import not_written
from adapterhub.store import NO_LINKS, clone_or_copy
from adapterhub.sync._state import STATE_FILE, Placed, Stamp, stamp_of

Standing = Literal["right", "new", "replace", "foreign"]

_LEFTOVER: Final = re.compile(r"\.(.+)\.(new|old|gone)-[0-9a-f]{8}")
_LEFT_NOTE: Final = re.compile(re.escape(f".{STATE_FILE}.") + r"\d+-[0-9a-f]{8}")
_EXCHANGE: Final = 2  # linux/fs.h: RENAME_EXCHANGE
_HERE: Final = -100  # linux/fcntl.h: AT_FDCWD
_OURS: Final = {*MEDIA_TYPES, MANIFEST_FILE, CARD_FILE, SIGNATURE_FILE}


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """How a folder stands to the lock. `reasons` say what is wrong with it; `files` are the stamps of a right one."""

    standing: Standing
    reasons: tuple[str, ...] = ()
    files: dict[str, Stamp] | None = None


def judge(folder: Path, entry: Locked, placed: Placed | None) -> Judged:
    """Whether `folder` holds exactly what is locked. Files that look as sync left them are not read again."""
    try:
        facts = os.lstat(folder)
    except FileNotFoundError:
        return Judged(standing="new")
    if not stat.S_ISDIR(facts.st_mode):
        return Judged(standing="foreign", reasons=("is no folder",))
    if placed is not None and placed.digest == entry.digest and _is_untouched(folder, entry, placed):
        return Judged(standing="right", files=placed.files)
    wrong = list(_differences(folder, entry))
    if not wrong:
        return Judged(standing="right", files=stamps_of(folder))
    if placed is None:
        return Judged(standing="foreign", reasons=tuple(wrong))
    if strange := strangers_in(folder):
        return Judged(standing="foreign", reasons=(f"holds `{'`, `'.join(strange)}`, which sync did not put there",))
    return Judged(standing="replace", reasons=tuple(wrong) if placed.digest == entry.digest else ())


def _is_untouched(folder: Path, entry: Locked, placed: Placed) -> bool:
    if not placed.files or not all(file.path in placed.files for file in entry.files):
        return False
    place = f"{folder}{os.sep}"
    try:
        return all(stamp_of(place + name) == stamp for name, stamp in placed.files.items())
    except OSError:
        return False


def _differences(folder: Path, entry: Locked) -> Iterator[str]:
    """What is not as locked; every byte of what may be right is read."""
    yield from _difference(folder / MANIFEST_FILE, None, entry.digest)
    for file in entry.files:
        yield from _difference(folder / file.path, file.size_bytes, file.sha256)


def _difference(path: Path, size_bytes: int | None, expected: Digest) -> Iterator[str]:
    try:
        facts = path.lstat()
        if not stat.S_ISREG(facts.st_mode):
            yield f"`{path.name}` is no plain file"
        elif size_bytes is not None and facts.st_size != size_bytes:
            yield f"`{path.name}` has {facts.st_size:,} bytes, locked are {size_bytes:,}"
        elif (actual := digest_of_file(path)[0]) != expected:
            yield f"`{path.name}` is {actual}, locked is {expected}"
    except FileNotFoundError:
        yield f"`{path.name}` is missing"
    except OSError as error:
        yield f"`{path.name}` cannot be read: {error.strerror}"


def strangers_in(folder: Path) -> list[str]:
    """Names in a folder that sync never puts there."""
    try:
        return sorted(set(os.listdir(folder)) - _OURS)
    except OSError:
        return []


def stamps_of(folder: str | Path) -> dict[str, Stamp]:
    """The stamps of our files in a folder."""
    return {name: stamp_of(f"{folder}/{name}") for name in sorted(os.listdir(folder)) if name in _OURS}


# ---------------------------------------------------------------- making
def place(library: Library, entry: Locked, folder: Path, *, replaces: bool) -> dict[str, Stamp]:
    """Make `folder` out of links into the store; the stamps of its files. At any moment it is the old or the new one.

    Raises:
        NotAllowed, DiskFull: it cannot be written; what was there is there.
        BlobNotFound: the store lost an object since it was looked at.
    """
    fresh = f"{folder.parent}/.{folder.name}.new-{secrets.token_hex(4)}"
    try:
        os.mkdir(fresh)
        _fill(library, entry, fresh)
        files = stamps_of(fresh)
        if replaces:
            _swap(Path(fresh), folder)
        else:
            os.rename(fresh, folder)
    except OSError as error:
        raise not_written(error, folder) from error
    finally:
        if os.path.lexists(fresh):
            shutil.rmtree(fresh, ignore_errors=True)
    return files


def _fill(library: Library, entry: Locked, fresh: str) -> None:
    store, installed = library.store, installed_folder(library, entry)
    refuse_other_build(entry, _locked_manifest(library, entry))
    for file in entry.files:
        store.link(file.sha256, f"{fresh}/{file.path}")
    store.link_manifest(entry.digest, f"{fresh}/{MANIFEST_FILE}")
    # The card is no object of the store and may be written to: a link would let one folder change the other.
    try:
        card = _bytes_of(f"{installed}/{CARD_FILE}") if installed else None
    except FileNotFoundError:
        card = None
    if card is None:  # somebody removed it, or the whole build, from the library a moment ago
        card = card_for(store.read_manifest(entry.digest)).encode()
    with open(f"{fresh}/{CARD_FILE}", "xb") as sink:
        sink.write(card)
    if installed is not None:
        _link_signature(library, f"{installed}/{SIGNATURE_FILE}", f"{fresh}/{SIGNATURE_FILE}")


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


def _link_signature(library: Library, signature: str, target: str) -> None:
    if not os.path.lexists(signature):
        return
    try:
        blob = library.store.blob_name(digest_of(_bytes_of(signature)))
        os.link(blob if os.path.exists(blob) else signature, target)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        clone_or_copy(Path(signature), Path(target))


def _swap(fresh: Path, folder: Path) -> None:
    """Give `fresh` the name `folder`; what had it is `fresh` afterwards, to be taken away."""
    if _exchange(fresh, folder):
        return
    old = folder.with_name(f".{folder.name}.old-{secrets.token_hex(4)}")
    try:  # from before the old one loses its name: a signal may end us at any line
        folder.rename(old)
        fresh.rename(folder)
    except BaseException:
        if not os.path.lexists(folder):
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Change the names of two folders in one step; False where the system cannot."""
    import ctypes

    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if rename is None:
        return False
    if rename(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        return False
    raise OSError(code, os.strerror(code), os.fspath(other))


# ---------------------------------------------------------------- taking away
def take_away(folder: Path) -> None:
    """Delete a folder: it loses its name first, for good, so that nobody ever sees a half of it.

    Raises:
        NotAllowed: it cannot be deleted.
    """
    gone = folder.with_name(f".{folder.name}.gone-{secrets.token_hex(4)}")
    try:
        if folder.is_symlink() or not folder.is_dir():
            folder.unlink()
            return
        folder.rename(gone)
    except OSError as error:
        raise not_written(error, folder) from error
    finally:
        shutil.rmtree(gone, ignore_errors=True)


def clear_leftovers(adapters: Path) -> None:
    """Put right what a sync that was killed left: an older folder gets its name back where the new one never came."""
    for name in _names_in(adapters):
        if _LEFT_NOTE.fullmatch(name):
            with contextlib.suppress(OSError):
                os.unlink(adapters / name)
        found = _LEFTOVER.fullmatch(name)
        if found is None:
            continue
        path, place = adapters / name, adapters / found[1]
        with contextlib.suppress(OSError):
            if found[2] == "old" and not os.path.lexists(place) and (path / MANIFEST_FILE).exists():
                path.rename(place)
        shutil.rmtree(path, ignore_errors=True)


def folders_in(adapters: Path, *, but: Collection[str]) -> list[Path]:
    """Whatever else lies there that may be an adapter: folders and links, no hidden names and no plain files."""
    others = [adapters / name for name in _names_in(adapters) if name not in but and not name.startswith(".")]
    return [path for path in others if path.is_symlink() or path.is_dir()]


def _names_in(adapters: Path) -> Sequence[str]:
    try:
        return sorted(os.listdir(adapters))
    except (FileNotFoundError, NotADirectoryError):
        return []
