"""Rows in memory that others come behind: 200,000 are not copied for each new one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

_LEAST: Final = 1024


class _Room:
    """Memory for rows, and how many of it are in use."""

    def __init__(self, numbers: NDArray[np.int8]) -> None:
        self.numbers, self.used = numbers, 0


class Rows:
    """Rows of signed bytes, [n, size]."""

    def __init__(self, numbers: NDArray[np.int8], room: _Room | None = None) -> None:
        self.numbers, self._room = numbers, room

    def with_more(self, more: NDArray[np.int8], room_for: int = 0) -> Rows:
        """These and some more. Both share their memory, which grows where it is full: an eighth, or to `room_for`."""
        before, after = len(self.numbers), len(self.numbers) + len(more)
        room = self._room
        if room is None or room.used != before or len(room.numbers) < after:
            most = max(after, room_for)
            room = _Room(np.empty((most + most // 8 + _LEAST, self.numbers.shape[1]), np.int8))
            room.numbers[:before] = self.numbers
        room.numbers[before:after] = more
        room.used = after
        return Rows(room.numbers[:after], room)
