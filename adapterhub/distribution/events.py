"""Follows the events of a registry: each request waits there for the next one, so that no registry needs our address.

An event is a reason to look again, and is trusted for nothing else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from adapterhub.library.transfer import Source

if TYPE_CHECKING:
    from adapterhub.distribution.hub import Event, EventPage

ALIAS: Final = "alias.moved"

WAIT_S: Final = 20
"""How long a request waits at the registry for an event; shorter than proxies wait for an answer."""
FIRST_RETRY_S: Final = 0.5
LONGEST_RETRY_S: Final = 15.0


class EventFeed(Protocol):
    """A registry whose events can be followed; see `Hub.events`."""

    def events(self, since: int | None, wait_s: int) -> EventPage:
        """Return the events after a number."""
        ...


def feed_of(source: Source | None) -> EventFeed | None:
    """Return the feed of the server behind a source; None if it has none.

    Raises:
        RemoteUnreachable: it does not answer.
    """
    from adapterhub.distribution.kinds.hub import hub_behind

    hub = hub_behind(source)
    return hub if hub is not None and "events" in hub.features else None


def follow_events(
    open_feed: Callable[[], EventFeed | None],
    heard: Callable[[Sequence[Event] | None], object],
    ends: threading.Event,
    *,
    rests: Callable[[], bool] = lambda: False,
    began: Callable[[], object] = lambda: None,
    failed: Callable[[Exception], object] = lambda _: None,
) -> bool:
    """Call `heard` with the events of a registry in their order until `ends` is set; False if it has no feed.

    `heard` gets None at the start, and after a gap: then everything is to be looked up. If it raises, it gets the same
    events again. A registry that does not answer is tried again after a growing time, and not while it `rests`. `began`
    runs at the first answer, `failed` at the first of several failures.
    """
    since: int | None = None
    feed: EventFeed | None = None
    pause_s = FIRST_RETRY_S
    while not ends.is_set():
        if rests():
            ends.wait(FIRST_RETRY_S)
            continue
        try:
            feed = feed or open_feed()
            if feed is None:
                return False
            page = feed.events(since, WAIT_S)
            if since is None:
                began()
            if since is None or page.missed:
                heard(None)
            elif page.events:
                heard(page.events)
            since, pause_s = page.next, FIRST_RETRY_S
        except Exception as error:  # noqa: BLE001 - whatever fails, the follower goes on and tries again
            feed = None  # its connection may be what is broken
            if pause_s == FIRST_RETRY_S:
                failed(error)
            ends.wait(pause_s)
            pause_s = min(2 * pause_s, LONGEST_RETRY_S)
    return True
