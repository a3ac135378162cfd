"""A choice of adapters as the value of a context variable, and its effect on the output of one module."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, Protocol

from adapterhub.core.errors import MergeRefused, UsageProblem, shown
from adapterhub.distribution.finding import MAX_WEIGHT
from adapterhub.inference.bank.engine import LoadedAdapter
from adapterhub.inference.bank.updates import Args, Kwargs, Output

if TYPE_CHECKING:
    from typing_extensions import Self

Choice = str | Mapping[str, float] | None
"""The name of an adapter, several names with weights (summed exactly), or None for the plain base."""


class Term(NamedTuple):
    """An adapter with its weight."""

    adapter: LoadedAdapter
    weight: float


class Selection(Protocol):
    """The adapters of one context. It keeps them in memory, even if the bank unloads them meanwhile."""

    def apply(self, name: str, args: Args, kwargs: Kwargs, output: Output, /) -> Output:
        """The output of the module `name` with the updates of the adapters."""
        ...


Current = ContextVar[Selection | None]


class Whole:
    """The same adapters for the whole batch, one after another; `adapter` is the first of them.

    `used` is greater than that of every choice that was used before.
    """

    __slots__ = ("adapter", "terms", "used")

    def __init__(self, terms: tuple[Term, ...]) -> None:
        self.terms = terms
        self.adapter = terms[0].adapter
        self.used = 0

    def apply(self, name: str, args: Args, kwargs: Kwargs, output: Output, /) -> Output:
        """See `Selection`."""
        for adapter, weight in self.terms:
            update = adapter.updates.get(name)
            if update is not None:
                output = update.apply(args, kwargs, output, weight)
        return output


class Using:
    """A choice that holds in this context from the call on; as a context manager, until the end of the block.

    The end of the block restores `before`, the choice from before the call.
    """

    __slots__ = ("_before", "_current")

    def __init__(self, current: Current, selection: Selection | None, before: Selection | None) -> None:
        self._current = current
        self._before = before
        current.set(selection)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._current.set(self._before)


def weights_of(choice: Choice) -> dict[str, float]:
    """Weight by name; empty for the base.

    Raises:
        UsageProblem: the argument is not a choice, or a weight is out of range.
    """
    if choice is None:
        return {}
    if isinstance(choice, str):
        return {choice: 1.0}
    if not isinstance(choice, Mapping) or not choice:
        raise UsageProblem(
            f"{shown(choice)} is not a choice of adapters", hint='expected "a", {"a": 0.7, "b": 0.3} or None'
        )
    for name, weight in choice.items():
        is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
        if not isinstance(name, str) or not is_number or not math.isfinite(weight) or abs(weight) > MAX_WEIGHT:
            raise UsageProblem(
                f"weight {shown(weight)} of `{shown(str(name))}`, expected a name and a number within {MAX_WEIGHT:g}"
            )
    return {name: float(weight) for name, weight in choice.items()}


def check_terms(terms: Sequence[Term]) -> None:
    """Raise unless the adapters can be added up.

    Raises:
        MergeRefused: with every reason.
    """
    if len(terms) == 1 and terms[0].weight == 1:
        return
    reasons = [
        f"`{shown(adapter.label)}` is DoRA, whose magnitudes do not add up: use it alone, with weight 1"
        for adapter, _ in terms
        if not adapter.is_additive
    ]
    for adapter, _ in terms:
        for module in sorted(adapter.replaced):
            reasons += [
                f"`{shown(module)}` is replaced whole by `{shown(adapter.label)}`, and is in `{shown(other.label)}` too"
                for other, _ in terms
                if other is not adapter and any(n == module or n.startswith(module + ".") for n in other.updates)
            ]
    if reasons:
        raise MergeRefused("these adapters cannot be added up", reasons)
