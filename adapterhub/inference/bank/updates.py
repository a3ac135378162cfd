"""The change that an adapter makes to the output of one module, for each kind of module that can have a pair.

The arithmetic is PEFT's: the input in the dtype of the factors, the sum in the dtype of the module's own output.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from adapterhub.core.errors import MergeRefused, UsageProblem, shown
from adapterhub.distribution.finding import MAX_WEIGHT
from adapterhub.formats.safetensors.header import TensorSpec

if TYPE_CHECKING:
    from typing_extensions import Self

Args = tuple[Any, ...]
Kwargs = Mapping[str, Any]
Output = Any
"""What a module returns: a tensor, or any structure of tensors."""

View = Callable[[TensorSpec], Tensor]
"""Gives a tensor of a file that is in memory."""

_CONVOLUTIONS: Final = {3: functional.conv1d, 4: functional.conv2d, 5: functional.conv3d}


class Update(Protocol):
    """One adapter's change to one module."""

    def apply(self, args: Args, kwargs: Kwargs, output: Output, weight: float, /) -> Output:
        """Return the module's output plus the change times `weight`; does not write to `output`."""
        ...


def first_input(args: Args, kwargs: Kwargs) -> Tensor:
    """Return the first argument of a module's call."""
    first: Tensor = args[0] if args else next(iter(kwargs.values()))
    return first


# frozen, it takes three times as long to make, and a load makes hundreds
@dataclass(slots=True, kw_only=True, eq=False)
class LinearUpdate:
    """Low-rank pair of a linear layer: `a` [r, in], `b` [out, r], and the `bias` [out] of B or None."""

    a: Tensor
    b: Tensor
    scale: float
    bias: Tensor | None = None
    _later: tuple[View, TensorSpec, TensorSpec] | None = None  # makes `a` and `b` at their first use

    @classmethod
    def later(cls, view: View, a: TensorSpec, b: TensorSpec, scale: float) -> LinearUpdate:
        """Return the same, but `view` makes `a` and `b` when they are first used; it must be cheap and never fail."""
        update = cls.__new__(cls)
        update.scale, update.bias, update._later = scale, None, (view, a, b)  # noqa: SLF001 - its own
        return update

    def __getattr__(self, name: str) -> Tensor:
        """Return the slots `a` and `b` while they are empty.

        Two threads may fill them at once, with the same numbers.
        """
        if name not in ("a", "b"):
            raise AttributeError(name)
        assert self._later is not None  # only `later` leaves slots empty
        view, a, b = self._later
        self.a, self.b = view(a), view(b)
        return self.a if name == "a" else self.b

    def apply(self, args: Args, kwargs: Kwargs, output: Tensor, weight: float, /) -> Tensor:
        """Output + weight * scale * (B A x + bias)."""
        a, b = self.a, self.b
        x = args[0] if args else first_input(args, kwargs)
        low = functional.linear(x if x.dtype == a.dtype else x.to(a.dtype), a)
        scale = self.scale * weight
        if output.dtype == a.dtype and self.bias is None:
            # one pass over the output instead of three
            flat = torch.addmm(output.reshape(-1, b.shape[0]), low.reshape(-1, b.shape[1]), b.t(), alpha=scale)
            return flat.view(output.shape)
        return (output + functional.linear(low, b, self.bias) * scale).to(output.dtype)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MagnitudeUpdate:
    """DoRA on a linear layer: `magnitude` [out] is its magnitude vector divided by the row norms of the updated weight.

    `base_bias` is the base's own bias, which the magnitude does not scale.
    """

    a: Tensor
    b: Tensor
    scale: float
    magnitude: Tensor
    base_bias: Tensor | None

    def apply(self, args: Args, kwargs: Kwargs, output: Tensor, _weight: float, /) -> Tensor:  # the weight is 1
        """Magnitude * (W + scale B A) x + the base's bias."""
        x = first_input(args, kwargs).to(self.a.dtype)
        low = functional.linear(functional.linear(x, self.a), self.b)
        plain = output if self.base_bias is None else output - self.base_bias
        return (output + (self.magnitude - 1) * plain + self.magnitude * low * self.scale).to(output.dtype)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EmbeddingUpdate:
    """Low-rank pair of an embedding: `a` [r, entries], `b` [width, r]; `scale` includes the embedding's own factor."""

    a: Tensor
    b: Tensor
    scale: float

    def apply(self, args: Args, kwargs: Kwargs, output: Tensor, weight: float, /) -> Tensor:
        """Output + weight * scale * B A[ids]."""
        low = functional.embedding(first_input(args, kwargs), self.a.t())
        return (output + functional.linear(low, self.b) * (self.scale * weight)).to(output.dtype)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ConvUpdate:
    """Low-rank pair of a convolution: `a` [r, in, *kernel] with the base's stride and padding, `b` [out, r/groups, 1…].

    As in PEFT, `a` always sees all channels, also with groups, and always pads with zeros.
    """

    a: Tensor
    b: Tensor
    scale: float
    bias: Tensor | None
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    groups: int

    def apply(self, args: Args, kwargs: Kwargs, output: Tensor, weight: float, /) -> Tensor:
        """Output + weight * scale * (B * (A * x) + bias)."""
        convolve = _CONVOLUTIONS[self.a.ndim]
        x = first_input(args, kwargs).to(self.a.dtype)
        low = convolve(x, self.a, stride=self.stride, padding=self.padding)
        change = convolve(low, self.b, self.bias, groups=self.groups)
        return (output + change * (self.scale * weight)).to(output.dtype)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Replacement:
    """A module that the adapter replaces whole (`modules_to_save`): a copy with the adapter's numbers."""

    module: nn.Module

    def apply(self, args: Args, kwargs: Kwargs, _output: Output, _weight: float, /) -> Output:
        """Return the output of the adapter's own module."""
        return self.module(*args, **kwargs)


def copy_with(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return a copy of `module` with `tensors`, by their names inside it; it shares all other tensors with `module`.

    The copy has no hooks. Unlike `deepcopy` and `functional_call`, this writes nothing to `module`.
    """
    made = module.__class__.__new__(module.__class__)
    made.__dict__ = dict(module.__dict__)
    for kind in [key for key, value in made.__dict__.items() if "hooks" in key and isinstance(value, dict)]:
        made.__dict__[kind] = type(made.__dict__[kind])()
    own = {name: tensor for name, tensor in tensors.items() if "." not in name}
    made.__dict__["_parameters"] = {
        key: nn.Parameter(own[key], requires_grad=False) if key in own else value
        for key, value in module._parameters.items()  # noqa: SLF001 - keeps the entries that are None
    }
    made.__dict__["_buffers"] = {key: own.get(key, value) for key, value in module._buffers.items()}  # noqa: SLF001 - as above
    made.__dict__["_modules"] = {
        key: child if child is None else copy_with(child, _inside(tensors, key))
        for key, child in module._modules.items()  # noqa: SLF001 - as above
    }
    return made


def _inside(tensors: Mapping[str, Tensor], child: str) -> dict[str, Tensor]:
    prefix = child + "."
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def no_memory() -> None:
    """Drop the reference of an adapter that does not use the memory of its file."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LoadedAdapter:
    """An adapter in memory. It stays usable for its holder, even if the bank unloads it meanwhile.

    `updates`: by module of the base. `is_additive`: it can have a weight and be added to others. `no_rows`: why it
    cannot be chosen for some rows of a batch only; "" if it can. `memory`: a weak reference to that of its file.
    """

    label: str
    engine: str
    updates: Mapping[str, Update]
    size_bytes: int
    is_additive: bool
    no_rows: str = ""
    memory: Callable[[], object] = no_memory

    @property
    def replaced(self) -> frozenset[str]:
        """The modules that it replaces whole."""
        return frozenset(name for name, update in self.updates.items() if isinstance(update, Replacement))


def zero_of(updates: Mapping[str, Update]) -> str:
    """Name the half of every pair that holds only zeros, as before training; "" for other updates."""
    pairs: list[Any] = [one for one in updates.values() if not isinstance(one, Replacement)]
    biased = any(getattr(one, "bias", None) is not None and one.bias.any() for one in pairs)
    if not pairs or len(pairs) < len(updates) or biased:
        return ""
    for half in "ba":
        if not any(getattr(one, half).any() for one in pairs):
            return f"its update is zero: {half.upper()} of all {len(pairs)} pairs holds zeros"
    return ""


class Noting:
    """The choice `inner`, which notes the modules of the adapters that a call goes through."""

    def __init__(self, inner: Selection, names: Collection[str]) -> None:
        self._inner, self._names = inner, names
        self.reached: set[str] = set()

    @property
    def labels(self) -> tuple[str, ...]:
        """See `Selection`."""
        return self._inner.labels

    def apply(self, name: str, args: Args, kwargs: Kwargs, output: Output, /) -> Output:
        """See `Selection`."""
        if name in self._names:
            self.reached.add(name)
        return self._inner.apply(name, args, kwargs, output)


Choice = str | Mapping[str, float] | None
"""The name of an adapter, several names with weights (summed exactly), or None for the plain base."""


class UpdateTerm(NamedTuple):
    """An adapter with its weight."""

    adapter: LoadedAdapter
    weight: float


class Selection(Protocol):
    """The adapters of one context. It keeps them in memory, even if the bank unloads them meanwhile."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Their labels, such as `agent==0.0.12`."""
        ...

    def apply(self, name: str, args: Args, kwargs: Kwargs, output: Output, /) -> Output:
        """Return the output of the module `name` with the updates of the adapters."""
        ...


Current = ContextVar[Selection | None]


class Whole:
    """The same adapters for the whole batch, one after another; `adapter` is the first of them.

    `used` is greater than that of every choice that was used before.
    """

    __slots__ = ("adapter", "terms", "used")

    def __init__(self, terms: tuple[UpdateTerm, ...]) -> None:
        self.terms = terms
        self.adapter = terms[0].adapter
        self.used = 0

    @property
    def labels(self) -> tuple[str, ...]:
        """See `Selection`."""
        return tuple(term.adapter.label for term in self.terms)

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


def check_terms(terms: Sequence[UpdateTerm]) -> None:
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
