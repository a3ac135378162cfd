"""Memory for the stacked factors of a choice by row, kept for the next choice: to get fresh memory takes longer."""

from __future__ import annotations

import math
from collections import deque
from typing import Final

import torch
from torch import Tensor

from adapterhub.core.disk.memory import large_memory

_PIECE_BYTES: Final = 16 << 20
_ALIGNED: Final = 64


class Room:
    """Memory on the CPU that many tensors come from, one after another; on other devices, torch's own."""

    def __init__(self) -> None:
        self._pieces: list[Tensor] = []
        self.clear()

    def clear(self) -> None:
        """Begin again. The tensors that came from it must not be used any more."""
        self._next, self._left = 0, torch.empty(0, dtype=torch.uint8)

    def tensor(self, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """A tensor with any numbers, and with the dtype and on the device of `like`."""
        if like.device.type != "cpu":
            return like.new_empty(shape)
        size_bytes = math.prod(shape) * like.itemsize
        while len(self._left) < size_bytes:
            if self._next == len(self._pieces):
                made = large_memory(max(size_bytes, _PIECE_BYTES))
                self._pieces.append(torch.frombuffer(made, dtype=torch.uint8))
            self._left = self._pieces[self._next]
            self._next += 1
        taken, self._left = self._left[:size_bytes], self._left[-(-size_bytes // _ALIGNED) * _ALIGNED :]
        return taken.view(like.dtype).view(shape)


class Rooms:
    """The rooms of one bank. It keeps one that is not in use, the last; any thread may take and give one back."""

    def __init__(self) -> None:
        self._spare: deque[Room] = deque(maxlen=1)

    def take(self) -> Room:
        """The room that is kept, or a new one."""
        try:
            return self._spare.pop()
        except IndexError:
            return Room()

    def give(self, room: Room) -> None:
        """Keep a room whose tensors are no longer used."""
        room.clear()
        self._spare.append(room)

    def close(self) -> None:
        """Free what is kept."""
        self._spare.clear()
