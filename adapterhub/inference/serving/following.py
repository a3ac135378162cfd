"""Follows the events of registries in threads of their own, so that a server reacts to a yank at once.

A server that runs adapters often has no address that a registry could reach, so it asks (`distribution.events`).
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from threading import Lock
from typing import IO, TYPE_CHECKING, Final, TypeVar

from adapterhub.core.digests import Digest
from adapterhub.core.errors import (
    AdapterHubError,
    AdapterNotFound,
    NoCompatibleRelease,
    RemoteUnreachable,
    StoreLocked,
    reason_of,
    reworded,
    shown,
)
from adapterhub.core.specs import AdapterSpec
from adapterhub.distribution.choosing import alias_at
from adapterhub.distribution.events import (
    ALIAS,
    FIRST_RETRY_S,
    LONGEST_RETRY_S,
    EventFeed,
    feed_of,
    follow_events,
)
from adapterhub.distribution.withdrawal import FindSource, Here, withdrawn
from adapterhub.formats.alias import Alias
from adapterhub.formats.manifest import FileEntry
from adapterhub.formats.release import Provenance, Release
from adapterhub.inference.serving.access.denied import Denied
from adapterhub.inference.serving.access.gate import Gate
from adapterhub.inference.serving.access.watched import LOOK_S as WATCH_S
from adapterhub.inference.serving.access.watched import Repeating
from adapterhub.inference.serving.provider import AdapterProvider, LeasedAdapter
from adapterhub.library.library import Library
from adapterhub.library.transfer import Source

if TYPE_CHECKING:
    from typing_extensions import Self

    from adapterhub.distribution.hub import Event

YANKS: Final = frozenset({"version.yanked", "version.unyanked"})
NEW: Final = frozenset({"version.published", "version.unyanked"})
LOOK_S: Final = 5.0
"""How often to look whether there is another registry to follow, and what to try again."""
MOST_PLACES: Final = 16
ALIAS_S: Final = 0.05
"""How often to look whether an alias of the library moved."""
YANKS_S: Final = 60.0
"""How often to look for yanks."""

_log = logging.getLogger("vllm.adapterhub")


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
        def began() -> None:
            _log.info("following the events of %s", place)
            threading.current_thread().name = f"adapterhub-follow {place} since"

        def failed(error: Exception) -> None:
            _log.warning("the events of %s cannot be followed; trying again: %s", place, reason_of(error))

        follow_events(
            partial(self._open_feed, place),
            partial(self._heard, place),
            self._ends,
            rests=partial(self._remotes.rests, place),
            began=began,
            failed=failed,
        )


@dataclass(frozen=True, kw_only=True)
class Upkeep:
    """The work of a server beside its requests: watched files, yanks, and the events of registries.

    `served` gives the labels of the adapters that the engine has, `find_source` the server of a place, None if none
    may be asked. `places` names the registries to follow, None to follow none. `provider` gives what brings new
    versions, None if nothing does. `refresh_aliases` looks all aliases up, `refresh_moved` some. Every function may
    block.
    """

    library: Library
    denied: Denied
    gate: Gate
    served: Callable[[], Mapping[Digest, str]]
    find_source: FindSource | None
    remotes: UnreachableRemotes
    places: Callable[[], Iterable[str]] | None = None
    refresh_aliases: Callable[[], object] = lambda: None
    refresh_moved: Callable[[Sequence[str]], object] | None = None
    provider: Callable[[], AdapterProvider | None] = lambda: None

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Do it in threads while the block runs."""
        renewals = Renewals(self.provider)
        tasks = [(WATCH_S, self.denied.refresh), (WATCH_S, self.gate.refresh), (YANKS_S, self.look_for_yanks)]
        with contextlib.ExitStack() as stack:
            stack.enter_context(Repeating(tasks))
            stack.enter_context(Repeating([(ALIAS_S, self.look_at_aliases)]))  # a look for yanks waits for servers
            if self.places is not None and self.find_source is not None:
                find, heard = self.find_source, partial(self.hear, renew=renewals.renew)
                follow = Followers(self.places, lambda place: feed_of(find(place)), heard, self.remotes, renewals.retry)
                stack.enter_context(follow)
            yield

    def hear(
        self, place: str, events: Sequence[Event] | None, *, renew: Callable[[Collection[tuple[str, str]] | None], None]
    ) -> None:
        """React to events; see `Heard`. `renew` gets the adapters with new versions, as `(namespace, name)`."""
        watched = {*self.served(), *self.denied.withdrawn()}
        new = None if events is None else {_adapter(event) for event in events if event.type in NEW}
        reactions: list[Callable[[], object]] = []
        if events is None or any(event.type in YANKS and event.digest in watched for event in events):
            reactions.append(self.look_for_yanks)
        if events is None or any(event.type == ALIAS for event in events):
            reactions.append(self.refresh_aliases)
        if new is None or new:
            reactions.append(partial(renew, new))
        for reaction in reactions:
            try:
                reaction()
            except AdapterHubError as error:
                _log.warning("after an event of %s: %s", place, error.message)

    def look_at_aliases(self) -> None:
        """Look up the aliases that were moved in the library, here or by another machine that shares it."""
        provider = self.provider()
        if provider is not None and (names := provider.aliases.moved()):
            if self.refresh_moved is None:
                self.refresh_aliases()
            else:
                self.refresh_moved(names)

    def look_for_yanks(self) -> None:
        """Deny what its server has yanked, and allow that whose yank was taken back.

        Each server gets one request, none while it rests after a failure; then what it said last counts. If no server
        may be contacted, the results of `adapt sync`, `info` or `verify` still count.
        """
        labels, denied = dict(self.served()), self.denied
        if denied.withdrawn():  # their leases are gone
            builds = [build for build in self.library.installed() if build.manifest.digest in denied.withdrawn()]
            labels |= {build.manifest.digest: f"{build.full_name}=={build.manifest.version}" for build in builds}
        here = []
        for digest, label in labels.items():
            spec = AdapterSpec.parse(label)
            origin = self.library.origins.under(digest, spec.full_name)
            if origin is not None and origin.is_server:
                here.append(Here(digest=digest, spec=spec, place=origin.place, repository=origin.repository))
        found = withdrawn(self.library, here, self.find_source, call=self.remotes.call)
        for build in here:
            if build.digest in found:
                denied.deny(build.digest, found[build.digest])
            else:
                denied.allow(build.digest)


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
        """Return the names in use that allow several versions."""
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
        """Return the same source, which fails at once while its remote rests."""
        return _Guarded(source, self)

    def rests(self, place: str) -> bool:
        """Return whether a use of the remote at `place` would fail at once."""
        with self._lock:
            return place in self._resting and self._clock() < self._resting[place][0]

    def call(self, place: str, request: Callable[[], _T]) -> _T:
        """Return the result of `request`, which talks to the remote at `place`.

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
    """Return True if other requests would also fail: a server that answers 4xx refuses one request only."""
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
