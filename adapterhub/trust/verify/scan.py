"""The one pass over a weights file: the largest magnitude and the first odd number of each tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from adapterhub.core.digests import Progress
from adapterhub.core.disk.held_file import PIECE_BYTES, HeldFile
from adapterhub.formats.safetensors.file import TensorFile
from adapterhub.formats.safetensors.header import TensorSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """How to read a dtype as unsigned integers: without the sign bit, codes order like magnitudes.

    Codes above `largest` are infinity or NaN.
    """

    code: str
    mask: int
    largest: int


_KINDS: Final[Mapping[str, _Kind]] = {
    "F64": _Kind(code="<u8", mask=(1 << 63) - 1, largest=0x7FEF_FFFF_FFFF_FFFF),
    "F32": _Kind(code="<u4", mask=0x7FFF_FFFF, largest=0x7F7F_FFFF),
    "F16": _Kind(code="<u2", mask=0x7FFF, largest=0x7BFF),
    "BF16": _Kind(code="<u2", mask=0x7FFF, largest=0x7F7F),
    "F8_E4M3": _Kind(code="|u1", mask=0x7F, largest=0x7E),
    "F8_E5M2": _Kind(code="|u1", mask=0x7F, largest=0x7B),
}
FLOATS: Final = frozenset(_KINDS)
"""The dtypes whose numbers are checked: those that the weights of an adapter may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorNumbers:
    """`largest` is the greatest magnitude, infinity when some number is not finite.

    `odd` is the index of the first NaN or infinity in the flattened tensor, None when all are finite.
    """

    largest: float
    odd: int | None


def scan_weights(held: HeldFile, file: TensorFile, progress: Progress | None = None) -> Mapping[str, TensorNumbers]:
    """The numbers of each tensor in `FLOATS` by its name; the same pass hashes the file.

    Memory is a few pieces, whatever the size. Raises OSError when the file ends early or grew.
    """
    looks = _Looks()
    runs = list(_chunks(file))
    pieces = held.pieces(file.data_start, (run.size_bytes for run in runs))
    for run, view in zip(runs, pieces, strict=True):  # strict: to the end of `pieces`, where the digest is known
        looks.look(view, run)
        if progress is not None:
            progress(run.size_bytes)
    return looks.result()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Run:
    """Neighbouring bytes that are read together: parts of tensors, each with its offset in the run."""

    size_bytes: int
    parts: tuple[tuple[TensorSpec, int, int, int], ...]
    """Tensor, its first byte in the run, one past its last, and how many of its bytes came in earlier runs."""


def _chunks(file: TensorFile) -> Iterator[_Run]:
    """The data section in pieces of at most `PIECE_BYTES`.

    A piece breaks inside a tensor only at a multiple of 8 bytes from that tensor's start, so no number is cut.
    """
    parts: list[tuple[TensorSpec, int, int, int]] = []
    filled = 0
    for spec in file.tensors:
        done = 0
        while done < spec.size_bytes:
            room = PIECE_BYTES - filled
            take = min(spec.size_bytes - done, room)
            if take < spec.size_bytes - done:
                take -= take % 8
            if take:
                parts.append((spec, filled, filled + take, done))
                filled += take
                done += take
            if done < spec.size_bytes:
                yield _Run(size_bytes=filled, parts=tuple(parts))
                parts, filled = [], 0
    if parts:
        yield _Run(size_bytes=filled, parts=tuple(parts))


class _Looks:
    """The largest code so far in each tensor, and the index of the first odd one."""

    def __init__(self) -> None:
        import numpy as np  # 60 ms of import that only a look at numbers needs

        self.np = np
        self.scratch = np.empty(PIECE_BYTES, np.uint8)
        self.codes: dict[str, int] = {}
        self.odd: dict[str, int] = {}
        self.dtypes: dict[str, str] = {}

    def look(self, view: memoryview, run: _Run) -> None:
        for spec, start, end, before in run.parts:
            kind = _KINDS.get(spec.dtype)
            if kind is None:
                continue
            dtype = self.np.dtype(kind.code)
            raw = self.np.frombuffer(view[start:end], dtype)
            codes = self.scratch[: end - start].view(dtype)
            self.np.bitwise_and(raw, dtype.type(kind.mask), out=codes)
            largest = int(codes.max())
            self.dtypes[spec.name] = spec.dtype
            self.codes[spec.name] = max(largest, self.codes.get(spec.name, 0))
            if largest > kind.largest and spec.name not in self.odd:
                self.odd[spec.name] = before // dtype.itemsize + int((codes > kind.largest).argmax())

    def result(self) -> dict[str, TensorNumbers]:
        return {
            name: TensorNumbers(
                largest=float("inf") if name in self.odd else self.magnitude(code, self.dtypes[name]),
                odd=self.odd.get(name),
            )
            for name, code in self.codes.items()
        }

    def magnitude(self, code: int, dtype: str) -> float:
        """The number that a code without sign stands for."""
        return float(as_floats(code.to_bytes(8, "little")[: self.np.dtype(_KINDS[dtype].code).itemsize], dtype)[0])


def as_floats(raw: bytes | bytearray | memoryview, dtype: str) -> Any:  # noqa: ANN401 - a numpy array; numpy is not imported at module level
    """The numbers of a tensor in one of `FLOATS`, as float64 for F64 and float32 for all others, flat."""
    import numpy as np

    if dtype in ("F64", "F32", "F16"):
        return np.frombuffer(raw, {"F64": "<f8", "F32": "<f4", "F16": "<f2"}[dtype]).astype(
            "f8" if dtype == "F64" else "f4"
        )
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype("<u4") << 16).view("<f4")
    codes = np.frombuffer(raw, "u1").astype("i4")
    mantissa_bits, bias = (3, 7) if dtype == "F8_E4M3" else (2, 15)
    exponent, fraction = (codes & 0x7F) >> mantissa_bits, codes & ((1 << mantissa_bits) - 1)
    significand = np.where(exponent > 0, (1 << mantissa_bits) | fraction, fraction).astype("f4")
    size = np.ldexp(significand, np.maximum(exponent, 1) - bias - mantissa_bits)
    return np.where(codes & 0x80, -size, size).astype("f4")
