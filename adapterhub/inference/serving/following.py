"""Follows the events of registries in threads of their own, so that a server hears of a yank at once.

A server that runs adapters often has no address that a registry could reach, so it asks: each request waits at the
registry for the next event. An event is a reason to look again, and is trusted for nothing else.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from adapterhub.core.errors import AdapterHubError
from adapterhub.inference.serving.unreachable import UnreachableRemotes

if TYPE_CHECKING:
    from typing_extensions import Self

    from adapterhub.distribution.hub import Hub
    from adapterhub.distribution.hub._events import Event, EventPage

WAIT_S: Final = 20
"""How long a request waits at the registry for an event; shorter than proxies wait for an answer."""
FIRST_RETRY_S: Final = 0.5
LONGEST_RETRY_S: Final = 15.0
LOOK_S: Final = 5.0
"""How often to look whether there is another registry to follow."""
MOST_PLACES: Final = 16

_log = logging.getLogger("vllm.adapterhub")


class Feed(Protocol):
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
    gets None: then everything is to be looked up.
    """

    def __init__(
        self,
        places: Callable[[], Iterable[str]],
        open_feed: Callable[[str], Feed | None],
        heard: Heard,
        remotes: UnreachableRemotes,
    ) -> None:
        self._places, self._open_feed, self._heard, self._remotes = places, open_feed, heard, remotes
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
            except Exception:  # noqa: BLE001 - the next look may succeed, and the server goes on
                _log.exception("the registries to follow could not be listed")
                found = []
            for place in found[: MOST_PLACES - len(self._followed)]:
                self._followed.add(place)
                threading.Thread(target=self._follow, args=(place,), name="adapterhub-follow", daemon=True).start()
            self._ends.wait(LOOK_S)

    def _follow(self, place: str) -> None:
        since: int | None = None
        feed: Feed | None = None
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
            except Exception as error:  # noqa: BLE001 - whatever fails, the server goes on and tries again
                if pause_s == FIRST_RETRY_S:
                    words = error.message if isinstance(error, AdapterHubError) else repr(error)
                    _log.warning("the events of %s cannot be followed; trying again: %s", place, words)
                self._ends.wait(pause_s)
                pause_s = min(2 * pause_s, LONGEST_RETRY_S)


def feed_of(hub: Hub) -> Feed | None:
    """The feed of a server; None if it has none.

    Raises:
        RemoteUnreachable: it does not answer.
    """
    return hub if "events" in hub.features else None
