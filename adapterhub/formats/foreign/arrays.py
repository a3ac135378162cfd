"""The two conversions that compute or reorder single numbers; the only ones that need numpy."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Final

from adapterhub.core.errors import MissingExtra
from adapterhub.formats.safetensors.dtypes import DTYPE_BITS
from adapterhub.formats.safetensors.header import TensorSpec

_FLOATS: Final = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


def transposed(raw: bytes, spec: TensorSpec) -> bytes:
    """The matrix with rows and columns exchanged, whatever its dtype."""
    _need_numpy("a LoRA of Apple's MLX")
    import numpy as np

    numbers = np.frombuffer(raw, f"<u{DTYPE_BITS[spec.dtype] // 8}").reshape(spec.shape)
    return np.ascontiguousarray(numbers.T).tobytes()


def folded(down: bytes, down_spec: TensorSpec, mid: bytes, mid_spec: TensorSpec) -> bytes:
    """One convolution of what kohya stores as two: `A[p, i, h, w] = sum over q of mid[p, q, h, w] down[q, i]`.

    In float32, computed in float64.
    """
    _need_numpy("a convolution in three parts (`lora_mid`)")
    import numpy as np

    a = _floats(down, down_spec).reshape(down_spec.shape[:2])
    core = _floats(mid, mid_spec).reshape(mid_spec.shape)
    return np.ascontiguousarray(np.einsum("pqhw,qi->pihw", core, a).astype("<f4")).tobytes()


def _floats(raw: bytes, spec: TensorSpec) -> Any:  # noqa: ANN401 - a numpy array
    from adapterhub.formats.derived.reading import floats

    return floats(raw, spec.dtype).astype("<f8")


def block_diagonal(blocks: list[tuple[bytes, TensorSpec]]) -> bytes:
    """One matrix with the given ones along its diagonal, zeros elsewhere; all of one dtype."""
    _need_numpy("fused modules of different factors")
    import numpy as np

    width = DTYPE_BITS[blocks[0][1].dtype] // 8
    rows, columns = (sum(spec.shape[n] for _, spec in blocks) for n in (0, 1))
    made = np.zeros((rows, columns), f"<u{width}")
    row = column = 0
    for raw, spec in blocks:
        out, rank = spec.shape
        made[row : row + out, column : column + rank] = np.frombuffer(raw, f"<u{width}").reshape(spec.shape)
        row, column = row + out, column + rank
    return made.tobytes()


def padded(raw: bytes, spec: TensorSpec, shape: tuple[int, ...], factor: float) -> bytes:
    """The matrix transposed, multiplied and filled with zeros up to `shape`; without a factor the numbers stay."""
    _need_numpy("a LoRA of Apple's MLX")
    import numpy as np

    width = DTYPE_BITS[spec.dtype] // 8
    numbers = np.frombuffer(raw, f"<u{width}").reshape(spec.shape)
    if factor != 1:
        numbers = _stored((_floats(raw, spec) * factor).reshape(spec.shape), spec.dtype)
    made = np.zeros(shape, f"<u{width}")
    made[: spec.shape[1], : spec.shape[0]] = numbers.T
    return made.tobytes()


def _stored(numbers: Any, dtype: str) -> Any:  # noqa: ANN401 - numpy arrays
    """Numbers in a dtype, as unsigned integers of its width; rounded to the nearest."""
    import numpy as np

    if dtype == "BF16":
        bits = numbers.astype("<f4").view("<u4")
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return np.ascontiguousarray(numbers.astype(_FLOATS[dtype])).view(f"<u{DTYPE_BITS[dtype] // 8}")


def _need_numpy(what: str) -> None:
    if find_spec("numpy") is None:
        raise MissingExtra(what, ("numpy",), "weights")
