"""A small vector for each adapter, whose inner products estimate those of the updates, and a map drawn from them.

Number j of a sketch is the sum over the modules of `p.T (scale * b a) q`, where p and q are random signs that
follow from j and the module's name. The mean of the products of two sketches is the inner product of the updates, with
a standard error of about 1 / sqrt(128) of their norms (Alon, Matias and Szegedy, 1996).
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from adapterhub.formats.derived.algebra import Floats, Update

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUMBERS: Final = 128
_ROWS: Final = 8192
_LARGEST: Final = 127


class Sketch:
    """The sketch of one adapter, module by module."""

    def __init__(self) -> None:
        self._sum = np.zeros(NUMBERS)

    def add(self, module: str, update: Update) -> None:
        """Add the update of a module, or of one part of it under a name of its own."""
        left = np.zeros((NUMBERS, update.rank))
        for at, signs in _signs(f"{module}\0out", update.b.shape[0]):
            left += signs.T @ update.b[at : at + _ROWS]
        right = np.zeros((NUMBERS, update.rank))
        for at, signs in _signs(f"{module}\0in", update.a.shape[1]):
            right += signs.T @ update.a[:, at : at + _ROWS].T
        self._sum += update.scale * (left * right).sum(1)

    def packed(self) -> str:
        """The direction of the sketch as signed bytes, in base64; zeros for a zero update."""
        largest = float(np.abs(self._sum).max())
        numbers = np.rint(self._sum * (_LARGEST / largest)) if largest else self._sum
        return base64.b64encode(numbers.astype(np.int8).tobytes()).decode("ascii")


def _signs(name: str, count: int) -> Iterator[tuple[int, NDArray[Any]]]:
    """Random signs [count, NUMBERS] in pieces of `_ROWS` rows, each with its first row."""
    for at in range(0, count, _ROWS):
        stream = hashlib.shake_256(f"{name}\0{at}".encode("utf-8", "surrogatepass"))
        bits = np.frombuffer(stream.digest(min(_ROWS, count - at) * NUMBERS // 8), "u1")
        yield at, np.unpackbits(bits).reshape(-1, NUMBERS).astype("f4") * 2 - 1


def cosines(packed: Sequence[str]) -> Floats:
    """The estimated cosine of each two updates, [n, n], from their sketches."""
    rows = np.array([np.frombuffer(base64.b64decode(text), np.int8) for text in packed], np.float64)
    sizes = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = rows / np.where(sizes == 0, 1, sizes)
    found: Floats = np.clip(rows @ rows.T, -1, 1)
    return found


def placed(packed: Sequence[str]) -> list[tuple[float, float]]:
    """A place in the square from -1 to 1 for each sketch: near ones have similar updates, of whatever norm.

    Classical scaling (Torgerson, 1952) of the distances 1 - cosine; the signs of the axes follow from the numbers.
    """
    count = len(packed)
    if count == 0:
        return []
    squares = np.square(1 - cosines(packed))
    centring = np.eye(count) - 1 / count
    values, vectors = np.linalg.eigh(-0.5 * centring @ squares @ centring)
    axes = []
    for at in (-1, -2):
        axis = vectors[:, at] * np.sqrt(max(float(values[at]), 0.0)) if count >= -at else np.zeros(count)
        axes.append(axis if axis[np.abs(axis).argmax()] >= 0 else -axis)
    reach = max(float(np.abs(axes).max()), 1e-9)
    return [(round(float(x) / reach, 4), round(float(y) / reach, 4)) for x, y in zip(*axes, strict=True)]


def nearest(packed: Sequence[str]) -> list[tuple[int, float]]:
    """For each sketch the position of the one with the greatest cosine, and that cosine; of one alone, itself."""
    found = cosines(packed)
    np.fill_diagonal(found, -2 if len(packed) > 1 else 1)
    return [(int(at), round(float(row[at]), 3)) for row, at in zip(found, found.argmax(1), strict=True)]
