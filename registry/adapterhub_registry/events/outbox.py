"""Records events in the transaction of the change, gives them their order, and reads them.

An event has a place in the order, its number, only after its commit: the first reader gives it. So a reader of all
events up to a number never finds a smaller one later, though several servers write at once. A number is the time in
microseconds, moved on where two would be equal. Gaps in the numbers thus do not tell how many events of private
repositories lie between.
"""

from __future__ import annotations

import json
import secrets
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final, Literal, get_args

from sqlalchemy import ColumnElement, Row, delete, exists, func, insert, or_, select, update
from sqlalchemy.engine import Connection

from adapterhub_registry.access.tokens import Caller, reached_names
from adapterhub_registry.database.db import Database, inserted_id, lock_name, now_ms, repos
from adapterhub_registry.database.event_tables import deliveries, events, webhooks

Change = Literal[
    "version.published",
    "version.yanked",
    "version.unyanked",
    "version.deleted",
    "alias.moved",
    "repository.deleted",
    "repository.moved",
]
EventType = Change | Literal["webhook.test"]
TEST: Final = "webhook.test"
TYPES: Final = get_args(Change)
"""The types that a webhook may choose."""

KEPT_S: Final = 30 * 86_400.0
"""How long the feed keeps an event."""
MOST_IN_PAGE: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Events in their order. `next` is the number to continue from; `missed`: some after the start may be gone."""

    events: list[dict[str, Any]]
    next: int
    missed: bool


def record(connection: Connection, repo: Row[Any], kind: EventType, **data: object) -> None:
    """Record an event of a repository, and a delivery for each webhook that listens; in the change's transaction."""
    event_id = _insert(connection, repo.full_name, kind, data, private=repo.private)
    namespace = repo.full_name.partition("/")[0]
    hooks = select(webhooks.c.id, webhooks.c.types).where(webhooks.c.scope.in_([namespace, repo.full_name]))
    for hook in connection.execute(hooks):
        types = json.loads(hook.types)
        if not types or kind in types:
            add_delivery(connection, hook.id, event_id, due_at=now_ms())


def record_test(connection: Connection, scope: str, webhook_id: int, *, due_at: int) -> int:
    """Record an event that only one webhook gets; return the number of its delivery."""
    event_id = _insert(connection, scope, TEST, {}, private=True)
    number_events(connection)
    return add_delivery(connection, webhook_id, event_id, due_at=due_at)


def follow_move(connection: Connection, repo: str, target: str) -> None:
    """Let the webhooks of a repository listen to its new name."""
    connection.execute(update(webhooks).where(webhooks.c.scope == repo).values(scope=target))


def add_delivery(connection: Connection, webhook_id: int, event_id: int, *, due_at: int) -> int:
    """Let a webhook get an event; return the number of the delivery."""
    row = {"webhook_id": webhook_id, "event_id": event_id, "state": "waiting", "attempts": 0, "due_at": due_at}
    return inserted_id(connection.execute(insert(deliveries).values(row)))


def number_events(connection: Connection) -> None:
    """Give every committed event its number."""
    waiting = select(events.c.id).where(events.c.number.is_(None)).order_by(events.c.id)
    if connection.scalar(waiting.limit(1)) is None:
        return
    lock_name(connection, "order of events")
    last = connection.scalar(select(func.max(events.c.number))) or 0
    for event_id in connection.scalars(waiting).all():
        last = max(last + 1, _now_us())
        connection.execute(update(events).where(events.c.id == event_id).values(number=last))


def latest(database: Database) -> int:
    """A number that grows with each event, for a look whether there is a new one."""
    with database.read() as connection:
        return connection.scalar(select(func.max(events.c.id))) or 0


def read_page(
    database: Database, caller: Caller, readable: ColumnElement[bool], *, since: int | None, limit: int
) -> Page:
    """The events after `since` of repositories that the caller sees; with None, no event, but where to begin.

    `readable` is the condition on `repos` for the public ones that the caller may see.
    """
    with database.read() as connection:
        is_new = connection.scalar(select(events.c.id).where(events.c.number.is_(None)).limit(1)) is not None
    if is_new:
        with database.begin() as connection:
            number_events(connection)
    visible = _visible(caller, readable)
    with database.read() as connection:
        if since is None:
            start = connection.scalar(select(func.max(events.c.number)).where(visible)) or 0
            return Page(events=[], next=start, missed=False)
        wanted = select(events).where(events.c.number > since, visible).order_by(events.c.number).limit(limit)
        rows = connection.execute(wanted).all()
    oldest = int((time.time() - KEPT_S) * 1_000_000)
    return Page(events=[document(row) for row in rows], next=rows[-1].number if rows else since, missed=since < oldest)


def document(row: Row[Any]) -> dict[str, Any]:
    """An event as receivers and followers read it."""
    at = datetime.fromtimestamp(row.created_at / 1000, tz=timezone.utc)
    return {
        "id": row.public_id,
        "type": row.type,
        "timestamp": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "number": row.number,
        "data": {"repo": row.repo, **json.loads(row.data)},
    }


def prune(database: Database) -> None:
    """Remove what the feed no longer keeps, with its deliveries."""
    with database.begin() as connection:
        connection.execute(delete(events).where(events.c.created_at < now_ms() - int(KEPT_S * 1000)))


def _now_us() -> int:
    return time.time_ns() // 1000


def _visible(caller: Caller, readable: ColumnElement[bool]) -> ColumnElement[bool]:
    """Whether the caller may learn of an event: by who could read its repository then, and who can now."""
    hidden_now = exists().where(repos.c.full_name == events.c.repo, ~readable)
    public = events.c.private.is_(False) & ~hidden_now
    mine = reached_names(caller.namespaces, events.c.repo)
    return (events.c.type != TEST) & or_(public, mine)


def _insert(connection: Connection, repo: str, kind: str, data: dict[str, object], *, private: bool) -> int:
    row = {
        "public_id": f"evt_{secrets.token_hex(16)}",
        "type": kind,
        "repo": repo,
        "private": private,
        "data": json.dumps(data),
        "created_at": now_ms(),
    }
    return inserted_id(connection.execute(insert(events).values(row)))
