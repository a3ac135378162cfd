"""Remembers the remotes that do not answer, so that one of them down or hanging does not hold up every request."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from threading import Lock
from typing import IO, Final, TypeVar

from adapterhub.core.errors import RemoteUnreachable, reworded
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.choosing import alias_at
from adapterhub.formats.alias import Alias
from adapterhub.formats.manifest import FileEntry
from adapterhub.formats.release import Provenance, Release
from adapterhub.library.transfer import Source

REST_S: Final = 10.0
"""How long requests to a remote that did not answer are refused without another try."""

_T = TypeVar("_T")


class UnreachableRemotes:
    """A circuit breaker for each remote, keyed by its place. Thread-safe.

    After a remote did not answer, every use of it fails at once for `REST_S`. Then one caller tries it again, and the
    others still fail at once until that try ends. `clock` gives seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._resting: dict[str, tuple[float, RemoteUnreachable]] = {}
        self._lock = Lock()

    def guard(self, source: Source) -> Source:
        """The same source, which fails at once while its remote rests."""
        return _Guarded(source, self)

    def rests(self, place: str) -> bool:
        """Whether a use of the remote at `place` would fail at once."""
        with self._lock:
            return place in self._resting and self._clock() < self._resting[place][0]

    def call(self, place: str, request: Callable[[], _T]) -> _T:
        """The result of `request`, which talks to the remote at `place`.

        Raises:
            RemoteUnreachable: from `request`, or at once while the remote rests.
        """
        self._ensure_awake(place)
        try:
            result = request()
        except RemoteUnreachable as error:
            if _is_down(error):
                with self._lock:
                    self._resting[place] = self._clock() + REST_S, reworded(error)
            raise
        with self._lock:
            self._resting.pop(place, None)
        return result

    def _ensure_awake(self, place: str) -> None:
        with self._lock:
            if place not in self._resting:
                return
            until, error = self._resting[place]
            now = self._clock()
            if now < until:
                raise reworded(error, f"{error.message} (no new attempt for {until - now:.0f} s)")
            self._resting[place] = now + REST_S, error  # this caller tries; the others fail until it has a result


def _is_down(error: RemoteUnreachable) -> bool:
    """Whether other requests would fail, too: a server that answers 4xx refuses one request only."""
    status = error.status
    return status is None or status >= HTTPStatus.INTERNAL_SERVER_ERROR or status == HTTPStatus.TOO_MANY_REQUESTS


@dataclass(frozen=True)
class _Guarded:
    """A source whose every request passes the breaker; see `transfer.Source`."""

    source: Source
    remotes: UnreachableRemotes

    @property
    def label(self) -> str:
        return self.source.label

    @property
    def place(self) -> str:
        return self.source.place

    def releases(self, spec: AdapterSpec) -> Sequence[Release]:
        return self.remotes.call(self.place, lambda: self.source.releases(spec))

    def alias(self, spec: AdapterSpec) -> Alias | None:
        return self.remotes.call(self.place, lambda: alias_at(self.source, spec))

    def open(self, release: Release, entry: FileEntry) -> IO[bytes]:
        return self.remotes.call(self.place, lambda: self.source.open(release, entry))

    def provenance(self, release: Release) -> Provenance:
        return self.remotes.call(self.place, lambda: self.source.provenance(release))
