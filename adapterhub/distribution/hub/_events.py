"""The feed of events of our registry: what changed there since a number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from adapterhub.core.digests import Digest, parse_digest
from adapterhub.core.errors import RemoteUnreachable
from adapterhub.distribution.http.wire import Wire

MOST_IN_PAGE: Final = 500
LONGEST_WAIT_S: Final = 30
"""How long a registry lets a request wait for an event."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that changed at a registry, such as `version.yanked`; `digest` is None where it is about no build."""

    id: str
    type: str
    number: int
    repo: str
    digest: Digest | None
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventPage:
    """Events in their order. `next` is where to continue; with `missed`, events after the start may be gone."""

    events: tuple[Event, ...]
    next: int
    missed: bool


def events_since(wire: Wire, since: int | None, wait_s: int) -> EventPage:
    """The events after the number `since`; with None, none, but where to begin.

    Raises:
        RemoteUnreachable: the answer is not such a page.
    """
    asked = {} if since is None else {"since": since, "wait": wait_s, "limit": MOST_IN_PAGE}
    with wire.plainly("events"):
        told = wire.json("api/adapt/v1/events", asked)
    try:
        return _page(told)
    except (LookupError, TypeError, ValueError):
        raise RemoteUnreachable(f"{wire.endpoint} sent events that this version cannot read") from None


def _page(told: Any) -> EventPage:  # noqa: ANN401 - JSON
    if not (type(told["next"]) is int and isinstance(told["missed"], bool)):
        raise ValueError("expected a number and a truth value")
    return EventPage(events=tuple(_event(one) for one in told["events"]), next=told["next"], missed=told["missed"])


def _event(value: Mapping[str, Any]) -> Event:
    data = value["data"]
    texts = (value["id"], value["type"], data["repo"])
    if not all(isinstance(text, str) for text in texts) or type(value["number"]) is not int:
        raise ValueError("expected texts and a number")
    digest = None if data.get("digest") is None else parse_digest(data["digest"])
    return Event(id=texts[0], type=texts[1], number=value["number"], repo=texts[2], digest=digest, data=data)
