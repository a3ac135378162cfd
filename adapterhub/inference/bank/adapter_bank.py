"""`AdapterBank`: loads, chooses and evicts adapters, and proves that the base is unchanged."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Final

import torch
from torch import Tensor, nn

from adapterhub.core.arguments import Count, ModelLike, parsed
from adapterhub.core.digests import Digest
from adapterhub.core.disk.held_file import keep_none
from adapterhub.core.errors import (
    AdapterNotFound,
    Conflict,
    MergeRefused,
    UnsupportedAdapter,
    UsageProblem,
    WithoutEffect,
    no_adapter,
    shown,
)
from adapterhub.core.specs import AdapterSpec, BaseSpec
from adapterhub.distribution.finding import FoundAdapter, folder_in
from adapterhub.inference.bank.engines import Hooks, NativeEngine, PeftEngine, ensure_outside_use
from adapterhub.inference.bank.following import FollowedAlias
from adapterhub.inference.bank.residency import (
    FileCheck,
    LoadedOrigin,
    Residency,
    Stamp,
    Stats,
    digests_of,
    name_of,
    stamp_of,
)
from adapterhub.inference.bank.rows import Rooms, Rows
from adapterhub.inference.bank.tracing import FrozenBase, Tracer
from adapterhub.inference.bank.updates import (
    Choice,
    Current,
    LoadedAdapter,
    Noting,
    UpdateTerm,
    Using,
    Whole,
    check_terms,
    weights_of,
    zero_of,
)
from adapterhub.inference.effect import MOST_ROWS, Effect, compared, numbers_of
from adapterhub.inference.loader.attachment import AttachedAdapter, Preparation, Prepared, attach
from adapterhub.inference.loader.base import BaseModel, PipelineModules, as_given, as_model
from adapterhub.inference.loader.injection import ReadyAdapter
from adapterhub.library.default import LibraryLike, open_library
from adapterhub.library.following import Gate, followed
from adapterhub.library.store.catalog import AdapterLike, Installed
from adapterhub.live.stream import LiveStream

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
        self._residency = Residency(most=max_resident, most_bytes=max_resident_bytes)
        model = as_model(model)
        self._base = BaseModel(model)
        self._native = NativeEngine(self._base, _dtype(dtype))
        place = open_library(library)
        files = FileCheck(place.root)
        self._preparation = Preparation(
            self._base,
            place,
            base=base,
            allow_base_mismatch=allow_base_mismatch,
            check=files,
            reopen=files.again,
        )
        self._frozen = FrozenBase(self._base, self._preparation.loaded)
        self._current: Current = ContextVar("adapterhub_bank", default=None)
        put_on = partial(attach, model, library=place, base=base, allow_base_mismatch=allow_base_mismatch)
        self._peft = PeftEngine(model, self._current, put_on)
        self._rooms = Rooms()
        self._hooks = Hooks(self._base, self._current)
        self._hit = self._residency.hit
        self._origins: dict[str, LoadedOrigin] = {}
        self._library, self._files = place, files
        self._followed: dict[str, FollowedAlias] = {}
        self._is_closed = False
        self._lock = threading.RLock()  # guards the dictionaries; held briefly
        # Order of locks: exclusive use of the model (Turnstile), then `loading` of one thread, then `_lock`.
        self._loading = self._peft.loading
        self._hooks.take(self._peft.guard())
        self._tracer = Tracer(model, self._current, self._hooks.names)
        self._hooks.take(self._tracer.doors())
        self._finalizer = weakref.finalize(self, self._hooks.remove)

    # ------------------------------------------------------------ look
    @property
    def model(self) -> nn.Module:
        """The model or pipeline that the bank was made for."""
        return as_given(self._base.model)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all loaded adapters, in memory or evicted, without the unloaded ones."""
        with self._lock:
            return tuple(self._origins)

    @property
    def chosen(self) -> tuple[str, ...]:
        """What answers in this context, such as `agent==0.0.12`; empty for the plain base."""
        selection = self._current.get()
        return () if selection is None else selection.labels

    @property
    def stats(self) -> Stats:
        """Hits, misses, loads and evictions since the bank was made, and the number and size of adapters in memory."""
        with self._lock:
            return self._residency.stats

    @parsed
    def explain(self, name: str) -> str:
        """Return the facts about an adapter in lines for people: its engine and why, base, scales, warnings.

        Like `use`, it loads a name from the library that was not loaded before.

        Raises:
            AdapterNotFound: there is no adapter of that name. Other errors as for `load`.
        """
        if name not in self.names:
            self._get(name)
        return self._origin(name).explain()

    @parsed
    def facts(self, name: str) -> AttachedAdapter:
        """Return the facts about an adapter for programs: label, method, comparison of the base, scales, warnings.

        Raises:
            AdapterNotFound: no adapter was loaded by that name.
        """
        return self._origin(name).facts

    # ------------------------------------------------------------ load and unload
    @parsed
    def load(
        self, what: AdapterLike, name: str | None = None, *, pin: bool | None = None, check_effect: bool = False
    ) -> str:
        """Bring an adapter into memory; returns its name, which is the adapter's own unless `name` is given.

        An adapter in memory is not read again. `pin=True` protects it from eviction, `pin=False` ends that. Loading
        takes some 20 ms for 20 MB in the page cache, however many adapters are loaded; most of it hashes them. An
        adapter that runs on PEFT's layers is attached once for a test, while nothing else can use the model.
        `check_effect=True` refuses an adapter that is found to change nothing, see `effect`.

        Raises:
            BaseMismatch, UnsupportedAdapter, RefusedAdapter, Malformed, DigestMismatch: as for `attach`.
            AdapterNotFound, NoCompatibleRelease, AmbiguousSpec, BaseNotFound: the request has no match, or more than
                one.
            Conflict: another adapter has that name, or its files changed since it was loaded.
            UsageProblem: the pinned adapters leave no room, or the bank was closed.
            WithoutEffect: with `check_effect`, the model says the same with the adapter and without it.

        After any of these errors the bank and the model are unchanged.
        """
        before = self.names
        chosen, _ = self._load(what, name)
        if check_effect:
            effect = self.effect(chosen)
            if effect.changes is False:
                label = self._origin(chosen).found.label
                if chosen not in before:
                    self.unload(chosen)
                raise _without_effect(label, effect)
        if pin is not None:
            with self._lock:
                self._residency.pin(chosen, is_pinned=pin)
        return chosen

    @parsed
    def effect(self, name: str) -> Effect:
        """Find out whether an adapter changes what the model says: one prompt of 16 token ids, with it and without it.

        `changes` is None if that cannot be found out: for a pipeline or another model that needs more than ids, or a
        prompt that goes through none of the adapter's modules, such as those of an image part.

        Raises:
            AdapterNotFound, UsageProblem: as for `use`.
        """
        adapter = self._get(name).adapter
        return self._effect(adapter, self._origin(name).tokens, lambda: self.use(name))

    def _effect(self, adapter: LoadedAdapter, tokens: tuple[int, ...], use: Callable[[], Using]) -> Effect:
        if reason := zero_of(adapter.updates):
            return Effect(changes=False, reason=reason)
        if isinstance(self._base.model, PipelineModules):
            return Effect(changes=None, reason="a pipeline takes no ids")
        reached = set[str]()

        def plain() -> list[Tensor]:
            with self.use(None):
                return numbers_of(self._base.model, tokens)

        def adapted() -> list[Tensor]:
            with use():
                chosen = self._current.get()
                if type(chosen) is not Whole:
                    return numbers_of(self._base.model, tokens)
                noting = Noting(chosen, adapter.updates)
                self._current.set(noting)
                told = numbers_of(self._base.model, tokens)
                reached.update(noting.reached)
                return told

        effect = compared(plain, adapted, reached=None if adapter.engine == _PEFT else reached)
        if effect.changes is False and reached:
            bound = f"went through {len(reached)} of the {len(adapter.updates)} modules with an update"
            return replace(effect, reason=f"{effect.reason}; the prompt {bound}, such as `{shown(min(reached))}`")
        return effect

    @parsed
    def unload(self, name: str) -> None:
        """Remove an adapter from the bank. Choices that hold it keep it; the last one to end frees its memory.

        The next load takes the memory of the adapter that went last; without one it stays until the bank is closed.

        Raises:
            AdapterNotFound: no adapter was loaded by that name.
        """
        followed = self._followed.pop(name, None)
        if followed is not None:
            followed.stop()
        with self._loading, self._lock:
            self._origin(name)
            del self._origins[name]
            self._residency.drop(name)
            self._residency.pin(name, is_pinned=False)
        if followed is not None:
            followed.end()

    # ------------------------------------------------------------ follow
    @parsed
    def follow(
        self, alias: AdapterSpec | LiveStream | str, *, gate: Gate | None = None, check_effect: bool = False
    ) -> FollowedAlias:
        """Follow an alias, such as `agent@live`: a use of that name gets the version that it means then.

        A spec means an alias of the library; what `Library.live` returns, that of the stream, also in a registry.

        A thread loads each version to which the alias moves, also back, within some 50 ms and the time of a load, and
        then swaps it in: a choice that began before keeps its version, and the old one leaves memory with the last of
        them. A version that cannot be loaded, that does not pass `gate`, or has no effect with `check_effect`, is not
        swapped in; `refused` of the returned value holds the reason. Of moves that come faster than loads, the last
        counts.

        Returns after the version of now was loaded or refused, or at once where there is none yet.

        Raises:
            SpecError: it names no alias.
            Conflict: the bank follows it already.
            UsageProblem: the bank was closed.
            AmbiguousSpec, Malformed, NotAllowed: what it means cannot be read, or its build not leased.
        """
        stream = alias if isinstance(alias, LiveStream) else None
        spec = stream.followed if stream else AdapterSpec.parse(str(alias))
        name, builds = str(spec), stream.builds if stream else partial(followed, self._library, spec)
        before = self._followed.get(name)
        if before is not None and before.is_running:
            raise Conflict(
                f"the bank follows `{shown(name)}` already", hint=f"bank.following[{name!r}].stop() ends that"
            )
        self._ensure_open()
        lease = self._library.lease
        made = FollowedAlias(name, builds, self._bring, lease, gate=gate, check_effect=check_effect)
        if before is not None:
            made.continues(before)
        self._followed[name] = made
        try:
            made.start()
        except BaseException:
            del self._followed[name]
            if before is not None:
                before.continues(made)
                self._followed[name] = before
            raise
        weakref.finalize(self, made.end)
        return made

    @property
    def following(self) -> Mapping[str, FollowedAlias]:
        """By their names, the aliases that the bank follows: the version that each has now, and why one was refused."""
        with self._lock:
            return MappingProxyType(dict(self._followed))

    def _bring(self, name: str, build: Installed, *, ask: Callable[[], None] | None, check_effect: bool) -> None:
        """Put a build in place of what `name` is, once it may be; see `Bring`."""
        with self._loading:
            self._ensure_open()
            found = self._preparation.find(build)
            stamp = stamp_of(found.folder)
            [prepared] = self._preparation.prepare([found])
            reasons = self._native.reasons_against(prepared.ready)
            adapter = self._peft.load(prepared.ready) if reasons else self._native.load(prepared.ready)
        if reasons:
            with self._peft.alone(), self._loading:
                self._peft.try_on(found)
        with self._lock:
            self._hooks.reach(adapter.updates)
        light, alone = replace(found, subject=None), Whole((UpdateTerm(adapter, 1.0),))

        def use() -> Using:
            return self._peft.use(light) if reasons else Using(self._current, alone, self._current.get())

        if check_effect:
            effect = self._effect(adapter, _waking(prepared.ready), use)
            if effect.changes is False:
                raise _without_effect(found.label, effect)
        if ask is not None:
            with use():
                ask()
        with self._loading:
            origin = self._recorded(prepared, stamp, reasons)
            with self._lock:
                self._ensure_open()
                self._residency.put(name, adapter)
                before = self._origins.get(name)
                self._origins[name] = origin
        if before is not None and before.found.folder != found.folder:
            self._files.forget(before.found.folder)

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
            alone = self._hit(choice) or self._get(choice)
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
                hint="bank.use(…) takes one choice for the whole call; a bank of only its UNet has rows",
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
        return self._origin(name).export(Path(folder))

    def close(self) -> None:
        """Remove all hooks from the model and all adapters from the bank; running calls finish without them."""
        for alias in self.following.values():
            alias.stop()
        with self._loading, self._lock:
            self._is_closed = True
            for name in list(self._origins):
                self.unload(name)
        for alias in self._followed.values():
            alias.end()
        self._followed.clear()
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
    def _origin(self, name: str) -> LoadedOrigin:
        """Return the origin of a loaded adapter.

        Raises:
            AdapterNotFound: no adapter was loaded by that name.
        """
        with self._lock:
            origin = self._origins.get(name)
        if origin is None:
            raise no_adapter(name, "this bank", hint=f"load it first: `bank.load({name!r})`")
        return origin

    def _get(self, name: str, *, keep: Sequence[str] = ()) -> Whole:
        """Return the choice of one adapter, loaded if it is not in memory; does not evict those in `keep` for it.

        Looks up a name that was never loaded in the library. Never waits for a load of another one that is in memory.
        """
        with self._lock:
            chosen = self._residency.get(name)
        if chosen is not None:
            return chosen
        self._ensure_open()
        with self._loading:
            origin = self._origins.get(name)
            if origin is not None:
                return self._again(name, origin, keep)
        if (alias := self._followed.get(name)) is not None:
            refused = alias.refused.refused if alias.refused else ""
            raise AdapterNotFound(f"`{shown(name)}` has no version yet", hint=refused or "publish one")
        if folder_in(name) is not None:
            self._origin(name)  # raises: only `load` gives a folder a name
        return self._load(name, name, keep=keep)[1]

    def _load(self, what: AdapterLike, name: str | None, *, keep: Sequence[str] = ()) -> tuple[str, Whole]:
        """Bring an adapter into memory; its name in the bank, and the choice of it."""
        with self._loading:
            self._ensure_open()
            found = self._preparation.find(what)
            chosen = name_of(found, name)
            known = self._known(chosen, found)
            if known is not None:
                return chosen, self._again(chosen, known, keep)
            stamp = stamp_of(found.folder)
            [prepared] = self._preparation.prepare([found])
            reasons = self._native.reasons_against(prepared.ready)
            if not reasons:
                return chosen, self._take_new(chosen, prepared, stamp, (), keep)
        # Never wait for the model with the lock held: the thread that has the model may need the lock.
        with self._peft.alone(), self._loading:
            self._peft.try_on(found)
            return chosen, self._take_new(chosen, prepared, stamp, reasons, keep)

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
        return self._take(name, ready, origin.reasons, keep)

    def _take_new(
        self, name: str, prepared: Prepared, stamp: Stamp, reasons: tuple[str, ...], keep: Sequence[str]
    ) -> Whole:
        found = prepared.found
        known = self._known(name, found)  # another thread may have loaded it meanwhile
        if known is not None:
            return self._again(name, known, keep)
        chosen = self._take(name, prepared.ready, reasons, keep)
        self._origins[name] = self._recorded(prepared, stamp, reasons)
        return chosen

    def _recorded(self, prepared: Prepared, stamp: Stamp, reasons: tuple[str, ...]) -> LoadedOrigin:
        """Return the origin of an adapter that was loaded; may record its base in the library."""
        found = prepared.found
        return LoadedOrigin(
            found=replace(found, subject=None),
            digests=digests_of(prepared.files, found.build.manifest if found.build else None),
            facts=self._preparation.record(prepared),
            reasons=reasons,
            stamp=stamp,
            tokens=_waking(prepared.ready),
        )

    def _take(self, name: str, ready: ReadyAdapter, reasons: tuple[str, ...], keep: Sequence[str]) -> Whole:
        """Load an adapter natively, unless there are reasons against that."""
        adapter = self._peft.load(ready) if reasons else self._native.load(ready)
        with self._lock:
            self._ensure_open()
            chosen = self._residency.put(name, adapter, keep=keep)
            self._hooks.reach(adapter.updates)
        return chosen

    def _terms(self, choices: Iterable[Choice]) -> list[tuple[UpdateTerm, ...]]:
        """Return the adapters of each choice, all of them in memory at once."""
        weights = [weights_of(choice) for choice in choices]
        names = list(dict.fromkeys(name for each in weights for name in each))
        adapters = {name: self._get(name, keep=names).adapter for name in names}
        return [tuple(UpdateTerm(adapters[name], weight) for name, weight in each.items()) for each in weights]

    def _use_peft(self, choice: Choice, terms: Sequence[UpdateTerm]) -> Using:
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
        origin = self._origin(name)
        origin.ensure_unchanged()
        return self._peft.use(origin.found)


def _without_effect(label: str, effect: Effect) -> WithoutEffect:
    return WithoutEffect(f"`{shown(label, 200)}` has no effect on this model: {effect.reason}")


def _waking(ready: ReadyAdapter) -> tuple[int, ...]:
    """Return the ids without which a prompt hides an adapter's effect: of its rows, and of its invocation (aLoRA)."""
    contents = ready.contents
    rows = [token for module in contents.rows for token in contents.trained_rows(module)]
    return (*rows[:MOST_ROWS], *(contents.config.alora_invocation_tokens or ()))


def _check_by_row(terms: Iterable[UpdateTerm]) -> None:
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
