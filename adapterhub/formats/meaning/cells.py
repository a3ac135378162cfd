"""The vectors of very many builds in one file, by cells, so that a question reads a few of them.

Vectors that are near each other make a cell around its centre (an inverted file: Jégou, Douze and Schmid, 2011). In the
cells nearest to a question, the head of each vector, its principal components, chooses; whole vectors give the order.
On texts of adapters a graph (HNSW) finds as much in the same time, takes 30 times as long to make, and has to be in
memory as a whole.

The file is mapped: processes share its pages, and the system takes them back. It is a copy that is made again whenever
it is missing, so its reader believes none of it beyond an order of candidates. No file is ever changed: a new one takes
its place.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np

from adapterhub.core.digests import strict_json
from adapterhub.core.disk.files import replaced
from adapterhub.core.errors import Malformed, shown
from adapterhub.formats.meaning.model import SIZE
from adapterhub.formats.meaning.ranking import PROMPT_SHARE

if TYPE_CHECKING:
    from numpy.typing import NDArray

HEAD: Final = 64
"""The principal components that choose: 80 % of the energy of texts, at a sixth of the time."""
_HEADER_BYTES: Final = 4096
_AGAIN: Final = "delete the file; the server makes it again"
_ROWS: Final = 2048  # widened at a time, so that they stay in the cache
_LEARNT: Final = 32  # vectors a cell from which its centre is learnt
_TURNS: Final = 5
_CHOSEN: Final = 1000
_COLUMNS: Final = {
    "centres": ("<f4", SIZE), "basis": ("<f4", HEAD), "bounds": ("<i8", 1), "ids": ("<i8", 1), "marks": ("S40", 1),
    "owners": ("<i4", 1), "shares": ("<f4", 1), "heads": ("i1", HEAD), "vectors": ("i1", SIZE),
}  # fmt: skip
_CHECKED: Final = ("centres", "basis", "bounds", "ids", "marks", "owners", "shares")
"""What a search computes places from; wrong bytes in the others only spoil an order."""


class Builds(NamedTuple):
    """Some builds: the number of each, its mark, which identifies it, and its vectors as `packed`."""

    ids: Sequence[int]
    marks: Sequence[str]
    vectors: Sequence[bytes]


class Found(NamedTuple):
    """Builds by their number, and the score of each; `plain` are the scores without prompts, 0 where not known."""

    ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    plain: NDArray[np.float32]

    def joined(self, other: Found) -> Found:
        """Return these and others."""
        ids = np.concatenate([self.ids, other.ids])
        scores, plain = np.concatenate([self.scores, other.scores]), np.concatenate([self.plain, other.plain])
        return Found(ids, scores, plain)

    def nearest(self, most: int) -> Found:
        """Those with the greatest scores, the nearest first."""
        order = np.argsort(-self.scores, kind="stable")[:most]
        return Found(self.ids[order], self.scores[order], self.plain[order])


@dataclass(frozen=True, slots=True)
class CellFile:
    """The file at `path`, mapped; see `write_cells`.

    Raises:
        Malformed: it is not such a file, is of another model, or is damaged.
        OSError: it cannot be read.
    """

    path: Path
    learnt_of: int
    """The number of vectors when the centres were learnt."""
    columns: Mapping[str, NDArray[Any]]

    @classmethod
    def opened(cls, path: Path, model: str) -> CellFile:
        """Map the file and check all that a search relies on: 0.2 s for a million builds."""
        with path.open("rb") as file:
            raw = file.read(_HEADER_BYTES)
        try:
            header = strict_json(raw, limit_bytes=_HEADER_BYTES)
            shapes = {name: int(header["lengths"][name]) for name in _COLUMNS}
            learnt_of, check = int(header["learnt_of"]), str(header["check"])
            is_mine = header["format"] == 1 and header["model"] == model
        except (ValueError, TypeError, KeyError):
            raise Malformed(f"`{shown(str(path), 200)}` is not an index of vectors", hint=_AGAIN) from None
        places, end = _places(shapes)
        if not is_mine or min(shapes.values()) < 0 or path.stat().st_size != end:
            raise Malformed(f"`{shown(str(path), 200)}` is an index of another model, or was cut", hint=_AGAIN)
        columns = {name: _mapped(path, name, shapes[name], places[name], "r") for name in _COLUMNS}
        if check != _check_of(columns):
            raise Malformed(f"`{shown(str(path), 200)}` is damaged", hint=_AGAIN)
        return cls(path, learnt_of, columns)

    def __len__(self) -> int:
        return len(self.columns["ids"])

    @property
    def rows(self) -> int:
        """How many vectors there are."""
        return len(self.columns["owners"])

    @property
    def labels(self) -> NDArray[np.int64]:
        """The cell of each vector."""
        bounds = self.columns["bounds"]
        return np.repeat(np.arange(len(bounds) - 1), np.diff(bounds))

    def best(self, question: NDArray[Any], most: int, share: float) -> Found:
        """Return the builds nearest to a unit vector, at most `most`, in this share of the cells; the nearest first."""
        columns, count = self.columns, max(1, math.ceil(share * len(self.columns["centres"])))
        nearness = columns["centres"] @ question
        cells = np.sort(np.argpartition(-nearness, count - 1)[:count])
        rows = _spans(columns["bounds"][cells], columns["bounds"][cells + 1])
        scores = self._head_scores(question, cells, len(rows))
        if (chosen := _CHOSEN + 2 * most) < len(rows):
            rows = rows[np.argpartition(-scores, chosen - 1)[:chosen]]
        rows.sort()
        whole = _products(columns["vectors"], rows, question / 127) * columns["shares"][rows]
        order = np.argsort(-whole, kind="stable")
        owners, first = np.unique(columns["owners"][rows[order]], return_index=True)
        nearest = np.argsort(first)[:most]
        scores = whole[order[first[nearest]]]
        return Found(columns["ids"][owners[nearest]], scores, np.zeros_like(scores))

    def _head_scores(self, question: NDArray[Any], cells: NDArray[Any], count: int) -> NDArray[np.float32]:
        scores, room, at = np.empty(count, np.float32), np.empty((_ROWS, HEAD), np.float32), 0
        heads, shares, bounds = (self.columns[name] for name in ("heads", "shares", "bounds"))
        head = (question @ self.columns["basis"]).astype(np.float32)
        for cell in cells.tolist():
            for begin in range(int(bounds[cell]), int(bounds[cell + 1]), _ROWS):
                end = min(begin + _ROWS, int(bounds[cell + 1]))
                some, block = scores[at : at + end - begin], room[: end - begin]
                np.copyto(block, heads[begin:end])
                np.dot(block, head, out=some)
                some *= shares[begin:end]
                at += end - begin
        return scores

    def every(self, question: NDArray[Any]) -> Found:
        """Return the exact score of every build: 0.4 s for a million."""
        best, plain = (np.full(len(self), -1, np.float32) for _ in range(2))
        vectors, owners, shares = (self.columns[name] for name in ("vectors", "owners", "shares"))
        for at in range(0, self.rows, _ROWS):
            some = slice(at, at + _ROWS)
            scores = (vectors[some].astype(np.float32) @ (question / 127).astype(np.float32)) * shares[some]
            np.maximum.at(best, owners[some], scores)
            is_plain = shares[some] == 1
            plain[owners[some][is_plain]] = scores[is_plain]
        return Found(self.columns["ids"], best, plain)


def _spans(begins: NDArray[Any], ends: NDArray[Any]) -> NDArray[np.int64]:
    """All numbers from each begin to its end, joined."""
    lengths = ends - begins
    return np.repeat(ends - np.cumsum(lengths), lengths) + np.arange(int(lengths.sum()))


def _products(vectors: NDArray[np.int8], rows: NDArray[Any], with_: NDArray[Any]) -> NDArray[np.float32]:
    found, other = np.empty(len(rows), np.float32), with_.astype(np.float32)
    for at in range(0, len(rows), _ROWS):
        found[at : at + _ROWS] = vectors[rows[at : at + _ROWS]].astype(np.float32) @ other
    return found


def _places(lengths: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Return the offset of each column, and the end of the file."""
    places, at = {}, _HEADER_BYTES
    for name, (kind, width) in _COLUMNS.items():
        places[name] = at
        at += -(-np.dtype(kind).itemsize * width * lengths[name] // 64) * 64
    return places, at


def _mapped(path: Path, name: str, length: int, place: int, mode: Any) -> NDArray[Any]:
    kind, width = _COLUMNS[name]
    shape = (length,) if width == 1 else (length, width)
    if not length:
        return np.empty(shape, kind)
    return np.memmap(path, kind, mode, place, shape).view(np.ndarray)


def _check_of(columns: Mapping[str, NDArray[Any]]) -> str:
    found = hashlib.sha256()
    for name in _CHECKED:
        found.update(np.ascontiguousarray(columns[name]).data.cast("B") if columns[name].size else b"")
    return found.hexdigest()


# ------------------------------------------------------------ making
def write_cells(
    path: Path, model: str, more: Iterable[Builds], before: CellFile | None = None, keeps: NDArray[Any] | None = None
) -> None:
    """Write the file with the builds of an earlier one that `keeps` marks, [n] of booleans, and `more`.

    The centres are learnt again when there are twice the vectors of the last time. Beside the new file it needs
    the room of `more` in the same folder, and little memory: 50 bytes a vector.

    Raises:
        OSError: it cannot be written; the earlier file stays.
    """
    with replaced(path) as temp, temp.with_name(f"{temp.name}.rows").open("w+b") as spool:
        Path(spool.name).unlink()  # it goes with this process, however that ends
        ids, marks, counts = [], [], []
        for builds in more:
            some = np.frombuffer(b"".join(builds.vectors), np.int8).reshape(-1, SIZE)
            each = np.array([len(one) // SIZE for one in builds.vectors])
            begins = np.cumsum(each) - each
            counting = np.any(some, axis=1)  # a prompt that is unlike the others is zero
            counting[begins] = True
            spool.write(some[counting].data)
            ids.append(np.array(builds.ids, "<i8"))
            marks.append(np.array(builds.marks, "S40"))
            counts.append(np.add.reduceat(counting.astype("<i4"), begins))
        spool.flush()
        count = np.concatenate([np.zeros(0, "<i4"), *counts])
        sources = [_Source(np.memmap(spool, "i1", "r", 0, (total, SIZE)) if (total := int(count.sum())) else _NONE)]
        owners, shares = np.repeat(np.arange(len(count), dtype="<i4"), count), np.full(total, PROMPT_SHARE, "<f4")
        shares[np.cumsum(count) - count] = 1
        labels: NDArray[Any] | None = None
        if before is not None and keeps is not None:
            mine = before.columns
            kept_rows = np.flatnonzero(keeps[mine["owners"]])
            sources.insert(0, _Source(mine["vectors"], kept_rows))
            places = (np.cumsum(keeps) - 1).astype("<i4")
            owners = np.concatenate([places[mine["owners"][kept_rows]], owners + np.int32(keeps.sum())])
            shares = np.concatenate([mine["shares"][kept_rows], shares])
            ids, marks = [mine["ids"][keeps], *ids], [mine["marks"][keeps], *marks]
            labels = before.labels[kept_rows]
        rows = _Rows(sources)
        if before is None or len(rows) > 2 * before.learnt_of:
            centres, basis = _learnt(rows)
            labels, learnt_of = _labels(rows, centres, 0), len(rows)
        else:
            centres, basis, learnt_of = before.columns["centres"], before.columns["basis"], before.learnt_of
            assert labels is not None
            labels = np.concatenate([labels, _labels(rows, centres, len(labels))])
        order = np.argsort(labels, kind="stable")
        small: dict[str, NDArray[Any]] = {
            "centres": centres, "basis": basis, "bounds": np.searchsorted(labels[order], np.arange(len(centres) + 1)),
            "ids": np.concatenate([np.zeros(0, "<i8"), *ids]), "marks": np.concatenate([np.zeros(0, "S40"), *marks]),
            "owners": owners[order], "shares": shares[order],
        }  # fmt: skip
        _write(temp, {"format": 1, "model": model, "learnt_of": learnt_of}, small, rows, order)


_NONE: Final = np.empty((0, SIZE), np.int8)


class _Source(NamedTuple):
    """Vectors, of which `chosen` count; all without it."""

    vectors: NDArray[np.int8]
    chosen: NDArray[Any] | None = None

    def __len__(self) -> int:
        return len(self.vectors if self.chosen is None else self.chosen)


class _Rows:
    """The vectors of several sources as if they were one array."""

    def __init__(self, sources: Sequence[_Source]) -> None:
        self._sources = sources

    def __len__(self) -> int:
        return sum(len(one) for one in self._sources)

    def at(self, places: NDArray[Any]) -> NDArray[np.int8]:
        """Return the vectors at places, [n, SIZE]."""
        found, first = np.empty((len(places), SIZE), np.int8), 0
        for vectors, chosen in self._sources:
            length = len(vectors if chosen is None else chosen)
            mine = (places >= first) & (places < first + length)
            own = places[mine] - first
            found[mine] = vectors[own if chosen is None else chosen[own]]
            first += length
        return found


def _cells_for(rows: int) -> int:
    return max(1, min(1 << round(math.log2(max(1, 2.4 * math.sqrt(rows)))), rows))


def _learnt(rows: _Rows) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the cells' centres (spherical k-means), and the principal components times a factor to fill a byte."""
    chance, cells = np.random.default_rng(len(rows)), _cells_for(len(rows))
    some = rows.at(np.sort(chance.choice(len(rows), min(len(rows), _LEARNT * cells), replace=False)))
    centres = _units(some[chance.choice(len(some), cells, replace=False)].astype(np.float32))
    for _ in range(_TURNS):
        sums, many = np.zeros_like(centres), np.zeros(cells, np.int64)
        for at in range(0, len(some), _ROWS):
            block = some[at : at + _ROWS].astype(np.float32)
            label = (block @ centres.T).argmax(1)
            order = np.argsort(label, kind="stable")
            names, first, each = np.unique(label[order], return_index=True, return_counts=True)
            sums[names] += np.add.reduceat(block[order], first)
            many[names] += each
        lost = many == 0
        sums[lost] = some[chance.integers(0, len(some), int(lost.sum()))]
        centres = _units(sums)
    squares = np.zeros((SIZE, SIZE))
    for at in range(0, len(some), _ROWS):
        block = some[at : at + _ROWS].astype(np.float32)
        squares += block.T @ block
    basis = np.linalg.eigh(squares)[1][:, ::-1][:, :HEAD].astype(np.float32)
    largest = float(np.abs(some[: 8 * _ROWS].astype(np.float32) @ basis).max()) or 1.0
    return centres, basis * np.float32(120 / largest)


def _units(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)
    return found


def _labels(rows: _Rows, centres: NDArray[Any], first: int) -> NDArray[np.int64]:
    """Return the cell of each vector from one on."""
    found = np.empty(len(rows) - first, np.int64)
    for at in range(0, len(found), _ROWS):
        block = rows.at(np.arange(first + at, min(first + at + _ROWS, len(rows)))).astype(np.float32)
        found[at : at + _ROWS] = (block @ centres.T).argmax(1)
    return found


def _write(
    temp: Path, facts: Mapping[str, object], small: Mapping[str, NDArray[Any]], rows: _Rows, order: NDArray[Any]
) -> None:
    lengths = {name: len(column) for name, column in small.items()} | {"heads": len(order), "vectors": len(order)}
    places, end = _places(lengths)
    typed = {name: np.ascontiguousarray(column, _COLUMNS[name][0]) for name, column in small.items()}
    header = json.dumps({**facts, "lengths": lengths, "check": _check_of(typed)}).encode().ljust(_HEADER_BYTES)
    with temp.open("wb") as file:
        file.truncate(end)

        def put(name: str, make: Callable[[NDArray[Any]], NDArray[Any]]) -> None:
            file.seek(places[name])
            for at in range(0, len(order), _ROWS):
                file.write(np.ascontiguousarray(make(rows.at(order[at : at + _ROWS]))).data)

        for name, column in typed.items():
            file.seek(places[name])
            file.write(column.tobytes())
        basis = typed["basis"]
        put("heads", lambda some: np.clip(np.rint(some.astype(np.float32) @ basis), -127, 127).astype(np.int8))
        put("vectors", lambda some: some)
        file.seek(0)
        file.write(header)
