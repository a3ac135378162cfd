"""Where a library reports from Python: progress to a callback, notes and warnings to the logger `adapterhub`."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapterhub.projects.session import LogReporter

if TYPE_CHECKING:
    from adapterhub.core.digests import Progress
    from adapterhub.library.library import Added
    from adapterhub.projects.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgressEvent:
    """How far one piece of work is: `done` of `total` `unit`s; `total` is None while it is unknown."""

    what: str
    done: int
    total: int | None
    unit: str


OnProgress = Callable[[ProgressEvent], None]
"""Called in the thread that does the work, about once for each megabyte, module or adapter."""


class Reports(LogReporter):
    """Logs notes and warnings, and calls `on_progress` while work goes on."""

    def __init__(self, on_progress: OnProgress | None = None) -> None:
        super().__init__()
        self._on_progress = on_progress

    @contextlib.contextmanager
    def progress(self, what: str, total: int | None, *, unit: str = "bytes") -> Iterator[Progress]:
        """Yields a function to call with what was done since the last call; threads may share it."""
        lock, done = threading.Lock(), 0

        def advance(more: int) -> None:
            nonlocal done
            with lock:
                done += more
                self._tell(what, done, total, unit)

        yield advance

    @contextlib.contextmanager
    def steps(self, what: str, *, unit: str) -> Iterator[Callable[[int, int], None]]:
        """Yields a function to call with how many of how many are done."""
        yield lambda done, total: self._tell(what, done, total, unit)

    def _tell(self, what: str, done: int, total: int | None, unit: str) -> None:
        if self._on_progress is not None:
            self._on_progress(ProgressEvent(what=what, done=done, total=total, unit=unit))


def report_card(session: Session, added: Added) -> None:
    """Warn of what a hub would refuse of the card of an adapter that was just added, while its README can be mended."""
    from adapterhub.formats.cards.card import make_card, refusals_of
    from adapterhub.formats.manifest import CARD_FILE

    manifest = added.build.manifest
    for problem in refusals_of(manifest, make_card(manifest)) if added.created and manifest.card else ():
        session.out.warn(f"`push` will refuse the metadata of `{CARD_FILE}`: {problem.text}; mend it and add again")


def report_likeness(session: Session, added: Added) -> None:
    """Say which installed builds have the update of an adapter that was just added."""
    for other in added.same_as:
        session.out.note(f"this is the update of {other}; `adapt similar {added.build.full_name}` says more")


def report_warnings(session: Session, added: Added | None) -> None:
    """Report the warnings of the checks of what came in.

    A config that names no base is worth one only where the manifest does not record the base either.
    """
    is_known = added is not None and added.build.base.fingerprint is not None
    for finding in added.report.warnings if added else ():
        if not (is_known and finding.code == "W_BASE_MISSING"):
            session.out.warn(f"[{finding.code}] {finding.message}")
