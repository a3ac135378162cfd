"""The adapters in memory: evicts the least recently used one first, and never a pinned one."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from adapterhub.core.digests import Digest, copy_hashed
from adapterhub.core.disk.files import new_folder
from adapterhub.core.disk.held_file import REPAIR_HINT, keep
from adapterhub.core.errors import AdapterNotFound, Conflict, DigestMismatch, UsageProblem, shown
from adapterhub.distribution.finding import FoundAdapter, Identify, check_folder, folder_in
from adapterhub.formats.manifest import CONFIG_FILE, WEIGHTS_FILE, Manifest
from adapterhub.inference.bank.engines import Hooks, NativeEngine, PeftEngine
from adapterhub.inference.bank.updates import LoadedAdapter, UpdateEngine, UpdateTerm, Whole
from adapterhub.inference.loader.attachment import AttachedAdapter, Preparation, Prepared, lines
from adapterhub.library.store.catalog import AdapterLike
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
        """The files and the warnings; see `check_folder` for the errors.

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
        """The files of an adapter that was checked before, read again.

        Raises:
            Conflict, DigestMismatch: they have changed since.
        """
        done = self._done.get((folder, stamp_of(folder)))
        if done is None:
            raise changed(folder)
        return open_files(folder, done[0], in_memory=True)


Stamp = tuple[tuple[str, int, int, int], ...]
"""Name, size, modification time and inode of each file; another file, or a changed one, has another stamp."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedOrigin:
    """An adapter that was loaded once. `reasons`: why it is not loaded natively; empty if it is.

    `digests`: those of the checked files, by name.
    """

    found: FoundAdapter
    digests: Mapping[str, Digest]
    facts: AttachedAdapter
    engine: str
    reasons: tuple[str, ...]
    stamp: Stamp

    @classmethod
    def of(
        cls, prepared: Prepared, facts: AttachedAdapter, *, engine: str, reasons: tuple[str, ...], stamp: Stamp
    ) -> LoadedOrigin:
        """The origin of an adapter that was just loaded, without its files."""
        found = prepared.found
        return cls(
            found=replace(found, subject=None),
            digests=digests_of(prepared.files, found.build.manifest if found.build else None),
            facts=facts,
            engine=engine,
            reasons=reasons,
            stamp=stamp,
        )

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
        return "\n".join([first, f"  engine: {self.engine}", *why, *rest])

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
    """The digests of an adapter's files, by name."""
    held = {name: files.listing.taken[name].held.digest for name in (CONFIG_FILE, WEIGHTS_FILE)}
    return (manifest.digests if manifest else {}) | held


def changed(folder: Path) -> Conflict:
    """The error for files that changed after they were loaded."""
    what = f"`{shown(str(folder), 200)}` changed after it was loaded"
    return Conflict(what, hint="unload the adapter and load it again")


def stamp_of(folder: Path) -> Stamp:
    """The stamp of an adapter's two files.

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
    """The adapter's name in the bank: `name` if given, else its own, else that of its folder.

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

    Not thread-safe, except `hit`: the cache holds the lock.
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
        """The adapter, which becomes the most recently used; None if it is not in memory.

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
        """The number of a use that is no hit."""
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


class _Pending(NamedTuple):
    """An adapter that is being loaded: its name in the bank, the stamp of its files, and the checked adapter."""

    name: str
    stamp: Stamp
    prepared: Prepared


class AdapterCache:
    """Adapters by name. Thread-safe: one thread loads at a time; getting an adapter in memory never waits for it."""

    def __init__(
        self, preparation: Preparation, hooks: Hooks, residency: Residency, *, native: NativeEngine, peft: PeftEngine
    ) -> None:
        self._preparation = preparation
        self._hooks = hooks
        self._residency = residency
        self._native = native
        self._peft = peft
        self._origins: dict[str, LoadedOrigin] = {}
        self._is_closed = False
        self._lock = threading.RLock()  # guards the dictionaries; held briefly
        # Order of locks: exclusive use of the model (Turnstile), then `loading`, then `_lock`.
        self.loading = peft.loading

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all loaded adapters, evicted ones included."""
        with self._lock:
            return tuple(self._origins)

    @property
    def stats(self) -> Stats:
        """Hits, misses, loads and evictions since the bank was made."""
        with self._lock:
            return self._residency.stats

    def origin(self, name: str) -> LoadedOrigin:
        """The origin of a loaded adapter.

        Raises:
            AdapterNotFound: no adapter was loaded by that name.
        """
        with self._lock:
            origin = self._origins.get(name)
        if origin is None:
            raise AdapterNotFound(f"no adapter `{shown(name)}` was loaded here", hint=f"bank.load({name!r})")
        return origin

    def get(self, name: str, *, keep: Sequence[str] = ()) -> Whole:
        """The choice of one adapter, loaded if it is not in memory; does not evict those in `keep` for it.

        Looks up a name that was never loaded in the library. Raises as `load`.
        """
        with self._lock:
            chosen = self._residency.get(name)
        if chosen is not None:
            return chosen
        self._ensure_open()
        with self.loading:
            origin = self._origins.get(name)
            if origin is not None:
                return self._again(name, origin, keep)
        if folder_in(name) is not None:
            self.origin(name)  # raises: only `load` gives a folder a name
        return self.load(name, name, keep=keep)[1]

    def load(self, what: AdapterLike, name: str | None, *, keep: Sequence[str] = ()) -> tuple[str, Whole]:
        """Bring an adapter into memory; its name in the bank, and the choice of it."""
        with self.loading:
            self._ensure_open()
            found = self._preparation.find(what)
            chosen = name_of(found, name)
            known = self._known(chosen, found)
            if known is not None:
                return chosen, self._again(chosen, known, keep)
            pending = _Pending(chosen, stamp_of(found.folder), *self._preparation.prepare([found]))
            reasons = self._native.reasons_against(pending.prepared.ready)
            if not reasons:
                return chosen, self._take_new(pending, self._native, (), keep)
        # Never wait for the model with the lock held: the thread that has the model may need the lock.
        with self._peft.alone(), self.loading:
            self._peft.try_on(found)
            return chosen, self._take_new(pending, self._peft, reasons, keep)

    def pin(self, name: str, *, is_pinned: bool) -> None:
        """Protect an adapter from eviction, or end that."""
        with self._lock:
            self._residency.pin(name, is_pinned=is_pinned)

    def unload(self, name: str) -> None:
        """Remove an adapter.

        Raises:
            AdapterNotFound: no adapter was loaded by that name.
        """
        with self.loading, self._lock:
            self.origin(name)
            del self._origins[name]
            self._residency.drop(name)
            self._residency.pin(name, is_pinned=False)

    def close(self) -> None:
        """Remove all adapters; later loads are refused."""
        with self.loading, self._lock:
            self._is_closed = True
            for name in list(self._origins):
                self.unload(name)

    def _ensure_open(self) -> None:
        if self._is_closed:
            raise UsageProblem("the bank was closed", hint="make another one: AdapterBank(model)")

    def _known(self, name: str, found: FoundAdapter) -> LoadedOrigin | None:
        known = self._origins.get(name)
        if known is not None and known.found.folder != found.folder:
            raise Conflict(
                f"the bank has `{shown(known.found.label, 200)}` under the name `{shown(name)}`",
                hint=f"choose another name, bank.load(…, name=…), or call bank.unload({name!r}) first",
            )
        return known

    def _again(self, name: str, origin: LoadedOrigin, keep: Sequence[str]) -> Whole:
        with self._lock:
            chosen = self._residency.get(name, count=False)
        if chosen is not None:
            return chosen
        origin.ensure_unchanged()
        [ready] = self._preparation.ready([origin.found], [origin.reopened()])
        engine: UpdateEngine = self._peft if origin.reasons else self._native
        return self._take(name, engine.load(ready), keep)

    def _take_new(
        self, pending: _Pending, engine: UpdateEngine, reasons: tuple[str, ...], keep: Sequence[str]
    ) -> Whole:
        name, stamp, prepared = pending
        known = self._known(name, prepared.found)  # another thread may have loaded it meanwhile
        if known is not None:
            return self._again(name, known, keep)
        chosen = self._take(name, engine.load(prepared.ready), keep)
        # Last, because this may record the adapter's base in the library.
        facts = self._preparation.record(prepared)
        self._origins[name] = LoadedOrigin.of(prepared, facts, engine=engine.name, reasons=reasons, stamp=stamp)
        return chosen

    def _take(self, name: str, adapter: LoadedAdapter, keep: Sequence[str]) -> Whole:
        with self._lock:
            self._ensure_open()
            chosen = self._residency.put(name, adapter, keep=keep)
            self._hooks.reach(adapter.updates)
        return chosen
