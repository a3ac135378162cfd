"""Delivers events to webhooks in the background, each at least once, and again after a failure.

What is to be delivered stands in the database since the transaction of the change. A server claims a delivery by moving
its time on, and notes the result after the attempt: one that is killed in between leaves it to the next server, and the
receiver knows a repeat by its id. A receiver that does not answer rests as a whole, so that it costs one attempt at a
time, however many events wait for it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final

from sqlalchemy import Row, func, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from adapterhub.core.webhooks import signed_headers
from adapterhub_registry.access.tokens import callers_of
from adapterhub_registry.database.db import Database, now_ms
from adapterhub_registry.database.event_tables import deliveries, events, webhooks
from adapterhub_registry.events.outbox import TEST, document, number_events
from adapterhub_registry.events.sending import Outcome, post
from adapterhub_registry.settings import Network

log = logging.getLogger("adapterhub_registry")

AT_ONCE: Final = 16
OF_ONE_OWNER: Final = 4
"""How many of these one user's receivers may take, so that the receivers of others get theirs in time."""
POLL_S: Final = 0.5
CLAIM_MS: Final = 60_000
"""How long a claimed delivery is left to its server; longer than an attempt takes."""
GIVE_UP_MS: Final = 3 * 86_400_000
"""How long after its event a delivery is repeated."""
LONGEST_WAIT_S: Final = 6 * 3600.0
MOST_PROBLEM_CHARACTERS: Final = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Claimed:
    """A delivery that this server makes now; the body is the event as JSON."""

    id: int
    webhook_id: int
    owner: str | None
    url: str
    secret: str
    event: str
    body: bytes
    attempts: int
    gives_up: bool


class Deliverer:
    """Makes the deliveries of one server. `retry_s` is the wait after the first failure."""

    def __init__(self, database: Database, *, allowed: tuple[Network, ...], retry_s: float) -> None:
        self._db = database
        self._allowed = allowed
        self._retry_s = retry_s
        self._running: dict[int, Claimed] = {}
        """By webhook: each has one attempt at a time."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Deliver until cancelled. A database that does not answer holds the deliveries up and loses none."""
        while True:
            try:
                free = AT_ONCE - len(self._running)
                busy = list(self._running.values())
                for one in await run_in_threadpool(claim, self._db, free, busy) if free else ():
                    self._running[one.webhook_id] = one
                    task = asyncio.create_task(self._deliver(one))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
            except SQLAlchemyError:
                log.warning("webhooks wait: the database did not answer", exc_info=True)
            await asyncio.sleep(POLL_S)

    async def _deliver(self, one: Claimed) -> None:
        try:
            outcome = await _attempt(one, self._allowed)
            await run_in_threadpool(self._note, one, outcome)
        except SQLAlchemyError:  # stays claimed, and is delivered again
            log.warning("a delivery could not be noted", exc_info=True)
        finally:
            del self._running[one.webhook_id]

    def _note(self, one: Claimed, outcome: Outcome) -> None:
        with self._db.begin() as connection:
            note(connection, one, outcome, retry_s=self._retry_s)


def claim(database: Database, most: int, busy: Sequence[Claimed] = ()) -> list[Claimed]:
    """Claim the deliveries that are due: one for each webhook, some for each owner, with those in `busy`."""
    held = Counter(one.owner for one in busy)
    with database.read() as connection:  # a write only where there is work
        is_due = (deliveries.c.state == "waiting") & (deliveries.c.due_at <= now_ms())
        if connection.scalar(select(deliveries.c.id).where(is_due).limit(1)) is None:
            return []
    with database.begin() as connection:
        number_events(connection)
        full = [owner for owner, number in held.items() if owner is not None and number >= OF_ONE_OWNER]
        others = deliveries.c.webhook_id.not_in([one.webhook_id for one in busy])
        of_others = webhooks.c.owner.is_(None) | webhooks.c.owner.not_in(full)
        first = select(func.min(deliveries.c.id)).join_from(deliveries, webhooks).where(is_due, others, of_others)
        first = first.group_by(deliveries.c.webhook_id).limit(most)
        numbers = connection.scalars(first).all()
        locked = select(deliveries.c.id).where(deliveries.c.id.in_(numbers), is_due).with_for_update(skip_locked=True)
        claimed = []
        for number in connection.scalars(locked.order_by(deliveries.c.due_at)).all():
            row = _row(connection, number)
            held[row.owner] += 1
            if row.owner is not None and held[row.owner] > OF_ONE_OWNER:
                continue
            if not may_hear(connection, row.owner, row.repo):
                _end(connection, number, "withheld", Outcome(status=None, problem="its owner may not know this event"))
                continue
            values = {"due_at": now_ms() + CLAIM_MS, "attempts": row.attempts + 1}
            connection.execute(update(deliveries).where(deliveries.c.id == number).values(values))
            claimed.append(_claimed(row))
        return claimed


def note(connection: Connection, one: Claimed, outcome: Outcome, *, retry_s: float) -> None:
    """Write down how an attempt went, and when the next one is."""
    if outcome.problem is None:
        _end(connection, one.id, "delivered", outcome)
        return
    if one.gives_up or outcome.status == HTTPStatus.GONE:
        _end(connection, one.id, "failed", outcome)
        return
    wait_s = min(retry_s * 4.0 ** (one.attempts - 1), LONGEST_WAIT_S) * random.uniform(0.8, 1.2)  # noqa: S311 - spreads load
    due_at = now_ms() + int(wait_s * 1000)
    values = {"due_at": due_at, "status": outcome.status, "problem": _short(outcome.problem)}
    connection.execute(update(deliveries).where(deliveries.c.id == one.id).values(values))
    if outcome.status is None:  # the others would fail, too
        asked = select(events.c.id).where(events.c.type == TEST)  # someone waits to hear whether it works again
        rest = (deliveries.c.webhook_id == one.webhook_id) & (deliveries.c.state == "waiting")
        rest &= deliveries.c.event_id.not_in(asked)
        connection.execute(update(deliveries).where(rest, deliveries.c.due_at < due_at).values(due_at=due_at))


async def _attempt(one: Claimed, allowed: tuple[Network, ...]) -> Outcome:
    headers = signed_headers(one.secret, one.event, one.body, at=now_ms() / 1000)
    return await post(one.url, one.body, headers, allowed=allowed)


def _row(connection: Connection, number: int) -> Row[Any]:
    wanted = select(
        deliveries.c.id.label("delivery_id"),
        deliveries.c.webhook_id,
        deliveries.c.attempts,
        webhooks.c.url,
        webhooks.c.secret,
        webhooks.c.owner,
        events,
    )
    joined = wanted.join_from(deliveries, webhooks).join(events, events.c.id == deliveries.c.event_id)
    return connection.execute(joined.where(deliveries.c.id == number)).one()


def may_hear(connection: Connection, owner: str | None, name: str) -> bool:
    """Whether the owner of a webhook may learn of events of `name`, a repository or a namespace; the operator may."""
    return owner is None or any(caller.owns(name) for caller in callers_of(connection, owner))


def _claimed(row: Row[Any]) -> Claimed:
    return Claimed(
        id=row.delivery_id,
        webhook_id=row.webhook_id,
        owner=row.owner,
        url=row.url,
        secret=row.secret,
        event=row.public_id,
        body=json.dumps(document(row), separators=(",", ":")).encode(),
        attempts=row.attempts + 1,
        gives_up=row.type == TEST or now_ms() - row.created_at > GIVE_UP_MS,
    )


def _end(connection: Connection, number: int, state: str, outcome: Outcome) -> None:
    values = {"state": state, "status": outcome.status, "problem": _short(outcome.problem), "ended_at": now_ms()}
    connection.execute(update(deliveries).where(deliveries.c.id == number).values(values))


def _short(problem: str | None) -> str | None:
    return None if problem is None else problem[:MOST_PROBLEM_CHARACTERS]
