"""The adapters in memory: evicts the least recently used one first, and never a pinned one."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from adapterhub.core.digests import Digest, copy_hashed
from adapterhub.core.disk.files import new_folder
from adapterhub.core.disk.held_file import REPAIR_HINT, keep
from adapterhub.core.errors import AdapterNotFound, Conflict, DigestMismatch, UsageProblem, shown
from adapterhub.distribution.finding import FoundAdapter, Identify, check_folder
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE, Manifest
from adapterhub.inference.bank.engines import NativeEngine, PeftEngine
from adapterhub.inference.bank.updates import LoadedAdapter, UpdateTerm, Whole
from adapterhub.inference.loader.attachment import AttachedAdapter, lines
from adapterhub.trust.verify import Subject, open_files


class FileCheck:
    """Checks and opens the files of adapters: reads their bytes into memory, and hashes and uses them there.

    For a build in the store, only the digests are compared with its manifest: `add` verified the rest. Any other folder
    goes through all checks of `verify`.
    """

    def __init__(self, library_root: Path) -> None:
        self._builds = library_root / "adapters"
        self._done: dict[tuple[Path, Stamp], tuple[Mapping[str, Digest], tuple[str, ...]]] = {}

    def __call__(
        self, folder: Path, label: str, manifest: Manifest | None, identify: Identify | None = None
    ) -> tuple[Subject | None, tuple[str, ...]]:
        """Return the files and the warnings; see `check_folder` for the errors.

        Returns None for files that have not changed since they were checked: the caller may not need them, and `again`
        opens them.
        """
        try:
            key = (folder, stamp_of(folder))
        except AdapterNotFound:
            return check_folder(folder, label, manifest, identify, to_attach=True)  # raises, and names the missing file
        if key in self._done:
            return None, self._done[key][1]
        warnings: tuple[str, ...] = ()
        if manifest is not None and folder.is_relative_to(self._builds):
            subject = open_files(folder, manifest.digests, in_memory=True)
        else:
            subject, warnings = check_folder(folder, label, manifest, identify, in_memory=True, to_attach=True)
        self._done[key] = digests_of(subject, manifest), warnings
        return subject, warnings

    def again(self, folder: Path) -> Subject:
        """Return the files of an adapter that was checked before, read again.

        Raises:
            Conflict, DigestMismatch: they have changed since.
        """
        done = self._done.get((folder, stamp_of(folder)))
        if done is None:
            raise changed(folder)
        return open_files(folder, done[0], in_memory=True)

    def forget(self, folder: Path) -> None:
        """Drop what is known of a folder that may never be used again; a later use checks it again."""
        for key in [key for key in list(self._done) if key[0] == folder]:
            self._done.pop(key, None)


Stamp = tuple[tuple[str, int, int, int], ...]
"""Name, size, modification time and inode of each file; another file, or a changed one, has another stamp."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedOrigin:
    """An adapter that was loaded once. `reasons`: why it is not loaded natively; empty if it is.

    `digests`: those of the checked files, by name. `tokens`: ids that a prompt needs for the adapter to act.
    """

    found: FoundAdapter
    digests: Mapping[str, Digest]
    facts: AttachedAdapter
    reasons: tuple[str, ...]
    stamp: Stamp
    tokens: tuple[int, ...] = ()

    def reopened(self) -> Subject:
        """Its files, read into memory again.

        Raises:
            DigestMismatch: they are no longer the files that were checked.
        """
        return open_files(self.found.folder, self.digests, in_memory=True)

    def explain(self) -> str:
        """Engine, base, scales and warnings, in lines for people."""
        first, *rest = lines(self.facts)
        why = [f"  not native: {reason}" for reason in self.reasons]
        engine = PeftEngine.name if self.reasons else NativeEngine.name
        return "\n".join([first, f"  engine: {engine}", *why, *rest])

    def ensure_unchanged(self) -> None:
        """Raise unless the files are still those that were checked.

        Raises:
            AdapterNotFound: they are gone.
            Conflict: they were changed or replaced.
        """
        if stamp_of(self.found.folder) != self.stamp:
            raise changed(self.found.folder)

    def export(self, out_folder: Path) -> Path:
        """Copy the adapter's files byte for byte, and compare them with the checked digests on the way.

        Raises:
            Conflict: the folder exists, or the adapter's files changed.
            DigestMismatch, AdapterNotFound: the files are damaged, or gone.
        """
        self.ensure_unchanged()
        with new_folder(out_folder) as partial:
            for name, expected in self.digests.items():
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                with (self.found.folder / name).open("rb") as source, (partial / name).open("wb") as sink:
                    actual, _ = copy_hashed(source, sink)
                if actual != expected:
                    where = str(self.found.folder / name)
                    raise DigestMismatch(where, expected=expected, actual=actual, hint=REPAIR_HINT)
        return out_folder


def digests_of(files: Subject, manifest: Manifest | None) -> dict[str, Digest]:
    """Return the digests of an adapter's files, by name."""
    held = {name: files.listing.taken[name].held.digest for name in (CONFIG_FILE, WEIGHTS_FILE)}
    return (manifest.digests if manifest else {}) | held


def changed(folder: Path) -> Conflict:
    """Return the error for files that changed after they were loaded."""
    what = f"`{shown(str(folder), 200)}` changed after it was loaded"
    return Conflict(what, hint="unload the adapter and load it again")


def stamp_of(folder: Path) -> Stamp:
    """Return the stamp of an adapter's two files.

    Raises:
        AdapterNotFound: one of them is missing.
    """
    try:
        found = [(name, (folder / name).stat()) for name in (CONFIG_FILE, WEIGHTS_FILE)]
    except OSError as error:
        raise AdapterNotFound(
            f"the adapter files in `{shown(str(folder), 200)}` are gone: {error.strerror}",
            hint="install the adapter again, or unload it",
        ) from None
    return tuple((name, facts.st_size, facts.st_mtime_ns, facts.st_ino) for name, facts in found)


def name_of(found: FoundAdapter, name: str | None) -> str:
    """Return the adapter's name in the bank: `name` if given, or its own, or that of its folder.

    Raises:
        UsageProblem: the name is empty.
    """
    if name is None:
        name = found.build.full_name if found.build else found.folder.resolve().name
    if not isinstance(name, str) or not name.strip():
        raise UsageProblem(f"{shown(name)} is not a name for an adapter", hint='bank.load(spec, name="legal-qa")')
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Counts since the bank was made. A hit: the named adapter was in memory. A miss: it had to be loaded.

    `resident` and `resident_bytes` are the number and the size of the adapters in memory.
    """

    hits: int
    misses: int
    loads: int
    evictions: int
    resident: int
    resident_bytes: int


class Residency:
    """Adapters in memory by name, each as the choice of it alone, within limits (None: no limit).

    Not thread-safe, except `hit`: the bank holds the lock.
    """

    def __init__(self, *, most: int | None, most_bytes: int | None) -> None:
        for name, bound in (("max_resident", most), ("max_resident_bytes", most_bytes)):
            if bound is not None and (type(bound) is not int or bound < 1):
                raise UsageProblem(f"{name} is {shown(bound)}, expected a whole number of at least 1, or None")
        self._most = most
        self._most_bytes = most_bytes
        self._adapters: dict[str, Whole] = {}
        self._pinned: set[str] = set()
        self._uses = itertools.count()
        self._bytes = self._no_hits = self._misses = self._loads = self._evictions = 0

    @property
    def stats(self) -> Stats:
        """Hits, misses, loads and evictions since the bank was made."""
        return Stats(
            hits=self._next_use() - self._no_hits + 1,
            misses=self._misses,
            loads=self._loads,
            evictions=self._evictions,
            resident=len(self._adapters),
            resident_bytes=self._bytes,
        )

    def hit(self, name: str) -> Whole | None:
        """Return the adapter, which becomes the most recently used; None if it is not in memory.

        For any thread at any time: each step of it is whole, and a choice that was evicted since stays usable.
        """
        alone = self._adapters.get(name)
        if alone is not None:
            alone.used = next(self._uses)
        return alone

    def get(self, name: str, *, count: bool = True) -> Whole | None:
        """As `hit`, and counts a miss; with `count=False`, neither."""
        alone = self.hit(name)
        if alone is None:
            self._misses += count
        else:
            self._no_hits += not count
        return alone

    def _next_use(self) -> int:
        """Return the number of a use that is not a hit."""
        self._no_hits += 1
        return next(self._uses)

    def put(self, name: str, adapter: LoadedAdapter, *, keep: Collection[str] = ()) -> Whole:
        """Add an adapter, and evict others for it, but not those that are pinned or in `keep`.

        Raises:
            UsageProblem: these leave no room. Nothing was changed.
        """
        evicted = self._to_evict(name, adapter, keep)
        self.drop(name)
        for other in evicted:
            self.drop(other)
            self._evictions += 1
        self._adapters[name] = chosen = Whole((UpdateTerm(adapter, 1.0),))
        chosen.used = self._next_use()
        self._bytes += adapter.size_bytes
        self._loads += 1
        return chosen

    def drop(self, name: str) -> None:
        """Remove an adapter, if it is there; the next one that is loaded takes its memory."""
        alone = self._adapters.pop(name, None)
        if alone is not None:
            self._bytes -= alone.adapter.size_bytes
            keep(alone.adapter.memory)

    def pin(self, name: str, *, is_pinned: bool) -> None:
        """Protect an adapter from eviction, or end that."""
        (self._pinned.add if is_pinned else self._pinned.discard)(name)

    def _to_evict(self, name: str, adapter: LoadedAdapter, keep: Collection[str]) -> list[str]:
        before = self._adapters.get(name)
        count = len(self._adapters) + (before is None)
        size = self._bytes + adapter.size_bytes - (before.adapter.size_bytes if before else 0)
        evicted = []
        others: Iterable[tuple[str, Whole]] = () if self._fits(count, size) else self._adapters.items()
        for other, alone in sorted(others, key=lambda item: item[1].used):  # the least recently used first
            if self._fits(count, size):
                break
            if other != name and other not in self._pinned and other not in keep:
                evicted.append(other)
                count, size = count - 1, size - alone.adapter.size_bytes
        if not self._fits(count, size):
            bounds = [f"{self._most} adapters"] if self._most is not None else []
            bounds += [f"{self._most_bytes:,} bytes"] if self._most_bytes is not None else []
            raise UsageProblem(
                f"no room for `{shown(name)}` ({adapter.size_bytes:,} bytes): the limit is {' and '.join(bounds)}, and"
                f" {count - 1} other adapters cannot be evicted because they are pinned or in the same choice",
                hint="raise max_resident or max_resident_bytes, or unload a pinned adapter",
            )
        return evicted

    def _fits(self, count: int, size_bytes: int) -> bool:
        return (self._most is None or count <= self._most) and (
            self._most_bytes is None or size_bytes <= self._most_bytes
        )
