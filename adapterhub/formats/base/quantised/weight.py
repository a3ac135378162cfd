"""A weight as a quantised file keeps it, and the numbers that its source may have had.

A code and its scale stand for an interval of numbers: those that the writer rounds to this code. Each format defines
the interval; a comparison checks that the source lies inside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from typing import Any, Final, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from adapterhub.core.errors import Malformed, shown
from adapterhub.formats.safetensors.header import DTYPES

Places = NDArray[np.int64]
"""Indices into a flattened tensor, in any order."""
Numbers = NDArray[np.float64]

DOUBT: Final = 2.0**-21
"""The relative error of a few products and quotients in F32, one after another."""


class Stored(NamedTuple):
    """Dtype and shape of a tensor in a file. GGUF's types have their own names, such as `Q4_K`."""

    dtype: str
    shape: tuple[int, ...]


class Reader(Protocol):
    """Reads parts of the tensors of a model, from its files or from memory."""

    tensors: Mapping[str, Stored]

    def rows(self, name: str, starts: Places, size: int) -> NDArray[np.uint8]:
        """Read the `size` bytes of the tensor `name` at each of `starts`, in bytes, into an array [len(starts), size].

        Raises:
            CouldNotTell: the file cannot be read, or became shorter.
        """


class Ranges(NamedTuple):
    """What each of some numbers of the source may have been: from `low` to `high`; the copy computes with `value`.

    All are float64. The ends may be infinite, where a writer cuts off what is too large. NaN in all three: the copy
    has no number there (a scale of NaN, a code that the format does not have), which no source explains.
    """

    low: Numbers
    high: Numbers
    value: Numbers


@dataclass(frozen=True, kw_only=True)
class Weight(ABC):
    """One tensor of the source, as the copy keeps it: `shape` is that of the source, `parts` are tensors of the copy.

    `form`: the format, such as `fp8-block`. `is_rounded`: each code is the one nearest to the number of the source, so
    `ranges` is a proof; otherwise (GPTQ, AWQ, codebooks) the writer moved numbers, and `ranges` has NaN for both ends.
    """

    name: str
    shape: tuple[int, ...]
    form: str
    parts: tuple[str, ...]
    is_rounded: bool = True

    @abstractmethod
    def ranges(self, reader: Reader, at: Places) -> Ranges:
        """Return the source intervals at the places `at` of its flattened tensor."""

    def steps(self, reader: Reader, at: Places) -> Numbers:
        """Return the distance from each code to its neighbours, in numbers of the source; NaN where it is not known."""
        low, high, _ = self.ranges(reader, at)
        width = np.where(np.isfinite(low) & np.isfinite(high), high, np.nan) - np.where(np.isfinite(low), low, 0.0)
        return np.where(width > 0, width, np.nan)

    def may_have_shape(self, shape: tuple[int, ...]) -> bool:
        """Return whether the source's tensor may have this shape."""
        return self.shape == shape

    def rows_and_columns(self, at: Places) -> tuple[Places, Places]:
        """Return the places as rows and columns of a matrix; all dimensions but the last count as rows."""
        width = self.shape[-1] if self.shape else 1
        return at // width, at % width


@dataclass(frozen=True, kw_only=True)
class Gathered(Weight):
    """A weight whose numbers lie in other weights; those that lie in none may be anything, and have no value."""

    @abstractmethod
    def inside(self, at: Places) -> Iterable[tuple[Places | slice, Weight, Places]]:
        """Return which of the places lie in one weight, that weight, and where they lie in it."""

    def ranges(self, reader: Reader, at: Places) -> Ranges:
        """As the other weights say."""
        found = Ranges(np.full(len(at), -np.inf), np.full(len(at), np.inf), np.full(len(at), np.nan))
        for chosen, weight, places in self.inside(at):
            for whole, some in zip(found, weight.ranges(reader, places), strict=True):
                whole[chosen] = some
        return found

    def steps(self, reader: Reader, at: Places) -> Numbers:
        """As the other weights say."""
        found = np.full(len(at), np.nan)
        for chosen, weight, places in self.inside(at):
            found[chosen] = weight.steps(reader, places)
        return found


@dataclass(frozen=True, kw_only=True)
class Tensors:
    """What is known of a model's files before a number of them is read.

    `tensors` by name; `config`: the `config.json` beside them; `quantisation`: its `quantization_config`, or {}.
    `reader`: for the small tensors in which some formats keep shapes; without it, those formats are not explained.
    """

    where: str
    tensors: Mapping[str, Stored]
    config: Mapping[str, Any] = field(default_factory=dict)
    quantisation: Mapping[str, Any] = field(default_factory=dict)
    reader: Reader | None = None

    def small(self, name: str, most_bytes: int) -> bytes | None:
        """Return the bytes of a small tensor; None without a reader.

        Raises:
            Malformed: it is larger than `most_bytes`.
        """
        dtype, shape = self.tensors[name]
        size = prod(shape) * DTYPES[dtype].bits // 8
        if size > most_bytes:
            raise self.refuse(name, f"has {size:,} bytes, expected at most {most_bytes:,}")
        return None if self.reader is None else self.reader.rows(name, np.zeros(1, np.int64), size).tobytes()

    def refuse(self, name: str, reason: str) -> Malformed:
        """Return the error for a tensor that is not what its format needs."""
        hint = "download the files again, or ask who quantised them"
        return Malformed(f"{shown(self.where, 200)}: `{shown(name)}` {reason}", hint=hint)


# ---------------------------------------------------------------- numbers as they are stored
DENSE: Final = 4
"""Where places lie so close that there are fewer than this many numbers for each, all are read, once."""


def bits(reader: Reader, name: str, at: Places) -> NDArray[Any]:
    """Return the stored numbers at `at` as unsigned integers of their width."""
    raw, index = _stored(reader, name, at)
    return raw if index is None else raw[index]


def numbers(reader: Reader, name: str, at: Places) -> Numbers:
    """Return the stored numbers at `at`; integers unchanged, scales of E8M0 as the powers of two that they are."""
    raw, index = _stored(reader, name, at)
    found = decoded(reader.tensors[name].dtype, raw)
    return found if index is None else found[index]


def _stored(reader: Reader, name: str, at: Places) -> tuple[NDArray[Any], Places | None]:
    """Return stored numbers as unsigned integers, and the places of those at `at` among them; None: all of them."""
    width = DTYPES[reader.tensors[name].dtype].bits // 8
    if len(at) == 0:
        return np.empty(0, dtype=f"<u{width}"), None
    first, count = int(at.min()), int(at.max() - at.min()) + 1
    if count > DENSE * len(at):
        rows = reader.rows(name, at * width, width)
        return np.ascontiguousarray(rows).view(f"<u{width}").reshape(-1), None
    raw = reader.rows(name, np.array([first * width]), count * width).reshape(-1).view(f"<u{width}")
    return raw, None if is_run(at) else at - first


def is_run(at: Places) -> bool:
    """Return whether each place is the one after the last."""
    return bool((np.diff(at) == 1).all())


def decoded(dtype: str, raw: NDArray[Any]) -> Numbers:
    """Return the values of stored numbers, given as unsigned integers."""
    if dtype == "F8_E8M0":
        return np.where(raw == 0xFF, np.nan, np.exp2(raw.astype(np.float64) - 127))
    if dtype == "BF16":
        raw, dtype = raw.astype(np.uint32) << 16, "F32"
    if dtype in ("F16", "F32", "F64"):
        with np.errstate(invalid="ignore"):  # of NaN
            return raw.view(f"<f{DTYPES[dtype].bits // 8}").astype(np.float64)
    if DTYPES[dtype].is_integer:
        return raw.view(f"<i{raw.itemsize}" if dtype.startswith("I") else raw.dtype).astype(np.float64)
    found: Numbers = _every_value(dtype)[raw]
    return found


@lru_cache(maxsize=8)
def _every_value(dtype: str) -> Numbers:
    """Return the value of each code of a float of 8 bits."""
    layout = DTYPES[dtype].layout
    assert layout is not None  # the caller reads floats
    sign = layout.sign_bit
    sizes = [
        np.nan if layout.is_nan(code & sign, code & (sign - 1)) else layout.magnitude(code & (sign - 1))
        for code in range(256)
    ]
    return np.array([-size if code & sign else size for code, size in enumerate(sizes)])


def rounded_to(dtype: str, raw: NDArray[Any]) -> Ranges:
    """Return the interval that rounds to these stored floats: half the way to each neighbour."""
    if raw.dtype == np.uint8:
        return Ranges(*(each[raw] for each in _every_range(dtype)))
    return _rounded_to(dtype, raw)


@lru_cache(maxsize=8)
def _every_range(dtype: str) -> Ranges:
    """Return the range of each code of a float of 8 bits."""
    return _rounded_to(dtype, np.arange(256, dtype=np.uint8))


def _rounded_to(dtype: str, raw: NDArray[Any]) -> Ranges:
    value = decoded(dtype, raw)
    layout = DTYPES[dtype].layout
    if dtype == "F64" or layout is None:
        return Ranges(value, value, value)
    sign = layout.sign_bit
    size = (raw.astype(np.int64)) & (sign - 1)
    here = np.abs(value)
    below = np.abs(decoded(dtype, (np.maximum(size - 1, 0)).astype(raw.dtype)))
    above = np.abs(decoded(dtype, (np.minimum(size + 1, layout.largest)).astype(raw.dtype)))
    is_open = (size > layout.largest) | ((size == layout.largest) & (not layout.infinity))
    with np.errstate(invalid="ignore"):  # of NaN
        low = np.where(size == 0, -above / 2, (here + below) / 2)
        last = here + (here - below) / 2
        high = np.where(is_open, np.inf, np.where(size == layout.largest, last, (here + above) / 2))
    is_negative = (raw.astype(np.int64) & sign) != 0
    is_lost = np.isnan(value)
    low, high = np.where(is_negative, -high, low), np.where(is_negative, -low, high)
    return Ranges(np.where(is_lost, np.nan, low), np.where(is_lost, np.nan, high), value)


def scaled(codes: Ranges, scale: Numbers, *, doubt: float | Numbers = 0.0) -> Ranges:
    """Ranges of codes times their scale, which may be negative.

    `doubt`: the relative error of the scale and of the division by it, by which the ends move outwards. A scale of 0
        stands for zeros; one that is not finite gives NaN.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        low, high, value = codes.low * scale, codes.high * scale, codes.value * scale
        if not (scale >= 0).all():
            low, high = np.minimum(low, high), np.maximum(low, high)
        if np.any(doubt):
            low, high = low - _size(low) * doubt, high + _size(high) * doubt
    found = Ranges(low, high, value)
    if not scale.all():
        found = Ranges(*(np.where(scale == 0, 0.0, each) for each in found))
    if not np.isfinite(scale).all():
        found = Ranges(*(np.where(np.isfinite(scale), each, np.nan) for each in found))
    return found


def _size(ends: Numbers) -> Numbers:
    """Return how far each end is from 0; 0 for infinite ones, which do not move."""
    return np.where(np.isinf(ends), 0.0, np.abs(ends))


def moved(codes: NDArray[Any], scale: Numbers) -> Ranges:
    """Codes times their scale, where the writer moved numbers before it rounded: the value has no interval."""
    with np.errstate(invalid="ignore", over="ignore"):
        value = codes * scale
    nothing = np.full(value.shape, np.nan)
    return Ranges(nothing, nothing, np.where(np.isfinite(value), value, np.nan))


@dataclass(frozen=True, kw_only=True)
class Flat(Weight):
    """A tensor of which the copy has all numbers in order, but perhaps not the shape: `shape` is [numbers] then."""

    def may_have_shape(self, shape: tuple[int, ...]) -> bool:
        """Return whether this is the shape, or one of as many numbers."""
        return self.shape in (shape, (prod(shape),))


@dataclass(frozen=True, kw_only=True)
class Plain(Weight):
    """A tensor that the copy keeps as floats."""

    def ranges(self, reader: Reader, at: Places) -> Ranges:
        """Return the floats, each with what rounds to it."""
        return rounded_to(reader.tensors[self.parts[0]].dtype, bits(reader, self.parts[0], at))
