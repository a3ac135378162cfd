"""The order of builds for a question, by vectors: those of a build's description, and of its example prompts.

A vector is kept as 384 signed bytes, the unit vector times 127; the vectors of a build stand one behind the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from adapterhub.formats.derived.algebra import PackedRows
from adapterhub.formats.meaning.model import SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

NOTHING: Final = bytes(SIZE)
"""The vectors of a build that has none; its score is 0."""

PROMPT_SHARE: Final = 0.9
"""What the nearness of an example prompt counts beside that of the description."""

LEAST_ALIKE: Final = 0.33
"""The cosine of a prompt with the sum of the others, below which it does not count."""

_SCALE: Final = 127.0
_ROWS: Final = 512  # widened at a time, so that they stay in the cache


def packed(vectors: NDArray[Any]) -> bytes:
    """Return the bytes to keep of unit vectors [parts, 384]."""
    return np.rint(vectors * _SCALE).astype(np.int8).tobytes()


def packed_build(vectors: NDArray[Any]) -> bytes:
    """As `packed`, of a build's description and prompts; zeros for a prompt that is unlike the other ones.

    A card may name sixteen prompts. Those of one subject lie near each other; those that are to catch any question do
    not.
    """
    prompts = vectors[1:]
    if len(prompts) < 2:
        return packed(vectors)
    others = prompts.sum(0) - prompts
    alike = (prompts * others).sum(1) >= LEAST_ALIKE * np.linalg.norm(others, axis=1)
    return packed(np.concatenate((vectors[:1], prompts * alike[:, None])))


class VectorBlock:
    """The vectors of builds, `kept` as `packed` gives them, joined for scans."""

    def __init__(self, kept: Sequence[bytes]) -> None:
        self._kept = PackedRows(np.frombuffer(b"".join(kept), np.int8).reshape(-1, SIZE))
        self._counts = np.fromiter(map(len, kept), np.int64, len(kept)) // SIZE
        self._starts = np.cumsum(self._counts) - self._counts

    @property
    def _rows(self) -> NDArray[np.int8]:
        return self._kept.numbers

    def __len__(self) -> int:
        return len(self._counts)

    def with_more(self, kept: Sequence[bytes], room_for: int = 0) -> VectorBlock:
        """Return these and some more, in the same memory; new memory has room for so many builds."""
        made, more = VectorBlock([]), VectorBlock(kept)
        made._kept = self._kept.with_more(more._rows, room_for * len(more._rows) // max(1, len(more)))
        made._counts = np.concatenate([self._counts, more._counts])
        made._starts = np.concatenate([self._starts, more._starts + len(self._rows)])
        return made

    def scores(self, question: NDArray[Any]) -> NDArray[Any]:
        """Return the nearness of each part of each build to a unit vector, one behind the other."""
        found = np.empty(len(self._rows), np.float32)
        vector = (question / _SCALE).astype(np.float32)
        for at in range(0, len(found), _ROWS):
            found[at : at + _ROWS] = self._rows[at : at + _ROWS].astype(np.float32) @ vector
        whole = found[self._starts]
        found *= np.float32(PROMPT_SHARE)
        found[self._starts] = whole
        return found

    def of_descriptions(self, scores: NDArray[Any]) -> NDArray[Any]:
        """Return the score of each build without its prompts."""
        found: NDArray[Any] = scores[self._starts]
        return found

    def tops(self, scores: NDArray[Any]) -> NDArray[Any]:
        """Return the score of each build."""
        return np.maximum.reduceat(scores, self._starts) if len(self) else scores

    def nearest(self, scores: NDArray[Any], most: int) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the places of the nearest builds, at most `most`, and the scores of these, the nearest first."""
        tops = self.tops(scores)
        first = np.argpartition(-tops, most)[:most] if most < len(tops) else np.arange(len(tops))
        first = first[np.lexsort((first, -tops[first]))]
        return first, tops[first]

    def best(self, scores: NDArray[Any], most: int) -> list[tuple[int, float, int]]:
        """As `nearest`, each with the part that is nearest, 0 for the description."""
        if not len(self):
            return []
        places, tops = (column.tolist() for column in self.nearest(scores, most))
        starts, ends = self._starts.tolist(), (self._starts + self._counts).tolist()
        return [(at, top, int(scores[starts[at] : ends[at]].argmax())) for at, top in zip(places, tops, strict=True)]
