"""The adapters of a bank by name: loaded, let go when there is no room, and loaded again when they are asked for."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import NamedTuple

from adapterhub.core.errors import AdapterNotFound, Conflict, UsageProblem, shown
from adapterhub.distribution.finding import AdapterLike, Found, folder_in
from adapterhub.inference.bank.engine import Engine, LoadedAdapter
from adapterhub.inference.bank.engines.hooks import Hooks
from adapterhub.inference.bank.engines.native import NativeEngine
from adapterhub.inference.bank.engines.peft_engine import PeftEngine
from adapterhub.inference.bank.origins import LoadedOrigin, Stamp, name_of, stamp_of
from adapterhub.inference.bank.residency import Residency, Stats
from adapterhub.inference.loader.preparation import Preparation, Prepared


class _Pending(NamedTuple):
    """An adapter that is on its way into memory: its name here, the stamp of its files, and what was prepared."""

    name: str
    stamp: Stamp
    prepared: Prepared


class AdapterCache:
    """Adapters by name. Safe between threads: one loads at a time, and who asks for what is in memory never waits."""

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
        self._lock = threading.RLock()  # for the books; short
        # Order of locks: the model alone (Turnstile), then `loading`, then `_lock`.
        self.loading = peft.loading

    @property
    def names(self) -> tuple[str, ...]:
        """All that were loaded and not unloaded."""
        with self._lock:
            return tuple(self._origins)

    @property
    def stats(self) -> Stats:
        """The counts now."""
        with self._lock:
            return self._residency.stats

    def origin(self, name: str) -> LoadedOrigin:
        """Where an adapter was loaded from.

        Raises:
            AdapterNotFound: nothing was loaded by that name.
        """
        with self._lock:
            origin = self._origins.get(name)
        if origin is None:
            raise AdapterNotFound(f"no adapter `{shown(name)}` was loaded here", hint=f"bank.load({name!r})")
        return origin

    def get(self, name: str, *, keep: Sequence[str] = ()) -> LoadedAdapter:
        """An adapter, loaded if it is not in memory; those in `keep` are not let go for it.

        A name that was never loaded is looked up in the library. Raises as `load`.
        """
        with self._lock:
            self._refuse_closed()
            adapter = self._residency.get(name)
        if adapter is not None:
            return adapter
        with self.loading:
            origin = self._origins.get(name)
            if origin is not None:
                return self._again(name, origin, keep)
        if folder_in(name) is not None:
            self.origin(name)  # raises: only `load` gives a folder a name
        return self.load(name, name, keep=keep)[1]

    def load(self, what: AdapterLike, name: str | None, *, keep: Sequence[str] = ()) -> tuple[str, LoadedAdapter]:
        """Bring an adapter into memory; the name that it has here, and the adapter."""
        with self.loading:
            self._refuse_closed()
            found = self._preparation.find(what)
            chosen = name_of(found, name)
            known = self._known(chosen, found)
            if known is not None:
                return chosen, self._again(chosen, known, keep)
            pending = _Pending(chosen, stamp_of(found.folder), *self._preparation.prepare([found]))
            reasons = self._native.reasons_against(pending.prepared.ready)
            if not reasons:
                return chosen, self._take_new(pending, self._native, (), keep)
        # Never wait for the model while holding the lock: who has the model may want the lock.
        with self._peft.alone(), self.loading:
            self._peft.try_on(found)
            return chosen, self._take_new(pending, self._peft, reasons, keep)

    def pin(self, name: str, *, is_pinned: bool) -> None:
        """Keep an adapter in memory from now on, or no longer."""
        with self._lock:
            self._residency.pin(name, is_pinned=is_pinned)

    def unload(self, name: str) -> None:
        """Forget an adapter.

        Raises:
            AdapterNotFound: nothing was loaded by that name.
        """
        with self.loading, self._lock:
            self.origin(name)
            del self._origins[name]
            self._residency.drop(name)
            self._residency.pin(name, is_pinned=False)

    def close(self) -> None:
        """Forget all, and load nothing any more."""
        with self.loading, self._lock:
            self._is_closed = True
            for name in list(self._origins):
                self.unload(name)

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise UsageProblem("the bank was closed", hint="make another one: AdapterBank(model)")

    def _known(self, name: str, found: Found) -> LoadedOrigin | None:
        known = self._origins.get(name)
        if known is not None and known.found.folder != found.folder:
            raise Conflict(
                f"`{shown(name)}` is the name of `{shown(known.found.label, 200)}` here",
                hint=f"give another one: bank.load(…, name=…), or bank.unload({name!r}) first",
            )
        return known

    def _again(self, name: str, origin: LoadedOrigin, keep: Sequence[str]) -> LoadedAdapter:
        with self._lock:
            adapter = self._residency.get(name, count=False)
        if adapter is not None:
            return adapter
        origin.ensure_unchanged()
        [ready] = self._preparation.ready([origin.found], [origin.reopened()])
        engine: Engine = self._peft if origin.reasons else self._native
        return self._take(name, engine.load(ready, origin.found), keep)

    def _take_new(
        self, pending: _Pending, engine: Engine, reasons: tuple[str, ...], keep: Sequence[str]
    ) -> LoadedAdapter:
        name, stamp, prepared = pending
        known = self._known(name, prepared.found)  # another thread may have been faster
        if known is not None:
            return self._again(name, known, keep)
        adapter = self._take(name, engine.load(prepared.ready, prepared.found), keep)
        # Only now: this may write to the library which base the adapter is for.
        facts = self._preparation.record(prepared)
        self._origins[name] = LoadedOrigin.of(prepared, facts, engine=engine.name, reasons=reasons, stamp=stamp)
        return adapter

    def _take(self, name: str, adapter: LoadedAdapter, keep: Sequence[str]) -> LoadedAdapter:
        with self._lock:
            self._refuse_closed()
            self._residency.put(name, adapter, keep=keep)
            self._hooks.reach(adapter.updates)
        return adapter
