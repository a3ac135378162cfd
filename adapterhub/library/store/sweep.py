"""Deletion of the objects that nothing needs, and of what killed writers left.

The lock `store`, for which writers wait, is held in turns of a fifth of a second. Everything slow comes before: the
objects that no folder shares, then the claims, then what the installed folders name. Writers go on meanwhile, and
each touches the objects that it needs, or has a claim on them. So nothing needs an object without a claim that has not
changed since it was found.
"""

from __future__ import annotations

import contextlib
import re
import stat
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Final

from adapterhub.core.digests import Digest, digest_of, hex_of
from adapterhub.core.disk.files import RealFolder, matching, open_plain
from adapterhub.core.disk.root import Claim, finished, living
from adapterhub.core.errors import MalformedManifest
from adapterhub.formats.manifest import LIMIT_BYTES, MANIFEST_FILE, Manifest
from adapterhub.library.store.blobs import Store
from adapterhub.library.store.catalog import Swept, objects_of
from adapterhub.library.store.roots import ProjectRoots

Steps = Callable[[int, int], None]
"""Called with how many of how many are done."""

GRACE_S: Final = 3600.0
"""Objects younger than this are spared by `sweep`: a writer on another host (no shared locks) may name them next."""

_TEMP_GRACE_S: Final = 3600.0
"""A temp file beside a small record is abandoned when it is older than this, whatever `grace_s` is."""

_TURN_S: Final = 0.2
_BETWEEN_S: Final = 0.05
_MANIFESTS: Final = "manifests/sha256"
_OF_RESULTS: Final = ("tests/*", "made/*", "cache/tests/*", "cache/tried/*")
_NAMED: Final = re.compile(rb'"sha256"[ \t\r\n]*:[ \t\r\n]*"(sha256:[0-9a-f]{64})"')
"""Every file that a manifest names, in any form of JSON without escaped letters."""

_Facts = tuple[int, int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unlinked:
    """A file that no folder shares: where it lies, the digests in its name, what would change with any use of it.

    `manifest` is the same of the manifest that a record is about.
    """

    place: str
    name: str
    digests: tuple[str, ...]
    size_bytes: int
    written_at: float
    age_s: float
    facts: _Facts
    manifest: tuple[str, _Facts] | None = None


def sweep(
    store: Store,
    needed: Callable[[Steps], Iterable[Digest]],
    *,
    grace_s: float = GRACE_S,
    dry_run: bool = False,
    wait_s: float = 30.0,
    steps: Steps = lambda _done, _of: None,
) -> Swept:
    """Delete what no claim, no project and no installed build needs and is older than `grace_s`; stale temp files too.

    `needed` gives what the installed builds need, and is asked only where it decides. A writer's folder goes with the
    writer, at any age.

    Raises:
        Malformed: the record of a project is damaged; nothing was deleted.
        NotAllowed: a folder of the library is a link.
        StoreLocked: another process held the store for `wait_s` seconds, or a claim cannot be read.
    """
    root, projects = store.root, ProjectRoots(store.root)
    store.ensure_real_folders()
    found = list(_unlinked(root, grace_s))
    claims = _claims(root)  # before the folders: one that ends in between has made its folder by then
    keep = {hex_of(digest) for digest in (*_claimed(claims), *projects.digests())}
    found = [one for one in found if keep.isdisjoint(one.digests)]
    if any(any(one.digests) for one in found):
        keep = set(map(hex_of, needed(steps)))
        found = [one for one in found if keep.isdisjoint(one.digests)]
    gone, spared, now = deque[_Unlinked](), [], time.time()
    for one in found:
        if one.age_s and one.written_at > now - one.age_s:
            spared.append((root / one.place / one.name, one.size_bytes))
        else:
            gone.append(one)
    taken: list[tuple[Path, int]] = []
    if dry_run:
        taken = [(root / one.place / one.name, one.size_bytes) for one in gone]
        _sweep_leftovers(store, grace_s, taken, spared, dry_run=True)
    else:
        total, is_first = len(gone), True
        while gone or is_first:
            with store.lock("store", exclusive=True, wait_s=wait_s), store.os_errors_as_refusals():
                until = time.monotonic() + _TURN_S
                now_kept = {hex_of(digest) for digest in (*_claimed(_claims(root)), *projects.digests())}
                if is_first:
                    _sweep_leftovers(store, grace_s, taken, spared, dry_run=False)
                    is_first = False
                taken += ((root / one.place / one.name, one.size_bytes) for one in _turn(root, gone, now_kept, until))
            steps(total - len(gone), total)
            if gone:
                time.sleep(_BETWEEN_S)  # so that writers get theirs
    return Swept(gone=tuple(taken), spared=tuple(spared), claims=claims)


def objects_in(folder: str, is_stored: Callable[[Digest], bool]) -> list[Digest]:
    """Return the manifest in an installed folder and the files that it names.

    One whose very bytes the store has is not parsed: they have the form that was checked when they came.

    Raises:
        MalformedManifest: it cannot be used.
        OSError: it cannot be read.
    """
    path = f"{folder}/{MANIFEST_FILE}"
    with open_plain(path) as stream:
        raw = stream.read(LIMIT_BYTES + 1)
    digest = digest_of(raw)
    if b"\\u" in raw or not is_stored(digest):
        return objects_of(Manifest.parse(raw, path))
    return [digest, *(Digest(name.decode()) for name in _NAMED.findall(raw))]


def objects_of_folders(folders: Sequence[str], store: Store, steps: Steps) -> Iterator[Digest]:
    """Yield the objects that the builds in these folders name; one that is gone or damaged names nothing."""
    with contextlib.suppress(FileNotFoundError), RealFolder.open(store.root / _MANIFESTS) as stored:
        names = set(stored.names())
        for at, folder in enumerate(folders, 1):
            with contextlib.suppress(FileNotFoundError, MalformedManifest):
                yield from objects_in(folder, lambda digest: f"{hex_of(digest)}.json" in names)
            if not at % 256 or at == len(folders):
                steps(at, len(folders))


def _claims(root: Path) -> tuple[Claim, ...]:
    return (*living(root / "intents"), *living(root / "leases"))


def _claimed(claims: Iterable[Claim]) -> Iterator[Digest]:
    return (digest for one in claims for digest in one.digests)


def _turn(root: Path, gone: deque[_Unlinked], keep: set[str], until: float) -> Iterator[_Unlinked]:
    """Delete those that have not changed since they were found, until the time is over."""
    with RealFolder.open(root) as top:
        for place, some in groupby(_taken_from(gone, until), attrgetter("place")):
            with contextlib.ExitStack() as stack:
                folder = top
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    for level in filter(None, place.split("/")):
                        folder = stack.enter_context(folder.inside(level))
                    for one in some:
                        if not keep.isdisjoint(one.digests) or _facts_in(folder, one.name) != one.facts:
                            continue
                        now = _facts_in(top, one.manifest[0]) if one.manifest else None
                        if one.manifest and now not in (one.manifest[1], None):  # installed since
                            continue
                        with contextlib.suppress(FileNotFoundError):
                            folder.remove(one.name)
                            yield one


def _taken_from(gone: deque[_Unlinked], until: float) -> Iterator[_Unlinked]:
    while gone and time.monotonic() < until:
        yield gone.popleft()


def _facts_in(folder: RealFolder, name: str) -> _Facts:
    try:
        facts = folder.facts(name)
    except OSError:
        return None
    return facts.st_ino, facts.st_ctime_ns  # which a link to it, a new time and other bytes all change


def _unlinked(root: Path, grace_s: float) -> Iterator[_Unlinked]:
    """Every file that a sweep may take when no digest in its name is needed.

    Files that another folder shares are left out, even if that folder cannot show it: deleting them frees nothing.
    """
    shared, old_s = set[str](), max(grace_s, _TEMP_GRACE_S)
    places = (
        ("blobs/sha256/*", "*", grace_s),
        *((place, "*.json", grace_s) for place in (_MANIFESTS, "origins", "yanked", *_OF_RESULTS)),
        *((place, ".*", old_s) for place in (_MANIFESTS, "intents", "leases")),
        *((place, ".*.json.*-*", old_s) for place in ("", "*")),
    )
    with contextlib.suppress(FileNotFoundError), RealFolder.open(root) as top:
        for place, pattern, age_s in places:
            is_object = place.startswith(("blobs/", _MANIFESTS))
            for folder, name in matching(top, list(filter(None, place.split("/"))), pattern):
                try:
                    facts = folder.facts(name)
                except FileNotFoundError:
                    continue
                of_manifest = folder.path.name if place in _OF_RESULTS else ""  # the folder that they lie in
                digests = (name.split(".")[0], of_manifest)
                if stat.S_ISREG(facts.st_mode) and facts.st_nlink > 1:
                    if place == _MANIFESTS:
                        shared.add(digests[0])
                    continue
                about = "" if is_object else of_manifest or digests[0]
                if about and about in shared:
                    continue
                manifest = f"{_MANIFESTS}/{about}.json"
                yield _Unlinked(
                    place=folder.path.relative_to(top.path).as_posix().removeprefix("."),
                    name=name,
                    digests=digests,
                    size_bytes=facts.st_size,
                    written_at=facts.st_mtime,
                    age_s=age_s,
                    facts=(facts.st_ino, facts.st_ctime_ns),
                    manifest=(manifest, _facts_in(top, manifest)) if about else None,
                )


def _sweep_leftovers(
    store: Store,
    grace_s: float,
    gone: list[tuple[Path, int]],
    spared: list[tuple[Path, int]],
    *,
    dry_run: bool,
) -> None:
    """Delete what writers and readers left that have ended; the caller holds the lock."""
    root = store.root
    at_work = {claim.path.name for claim in living(root / "intents")}
    over = {path.name for path in finished(root / "intents")}
    ended = {path.name for path in finished(root / "leases")}
    with contextlib.suppress(FileNotFoundError), RealFolder.open(root) as top:
        for place in ("tmp", "intents", "leases"):
            for folder, name in matching(top, [place], "*"):
                if name in at_work if place == "tmp" else name not in (over if place == "intents" else ended):
                    continue
                with contextlib.suppress(FileNotFoundError):
                    facts, path = folder.facts(name), folder.path / name
                    if place == "tmp" and name not in over and facts.st_mtime > time.time() - grace_s and grace_s:
                        spared.append((path, facts.st_size))
                        continue
                    if not dry_run:
                        folder.remove(name)
                    gone.append((path, facts.st_size))
