"""Damage in a library: objects that do not match their name, builds without objects, an outdated index.

The search changes nothing. An object that disappears during the search was removed by another process, and does not
count as damage.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Protocol

from adapterhub.core.digests import Digest, Progress, digest_of, hex_of
from adapterhub.core.disk.files import RealFolder, digest_of_file, matching, read_json, read_plain
from adapterhub.core.disk.held_file import REPAIR_HINT
from adapterhub.core.errors import AdapterHubError, DigestMismatch, Malformed, MalformedManifest, NotAllowed, shown
from adapterhub.formats.base.fingerprint import BaseFingerprint
from adapterhub.formats.manifest import MANIFEST_FILE
from adapterhub.library.bases.records import Bases
from adapterhub.library.library import Library
from adapterhub.library.own_settings import OwnSettings
from adapterhub.library.remotes import Remotes
from adapterhub.library.store.aliases import Aliases
from adapterhub.library.store.catalog import Installed, RowOf
from adapterhub.library.store.origins import read_origin
from adapterhub.library.store.roots import KnownProjects
from adapterhub.trust.findings import Finding
from adapterhub.trust.signing.appraisal import FirstUseFile
from adapterhub.trust.signing.trust import TrustFile

Kind = Literal["bytes", "missing", "writable", "index"]

_HEX: Final = re.compile(r"[0-9a-f]{64}")
_OBJECTS: Final = ((("blobs", "sha256", "*"), "*"), (("manifests", "sha256"), "[!.]*"))
"""Where objects lie: the folders above them, and their names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Damage at `path`. `digest` is that of the object that should be there, None for other things."""

    kind: Kind
    path: Path
    digest: Digest | None
    message: str

    def finding(self, root: Path) -> Finding:
        """As `verify` reports it."""
        where = self.path.relative_to(root).as_posix()
        if self.kind == "writable":
            hint = "`adapt doctor --repair` makes it read-only"
            return Finding("W_WRITABLE", where, self.message, hint=hint)
        if self.kind == "index":
            hint = "`adapt doctor --rebuild-index` makes it again"
            return Finding("E_INDEX", where, self.message, hint=hint)
        hint = "`adapt doctor --repair` puts it in quarantine and fetches it again"
        expected = self.digest or ""
        return Finding("E_DIGEST", where, self.message, expected=expected, hint=hint)


Hashed = tuple[int, int, str]
"""Device, inode and hex digest of a file that was hashed."""


def damaged_objects(
    library: Library, hashed: Collection[Hashed] = (), progress: Progress | None = None, sound: Sound | None = None
) -> Iterator[Damage]:
    """Objects of the store that are damaged or writable.

    Every byte is read, except those of files that were `hashed` before, and of those that `sound` knows.
    """
    yield from _linked_folders(library.root)
    for path in _objects(library.root):
        try:
            damage = _damage_of(path, hashed, progress, sound)
        except FileNotFoundError:
            continue
        if damage is not None:
            yield damage


def missing_objects(library: Library, build: Installed) -> Iterator[Damage]:
    """Yield the objects that a build needs and the store does not have."""
    for path, digest in objects_of(library, build):
        if not os.path.lexists(path) and build.folder.exists():
            message = f"is missing, though `{build.full_name}` {build.manifest.label} names it"
            yield Damage(kind="missing", path=path, digest=digest, message=message)


class Sound(Protocol):
    """What an earlier run found to be sound."""

    def knows(self, path: Path, facts: os.stat_result) -> bool:
        """Return whether it hashed a file with these facts."""

    def note(self, path: Path, facts: os.stat_result) -> None:
        """Note that a file is sound, which had these facts before it was hashed."""


def unhashed_bytes(library: Library, hashed: Collection[Hashed]) -> int:
    """Return how many bytes `damaged_objects` reads after files were `hashed`."""
    total = 0
    for path in _objects(library.root):
        with contextlib.suppress(OSError):
            facts = path.lstat()
            if (facts.st_dev, facts.st_ino, path.name.removesuffix(".json")) not in hashed:
                total += facts.st_size
    return total


def _objects(root: Path) -> Iterator[Path]:
    """Everything where objects belong; links are not followed."""
    with contextlib.suppress(FileNotFoundError), RealFolder.open(root) as top:
        for levels, pattern in _OBJECTS:
            yield from (folder.path / name for folder, name in matching(top, levels, pattern))


def _linked_folders(root: Path) -> Iterator[Damage]:
    """Links where folders of blobs belong."""
    with contextlib.suppress(FileNotFoundError), RealFolder.open(root) as top:
        for folder, name in matching(top, ("blobs", "sha256"), "*"):
            if folder.is_link(name):
                yield Damage(kind="bytes", path=folder.path / name, digest=None, message="is a link")


def damaged_index(library: Library, installed: Iterable[RowOf] | None = None) -> Iterator[Damage]:
    """Yield the problems of the index; `installed` are the rows of all builds, where they are read anyway."""
    for message in library.catalog.differences(installed):
        yield Damage(kind="index", path=library.catalog.index.path, digest=None, message=message)


def ensure_manifest_unchanged(library: Library, build: Installed) -> None:
    """Raise unless a build's manifest is one that was stored: all other checks rely on the manifest.

    Raises:
        DigestMismatch: the store has no manifest of that digest.
    """
    digest = build.manifest.digest
    if not library.store.has_manifest(digest):
        where, expected = str(build.folder / MANIFEST_FILE), "a manifest that the library stored"
        raise DigestMismatch(where, expected=expected, actual=digest, hint=REPAIR_HINT)


def objects_of(library: Library, build: Installed) -> list[tuple[Path, Digest]]:
    """Path and digest of everything in the store that the build is made of."""
    store, manifest = library.store, build.manifest
    blobs = [(store.blob_path(entry.sha256), entry.sha256) for entry in manifest.files]
    return [*blobs, (store.manifest_path(manifest.digest), manifest.digest)]


def hashed_with(build: Installed) -> Iterator[Hashed]:
    """Yield the files of a build, which a check of it has hashed."""
    for entry in build.manifest.files:
        try:
            facts = (build.folder / entry.path).lstat()
        except OSError:
            continue
        yield facts.st_dev, facts.st_ino, hex_of(entry.sha256)


def _damage_of(path: Path, hashed: Collection[Hashed], progress: Progress | None, sound: Sound | None) -> Damage | None:
    facts, name = path.lstat(), path.name.removesuffix(".json")
    if not _HEX.fullmatch(name) or (path.parent.name not in ("sha256", name[:2])):
        return Damage(kind="bytes", path=path, digest=None, message="is not named like an object")
    digest = Digest(f"sha256:{name}")
    if not stat.S_ISREG(facts.st_mode):
        kind = "a link" if stat.S_ISLNK(facts.st_mode) else "no plain file"
        return Damage(kind="bytes", path=path, digest=digest, message=f"is {kind}")
    is_known = (facts.st_dev, facts.st_ino, name) in hashed
    if not is_known and sound is not None and sound.knows(path, facts):
        is_known = True
        if progress is not None:
            progress(facts.st_size)
    if not is_known:
        try:
            found, size_bytes = digest_of_file(path, progress)
        except FileNotFoundError:
            raise
        except OSError as error:
            return Damage(kind="bytes", path=path, digest=digest, message=f"cannot be read: {error.strerror}")
        if found != digest:
            return Damage(kind="bytes", path=path, digest=digest, message=f"is {found} ({size_bytes:,} bytes)")
        if sound is not None:
            sound.note(path, facts)
    if facts.st_mode & 0o222:
        return Damage(kind="writable", path=path, digest=digest, message="is writable; objects never change")
    return None


Read = Callable[[Path], object]
_LIMIT_BYTES: Final = 64 << 20
_HINTS: Final = {
    "aliases": "delete it, then set the alias again with `adapt alias set`",
    "bases": "delete it, then `adapt base add PATH --as NAME` adds the base again",
    "origins": "delete it; an `adapt install` from the same place notes it again",
    "pins": "delete it, then `adapt base pin` pins the base again",
    "projects": "delete it, then `adapt sync` in the project writes it again",
    "yanked": "delete it; `adapt upgrade --check` asks again what was yanked",
    "tests": "delete it, and ask its tester for the result again",
    "made": "delete it, and ask its signer for the statement again",
    "published": "delete it; an `adapt install` from the same registry takes it again",
    "mismatches": "delete it; `adapt install --allow-base-mismatch` notes it again",
    "synced": "delete it, then `adapt sync` in the project writes it again",
    "history": "delete it; the project cannot roll back past this point",
}
_DEPTHS: Final = {"tests": 2, "made": 2, "published": 2}


def damaged_records(root: Path, whole: Mapping[str, Callable[[], object]]) -> Iterator[Finding]:
    """Yield a finding for each record of the library under `root` that cannot be read, with its path and remedy.

    `whole` reads more files of the root, by their names.
    """
    files: dict[str, Callable[[], object]] = {
        "config.json": OwnSettings(root).read,
        "remotes.json": Remotes(root).all,
        "credentials.json": lambda: Remotes(root).token(""),
        "trusted_keys.json": TrustFile(root).read,
        "seen_signatures.json": lambda: FirstUseFile(root).of(""),
        **whole,
    }
    for name, read in files.items():
        yield from _finding(root / name, root, lambda _, read=read: read(), "")  # type: ignore[misc]  # a bound default
    readers: dict[str, Read] = {
        "aliases": Aliases(root).read_at,
        "bases": lambda path: Bases(root / "bases", None).get(path.stem),
        "origins": read_origin,
        "pins": lambda path: BaseFingerprint.from_json(read_json(path, _LIMIT_BYTES), "pin"),
        "projects": KnownProjects(root).read_at,
        "tests": _named_by_its_bytes,
        "made": _named_by_its_bytes,
        "published": _named_by_its_bytes,
    }
    for folder, hint in _HINTS.items():
        pattern = "/".join(["*"] * (_DEPTHS.get(folder, 1) - 1) + ["[!.]*.json"])
        for path in sorted((root / folder).glob(pattern)):
            yield from _finding(path, root, readers.get(folder, _object), hint)


def _finding(path: Path, root: Path, read: Read, hint: str) -> Iterator[Finding]:
    if not os.path.lexists(path):
        return
    try:
        read(path)
    except FileNotFoundError:
        if path.is_symlink():
            yield _damage(path, root, "is a link that leads nowhere", hint)
        # otherwise removed since it was listed
    except AdapterHubError as error:
        reason = "; ".join(error.problems) if isinstance(error, MalformedManifest) else error.message
        code_hint = error.hint if isinstance(error, Malformed | NotAllowed) else ""
        yield _damage(path, root, reason, hint or code_hint)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        yield _damage(path, root, f"cannot be read: {reason}", hint)


def _damage(path: Path, root: Path, message: str, hint: str) -> Finding:
    where = path.relative_to(root).as_posix()
    return Finding("E_RECORD", shown(where, 200), shown(message, 300), hint=hint)


def _object(path: Path) -> None:
    if not isinstance(read_json(path, _LIMIT_BYTES), dict):
        raise ValueError("expected a JSON object")


def _named_by_its_bytes(path: Path) -> None:
    """Check that a signed file has the digest of its bytes as its name."""
    if path.stem != hex_of(digest_of(read_plain(path, _LIMIT_BYTES))):
        raise ValueError("its bytes do not match its name")
