"""The cache of a bank: adapters by name, loaded, evicted, and loaded again at their next use."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

from adapterhub.core.errors import AdapterNotFound, Conflict, UsageProblem, shown
from adapterhub.distribution.finding import FoundAdapter, folder_in
from adapterhub.inference.bank.engine import Engine, LoadedAdapter
from adapterhub.inference.bank.engines.hooks import Hooks
from adapterhub.inference.bank.engines.native import NativeEngine
from adapterhub.inference.bank.engines.peft_engine import PeftEngine
from adapterhub.inference.bank.origins import LoadedOrigin, Stamp, name_of, stamp_of
from adapterhub.inference.bank.residency import Residency, Stats
from adapterhub.inference.bank.selection import Whole
from adapterhub.inference.loader.preparation import Preparation, Prepared
from adapterhub.library.store.catalog import AdapterLike


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
        engine: Engine = self._peft if origin.reasons else self._native
        return self._take(name, engine.load(ready), keep)

    def _take_new(self, pending: _Pending, engine: Engine, reasons: tuple[str, ...], keep: Sequence[str]) -> Whole:
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
