"""What this process asks of the disk: files that it opens and folders that it lists, by whatever call."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_listeners: list[list[tuple[str, str]]] = []


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if not _listeners or event not in ("open", "os.listdir", "os.scandir"):
        return
    place = arguments[0]
    if event != "open" or not isinstance(place, int):  # a number is a descriptor, of a file that is open already
        _listeners[-1].append(
            (event, os.fsdecode(place) if isinstance(place, (str, bytes, os.PathLike)) else str(place))
        )


sys.addaudithook(_note)  # cannot be taken back, so it listens only inside `looks`


@contextmanager
def looks() -> Iterator[list[tuple[str, str]]]:
    """Each look inside the block: `open`, `os.listdir` or `os.scandir`, and the path or descriptor."""
    seen: list[tuple[str, str]] = []
    _listeners.append(seen)
    try:
        yield seen
    finally:
        _listeners.remove(seen)
