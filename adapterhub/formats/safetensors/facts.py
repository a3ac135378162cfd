"""Facts of a tensor whose bytes were read: name, dtype, shape, digest and a few of its numbers."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from adapterhub.core.digests import Json, parse_digest
from adapterhub.core.errors import shown
from adapterhub.formats.safetensors.dtypes import DTYPE_BITS

if TYPE_CHECKING:
    from adapterhub.formats.safetensors.header import TensorSpec

SAMPLES: Final = 16
"""Numbers kept of each tensor."""

_GOLDEN: Final = 0x9E37_79B9_7F4A_7C15  # 2**64 divided by the golden ratio: multiples of it fill the circle evenly


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorFacts:
    """One tensor of a base. `sha256` is the hex digest of its bytes; `samples` its sampled numbers, end to end."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str
    samples: bytes

    def to_json(self) -> list[Any]:
        """`[name, dtype, shape, sha256, samples in base64]`."""
        samples = base64.b64encode(self.samples).decode("ascii")
        return [self.name, self.dtype, list(self.shape), self.sha256, samples]

    @classmethod
    def from_json(cls, value: Json, path: str = "tensor") -> TensorFacts:
        """Read the value that `to_json` makes, strictly.

        Raises:
            ValueError: with the path of the first wrong value.
        """
        match value:
            case [str() as name, dtype, shape, sha256, str() as samples]:
                pass
            case _:
                raise ValueError(f"{path}: expected [name, dtype, shape, sha256, samples], got {shown(value)}")
        if dtype not in DTYPE_BITS:
            raise ValueError(f"{path}: dtype {shown(dtype)} is not one of safetensors")
        if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
            raise ValueError(f"{path}: expected the shape as a list of natural numbers, got {shown(shape)}")
        try:
            digest = parse_digest(f"sha256:{sha256}")
            raw = base64.b64decode(samples, validate=True)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        return cls(name=name, dtype=dtype, shape=tuple(shape), sha256=digest[7:], samples=raw)


def sample_offsets(spec: TensorSpec) -> tuple[int, ...]:
    """Where in the tensor's bytes its `SAMPLES` numbers lie; empty for an empty tensor.

    Number k is element `((k + 1) * 0x9E3779B97F4A7C15 mod 2**64) * elements >> 64` of the flattened tensor: they
    spread evenly whatever the shape, and so do the first few alone. For dtypes below 8 bits it is the byte around it.
    """
    bits, elements = DTYPE_BITS[spec.dtype], spec.elements
    if not elements:
        return ()
    positions = (((k + 1) * _GOLDEN % (1 << 64)) * elements >> 64 for k in range(SAMPLES))
    return tuple(position * bits // 8 for position in positions)
