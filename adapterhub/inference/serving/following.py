"""Follows the events of registries in threads of their own, so that a server hears of a yank at once.

A server that runs adapters often has no address that a registry could reach, so it asks: each request waits at the
registry for the next event. An event is a reason to look again, and is trusted for nothing else.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from threading import Lock
from typing import IO, TYPE_CHECKING, Final, Protocol, TypeVar

from adapterhub.core.digests import Digest
from adapterhub.core.errors import (
    AdapterHubError,
    AdapterNotFound,
    NoCompatibleRelease,
    RemoteUnreachable,
    StoreLocked,
    reworded,
    shown,
)
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.choosing import alias_at
from adapterhub.formats.alias import Alias
from adapterhub.formats.manifest import FileEntry
from adapterhub.formats.release import Provenance, Release
from adapterhub.inference.serving.provider import AdapterProvider, LeasedAdapter
from adapterhub.library.transfer import Source

if TYPE_CHECKING:
    from typing_extensions import Self

    from adapterhub.distribution.hub import Event, EventPage

YANKS: Final = frozenset({"version.yanked", "version.unyanked"})
NEW: Final = frozenset({"version.published", "version.unyanked"})
ALIAS: Final = "alias.moved"

WAIT_S: Final = 20
"""How long a request waits at the registry for an event; shorter than proxies wait for an answer."""
FIRST_RETRY_S: Final = 0.5
LONGEST_RETRY_S: Final = 15.0
LOOK_S: Final = 5.0
"""How often to look whether there is another registry to follow, and what to try again."""
MOST_PLACES: Final = 16

_log = logging.getLogger("vllm.adapterhub")


class EventFeed(Protocol):
    """A registry whose events can be followed; see `Hub.events`."""

    def events(self, since: int | None, wait_s: int) -> EventPage:
        """The events after a number."""
        ...


Heard = Callable[[str, "Sequence[Event] | None"], None]
"""Called with the place of a registry and its events, in order; with None where any number may have been missed."""


class Followers:
    """One thread for each registry of `places`, while a block runs.

    `open_feed` gives the registry at a place, None for a server without a feed. A registry that does not answer is
    tried again after a growing time, and not while it rests in `remotes`. After each start, and after a gap, `heard`
    gets None: then everything is to be looked up. `retry` runs every few seconds.
    """

    def __init__(
        self,
        places: Callable[[], Iterable[str]],
        open_feed: Callable[[str], EventFeed | None],
        heard: Heard,
        remotes: UnreachableRemotes,
        retry: Callable[[], object] = lambda: None,
    ) -> None:
        self._places, self._open_feed, self._heard, self._remotes = places, open_feed, heard, remotes
        self._retry = retry
        self._ends = threading.Event()
        self._followed: set[str] = set()

    def __enter__(self) -> Self:
        threading.Thread(target=self._find_places, name="adapterhub-follow", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()

    def _find_places(self) -> None:
        while not self._ends.is_set():
            try:
                found = sorted({*self._places()} - self._followed)
                for place in found[: MOST_PLACES - len(self._followed)]:
                    self._followed.add(place)
                    threading.Thread(target=self._follow, args=(place,), name="adapterhub-follow", daemon=True).start()
                self._retry()
            except Exception:  # noqa: BLE001 - the next look may succeed, and the server goes on
                _log.exception("the registries to follow could not be listed, or what failed could not be tried again")
            self._ends.wait(LOOK_S)

    def _follow(self, place: str) -> None:
        since: int | None = None
        feed: EventFeed | None = None
        pause_s = FIRST_RETRY_S
        while not self._ends.is_set():
            if self._remotes.rests(place):
                self._ends.wait(FIRST_RETRY_S)
                continue
            try:
                feed = feed or self._open_feed(place)
                if feed is None:
                    return
                page = feed.events(since, WAIT_S)
                if since is None:
                    _log.info("following the events of %s", place)
                if since is None or page.missed:
                    self._heard(place, None)
                elif page.events:
                    self._heard(place, page.events)
                since, pause_s = page.next, FIRST_RETRY_S
                threading.current_thread().name = f"adapterhub-follow {place} since"
            except Exception as error:  # noqa: BLE001 - whatever fails, the server goes on and tries again
                if pause_s == FIRST_RETRY_S:
                    words = error.message if isinstance(error, AdapterHubError) else repr(error)
                    _log.warning("the events of %s cannot be followed; trying again: %s", place, words)
                self._ends.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_RETRY_S)


@dataclass(frozen=True, kw_only=True)
class Reactions:
    """What a server does when a registry says that something changed. Each function may block, and may raise.

    `served` are the builds whose yank matters, denied ones included. `renew` gets the adapters with new versions, as
    `(namespace, name)`; None stands for all.
    """

    served: Callable[[], Collection[Digest]]
    look_for_yanks: Callable[[], object]
    refresh_aliases: Callable[[], object] = lambda: None
    renew: Callable[[Collection[tuple[str, str]] | None], None] = lambda _: None

    def __call__(self, place: str, events: Sequence[Event] | None) -> None:
        """React to the events of one registry; see `Heard`."""
        served = self.served()
        if events is None or any(event.type in YANKS and event.digest in served for event in events):
            self._do(place, self.look_for_yanks)
        if events is None or any(event.type == ALIAS for event in events):
            self._do(place, self.refresh_aliases)
        new = None if events is None else {_adapter(event) for event in events if event.type in NEW}
        if new is None or new:
            self._do(place, lambda: self.renew(new))

    @staticmethod
    def _do(place: str, reaction: Callable[[], object]) -> None:
        try:
            reaction()
        except AdapterHubError as error:
            _log.warning("after an event of %s: %s", place, error.message)


def _adapter(event: Event) -> tuple[str, str]:
    namespace, _, repo = event.repo.partition("/")
    name = event.data.get("name")
    return namespace, name if isinstance(name, str) else repo


class Renewals:
    """Brings what is newer for the names in use that allow several versions, so that the next request gets it.

    `provider` gives the server's provider, None before its first request. An event comes once. So a name whose server
    did not answer is looked up again by `retry`, after a time that grows. Thread-safe.
    """

    def __init__(self, provider: Callable[[], AdapterProvider | None]) -> None:
        self._provider = provider
        self._late: dict[str, tuple[float, float]] = {}
        """By name, when it is due again, and how long it waited for that, in seconds."""

    def renew(self, adapters: Collection[tuple[str, str]] | None) -> None:
        """Look up the names of `adapters` with new versions, as `(namespace, name)`; None stands for all."""
        for name, (spec, leased) in self._ranges().items():
            if adapters is None or any(spec.name == n and spec.namespace in {None, s} for s, n in adapters):
                self._bring(name, spec, leased)

    def retry(self) -> None:
        """Look up again the names that are due."""
        due = [name for name, (at, _) in list(self._late.items()) if at <= time.monotonic()]
        ranges = self._ranges() if due else {}
        for name in due:
            if name in ranges:
                self._bring(name, *ranges[name])
            else:
                self._late.pop(name, None)

    def _ranges(self) -> dict[str, tuple[AdapterSpec, LeasedAdapter]]:
        """The names in use that allow several versions."""
        provider = self._provider()
        named = {name: (AdapterSpec.parse(name), one) for name, one in provider.in_use().items()} if provider else {}
        return {n: of for n, of in named.items() if of[0].pinned_version is None and of[0].digest_prefix is None}

    def _bring(self, name: str, spec: AdapterSpec, leased: LeasedAdapter) -> None:
        _, waited_s = self._late.pop(name, (0.0, 0.0))
        provider = self._provider()
        assert provider is not None  # it knows the name
        try:
            provider.bring_newest(spec, leased)
        except (AdapterNotFound, NoCompatibleRelease):
            return
        except (RemoteUnreachable, StoreLocked) as error:
            pause_s = min(2 * waited_s or FIRST_RETRY_S, LONGEST_RETRY_S)
            self._late[name] = time.monotonic() + pause_s, pause_s
            if not waited_s:
                _log.warning("%s stays %s for now: %s", shown(name), leased.label, error.message)
        except AdapterHubError as error:
            _log.warning("%s stays %s: %s", shown(name), leased.label, error.message)


def feed_of(source: Source) -> EventFeed | None:
    """The feed of the server behind a source; None if it has none.

    Raises:
        RemoteUnreachable: it does not answer.
    """
    from adapterhub.distribution.hub import Hub  # imports the Hub's client, for which nothing else here waits

    hub = getattr(source, "hub", source)
    return hub if isinstance(hub, Hub) and "events" in hub.features else None


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
