"""`AdapterBank`: loads, chooses and evicts adapters, and proves that the base is unchanged."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final

import torch
from torch import nn

from adapterhub.core.arguments import Count, ModelLike, parsed
from adapterhub.core.digests import Digest
from adapterhub.core.disk.memory import keep_none
from adapterhub.core.errors import MergeRefused, UnsupportedAdapter, UsageProblem, shown
from adapterhub.core.specs import BaseSpec
from adapterhub.inference.bank.cache import AdapterCache
from adapterhub.inference.bank.engines.hooks import Hooks
from adapterhub.inference.bank.engines.native import NativeEngine
from adapterhub.inference.bank.engines.peft_engine import PeftEngine, ensure_outside_use
from adapterhub.inference.bank.file_check import FileCheck
from adapterhub.inference.bank.frozen import FrozenBase
from adapterhub.inference.bank.residency import Residency, Stats
from adapterhub.inference.bank.room import Rooms
from adapterhub.inference.bank.rows import Rows
from adapterhub.inference.bank.selection import Choice, Current, Term, Using, Whole, check_terms, weights_of
from adapterhub.inference.bank.tracing import Tracer
from adapterhub.inference.loader.attachment import attach
from adapterhub.inference.loader.base.model import BaseModel
from adapterhub.inference.loader.base.pipeline import PipelineModules, as_given, as_model
from adapterhub.inference.loader.facts import AttachedAdapter
from adapterhub.inference.loader.preparation import Preparation
from adapterhub.library.default import LibraryLike, open_library
from adapterhub.library.store.catalog import AdapterLike

if TYPE_CHECKING:
    from typing_extensions import Self


_PEFT: Final = PeftEngine.name


class AdapterBank:
    """Any number of adapters for one frozen model, chosen per call; a context manager that leaves the model bare.

    The bank samples the model once to compare it with the bases of adapters; it replaces no module and writes nothing
    to the model. It keeps adapters by name. `max_resident` and `max_resident_bytes` limit how many are in memory: the
    least recently used one is evicted, and loaded again at its next use. While an adapter is loaded, one more than the
    limit is in memory. `dtype` is the dtype in which factors are kept and computed; by default that of the file, or of
    the base if it is wider. `library` is by default that of the command line. `base` names the base for all adapters.

    A choice (`use`, `rows`) is a context variable: threads and tasks do not see each other's. A new thread begins
    without a choice; `contextvars.copy_context().run` carries one into it. An adapter stays in memory as long as a
    choice holds it, even if it is unloaded meanwhile. `model` may be a pipeline, see `attach`.

    Raises:
        UsageProblem: the argument is not a model or has an adapter already, or a limit is out of range.
        CouldNotTell: some of its parameters are not in memory.
    """

    @parsed
    def __init__(
        self,
        model: ModelLike,
        *,
        library: LibraryLike = None,
        base: BaseSpec | str | None = None,
        max_resident: Count | None = None,
        max_resident_bytes: Count | None = None,
        dtype: torch.dtype | str | None = None,
        allow_base_mismatch: bool = False,
    ) -> None:
        residency = Residency(most=max_resident, most_bytes=max_resident_bytes)
        model = as_model(model)
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
        put_on = partial(attach, model, library=place, base=base, allow_base_mismatch=allow_base_mismatch)
        self._peft = PeftEngine(model, self._current, put_on)
        self._rooms = Rooms()
        hooks = Hooks(self._base, self._current)
        self._hit = residency.hit
        self._cache = AdapterCache(preparation, hooks, residency, native=native, peft=self._peft)
        hooks.take(self._peft.guard())
        self._tracer = Tracer(model, self._current, hooks.names)
        hooks.take(self._tracer.doors())
        self._finalizer = weakref.finalize(self, hooks.remove)

    # ------------------------------------------------------------ look
    @property
    def model(self) -> nn.Module:
        """The model or pipeline that the bank was made for."""
        return as_given(self._base.model)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all loaded adapters, in memory or evicted, without the unloaded ones."""
        return self._cache.names

    @property
    def stats(self) -> Stats:
        """Hits, misses, loads and evictions since the bank was made, and the number and size of adapters in memory."""
        return self._cache.stats

    @parsed
    def explain(self, name: str) -> str:
        """The facts about an adapter in lines for people: its engine and why, base, scales, warnings.

        Like `use`, it loads a name from the library that was not loaded before.

        Raises:
            AdapterNotFound: there is no adapter of that name. Other errors as for `load`.
        """
        if name not in self._cache.names:
            self._cache.get(name)
        return self._cache.origin(name).explain()

    @parsed
    def facts(self, name: str) -> AttachedAdapter:
        """The facts about an adapter for programs: label, method, comparison of the base, scales, warnings.

        Raises:
            AdapterNotFound: no adapter was loaded by that name.
        """
        return self._cache.origin(name).facts

    # ------------------------------------------------------------ load and unload
    @parsed
    def load(self, what: AdapterLike, name: str | None = None, *, pin: bool | None = None) -> str:
        """Bring an adapter into memory; returns its name, which is the adapter's own unless `name` is given.

        An adapter in memory is not read again. `pin=True` protects it from eviction, `pin=False` ends that. Loading
        takes some 20 ms for 20 MB in the page cache, however many adapters are loaded; most of it hashes them. An
        adapter that runs on PEFT's layers is attached once for a test, while nothing else can use the model.

        Raises:
            BaseMismatch, UnsupportedAdapter, RefusedAdapter, Malformed, DigestMismatch: as for `attach`.
            AdapterNotFound, NoCompatibleRelease, AmbiguousSpec, BaseNotFound: the request has no match, or more than
                one.
            Conflict: another adapter has that name, or its files changed since it was loaded.
            UsageProblem: the pinned adapters leave no room, or the bank was closed.

        After any of these errors the bank and the model are unchanged.
        """
        chosen, _ = self._cache.load(what, name)
        if pin is not None:
            self._cache.pin(chosen, is_pinned=pin)
        return chosen

    @parsed
    def unload(self, name: str) -> None:
        """Remove an adapter from the bank. Choices that hold it keep it; the last one to end frees its memory.

        The next load takes the memory of the adapter that went last; without one it stays until the bank is closed.

        Raises:
            AdapterNotFound: no adapter was loaded by that name.
        """
        self._cache.unload(name)

    # ------------------------------------------------------------ choose
    def use(self, choice: Choice) -> Using:
        """Use an adapter, a weighted sum of several, or the plain base (None) from now on in this context.

        In a `with` statement the choice ends with the block. Takes a microsecond; an evicted adapter is loaded again,
        and a name that was never loaded is looked up in the library. An adapter that runs on PEFT's layers (`explain`
        shows it) needs `with`: it blocks other users of the model until the block ends, and starts as slowly as
        `attach`.

        Raises:
            AdapterNotFound: there is no adapter of that name.
            MergeRefused: the adapters cannot be added up.
            UsageProblem: a weight is out of range, or there is no room for all of them at once.
        """
        current = self._current
        before = current.get()
        if before is not None and type(before) is not Whole:
            ensure_outside_use(before)
        if isinstance(choice, str):  # nearly always: one adapter in memory, whose choice is ready
            alone = self._hit(choice) or self._cache.get(choice)
            if alone.adapter.engine == _PEFT:
                return self._use_peft(choice, alone.terms)
            return Using(current, alone, before)
        [terms] = self._terms([choice])
        if any(term.adapter.engine == _PEFT for term in terms):
            return self._use_peft(choice, terms)
        check_terms(terms)
        return Using(current, Whole(terms) if terms else None, before)

    def rows(self, choices: Sequence[Choice]) -> Using:
        """As `use`, with one choice for each row of the batch.

        The batch may be a multiple of the rows, as `generate` makes it for beams. Rows with the same choice go through
        its factors together. The first pass copies the factors of all choices side by side; the bank keeps that memory
        for the next choice, until it is closed.

        The first call of its kind (by its arguments, and by one token or more) runs the base some more times without
        adapters, to find where the rows lie in the input of each module. A call raises `UnsupportedAdapter` before it
        answers if the rows have no known place in a module, as in the image part of most models for text and images.

        Raises:
            UnsupportedAdapter: an adapter cannot be used on some rows only; `use` accepts it.
            AdapterNotFound, MergeRefused, UsageProblem: as for `use`.
        """
        if isinstance(self._base.model, PipelineModules):
            raise UsageProblem(
                "a pipeline has no rows: guidance doubles the batch inside it, so a row has no fixed meaning",
                hint="bank.use(…) takes one choice for the whole call; a bank of its UNet alone has rows",
            )
        before = self._current.get()
        ensure_outside_use(before)
        if isinstance(choices, str | Mapping) or not isinstance(choices, Sequence) or not choices:
            raise UsageProblem(f'{shown(choices)}: expected a list with a choice for each row, such as ["a", None]')
        by_row = self._terms(choices)
        for terms in by_row:
            check_terms(terms)
            _check_by_row(terms)
        return Using(self._current, Rows(by_row, self._rooms, self._tracer), before)

    # ------------------------------------------------------------ prove and save
    def assert_frozen(self) -> Digest:
        """Raise unless the base is unchanged; returns the digest over its parameters and buffers.

        The first call compares the samples from when the bank was made, and takes the digest. Every later call compares
        all bytes with that digest. Reads the whole base: 0.3 s for 500 MB.

        Raises:
            DigestMismatch: something wrote to the base.
        """
        return self._frozen.check()

    @parsed
    def export(self, name: str, folder: str | Path) -> Path:
        """Copy the PEFT folder from which an adapter was loaded to `folder`, byte for byte.

        Raises:
            AdapterNotFound: no adapter was loaded by that name, or its files are gone.
            Conflict: the folder exists, or the adapter's files changed.
            DigestMismatch: a file of the store is damaged.
        """
        return self._cache.origin(name).export(Path(folder))

    def close(self) -> None:
        """Remove all hooks from the model and all adapters from the bank; running calls finish without them."""
        self._cache.close()
        self._peft.close()
        self._finalizer()
        self._current.set(None)
        self._rooms.close()
        keep_none()

    def __enter__(self) -> Self:
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
        adapters = {name: self._cache.get(name, keep=names).adapter for name in names}
        return [tuple(Term(adapters[name], weight) for name, weight in each.items()) for each in weights]

    def _use_peft(self, choice: Choice, terms: Sequence[Term]) -> Using:
        if len(terms) != 1 or terms[0].weight != 1:
            raise MergeRefused(
                "these adapters cannot be added up in a bank",
                [
                    f"`{shown(t.adapter.label)}` runs on PEFT's layers: use it alone, with weight 1"
                    for t in terms
                    if t.adapter.engine == _PEFT
                ],
            )
        [name] = weights_of(choice)
        origin = self._cache.origin(name)
        origin.ensure_unchanged()
        return self._peft.use(origin.found)


def _check_by_row(terms: Iterable[Term]) -> None:
    """Raise if an adapter cannot be used on some rows of a batch only.

    Raises:
        UnsupportedAdapter: with every reason.
    """
    reasons = [f"`{shown(t.adapter.label)}`: {t.adapter.no_rows}" for t in terms if t.adapter.no_rows]
    if reasons:
        raise UnsupportedAdapter(
            "these adapters cannot be chosen by row", reasons, hint="bank.use(…) uses them for the whole batch"
        )


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is not None and (not isinstance(found, torch.dtype) or not found.is_floating_point):
        raise UsageProblem(f"dtype {shown(dtype)}, expected a floating-point dtype such as `bfloat16`")
    return found
