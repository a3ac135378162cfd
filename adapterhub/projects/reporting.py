"""What a session reports to: protocols of a reporter and of progress bars, which only types name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

from adapterhub.core.digests import Progress


class Reporter(Protocol):
    """Receives notes and warnings, which are not part of the result."""

    def note(self, text: str) -> None:
        """Report something worth knowing."""

    def warn(self, text: str) -> None:
        """Report a warning."""


class Bars(Protocol):
    """Shows the progress of long work."""

    def progress(self, what: str, total: int | None, *, unit: str = "bytes") -> AbstractContextManager[Progress]:
        """A bar for a number of bytes, or of `unit`; call the entered value with what was done since the last call."""

    def steps(self, what: str, *, unit: str) -> AbstractContextManager[Callable[[int, int], None]]:
        """A bar for counted steps; call the entered value with the steps done and their total."""


class Face(Reporter, Bars, Protocol):
    """Both: what a library reports to, a terminal or a program in Python."""

    @property
    def shows_bars(self) -> bool:
        """Whether a program that it starts may draw a bar on stderr."""
