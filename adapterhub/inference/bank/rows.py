"""A choice of adapters for each row of a batch, and the memory of its stacked factors."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from adapterhub.core.disk.held_file import large_memory
from adapterhub.core.errors import UsageProblem, shown
from adapterhub.inference.bank.tracing import ByRow, Tracer, refusal
from adapterhub.inference.bank.updates import (
    Args,
    Kwargs,
    LinearUpdate,
    Output,
    Replacement,
    Update,
    UpdateTerm,
    first_input,
)

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
    `places` is None if the parts are the rows of the batch in their order.
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

    @property
    def labels(self) -> tuple[str, ...]:
        """See `Selection`; in the order of the rows, each once."""
        return tuple(dict.fromkeys(term.adapter.label for group in self._groups for term in group.terms))

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
        """Return the output with the updates of each row; the rows lie on the first axis of both."""
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
        """Return the factors of all parts in one tensor, with zeros for ranks below the largest."""
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
    """Return the groups, in parts of at most the mean size, so that parts of one size have room for little else."""
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
    """Return whether it is one update without a bias, which `torch.stack` copies in a fraction of the time."""
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
        """Return a tensor with any numbers, and with the dtype and on the device of `like`."""
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
        """Return the room that is kept, or a new one."""
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
