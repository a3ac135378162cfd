"""What a reader makes of a foreign file: modules, each with its rank, its alpha and the tensors that it takes."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, NoReturn

from adapterhub.core.errors import MalformedTensorFile, shown
from adapterhub.core.limits import limits
from adapterhub.formats.safetensors.dtypes import FACTOR_DTYPES
from adapterhub.formats.safetensors.file import TensorFile
from adapterhub.formats.safetensors.header import TensorSpec

MAX_ALPHA: Final = 65_536
PARTS: Final = ("unet", "transformer", "transformer_2", "text_encoder", "text_encoder_2", "text_encoder_3")
"""The components of a pipeline that a LoRA may be on."""

CARRIED: Final = frozenset({"use_dora", "use_rslora", "lora_bias"})
"""Variants of LoRA that a file's tensors and alphas carry."""

HEADER: Final = "lora_adapter_metadata"
"""The key of diffusers' own settings in a file's header."""

MATRIX: Final = 2
_IMAGE: Final = 4
_SCALARS: Final = {"F16": "<e", "F32": "<f", "F64": "<d"}

Method = Literal["LORA", "LOHA", "LOKR"]
Rows = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A foreign file: its header, a way to read small tensors, the config beside it, and what is known of the base.

    `base` has the shapes of the base's weights by the names of its modules; empty where no base is given.
    """

    file: TensorFile
    where: str
    read: Callable[[TensorSpec], bytes]
    config: Mapping[str, Any] | None = None
    base: Mapping[str, tuple[int, ...]] = field(default_factory=lambda: MappingProxyType({}))

    def refuse(self, code: str, reason: str, hint: str = "") -> NoReturn:
        """Raise for the file.

        Raises:
            MalformedTensorFile: always, with `code`.
        """
        raise MalformedTensorFile(self.where, reason, code=code, hint=hint)

    def shape_of(self, part: str, module: str) -> tuple[int, ...] | None:
        """The shape of a module's weight in the base, which may be one component or a pipeline of several."""
        return self.base.get(f"{part}.{module}") or self.base.get(module)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The bytes of one tensor to write: those of `source`, or some of its rows in this order, or it transposed.

    With `mid` (`[r, r, h, w]`), `source` is the `down` of a convolution in three parts, into which `mid` is folded.
    """

    source: TensorSpec
    shape: tuple[int, ...]
    rows: Rows = ()
    is_transposed: bool = False
    mid: TensorSpec | None = None

    @property
    def dtype(self) -> str:
        """The dtype that is written: the file's own, but float32 for what is computed."""
        return "F32" if self.mid is not None else self.source.dtype


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """The update of one module: `slots` are its tensors by the end of PEFT's name for them.

    `part` is the component of a pipeline that has the module, "" for a model of one. `alpha` is what PEFT divides by
    the rank; None where the file says none, which means the rank. `unused_alpha`: what a file states beside a LoKr of
    whole sides, whose scale is 1 all the same.
    """

    part: str
    name: str
    slots: Mapping[str, Cut]
    rank: int
    alpha: float | None = None
    unused_alpha: float | None = None

    @property
    def scale(self) -> float:
        """The factor on B·A, for a file without rsLoRA."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A whole foreign file, understood. `spelling` is what a writer needs to write the same names again."""

    scheme: str
    modules: tuple[Module, ...]
    method: Method = "LORA"
    use_rslora: bool = False
    settings: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    spelling: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()

    @property
    def parts(self) -> tuple[str, ...]:
        """The components that the file has modules of, sorted."""
        return tuple(sorted({module.part for module in self.modules}))

    @property
    def is_exact(self) -> bool:
        """Whether every number is one of the file's."""
        return not any(cut.mid for module in self.modules for cut in module.slots.values())

    def unused_alphas(self) -> dict[str, Any]:
        """For a writer: the alphas that count for nothing, as one number or by module; nothing where there are none."""
        found = {self.full_name(m): m.unused_alpha for m in self.modules if m.alpha is None and m.unused_alpha}
        numbers = set(found.values())
        return {"unused_alpha": numbers.pop() if len(numbers) == 1 else found} if numbers else {}

    def full_name(self, module: Module) -> str:
        """The name of a module in the PEFT folder: behind its component where the file has several."""
        return f"{module.part}.{module.name}" if len(self.parts) > 1 else module.name


def scalar(source: Source, spec: TensorSpec) -> float:
    """The number that an `alpha` holds.

    Raises:
        MalformedTensorFile: E_ALPHA for anything but one finite number above 0, at most `MAX_ALPHA`.
    """
    if spec.dtype not in FACTOR_DTYPES or spec.shape not in ((), (1,)):
        found = f"is {spec.dtype} of shape {list(spec.shape)}"
        source.refuse("E_ALPHA", f"`{shown(spec.name)}` {found}, expected one floating number")
    raw = source.read(spec)
    value = (
        struct.unpack("<f", b"\0\0" + raw)[0] if spec.dtype == "BF16" else struct.unpack(_SCALARS[spec.dtype], raw)[0]
    )
    if not (math.isfinite(value) and 0 < value <= MAX_ALPHA):
        what = f"`{shown(spec.name)}` is {value:g}, expected a number above 0 and at most {MAX_ALPHA}"
        hint = "programs read 0 in two ways: as the rank, or as no effect" if value == 0 else ""
        source.refuse("E_ALPHA", what, hint)
    return float(value)


def lora_module(
    source: Source,
    part: str,
    name: str,
    found: Mapping[str, TensorSpec],
    *,
    alpha: float | None,
    label: str = "",
) -> Module:
    """One LoRA module from its tensors: `down` and `up`, and perhaps `mid`, `magnitude` and `bias`.

    Args:
        source: the file.
        part: the component, "" for none.
        name: the module's name in the base.
        found: the tensors by what they are.
        alpha: the number beside the pair.
        label: the file's own name for the module, for errors.

    Raises:
        MalformedTensorFile: E_PAIR, E_SHAPE, E_RANK or E_DTYPE.
    """
    label = shown(label or name)
    down, up = found.get("down"), found.get("up")
    if down is None or up is None:
        there = ", ".join(f"`{kind}`" for kind in sorted(found)) or "an alpha"
        missing = "down and up" if down is None and up is None else "down" if down is None else "up"
        source.refuse("E_PAIR", f"`{label}` has {there} without {missing}", "the file is cut short, or was edited")
    for spec in found.values():
        if spec.dtype not in FACTOR_DTYPES:
            source.refuse("E_DTYPE", f"`{shown(spec.name)}` is {spec.dtype}, expected {', '.join(FACTOR_DTYPES)}")
    a, b = down.shape, up.shape
    weight = source.shape_of(part, name)
    _check_factors(source, a, b, most=max(_IMAGE, len(weight or ())), label=label)
    mid = found.get("mid")
    if mid is not None:
        if len(a) != _IMAGE or set(a[MATRIX:]) != {1} or len(mid.shape) != _IMAGE or mid.shape[:2] != (a[0], a[0]):
            text = f"`{label}` has a mid of shape {list(mid.shape)}, expected [{a[0]}, {a[0]}, height, width]"
            source.refuse("E_SHAPE", text)
        a = (*a[:2], *mid.shape[2:])
    shape_a, shape_b = _fitted(a, b, weight)
    slots = {
        "lora_A.weight": Cut(source=down, shape=shape_a, mid=mid),
        "lora_B.weight": Cut(source=up, shape=shape_b),
    }
    slots |= _vectors(source, found, a, shape_b)
    return Module(part=part, name=name, slots=slots, rank=a[0], alpha=alpha)


def _check_factors(source: Source, a: tuple[int, ...], b: tuple[int, ...], *, most: int, label: str) -> None:
    """Raise unless A and B are factors of one matrix or convolution of at most `most` dimensions."""
    if not (MATRIX <= len(a) <= most and len(a) == len(b) and all(a) and set(b[MATRIX:]) <= {1} and b[0]):
        if a[:1] == (0,):
            source.refuse("E_RANK", f"`{label}` has rank 0")
        text = f"`{label}` has factors of shapes {list(a)} and {list(b)}, expected [r, in] and [out, r]"
        source.refuse("E_SHAPE", text)
    if a[0] != b[1]:
        source.refuse("E_RANK", f"`{label}` has factors of ranks {a[0]} and {b[1]}")
    width = math.prod(a[1:])
    if a[0] > max(b[0], width) or a[0] > limits().rank:
        source.refuse("E_RANK", f"`{label}` has rank {a[0]}, more than both sides of its {b[0]} x {width} matrix")


def _vectors(source: Source, found: Mapping[str, TensorSpec], a: tuple[int, ...], b: tuple[int, ...]) -> dict[str, Cut]:
    """DoRA's magnitudes and the bias of B: one number for each output."""
    out, slots = b[0], {}
    magnitude, bias = found.get("magnitude"), found.get("bias")
    if magnitude is not None:
        if magnitude.shape not in [(out,), (out, 1), (out, *([1] * (len(a) - 1)))]:
            text = f"`{shown(magnitude.name)}` has shape {list(magnitude.shape)}, expected [{out}, 1]"
            source.refuse("E_SHAPE", text, "one number for each output; norms over inputs are not PEFT's DoRA")
        shape = (out,) if len(b) == MATRIX else (1, out, *b[MATRIX:])
        slots["lora_magnitude_vector"] = Cut(source=magnitude, shape=shape)
    if bias is not None:
        if bias.shape != (out,):
            source.refuse("E_SHAPE", f"`{shown(bias.name)}` has shape {list(bias.shape)}, expected [{out}]")
        slots["lora_B.bias"] = Cut(source=bias, shape=bias.shape)
    return slots


def _fitted(
    a: tuple[int, ...], b: tuple[int, ...], weight: tuple[int, ...] | None
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes that the base's layer wants: `[r, in]` and `[r, in, 1, 1]` are the same numbers."""
    if weight is None or len(weight) == len(a):
        return a, b
    if len(weight) == MATRIX and set(a[MATRIX:]) <= {1}:
        return a[:MATRIX], b[:MATRIX]
    if len(a) == MATRIX and set(weight[MATRIX:]) == {1}:
        ones = (1,) * (len(weight) - MATRIX)
        return (*a, *ones), (*b, *ones)
    return a, b
