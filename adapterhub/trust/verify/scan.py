"""The one pass over a weights file: the largest magnitude and the first odd number of each tensor."""

from __future__ import annotations

import math
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from itertools import groupby, repeat
from operator import attrgetter
from typing import Any, Final, NamedTuple

from adapterhub.core.digests import Progress
from adapterhub.core.disk.held_file import PIECE_BYTES, HeldFile
from adapterhub.formats.safetensors.dtypes import DTYPES, FACTOR_DTYPES, FloatLayout
from adapterhub.formats.safetensors.file import TensorFile
from adapterhub.formats.safetensors.header import TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """How to read a dtype as unsigned integers: without the sign bit, codes order like magnitudes.

    A number whose leading byte, without sign, is `doubtful` or more may be odd, or more than float32 holds.
    """

    width: int
    layout: FloatLayout
    doubtful: int

    @property
    def mask(self) -> int:
        """All bits but the sign."""
        return self.layout.sign_bit - 1

    @property
    def largest(self) -> int:
        """Codes above this one are infinity or NaN."""
        return self.layout.largest


_DOUBTFUL: Final = {"F64": 0x47, "F32": 0x7F, "F16": 0x7B, "BF16": 0x7F, "F8_E4M3": 0x7F, "F8_E5M2": 0x7C}
_KINDS: Final[Mapping[str, _Kind]] = {
    name: _Kind(width=DTYPES[name].bits // 8, layout=layout, doubtful=doubtful)
    for name, doubtful in _DOUBTFUL.items()
    if (layout := DTYPES[name].layout) is not None
}
_WORTH_NUMPY_BYTES: Final = 32 << 20
_SAMPLE: Final = 512
_UNSIGNED: Final = bytes(byte & 0x7F for byte in range(256))
_STRUCT_CODES: Final = {8: "Q", 4: "I", 2: "H"}
_FLOAT_CODES: Final = {"F64": ("Q", "d", 0), "F32": ("I", "f", 0), "F16": ("H", "e", 0), "BF16": ("I", "f", 16)}
"""What `struct` calls the codes and the numbers of a dtype, and the bits that the codes lack at the end."""
FLOATS: Final = frozenset(_KINDS)
"""The dtypes whose numbers are checked: those that the weights of an adapter may have."""


class TensorNumbers(NamedTuple):
    """`largest` is the greatest magnitude, infinity when some number is not finite.

    It may be greater than that, as far as the leading byte allows (`look_at_bytes`); it is exact when it is zero, and
    when it is more than float32 holds. `odd` is the index of the first NaN or infinity in the flattened tensor, None
    when all are finite.
    """

    largest: float
    odd: int | None


def scan_weights(held: HeldFile, file: TensorFile, progress: Progress | None = None) -> Mapping[str, TensorNumbers]:
    """The numbers of each tensor in `FLOATS` by its name; the same pass hashes the file.

    Memory is a few pieces, whatever the size. Raises OSError when the file ends early or grew.
    """
    looks = _Looks(_look_for(file))
    runs = file.once(_runs)
    pieces = held.pieces(file.data_start, (run.size_bytes for run in runs))
    for run, view in zip(runs, pieces, strict=True):  # strict: to the end of `pieces`, where the digest is known
        looks.look(view, run)
        if progress is not None:
            progress(run.size_bytes)
    return looks.result(file)


class _Group(NamedTuple):
    """Neighbouring parts of tensors of one dtype: the bytes from `first` to `last` of a run."""

    kind: _Kind
    first: int
    last: int
    starts: tuple[int, ...]
    """Where the parts begin, counted from `first`."""
    names: tuple[str, ...]
    before: int
    """How many bytes of the first tensor came in earlier runs; all other parts begin with their tensor."""


class _Run(NamedTuple):
    """Neighbouring bytes that are read together, and the parts of them whose numbers are looked at."""

    size_bytes: int
    groups: tuple[_Group, ...]


_Part = tuple[TensorSpec, int, int, int]
"""Tensor, its first byte in the run, one past its last, and how many of its bytes came in earlier runs."""


def _runs(tensors: tuple[TensorSpec, ...]) -> tuple[_Run, ...]:
    """The data section in pieces of at most `PIECE_BYTES`.

    A piece breaks inside a tensor only at a multiple of 8 bytes from that tensor's start, so no number is cut.
    """
    runs: list[_Run] = []
    parts: list[_Part] = []
    filled = 0
    for spec in tensors:
        done, size_bytes = 0, spec.end - spec.start
        while done < size_bytes:
            take = min(size_bytes - done, PIECE_BYTES - filled)
            if take < size_bytes - done:
                take -= take % 8
            if take:
                parts.append((spec, filled, filled + take, done))
                filled += take
                done += take
            if done < size_bytes:
                runs.append(_Run(filled, tuple(_groups(parts))))
                parts, filled = [], 0
    return (*runs, _Run(filled, tuple(_groups(parts)))) if parts else tuple(runs)


def _groups(parts: list[_Part]) -> Iterator[_Group]:
    for dtype, same in groupby(parts, lambda part: part[0].dtype):
        if dtype in _KINDS:
            specs, starts, ends, before = zip(*same, strict=True)
            offsets = tuple(start - starts[0] for start in starts)
            yield _Group(_KINDS[dtype], starts[0], ends[-1], offsets, tuple(spec.name for spec in specs), before[0])


class _Looks:
    """The largest code so far in each tensor, and the index of the first odd one."""

    def __init__(self, look: _Look) -> None:
        self.look_at = look
        self.codes: dict[str, int] = {}
        self.odd: dict[str, int] = {}

    def look(self, view: memoryview, run: _Run) -> None:
        for kind, first, last, starts, names, before in run.groups:
            most, odd = self.look_at(view[first:last], kind, starts)
            if before:  # the rest of a tensor
                most[0] = max(most[0], self.codes[names[0]])
            self.codes.update(zip(names, most, strict=True))
            for i, at in odd.items():
                self.odd.setdefault(names[i], (0 if i else before) // kind.width + at)

    def result(self, file: TensorFile) -> dict[str, TensorNumbers]:
        found: dict[str, TensorNumbers] = {}
        for dtype, specs in groupby(file.tensors, attrgetter("dtype")):
            names = [spec.name for spec in specs if spec.name in self.codes]
            largest = _magnitudes(dtype, [self.codes[name] for name in names])
            found.update(zip(names, map(TensorNumbers, largest, repeat(None)), strict=True))
        return found | {name: TensorNumbers(math.inf, at) for name, at in self.odd.items()}


def _magnitudes(dtype: str, codes: list[int]) -> Iterable[float]:
    if dtype not in _FLOAT_CODES:
        return [_KINDS[dtype].layout.magnitude(code) for code in codes]
    of_codes, of_floats, shift = _FLOAT_CODES[dtype]
    raw = struct.pack(f"<{len(codes)}{of_codes}", *([code << shift for code in codes] if shift else codes))
    return struct.unpack(f"<{len(codes)}{of_floats}", raw)


_Look = Callable[[memoryview, _Kind, Sequence[int]], tuple[list[int], dict[int, int]]]
"""The largest code of each tensor, and the index of the first odd number by tensor that has one.

The argument after the kind are the offsets at which the tensors begin.
"""


def _look_for(file: TensorFile) -> _Look:
    # numpy is several times as fast, but importing it takes as long as looking at 32 MB without it
    size_bytes = sum(spec.size_bytes for spec in file.tensors)
    if "numpy" in sys.modules or (size_bytes > _WORTH_NUMPY_BYTES and find_spec("numpy") is not None):
        return look_with_numpy()
    return look_at_bytes


def look_with_numpy() -> _Look:
    """Exact, and faster than a disk."""
    import numpy as np

    def look(view: memoryview, kind: _Kind, starts: Sequence[int]) -> tuple[list[int], dict[int, int]]:
        codes = np.frombuffer(view, f"<u{kind.width}")
        places = [start // kind.width for start in starts]
        # the greatest code is a negative number's, where there is one; for a signed reader, a positive one's
        of_negative = np.maximum.reduceat(codes, places) & codes.dtype.type(kind.mask)
        signed = f"<i{kind.width}"
        largest = np.maximum(np.maximum.reduceat(codes.view(signed), places), of_negative.view(signed))
        most: list[int] = largest.tolist()
        odd = np.flatnonzero(largest > kind.largest).tolist()
        ends = [*places[1:], len(codes)]
        return most, {i: int(((codes[places[i] : ends[i]] & kind.mask) > kind.largest).argmax()) for i in odd}

    return look


def look_at_bytes(view: memoryview, kind: _Kind, starts: Sequence[int]) -> tuple[list[int], dict[int, int]]:
    """As `look_with_numpy`, but the largest code may be any that begins with the same byte as the true one.

    The leading byte holds most of the exponent. The other bytes are looked at where it does not decide: when a number
    may be odd or more than float32 holds, and when all may be zero.
    """
    found = [_look_at_one(bytes(view[a:b]), kind) for a, b in zip(starts, [*starts[1:], len(view)], strict=True)]
    return [largest for largest, _ in found], {i: odd for i, (_, odd) in enumerate(found) if odd is not None}


def _look_at_one(raw: bytes, kind: _Kind) -> tuple[int, int | None]:
    if raw == bytes(len(raw)):
        return 0, None
    leading = raw[kind.width - 1 :: kind.width]
    top = max(leading[:: len(leading) // _SAMPLE + 1].translate(_UNSIGNED))
    while (at := leading.translate(_above(top)).find(1)) >= 0:
        top = leading[at] & 0x7F
    if kind.width == 1:
        return top, leading.translate(_above(kind.largest)).find(1) if top > kind.largest else None
    if 0 < top < kind.doubtful:
        return ((top + 1) << 8 * (kind.width - 1)) - 1, None
    codes = [code & kind.mask for code in struct.unpack(f"<{len(leading)}{_STRUCT_CODES[kind.width]}", raw)]
    largest = max(codes)
    return largest, next(i for i, code in enumerate(codes) if code > kind.largest) if largest > kind.largest else None


@lru_cache(maxsize=128)
def _above(limit: int) -> bytes:
    """For `bytes.translate`: 1 for each byte that is greater without its sign bit, else 0."""
    return bytes((byte & 0x7F) > limit for byte in range(256))


def as_floats(raw: bytes | bytearray | memoryview, dtype: str) -> Any:  # noqa: ANN401 - a numpy array; numpy is not imported at module level
    """The numbers of a tensor in one of `FLOATS`, as float64 for F64 and float32 for all others, flat."""
    import numpy as np

    if dtype in FACTOR_DTYPES:
        from adapterhub.formats.derived.reading import floats

        return floats(raw, dtype)
    codes = np.frombuffer(raw, "u1").astype("i4")
    mantissa_bits, bias = _KINDS[dtype].layout.mantissa, _KINDS[dtype].layout.bias
    exponent, fraction = (codes & 0x7F) >> mantissa_bits, codes & ((1 << mantissa_bits) - 1)
    significand = np.where(exponent > 0, (1 << mantissa_bits) | fraction, fraction).astype("f4")
    size = np.ldexp(significand, np.maximum(exponent, 1) - bias - mantissa_bits)
    return np.where(codes & 0x80, -size, size).astype("f4")
