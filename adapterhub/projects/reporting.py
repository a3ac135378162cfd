"""What a session reports to: a terminal, or for programs the logger `adapterhub` and a callback."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from adapterhub.core.digests import Progress


class Reporter(Protocol):
    """Shows the progress of long work, and receives notes and warnings, which are not part of the result."""

    def progress(self, what: str, total: int | None, *, unit: str = "bytes") -> AbstractContextManager[Progress]:
        """Return a bar for a number of bytes, or of `unit`.

        Call the entered value with the progress since the last call.
        """

    def steps(self, what: str, *, unit: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """Return a bar for counted steps; call the entered value with the steps done and their total."""

    def note(self, text: str) -> None:
        """Report something worth knowing."""

    def warn(self, text: str) -> None:
        """Report a warning."""

    @property
    def shows_bars(self) -> bool:
        """Whether a program that it starts may draw a bar on stderr."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressEvent:
    """How far one piece of work is: `done` of `total` `unit`s; `total` is None while it is unknown."""

    what: str
    done: int
    total: int | None
    unit: str


OnProgress = Callable[[ProgressEvent], None]
"""Called in the thread that does the work, about once for each megabyte, module or adapter."""


class LogReporter:
    """Logs notes and warnings under `name`, and calls `on_progress` while work goes on."""

    shows_bars = False

    def __init__(self, name: str = "adapterhub", on_progress: OnProgress | None = None) -> None:
        import logging

        self._log, self._on_progress = logging.getLogger(name), on_progress
        ours = logging.getLogger("adapterhub")
        if not ours.handlers:  # without any, Python prints warnings to stderr
            ours.addHandler(logging.NullHandler())

    def note(self, text: str) -> None:
        """Log at level INFO."""
        self._log.info("%s", text)

    def warn(self, text: str) -> None:
        """Log at level WARNING."""
        self._log.warning("%s", text)

    @contextlib.contextmanager
    def progress(self, what: str, total: int | None, *, unit: str = "bytes") -> Iterator[Progress]:
        """Yield a function to call with the progress since the last call; threads may share it."""
        lock, done = threading.Lock(), 0

        def advance(more: int) -> None:
            nonlocal done
            with lock:
                done += more
                self._tell(what, done, total, unit)

        yield advance

    @contextlib.contextmanager
    def steps(self, what: str, *, unit: str) -> Iterator[Callable[[int, int], None]]:
        """Yield a function to call with how many of how many are done."""
        yield lambda done, total: self._tell(what, done, total, unit)

    def _tell(self, what: str, done: int, total: int | None, unit: str) -> None:
        if self._on_progress is not None:
            self._on_progress(ProgressEvent(what=what, done=done, total=total, unit=unit))
