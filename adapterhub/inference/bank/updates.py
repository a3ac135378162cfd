"""The change that an adapter makes to the output of one module, for each kind of module that can have a pair.

The arithmetic is PEFT's: the input in the dtype of the factors, the sum in the dtype of the module's own output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from adapterhub.formats.safetensors.header import TensorSpec

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
        """The module's output plus the change times `weight`; does not write to `output`."""
        ...


def first_input(args: Args, kwargs: Kwargs) -> Tensor:
    """The first argument of a module's call."""
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
        """The same, but `view` makes `a` and `b` when they are first used; it must be cheap and never fail."""
        update = cls.__new__(cls)
        update.scale, update.bias, update._later = scale, None, (view, a, b)  # noqa: SLF001 - its own
        return update

    def __getattr__(self, name: str) -> Tensor:
        """The slots `a` and `b` while they are empty; two threads may fill them at once, with the same numbers."""
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
        """The output of the adapter's own module."""
        return self.module(*args, **kwargs)


def copy_with(module: nn.Module, tensors: Mapping[str, Tensor]) -> nn.Module:
    """A copy of `module` with `tensors`, by their names inside it; it shares all other tensors with `module`.

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
