"""`AdapterBank`: loads, chooses and evicts adapters, and proves that the base is unchanged."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import torch
from torch import Tensor, nn

from adapterhub.core.arguments import Count, ModelLike, parsed
from adapterhub.core.digests import Digest
from adapterhub.core.disk.held_file import keep_none, large_memory
from adapterhub.core.errors import MergeRefused, UnsupportedAdapter, UsageProblem, shown
from adapterhub.core.specs import BaseSpec
from adapterhub.inference.bank.engines import Hooks, NativeEngine, PeftEngine, ensure_outside_use
from adapterhub.inference.bank.residency import AdapterCache, FileCheck, Residency, Stats
from adapterhub.inference.bank.tracing import ByRow, FrozenBase, Tracer, refusal
from adapterhub.inference.bank.updates import (
    Args,
    Choice,
    Current,
    Kwargs,
    LinearUpdate,
    Output,
    Replacement,
    Update,
    UpdateTerm,
    Using,
    Whole,
    check_terms,
    first_input,
    weights_of,
)
from adapterhub.inference.loader.attachment import AttachedAdapter, Preparation, attach
from adapterhub.inference.loader.base import BaseModel, PipelineModules, as_given, as_model
from adapterhub.library.default import LibraryLike, open_library
from adapterhub.library.store.catalog import AdapterLike

if TYPE_CHECKING:
    from typing_extensions import Self

_SEQUENCES: Final = 3
_FEW_TOKENS: Final = 16
"""Stacked factors are faster for fewer tokens per row (measured on SmolLM2-135M, one thread)."""


class _RowGroup(NamedTuple):
    """The numbers of rows with one choice; `rows` is a slice if they are adjacent."""

    terms: tuple[UpdateTerm, ...]
    numbers: list[int]
    rows: Tensor | slice


class _Work(NamedTuple):
    """The work in one module: the updates of each group that has any, and whether they can be stacked."""

    groups: tuple[tuple[tuple[tuple[Update, float], ...], _RowGroup], ...]
    can_stack: bool


class _Part(NamedTuple):
    """Rows with one choice that go through its stacked factors together, and its updates of one module."""

    updates: tuple[tuple[Update, float], ...]
    numbers: list[int]


class _Places(NamedTuple):
    """The rows of all parts: `taken` [parts * most], where a short part repeats its last row, and `put` without those.

    `kept` are the places of `put` in `taken`, None for all.
    """

    taken: Tensor
    kept: Tensor | None
    put: Tensor


class _Stack(NamedTuple):
    """Factors by part: `a` [parts, in, R], `b` [parts, R, out] times the scales, and `bias` [parts, 1, out] or None.

    In memory, both have their ranks outermost: the file has A like that, so that a row of it is copied in one piece.
    `places` is None where the parts are the rows of the batch in their order.
    """

    a: Tensor
    b: Tensor
    bias: Tensor | None
    places: _Places | None

    def added(self, inputs: Tensor, output: Tensor) -> Tensor:
        """Output [rows, tokens, out] plus what the factors make of inputs [rows, tokens, in]."""
        a, b, bias, places = self
        if places is not None:
            inputs = inputs.index_select(0, places.taken)
        if len(inputs) != len(a):
            inputs = inputs.reshape(len(a), -1, inputs.shape[-1])
        low = torch.bmm(inputs if inputs.dtype == a.dtype else inputs.to(a.dtype), a)
        if places is None and bias is None and output.dtype == a.dtype:  # one pass over the output instead of three
            by_part = output if len(output) == len(a) else output.reshape(len(a), -1, output.shape[-1])
            return torch.baddbmm(by_part, low, b).view(output.shape)
        change = torch.bmm(low, b) if bias is None else torch.baddbmm(bias, low, b)
        change = change.view(-1, *output.shape[1:])
        if places is None:
            return (output + change).to(output.dtype)
        if places.kept is not None:
            change = change.index_select(0, places.kept)
        return output.to(change.dtype).index_add(0, places.put, change).to(output.dtype)


class Rows(ByRow):
    """A choice for each row, which keeps stacked factors as long as it lives.

    In a batch with a multiple of the rows (beams, several answers to one prompt), those of one row are adjacent, as
    `generate` arranges them.
    """

    __slots__ = ("_groups", "_room", "_rooms", "_stacks", "_work")

    def __init__(self, rows: Sequence[tuple[UpdateTerm, ...]], rooms: Rooms, tracer: Tracer) -> None:
        self._rooms = rooms
        self._room: Room | None = None
        self._work: dict[str, _Work | None] = {}
        self._stacks: dict[str, _Stack] = {}
        numbers: dict[tuple[tuple[int, float], ...], list[int]] = {}
        for number, terms in enumerate(rows):
            if terms:
                numbers.setdefault(tuple((id(t.adapter), t.weight) for t in terms), []).append(number)
        self._groups = tuple(_group(rows[found[0]], found) for found in numbers.values())
        every = (name for group in self._groups for term in group.terms for name in term.adapter.updates)
        is_one = bool(self._groups) and len(self._groups[0].numbers) == len(rows)  # then no row has to be found
        super().__init__(len(rows), frozenset() if is_one else frozenset(every), tracer)

    def __del__(self) -> None:
        """Give the memory of the stacks back: no forward pass runs with this choice any more."""
        if self._room is not None:
            self._rooms.give(self._room)

    def apply(self, name: str, args: Args, kwargs: Kwargs, output: Output, /) -> Output:
        """See `Selection`.

        Raises:
            UnsupportedAdapter: the rows have no known place in this input.
            UsageProblem: a module that is replaced has more than one input or output.
        """
        stack, call = self._stacks.get(name), self.call
        if stack is not None and call is not None and args:  # decoding, nearly always: nothing is looked at again
            shape = args[0].shape
            if len(shape) == _SEQUENCES and shape[0] == self.count and shape[1] < _FEW_TOKENS and name in call.leading:
                return self._added(stack, args[0], output)
        if name not in self._work:
            self._work[name] = self._work_in(name)
        work = self._work[name]
        if work is None:
            return output
        updates, group = work.groups[0]
        if len(group.numbers) == self.count:  # all rows have one choice, so the batch needs no parts
            for update, weight in updates:
                output = update.apply(args, kwargs, output, weight)
            return output
        if call is None:
            raise refusal([f"`{shown(name)}` is called outside of the model, where no row has a known place"])
        if any(isinstance(update, Replacement) for updates, _ in work.groups for update, _ in updates):
            _ensure_one_tensor(name, args, kwargs, output)
        inputs = first_input(args, kwargs)
        axis = call.axis(name, inputs)
        if not axis:
            return self._by_row(name, work, inputs, output)
        done = self._by_row(name, work, inputs.transpose(0, axis), output.transpose(0, axis))
        return done.transpose(0, axis).contiguous()  # as the module returns it, which models rely on

    def _by_row(self, name: str, work: _Work, inputs: Tensor, output: Tensor) -> Tensor:
        """The output with the updates of each row; the rows lie on the first axis of both."""
        if work.can_stack and inputs.shape[:-1].numel() < _FEW_TOKENS * self.count:
            stack = self._stacks.get(name)
            if stack is None:
                stack = self._stacks[name] = self._stacked(name)
            by_row = (tensor.reshape(self.count, -1, tensor.shape[-1]) for tensor in (inputs, output))
            return self._added(stack, *by_row).view(output.shape)
        times = len(inputs) // self.count
        result = output.clone(memory_format=torch.contiguous_format)
        parts = result.view(self.count, times, *result.shape[1:])
        inputs_by_row = inputs.reshape(self.count, times, *inputs.shape[1:])
        for updates, group in work.groups:
            part = parts[group.rows].flatten(0, 1)
            own = inputs_by_row[group.rows].flatten(0, 1)
            for update, weight in updates:
                part = update.apply((own,), {}, part, weight)
            parts[group.rows] = part.view(-1, times, *part.shape[1:])
        return result

    def _added(self, stack: _Stack, inputs: Tensor, output: Tensor) -> Tensor:
        if inputs.requires_grad:
            self._room = None  # the backward pass, which may come after this choice, needs the factors
        return stack.added(inputs, output)

    def _work_in(self, name: str) -> _Work | None:
        groups = []
        for group in self._groups:
            found = [(term.adapter.updates.get(name), term.weight) for term in group.terms]
            updates = tuple((update, weight) for update, weight in found if update is not None)
            if updates:
                groups.append((updates, group))
        if not groups:
            return None
        every = [update for updates, _ in groups for update, _ in updates]
        is_linear = all(isinstance(update, LinearUpdate) for update in every)
        is_one = len(groups[0][1].numbers) == self.count  # it needs no parts
        can_stack = not is_one and is_linear and len({u.a.dtype for u in every}) == 1  # type: ignore[attr-defined] # all are linear
        return _Work(groups=tuple(groups), can_stack=can_stack)

    def _stacked(self, name: str) -> _Stack:
        """The factors of all parts in one tensor, with zeros for ranks below the largest."""
        work = self._work[name]
        assert work is not None
        parts = _parts(work)
        ranks = [sum(update.a.shape[0] for update, _ in part.updates) for part in parts]  # type: ignore[attr-defined] # all are linear
        one: Any = parts[0].updates[0][0]
        room = self._room = self._room or self._rooms.take()
        a = room.tensor((len(parts), max(ranks), one.a.shape[1]), one.a)
        b = room.tensor((len(parts), max(ranks), one.b.shape[0]), one.b)
        places = _places(parts, self.count, one.a.device)
        if len({*ranks}) == 1 and all(_is_plain(part.updates) for part in parts):
            alone: list[Any] = [part.updates[0] for part in parts]
            torch.stack([update.a for update, _ in alone], out=a)
            torch.stack([update.b.t() for update, _ in alone], out=b)
            b *= b.new_tensor([update.scale * weight for update, weight in alone])[:, None, None]
            return _Stack(a=a.transpose(1, 2), b=b, bias=None, places=places)
        bias: Tensor | None = None
        a.zero_()
        b.zero_()
        for number, part in enumerate(parts):
            reached = 0
            for update, weight in part.updates:
                assert isinstance(update, LinearUpdate)
                until = reached + update.a.shape[0]
                a[number, reached:until] = update.a
                b[number, reached:until] = update.b.t() * (update.scale * weight)
                if update.bias is not None:
                    bias = one.b.new_zeros(len(parts), 1, one.b.shape[0]) if bias is None else bias
                    bias[number] += update.bias * (update.scale * weight)
                reached = until
        return _Stack(a=a.transpose(1, 2), b=b, bias=bias, places=places)


def _parts(work: _Work) -> list[_Part]:
    """The groups, in parts of at most the mean size, so that parts of one size have room for little else."""
    most = -(-sum(len(group.numbers) for _, group in work.groups) // len(work.groups))
    return [
        _Part(updates, group.numbers[at : at + most])
        for updates, group in work.groups
        for at in range(0, len(group.numbers), most)
    ]


def _places(parts: Sequence[_Part], count: int, device: torch.device) -> _Places | None:
    most = max(len(part.numbers) for part in parts)
    taken = [number for part in parts for number in part.numbers + part.numbers[-1:] * (most - len(part.numbers))]
    if taken == [*range(count)]:
        return None
    kept = [at * most + place for at, part in enumerate(parts) for place in range(len(part.numbers))]
    return _Places(
        taken=torch.tensor(taken, device=device),
        kept=torch.tensor(kept, device=device) if len(kept) < len(taken) else None,
        put=torch.tensor([number for part in parts for number in part.numbers], device=device),
    )


def _is_plain(updates: tuple[tuple[Any, float], ...]) -> bool:
    """Whether it is one update without a bias, which `torch.stack` copies in a fraction of the time."""
    return len(updates) == 1 and updates[0][0].bias is None


def _group(terms: tuple[UpdateTerm, ...], numbers: list[int]) -> _RowGroup:
    together = numbers[-1] - numbers[0] + 1 == len(numbers)
    rows = slice(numbers[0], numbers[-1] + 1) if together else torch.tensor(numbers)
    return _RowGroup(terms=terms, numbers=numbers, rows=rows)


def _ensure_one_tensor(name: str, args: Args, kwargs: Kwargs, output: Output) -> None:
    if len(args) + len(kwargs) != 1 or not isinstance(output, Tensor):
        raise UsageProblem(
            f"`{shown(name)}` has more than one input or output, so its replacement cannot be chosen by row",
            hint="use the adapter for the whole batch: bank.use(…)",
        )


_PIECE_BYTES: Final = 16 << 20
_ALIGNED: Final = 64


class Room:
    """Memory on the CPU that many tensors come from, one after another; on other devices, torch's own."""

    def __init__(self) -> None:
        self._pieces: list[Tensor] = []
        self.clear()

    def clear(self) -> None:
        """Begin again. The tensors that came from it must not be used any more."""
        self._next, self._left = 0, torch.empty(0, dtype=torch.uint8)

    def tensor(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A tensor with any numbers, and with the dtype and on the device of `like`."""
        if like.device.type != "cpu":
            return like.new_empty(shape)
        size_bytes = math.prod(shape) * like.itemsize
        while len(self._left) < size_bytes:
            if self._next == len(self._pieces):
                made = large_memory(max(size_bytes, _PIECE_BYTES))
                self._pieces.append(torch.frombuffer(made, dtype=torch.uint8))
            self._left = self._pieces[self._next]
            self._next += 1
        taken, self._left = self._left[:size_bytes], self._left[-(-size_bytes // _ALIGNED) * _ALIGNED :]
        return taken.view(like.dtype).view(shape)


class Rooms:
    """The rooms of one bank. It keeps one that is not in use, the last; any thread may take and give one back."""

    def __init__(self) -> None:
        self._spare: deque[Room] = deque(maxlen=1)

    def take(self) -> Room:
        """The room that is kept, or a new one."""
        try:
            return self._spare.pop()
        except IndexError:
            return Room()

    def give(self, room: Room) -> None:
        """Keep a room whose tensors are no longer used."""
        room.clear()
        self._spare.append(room)

    def close(self) -> None:
        """Free what is kept."""
        self._spare.clear()


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
    def _terms(self, choices: Iterable[Choice]) -> list[tuple[UpdateTerm, ...]]:
        """The adapters of each choice, all of them in memory at once."""
        weights = [weights_of(choice) for choice in choices]
        names = list(dict.fromkeys(name for each in weights for name in each))
        adapters = {name: self._cache.get(name, keep=names).adapter for name in names}
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
        origin = self._cache.origin(name)
        origin.ensure_unchanged()
        return self._peft.use(origin.found)


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
