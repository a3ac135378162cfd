"""`AdapterBank`: load, choose, evict, prove that the base is as it was."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import TracebackType

import torch
from torch import nn

from adapterhub.core.digests import Digest
from adapterhub.core.errors import MergeRefused, UnsupportedAdapter, UsageProblem, shown
from adapterhub.core.specs import BaseSpec
from adapterhub.distribution.finding import AdapterLike
from adapterhub.inference.bank.cache import AdapterCache
from adapterhub.inference.bank.engines.hooks import Hooks
from adapterhub.inference.bank.engines.native import NativeEngine
from adapterhub.inference.bank.engines.peft_engine import PeftEngine, ensure_outside_use
from adapterhub.inference.bank.file_check import FileCheck
from adapterhub.inference.bank.frozen import FrozenBase
from adapterhub.inference.bank.residency import Residency, Stats
from adapterhub.inference.bank.rows import Rows
from adapterhub.inference.bank.selection import Choice, Current, Term, Using, Whole, check_terms, weights_of
from adapterhub.inference.loader.base.model import BaseModel
from adapterhub.inference.loader.facts import AttachedAdapter
from adapterhub.inference.loader.preparation import Preparation
from adapterhub.library.default import LibraryLike, open_library


class AdapterBank:
    """Any number of adapters beside one frozen model, chosen per call; a context manager that leaves the model bare.

    The model is compared once with what adapters were made for; no module of it is replaced and nothing is written to
    it. Adapters are held by name. `max_resident` and `max_resident_bytes` bound how many are in memory: the least
    recently used one is let go, and loaded again when it is asked for; one more than the bound is in memory while it
    is loaded. `dtype` is what factors are kept and computed in; without it that of the file, or of the base where it
    is wider. `library` is by default that of the command line, and `base` names the base for all adapters.

    A choice (`use`, `rows`) is a context variable: threads and tasks do not see each other's. A new thread begins
    without a choice; `contextvars.copy_context().run` takes one along. Adapters stay in memory as long as a choice
    holds them, whatever is unloaded.

    Raises:
        UsageProblem: it is no model, has an adapter already, or a bound makes no sense.
        CouldNotTell: some of its parameters are not in memory.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        library: LibraryLike = None,
        base: BaseSpec | str | None = None,
        max_resident: int | None = None,
        max_resident_bytes: int | None = None,
        dtype: torch.dtype | str | None = None,
        allow_base_mismatch: bool = False,
    ) -> None:
        residency = Residency(most=max_resident, most_bytes=max_resident_bytes)
        self._base = BaseModel(model)
        native = NativeEngine(self._base, _dtype(dtype))
        place = open_library(library)
        files = FileCheck(place.root)
        preparation = Preparation(
            self._base,
            place,
            base=base,
            allow_base_mismatch=allow_base_mismatch,
            check=files,
            reopen=files.again,
        )
        self._frozen = FrozenBase(self._base, preparation.loaded)
        self._current: Current = ContextVar("adapterhub_bank", default=None)
        self._peft = PeftEngine(model, self._current, library=place, base=base, allow_base_mismatch=allow_base_mismatch)
        hooks = Hooks(self._base, self._current)
        self._cache = AdapterCache(preparation, hooks, residency, native=native, peft=self._peft)
        hooks.take(self._peft.guard())
        self._finalizer = weakref.finalize(self, hooks.remove)

    # ------------------------------------------------------------ what is here
    @property
    def model(self) -> nn.Module:
        """The model that the bank was given."""
        return self._base.model

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all adapters that were loaded and not unloaded, in memory or evicted."""
        return self._cache.names

    @property
    def stats(self) -> Stats:
        """Hits, misses, loads, evictions, and what is in memory."""
        return self._cache.stats

    def explain(self, name: str) -> str:
        """How an adapter is used, in lines for people: engine and why, base, scales, warnings.

        A name that was not loaded is looked up in the library and loaded, as `use` does.

        Raises:
            AdapterNotFound: nothing by that name; and all that `load` raises.
        """
        if name not in self._cache.names:
            self._cache.get(name)
        return self._cache.origin(name).explain()

    def facts(self, name: str) -> AttachedAdapter:
        """The same for programs: label, method, how its base stands to the model, scales, warnings.

        Raises:
            AdapterNotFound: nothing was loaded by that name.
        """
        return self._cache.origin(name).facts

    # ------------------------------------------------------------ load and unload
    def load(self, what: AdapterLike, name: str | None = None, *, pin: bool | None = None) -> str:
        """Bring an adapter into memory; its name, which is its own when none is given.

        What is loaded already is not read again. `pin=True` keeps it from being evicted, `pin=False` no longer. Takes
        some 20 ms for 20 MB in the page cache, whatever is loaded already, and as much again the first time, when its
        digests are checked. One that runs on PEFT's layers is tried on, for which it has the model alone.

        Raises:
            BaseMismatch, UnsupportedAdapter, RefusedAdapter, Malformed, DigestMismatch: as `attach`.
            AdapterNotFound, NoCompatibleRelease, AmbiguousSpec, BaseNotFound: what was asked for.
            Conflict: another adapter has that name, or its files changed since it was loaded.
            UsageProblem: there is no room beside the pinned ones, or the bank was closed.

        After any of these the bank and the model are as they were.
        """
        chosen, _ = self._cache.load(what, name)
        if pin is not None:
            self._cache.pin(chosen, is_pinned=pin)
        return chosen

    def unload(self, name: str) -> None:
        """Forget an adapter. Choices that hold it go on with it; its memory is free when the last of them ends.

        Raises:
            AdapterNotFound: nothing was loaded by that name.
        """
        self._cache.unload(name)

    # ------------------------------------------------------------ choose
    def use(self, choice: Choice) -> Using:
        """Let an adapter, a weighted sum of several, or the plain base (None) answer from here on in this context.

        With `with`, until the end of the block. Takes microseconds; an adapter that was evicted is loaded again, and a
        name that was never loaded is looked up in the library. One that runs on PEFT's layers (`explain` says so)
        needs `with`: it has the model alone until the end of the block, others wait, and putting it on takes as long
        as `attach`.

        Raises:
            AdapterNotFound: nothing by that name.
            MergeRefused: adapters that cannot be added up.
            UsageProblem: a weight makes no sense, or there is no room for all of them at once.
        """
        ensure_outside_use(self._current.get())
        [terms] = self._terms([choice])
        if any(term.adapter.engine == self._peft.name for term in terms):
            return self._use_peft(choice, terms)
        check_terms(terms)
        return Using(self._current, Whole(terms) if terms else None)

    def rows(self, choices: Sequence[Choice]) -> Using:
        """As `use`, with a choice for each row of the batch.

        The batch may be a multiple of the rows, as `generate` makes it for beams. What rows with different adapters
        cost depends on their number, not on that of the adapters.

        Raises:
            UnsupportedAdapter: an adapter that cannot be used on some rows only; `use` can have it.
            AdapterNotFound, MergeRefused, UsageProblem: as `use`.
        """
        ensure_outside_use(self._current.get())
        if isinstance(choices, str | Mapping) or not isinstance(choices, Sequence) or not choices:
            raise UsageProblem(f'{shown(choices)}: expected one choice for each row, such as ["a", None]')
        by_row = self._terms(choices)
        for terms in by_row:
            check_terms(terms)
            _refuse_by_row(terms)
        return Using(self._current, Rows(by_row))

    # ------------------------------------------------------------ prove and save
    def assert_frozen(self) -> Digest:
        """The digest over every parameter and buffer of the base, which never changes.

        The first call compares what was sampled of each tensor when the bank was made, and takes the digest; every
        later one compares all bytes with it. Reads the whole base: 0.3 s for 500 MB.

        Raises:
            DigestMismatch: something wrote to the base.
        """
        return self._frozen.check()

    def export(self, name: str, folder: str | Path) -> Path:
        """Write an adapter as the PEFT folder it was loaded from, byte for byte.

        Raises:
            AdapterNotFound: nothing was loaded by that name, or its files are gone.
            Conflict: the folder exists, or the adapter's files changed.
            DigestMismatch: a file of the store is damaged.
        """
        return self._cache.origin(name).export(Path(folder))

    def close(self) -> None:
        """Take everything off the model and forget all adapters; running calls end without them."""
        self._cache.close()
        self._peft.close()
        self._finalizer()
        self._current.set(None)

    def __enter__(self) -> AdapterBank:  # noqa: PYI034 - `typing.Self` comes with Python 3.11
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # ------------------------------------------------------------ inside
    def _terms(self, choices: Iterable[Choice]) -> list[tuple[Term, ...]]:
        """The adapters of each choice, all of them in memory at once."""
        weights = [weights_of(choice) for choice in choices]
        names = list(dict.fromkeys(name for each in weights for name in each))
        found = {name: self._cache.get(name, keep=names) for name in names}
        return [tuple(Term(found[name], weight) for name, weight in each.items()) for each in weights]

    def _use_peft(self, choice: Choice, terms: Sequence[Term]) -> Using:
        if len(terms) != 1 or terms[0].weight != 1:
            raise MergeRefused(
                "these adapters cannot be added up in a bank",
                [
                    f"`{shown(t.adapter.label)}` runs on PEFT's layers, alone and with weight 1"
                    for t in terms
                    if t.adapter.engine == self._peft.name
                ],
            )
        [name] = weights_of(choice)
        origin = self._cache.origin(name)
        origin.ensure_unchanged()
        return self._peft.use(origin.found)


def _refuse_by_row(terms: Iterable[Term]) -> None:
    """Refuse adapters that cannot be used on some rows of a batch only.

    Raises:
        UnsupportedAdapter: with every reason.
    """
    reasons = [f"`{shown(t.adapter.label)}`: {t.adapter.no_rows}" for t in terms if t.adapter.no_rows]
    if reasons:
        raise UnsupportedAdapter(
            "these adapters cannot be chosen by row", reasons, hint="bank.use(…) has them for the whole batch"
        )


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and (not isinstance(found, torch.dtype) or not found.is_floating_point):
        raise UsageProblem(f"dtype {shown(dtype)}, expected a floating one such as `bfloat16`")
    return found
