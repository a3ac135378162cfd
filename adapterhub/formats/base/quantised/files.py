"""A quantised model in its files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from adapterhub.core.disk.files import not_read
from adapterhub.core.errors import CouldNotTell, shown
from adapterhub.formats.base.quantised.weight import Places, Stored
from adapterhub.formats.safetensors.header import TensorSpec

if TYPE_CHECKING:
    from typing_extensions import Self

_GAP_BYTES: Final = 64 << 10
"""Bytes between two wanted rows that are read with them, as one more read costs as much."""
_RUN_BYTES: Final = 8 << 20
"""The most bytes that are read at once."""


class FileReader:
    """Reads parts of the tensors of some files; `tensors` maps each name to its file.

    Files are opened when they are used.
    """

    def __init__(self, tensors: Mapping[str, tuple[Path, TensorSpec]]) -> None:
        self._places = tensors
        self.tensors: Mapping[str, Stored] = MappingProxyType(
            {name: Stored(spec.dtype, spec.shape) for name, (_, spec) in tensors.items()}
        )
        self._handles: dict[Path, int] = {}

    def close(self) -> None:
        """Close the files."""
        while self._handles:
            os.close(self._handles.popitem()[1])

    def __enter__(self) -> Self:
        """Return the reader itself."""
        return self

    def __del__(self) -> None:
        """Close the files; most users never call `close`."""
        self.close()

    def __exit__(self, *_: object) -> None:
        """Close the files."""
        self.close()

    def rows(self, name: str, starts: Places, size: int) -> NDArray[np.uint8]:
        """As `Reader.rows`: neighbours are read at once, at most some megabytes."""
        path, spec = self._places[name]
        if len(starts) and (int(starts.min()) < 0 or int(starts.max()) + size > spec.size_bytes):
            raise CouldNotTell(f"`{shown(str(path), 200)}`: `{shown(name)}` is shorter than its format needs")
        found = np.empty((len(starts), size), dtype=np.uint8)
        order = None if bool((np.diff(starts) >= 0).all()) else np.argsort(starts, kind="stable")
        for run in _runs(starts if order is None else starts[order], size):
            members = run if order is None else order[run]
            at = starts[members]
            first = int(at[0])
            raw = np.frombuffer(self._read(path, spec.start + first, int(at[-1]) + size - first), dtype=np.uint8)
            offsets = at - first
            if len(raw) == len(at) * size and np.array_equal(offsets, np.arange(0, len(raw), size)):
                found[members] = raw.reshape(-1, size)
            else:
                found[members] = raw[offsets[:, None] + np.arange(size)]
        return found

    def _read(self, path: Path, start: int, count: int) -> bytes:
        try:
            if path not in self._handles:
                self._handles[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            raw = os.pread(self._handles[path], count, start)
        except OSError as error:
            raise not_read(error, shown(str(path), 200), CouldNotTell) from None
        if len(raw) != count:
            raise CouldNotTell(
                f"`{shown(str(path), 200)}` changed while it was read",
                hint="wait until the copy has ended, then run the command again",
            )
        return raw


def _runs(starts: Places, size: int) -> Iterable[slice]:
    """Slices of the sorted `starts` that are read at once."""
    begin = 0
    limits = np.flatnonzero(np.diff(starts) > _GAP_BYTES + size) + 1
    for end in (*limits.tolist(), len(starts)):
        while begin < end:
            reach = int(np.searchsorted(starts[begin:end], starts[begin] + _RUN_BYTES)) or 1
            yield slice(begin, begin + reach)
            begin += reach
