"""One choice of adapters for each row of a batch.

Rows with the same choice go through a module's factors together. In decoding, where a row has few tokens and most of
the time goes to starting operations, the factors of all rows are stacked once and two batched products serve the whole
batch, however many adapters there are. Batches come first in what modules take, as in PEFT's mixed batches.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from adapterhub.core.errors import UsageProblem, shown
from adapterhub.inference.bank.selection import Term
from adapterhub.inference.bank.updates import EmbeddingUpdate, LinearUpdate, Replacement, Update, first_input

_FEW_TOKENS: Final = 16
"""Tokens of a row below which stacked factors are faster (measured on SmolLM2-135M, one thread)."""


class _Group(NamedTuple):
    """Rows with one choice; `rows` is a slice where they stand together."""

    terms: tuple[Term, ...]
    rows: Tensor | slice


class _Work(NamedTuple):
    """What there is to do in one module: the updates of each group that has any, and whether they can be stacked."""

    groups: tuple[tuple[tuple[tuple[Update, float], ...], _Group], ...]
    can_stack: bool


class _Stack(NamedTuple):
    """Factors by row, `a` [rows, in, R] and `b` [rows, R, out] with scales in it; `bias` [rows, 1, out] or None."""

    a: Tensor
    b: Tensor
    bias: Tensor | None


class Rows:
    """A choice for each row; lives as long as its block, and keeps stacked factors that long.

    A batch of a multiple of the rows (beams, several answers to one prompt) has them one after another, as `generate`
    lays them out.
    """

    __slots__ = ("_groups", "_stacks", "_work", "count")

    def __init__(self, rows: Sequence[tuple[Term, ...]]) -> None:
        self.count = len(rows)
        self._work: dict[str, _Work | None] = {}
        self._stacks: dict[str, _Stack] = {}
        numbers: dict[tuple[tuple[int, float], ...], list[int]] = {}
        for number, terms in enumerate(rows):
            if terms:
                numbers.setdefault(tuple((id(t.adapter), t.weight) for t in terms), []).append(number)
        self._groups = tuple(_group(rows[found[0]], found) for found in numbers.values())

    def apply(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> Any:  # noqa: ANN401 - as Selection
        """See `Selection`.

        Raises:
            UsageProblem: the batch is no multiple of the rows.
        """
        if name not in self._work:
            self._work[name] = self._work_in(name)
        work = self._work[name]
        if work is None:
            return output
        given = first_input(args, kwargs)
        times = self._times(name, given, work)
        if work.can_stack and given.shape[:-1].numel() < _FEW_TOKENS * self.count:
            return self._apply_stacked(name, given, output)
        if any(isinstance(update, Replacement) for updates, _ in work.groups for update, _ in updates):
            _refuse_odd_call(name, args, kwargs, output)
        result = output.clone(memory_format=torch.contiguous_format)
        by_row = result.view(self.count, times, *result.shape[1:])
        given_by_row = given.reshape(self.count, times, *given.shape[1:])
        for updates, group in work.groups:
            part = by_row[group.rows].flatten(0, 1)
            own = given_by_row[group.rows].flatten(0, 1)
            for update, weight in updates:
                part = update.apply((own,), {}, part, weight)
            by_row[group.rows] = part.unflatten(0, (-1, times))
        return result

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
        is_mixed = len(groups) * 2 > self.count and is_linear and len({u.a.dtype for u in every}) == 1  # type: ignore[attr-defined] # all are linear
        return _Work(groups=tuple(groups), can_stack=is_mixed)

    def _times(self, name: str, given: Tensor, work: _Work) -> int:
        """How many rows of the batch each of ours stands for."""
        is_lookup = any(isinstance(update, EmbeddingUpdate) for updates, _ in work.groups for update, _ in updates)
        size = given.shape[0] if given.ndim > (1 if is_lookup else 0) else 0
        if not size or size % self.count:
            raise UsageProblem(
                f"`{shown(name)}` was given {list(given.shape)}, expected {self.count} rows or a multiple",
                hint="give `rows` one choice for each row of the batch",
            )
        return size // self.count

    # ------------------------------------------------------------ stacked
    def _apply_stacked(self, name: str, given: Tensor, output: Tensor) -> Tensor:
        stack = self._stacks.get(name)
        if stack is None:
            stack = self._stacks[name] = self._stacked(name)
        own = given.reshape(self.count, -1, given.shape[-1])
        flat = output.reshape(self.count, -1, output.shape[-1])
        low = torch.bmm(own if own.dtype == stack.a.dtype else own.to(stack.a.dtype), stack.a)
        if output.dtype == stack.a.dtype:
            made = torch.baddbmm(flat, low, stack.b)
            made = made if stack.bias is None else made + stack.bias
        else:
            change = torch.bmm(low, stack.b)
            made = (flat + (change if stack.bias is None else change + stack.bias)).to(output.dtype)
        return made.view(output.shape)

    def _stacked(self, name: str) -> _Stack:
        """The factors of every row side by side; rows of the base, and ranks below the largest, are zeros."""
        work = self._work[name]
        assert work is not None
        ranks = [sum(update.a.shape[0] for update, _ in updates) for updates, _ in work.groups]  # type: ignore[attr-defined] # all are linear
        one: Any = work.groups[0][0][0][0]
        a = one.a.new_zeros(self.count, one.a.shape[1], max(ranks))
        b = one.b.new_zeros(self.count, max(ranks), one.b.shape[0])
        bias: Tensor | None = None
        for updates, group in work.groups:
            reached = 0
            for update, weight in updates:
                assert isinstance(update, LinearUpdate)
                until = reached + update.a.shape[0]
                a[group.rows, :, reached:until] = update.a.t()
                b[group.rows, reached:until] = update.b.t() * (update.scale * weight)
                if update.bias is not None:
                    bias = one.b.new_zeros(self.count, 1, one.b.shape[0]) if bias is None else bias
                    bias[group.rows] += update.bias * (update.scale * weight)
                reached = until
        return _Stack(a=a, b=b, bias=bias)


def _group(terms: tuple[Term, ...], numbers: list[int]) -> _Group:
    together = numbers[-1] - numbers[0] + 1 == len(numbers)
    rows = slice(numbers[0], numbers[-1] + 1) if together else torch.tensor(numbers)
    return _Group(terms=terms, rows=rows)


def _refuse_odd_call(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:  # noqa: ANN401 - what modules give
    if len(args) + len(kwargs) != 1 or not isinstance(output, Tensor):
        raise UsageProblem(
            f"`{shown(name)}` takes more than one tensor, so its replacement cannot be chosen by row",
            hint="use the adapter for the whole batch: bank.use(…)",
        )
