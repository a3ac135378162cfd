"""The order of builds for a question, by vectors: those of what a build says of itself, and of its example prompts.

A vector is kept as 384 signed bytes, the unit vector times 127; the vectors of a build stand one behind the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from adapterhub.formats.meaning.model import SIZE

if TYPE_CHECKING:
    from numpy.typing import NDArray

PROMPT_SHARE: Final = 0.9
"""What the nearness of an example prompt counts beside that of the description."""

_SCALE: Final = 127.0
_ROWS: Final = 512  # widened at a time, so that they stay in the cache


def packed(vectors: NDArray[Any]) -> bytes:
    """The bytes to keep of unit vectors [parts, 384]."""
    return np.rint(vectors * _SCALE).astype(np.int8).tobytes()


class Block:
    """The vectors of builds, `kept` as `packed` gives them, joined for scans."""

    def __init__(self, kept: Sequence[bytes]) -> None:
        self.counts = np.array([len(one) // SIZE for one in kept], np.int64)
        self._starts = np.concatenate(([0], np.cumsum(self.counts)[:-1])) if kept else self.counts
        self._rows = np.frombuffer(b"".join(kept), np.int8).reshape(-1, SIZE)

    def scores(self, question: NDArray[Any], *, prompts: NDArray[np.bool_] | None = None) -> NDArray[Any]:
        """The nearness of each part of each build to a unit vector, one behind the other.

        `prompts` says for each build whether its example prompts count; by default all do.
        """
        found = np.empty(len(self._rows), np.float32)
        vector = (question / _SCALE).astype(np.float32)
        for at in range(0, len(found), _ROWS):
            found[at : at + _ROWS] = self._rows[at : at + _ROWS].astype(np.float32) @ vector
        found *= np.float32(PROMPT_SHARE)
        found[self._starts] /= np.float32(PROMPT_SHARE)
        if prompts is not None:
            hidden = ~np.repeat(prompts, self.counts)
            hidden[self._starts] = False
            found[hidden] = -1.0
        return found

    def best(self, scores: NDArray[Any], most: int) -> list[tuple[int, float, int]]:
        """The nearest builds, at most `most`: place, score and the part that is nearest, 0 for the description."""
        if not len(self.counts):
            return []
        tops = np.maximum.reduceat(scores, self._starts)
        first = np.argsort(-tops, kind="stable")[:most]
        return [
            (int(at), float(tops[at]), int(scores[start : start + self.counts[at]].argmax()))
            for at in first
            for start in [int(self._starts[at])]
        ]
