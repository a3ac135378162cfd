"""How alike the updates of adapters are, exactly: from their factors, and never a dense matrix.

Two updates `s1 b1 a1` and `s2 b2 a2` of one weight have the inner product `s1 s2 sum((b1.T b2) * (a1 a2.T))`. Modules
count as shared where name, shape and parts agree; where they do not, the product is 0.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np

from adapterhub.formats.derived.algebra import ArrayUpdate, Floats, PackedRows
from adapterhub.formats.derived.reading import AdapterUpdates

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_PARENTS: Final = 12
LEFT: Final = 0.03
"""What the sketches of a plain sum leave at most, relative to its norm: the rounding of 256 signed bytes."""
LEAST: Final = 0.05
"""A parent that carries less of the norm may be chance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """The weights of the kept parents, by their position, and the norm of the unexplained rest, relative to the whole.

    `alone` is what the best of them leaves by itself.
    """

    weights: dict[int, float]
    unexplained: float
    alone: float


def pursue(target: bytes, known: NDArray[Any], begin: Sequence[int] = ()) -> list[int]:
    """Return the positions in `known`, [n, NUMBERS] of packed sketches, whose weighted sum comes closest to `target`.

    `begin` are positions that are taken first. Those that carry less than `LEAST` of the norm are left out.
    """
    return pursued(target, known, begin)[0]


def pursued(target: bytes, known: NDArray[Any], begin: Sequence[int] = ()) -> tuple[list[int], float]:
    """Return the same, and the norm of the remainder, as a share of that of `target`."""
    whole, rows = directions([target])[0], directions(known)
    taken, left = list(begin)[:MOST_PARENTS], whole
    weights = _solved(rows[taken], whole)
    left = whole - weights @ rows[taken]
    while len(taken) < min(MOST_PARENTS, len(rows)) and np.linalg.norm(left) > LEFT:
        near = np.abs(rows @ left)
        near[taken] = -1
        taken.append(int(near.argmax()))
        weights = _solved(rows[taken], whole)
        left = whole - weights @ rows[taken]
    kept = [at for at, weight in zip(taken, weights.tolist(), strict=True) if abs(weight) >= LEAST]
    return kept, float(np.linalg.norm(left))


def _solved(rows: Floats, whole: Floats) -> Floats:
    found: Floats = np.linalg.lstsq(rows.T, whole, rcond=None)[0] if len(rows) else np.zeros(0)
    return found


def explain(products: Floats) -> Explained | None:
    """Return the least squares of the first update over the others, from their inner products.

    None if they cannot be used.

    Parents that carry less than `LEAST` of its norm are left out, one after the other, the smallest first.
    """
    whole = float(products[0, 0])
    if not np.isfinite(products).all() or whole <= 0:
        return None
    kept = [at for at in range(1, len(products)) if products[at, at] > 0]
    while True:
        sizes = np.sqrt(products[kept, kept])
        correlations = products[np.ix_(kept, kept)] / np.outer(sizes, sizes)
        shares = np.linalg.lstsq(correlations, products[kept, 0] / sizes, rcond=1e-9)[0] if kept else np.zeros(0)
        carried = np.abs(shares) / np.sqrt(whole)
        if not kept or carried.min() >= LEAST:
            break
        del kept[int(carried.argmin())]
    weights = shares / sizes if kept else shares
    left = whole - 2 * weights @ products[kept, 0] + weights @ products[np.ix_(kept, kept)] @ weights
    best = max((products[0, at] ** 2 / products[at, at] for at in kept), default=0.0)
    return Explained(
        weights={at - 1: float(weight) for at, weight in zip(kept, weights, strict=True)},
        unexplained=float(np.sqrt(max(float(left), 0.0) / whole)),
        alone=float(np.sqrt(max(whole - float(best), 0.0) / whole)),
    )


NUMBERS: Final = 256
"""Signed bytes in a packed sketch."""
_SIDE: Final = 16
_LARGEST: Final = 127
_BLOCK: Final = 1024  # a megabyte as float32, which the cache of a core holds
_METHOD: Final = b"adapterhub/sketch/1"
_SIGNS_OF_A_BYTE: Final = np.unpackbits(np.arange(256, dtype="u1")[:, None], axis=1).astype("f4") * 2 - 1


class Sketch:
    """The sketch of one adapter, module by module. Only sketches of one `key`, a text without NUL, can be compared."""

    def __init__(self, key: str = "") -> None:
        self._begin = b"\0".join([_METHOD, *([key.encode()] if key else [])])
        self._sum = np.zeros((_SIDE, _SIDE))

    def add(self, module: str, parts: Sequence[ArrayUpdate]) -> None:
        """Add the update of a module, which has one part or more."""
        for at, part in enumerate(parts):
            name = f"{module}#{at}" if len(parts) > 1 else module
            out, width = part.shape
            left = self._signs("out", name, out).T @ part.b
            right = part.a @ self._signs("in", name, width)
            self._sum += np.float64(part.scale / _SIDE) * (left @ right)

    def _signs(self, side: str, name: str, size: int) -> NDArray[np.float32]:
        """Random signs [size, 16]: 1 for each bit that is set in a SHAKE-128 stream, the highest of a byte first."""
        begin = b"\0".join([self._begin, side.encode(), name.encode("utf-8", "surrogatepass"), str(size).encode()])
        stream = np.frombuffer(hashlib.shake_128(begin).digest(size * _SIDE // 8), "u1")
        return _SIGNS_OF_A_BYTE.take(stream, 0).reshape(size, _SIDE)

    @property
    def norm(self) -> float:
        """An estimate of the update's Frobenius norm; not finite where its numbers are not."""
        return float(np.linalg.norm(self._sum))

    def packed(self) -> bytes:
        """Return the direction of the sketch as `NUMBERS` signed bytes.

        Empty for an update that is zero or not finite.
        """
        largest = float(np.abs(self._sum).max())
        if not largest or not math.isfinite(self.norm):
            return b""
        return np.rint(self._sum * (_LARGEST / largest)).astype(np.int8).tobytes()


def sketch_of(updates: AdapterUpdates, key: str = "") -> Sketch:
    """Return the sketch of an adapter: 14 ms for 5 million numbers in 210 modules, beside the reading of them.

    Raises:
        UnsupportedAdapter: a module is too large to compute.
    """
    sketch = Sketch(key)
    with np.errstate(all="ignore"):  # of hostile numbers there is no sketch
        for module in updates.modules:
            sketch.add(module, updates.parts(module))
    return sketch


def _lengths(numbers: NDArray[np.int8]) -> NDArray[np.float32]:
    wide = numbers.astype("f4")
    lengths: NDArray[np.float32] = np.maximum(np.sqrt(np.einsum("ij,ij->i", wide, wide)), 1)
    return lengths


class Sketches:
    """Many packed sketches to compare one with: 12 ms for 100,000, then 6 ms, because their lengths are kept."""

    def __init__(self, packed: Sequence[bytes] | bytes) -> None:
        raw = packed if isinstance(packed, bytes) else b"".join(packed)
        self._rows = PackedRows(np.frombuffer(raw, np.int8).reshape(-1, NUMBERS))
        self._lengths: NDArray[np.float32] | None = None

    @property
    def numbers(self) -> NDArray[np.int8]:
        """The sketches as rows, [n, NUMBERS]."""
        return self._rows.numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def with_more(self, packed: Sequence[bytes]) -> Sketches:
        """Return these and some more, in the same memory."""
        made, more = Sketches(b""), Sketches(packed).numbers
        made._rows = self._rows.with_more(more)
        if self._lengths is not None:
            made._lengths = np.concatenate([self._lengths, _lengths(more)])
        return made

    def cosines(self, packed: bytes) -> NDArray[np.float32]:
        """Return the estimated cosine of each with one, [n]."""
        one = directions([packed])[0].astype("f4")
        found, squares = np.empty(len(self), "f4"), np.empty(len(self), "f4")
        room = np.empty((_BLOCK, NUMBERS), "f4")
        for at in range(0, len(self), _BLOCK):
            some = slice(at, min(at + _BLOCK, len(self)))
            block = room[: some.stop - at]
            np.copyto(block, self.numbers[some])
            np.dot(block, one, out=found[some])
            if self._lengths is None:
                np.einsum("ij,ij->i", block, block, out=squares[some])
        if self._lengths is None:
            self._lengths = np.maximum(np.sqrt(squares), 1)
        return np.clip(found / self._lengths, -1, 1)


PLANES: Final = 128
_FEW_SIDES: Final = 23
_ALL_SIDES: Final = 40


class Signs:
    """On which side of `PLANES` random planes sketches lie: 16 bytes each, to find near ones among a million in 5 ms.

    Two vectors lie on different sides of a plane with the probability of their angle (Charikar, 2002), whatever they
    hold. At a cosine of 0.895 that is 0.147: of 64 planes more than 23 part 6 of a million such pairs, and of 128 more
    than 40 fewer still. Of a million strangers 27 pass.
    """

    def __init__(self) -> None:
        self._sides = PackedRows(np.empty((0, PLANES // 8), np.int8))

    def __len__(self) -> int:
        return len(self._sides.numbers)

    def with_more(self, packed: Sequence[bytes]) -> Signs:
        """Return these and some more sketches, in the same memory."""
        made = Signs()
        made._sides = self._sides.with_more(_sides(packed))
        return made

    def near(self, packed: bytes) -> NDArray[np.int64]:
        """Return the places of the sketches whose cosine with one may be 0.895 or more, or as much negated."""
        mine = _sides([packed]).view(np.uint64)[0]
        sides = self._sides.numbers.view(np.uint64)
        found: list[NDArray[np.int64]] = []
        for at in range(0, len(sides), _SIDES_AT_ONCE):
            some = sides[at : at + _SIDES_AT_ONCE]
            first = _bits(some[:, 0] ^ mine[0])
            # a few different sides, or nearly all of them
            places = np.flatnonzero((first <= _FEW_SIDES) | (first >= PLANES // 2 - _FEW_SIDES))
            whole = first[places].astype(np.int64) + _bits(some[places, 1] ^ mine[1])
            found.append(at + places[(whole <= _ALL_SIDES) | (whole >= PLANES - _ALL_SIDES)])
        return np.concatenate(found) if found else np.empty(0, np.int64)


_SIDES_AT_ONCE: Final = 32_768
_COUNTS: Final = np.array([number.bit_count() for number in range(1 << 8)], np.uint8)


def _bits(words: NDArray[np.uint64]) -> NDArray[np.uint8]:
    """Return how many bits of each word are set."""
    if hasattr(np, "bitwise_count"):  # numpy 2
        found: NDArray[np.uint8] = np.bitwise_count(words)
        return found
    counted: NDArray[np.uint8] = _COUNTS[words.view(np.uint8)].reshape(-1, 8).sum(1, dtype=np.uint8)
    return counted


@cache
def _planes() -> NDArray[np.float32]:
    return np.random.RandomState(1).standard_normal((NUMBERS, PLANES)).astype("f4")


def _sides(packed: Sequence[bytes]) -> NDArray[np.int8]:
    return np.packbits(Sketches(packed).numbers.astype("f4") @ _planes() > 0, axis=1).view(np.int8)


def directions(packed: Sequence[bytes] | NDArray[Any]) -> Floats:
    """Return the sketches as rows of length 1, [n, NUMBERS]; a zero row stays zero."""
    rows = packed if isinstance(packed, np.ndarray) else Sketches(packed).numbers
    wide = rows.astype(np.float64)
    sizes = np.linalg.norm(wide, axis=1, keepdims=True)
    found: Floats = wide / np.where(sizes == 0, 1, sizes)
    return found


def cosines(packed: Sequence[bytes]) -> Floats:
    """Return the estimated cosine of each two updates, [n, n], from their sketches."""
    rows = directions(packed)
    found: Floats = np.clip(rows @ rows.T, -1, 1)
    return found


def placed(packed: Sequence[bytes]) -> list[tuple[float, float]]:
    """Return a place in the square from -1 to 1 for each sketch: near ones have similar updates, of whatever norm.

    Classical scaling (Torgerson, 1952) of the distances 1 - cosine; the signs of the axes follow from the numbers.
    """
    from threadpoolctl import threadpool_limits

    count = len(packed)
    if count == 0:
        return []
    squares = np.square(1 - cosines(packed))
    centring = np.eye(count) - 1 / count
    with threadpool_limits(1, "blas"):  # a page takes one core, and leaves the others to other requests
        values, vectors = np.linalg.eigh(-0.5 * centring @ squares @ centring)
    axes = []
    for at in (-1, -2):
        axis = vectors[:, at] * np.sqrt(max(float(values[at]), 0.0)) if count >= -at else np.zeros(count)
        axes.append(axis if axis[np.abs(axis).argmax()] >= 0 else -axis)
    reach = max(float(np.abs(axes).max()), 1e-9)
    return [(round(float(x) / reach, 4), round(float(y) / reach, 4)) for x, y in zip(*axes, strict=True)]


def nearest(packed: Sequence[bytes]) -> list[tuple[int, float]]:
    """Return for each sketch the position of the nearest other one, and their cosine; for a single sketch, itself."""
    found = cosines(packed)
    np.fill_diagonal(found, -2 if len(packed) > 1 else 1)
    return [(int(at), round(float(row[at]), 3)) for row, at in zip(found, found.argmax(1), strict=True)]


Kind = Literal["same update", "negated", "near", "related", "far"]

SAME: Final = 0.9995
"""The least cosine of one update stored twice: bfloat16 and int8 keep 0.9999; two seeds of one recipe reach 0.998."""
NEAR: Final = 0.9
RELATED: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Alike:
    """Two updates: their cosine, and the `scale` that brings the first closest to the second.

    `shared` counts the modules of both, `modules` those of the first. None for `cosine` and `scale` where an update is
    zero or not finite.
    """

    cosine: float | None
    scale: float | None
    shared: int
    modules: int


def kind_of(cosine: float) -> Kind:
    """Return the class of two updates by their exact cosine."""
    if cosine <= -NEAR:
        return "negated"
    if cosine >= SAME:
        return "same update"
    return "near" if cosine >= NEAR else "related" if abs(cosine) >= RELATED else "far"


def alike(first: AdapterUpdates, others: Sequence[AdapterUpdates]) -> list[Alike]:
    """Return the first adapter beside each other one, with the memory of one module of each.

    Raises:
        UnsupportedAdapter: a module is too large to compute.
    """
    products, shared = _products([first, *others], only_first=True)
    found = []
    for at in range(1, len(others) + 1):
        own, theirs, both = (float(products[i, j]) for i, j in ((0, 0), (at, at), (0, at)))
        norms = math.sqrt(own) * math.sqrt(theirs) if own > 0 and theirs > 0 else 0.0
        is_known = 0 < norms < math.inf and math.isfinite(both)
        found.append(
            Alike(
                cosine=min(1.0, max(-1.0, both / norms)) if is_known else None,
                scale=both / own if is_known else None,
                shared=int(shared[at]),
                modules=len(first.modules),
            )
        )
    return found


def gram(adapters: Sequence[AdapterUpdates]) -> Floats:
    """Return the inner products of the updates, [n, n]."""
    return _products(adapters, only_first=False)[0]


def _products(adapters: Sequence[AdapterUpdates], *, only_first: bool) -> tuple[Floats, list[int]]:
    """Return the inner products, and how many modules each shares with the first.

    0 where `only_first` passes a pair over.
    """
    count = len(adapters)
    products, shared = np.zeros((count, count)), [0] * count
    with np.errstate(all="ignore"):  # products of hostile numbers are not finite
        for module in sorted({name for one in adapters for name in one.modules}):
            for holders in _of_one_shape(adapters, module):
                parts = {at: _wide(adapters[at].parts(module)) for at in holders}
                for at in holders:
                    shared[at] += 0 in parts
                    for other in holders:
                        if at <= other and (at in (0, other) or not only_first):
                            products[at, other] += _product(parts[at], parts[other])
    return products + np.triu(products, 1).T, shared


def _of_one_shape(adapters: Sequence[AdapterUpdates], module: str) -> Iterator[list[int]]:
    """Yield the positions of the adapters with this module, those of one shape together."""
    found: dict[tuple[int, int, int], list[int]] = {}
    for at, one in enumerate(adapters):
        if module in one.modules:
            layout = one.modules[module].layout
            found.setdefault((layout.out, layout.width, layout.parts), []).append(at)
    yield from found.values()


def _wide(parts: Sequence[ArrayUpdate]) -> list[ArrayUpdate]:
    return [ArrayUpdate(a=part.a.astype("f8"), b=part.b.astype("f8"), scale=part.scale) for part in parts]


def _product(first: Sequence[ArrayUpdate], second: Sequence[ArrayUpdate]) -> float:
    return float(
        sum(
            one.scale * other.scale * np.sum((one.b.T @ other.b) * (one.a @ other.a.T))
            for one, other in zip(first, second, strict=True)
        )
    )
