"""The webhooks of a registry: the addresses that get the events of a namespace or a repository.

A webhook belongs to the user who added it. It gets an event only while one of this user's tokens may change the
repository: revoking the tokens of someone who leaves silences the webhooks, too.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Row, delete, func, insert, or_, select
from sqlalchemy.engine import Connection

from adapterhub.core.dates import Moment, moment_or_none
from adapterhub.core.errors import Conflict, NotFound, UsageProblem, shown
from adapterhub.core.webhooks import new_secret
from adapterhub.formats.administration import Delivery, NewWebhook, Webhook
from adapterhub_registry.access.tokens import OPERATOR, Caller
from adapterhub_registry.database.db import Database, inserted_id, lock_name, now_ms
from adapterhub_registry.database.event_tables import deliveries, events, webhooks
from adapterhub_registry.errors import Refusal
from adapterhub_registry.events import delivery, outbox, sending
from adapterhub_registry.names import parse_repo_id
from adapterhub_registry.settings import Limits, Network

MOST_DELIVERIES: Final = 200
_LEAST_NUMBER: Final = 100_000_000
"""Webhooks get random numbers of nine digits: counted from 1, they would count those of hidden repositories."""


class Webhooks:
    """The webhooks that `caller` owns."""

    def __init__(
        self,
        database: Database,
        *,
        networks: tuple[Network, ...] = (),
        limits: Limits | None = None,
        caller: Caller = OPERATOR,
    ) -> None:
        self._db = database
        self._networks = networks
        self._limits = limits or Limits()
        self._caller = caller

    def of(self, caller: Caller) -> Webhooks:
        """Those that one caller owns."""
        return Webhooks(self._db, networks=self._networks, limits=self._limits, caller=caller)

    def add(self, scope: str, url: str, types: Sequence[str] = ()) -> NewWebhook:
        """Send the events of `scope`, a namespace or `namespace/name`, to `url`; of some `types`, or of all.

        Raises:
            UsageProblem: an unknown type, or a malformed URL.
            NotAllowed: a URL that this server does not send to.
            NotFound: a malformed scope, or one that the caller does not own.
            Conflict: the namespace has as many webhooks as the registry allows.
        """
        scope = _parse_scope(scope)
        unknown = [name for name in types if name not in outbox.TYPES]
        if unknown:
            raise UsageProblem(f"event `{shown(unknown[0])}`: expected one of {', '.join(outbox.TYPES)}")
        sending.check_url(url, self._networks)
        if not self._caller.owns(scope):
            raise NotFound(
                f"`{scope}` is not yours: a webhook needs a token that may change all of it; nothing was changed",
                hint="add a webhook for one of your repositories: `namespace/name`",
            )
        secret, namespace = new_secret(), scope.partition("/")[0]
        with self._db.begin() as connection:
            lock_name(connection, f"webhooks of {namespace}")
            mine = or_(webhooks.c.scope == namespace, webhooks.c.scope.startswith(f"{namespace}/", autoescape=True))
            count = connection.scalar(select(func.count()).select_from(webhooks).where(mine)) or 0
            if count >= self._limits.namespace_webhooks:
                raise Conflict(
                    f"`{namespace}` has {count} webhooks, as many as this registry allows; nothing was changed",
                    hint="remove one that has no reader: `adapt registry webhook list`",
                )
            row: dict[str, object] = {
                "id": _LEAST_NUMBER + secrets.randbelow(9 * _LEAST_NUMBER),
                "scope": scope,
                "url": url,
                "secret": secret,
                "types": json.dumps(sorted(set(types))),
            }
            row |= {"owner": self._caller.user if self._caller is not OPERATOR else None, "created_at": now_ms()}
            number = inserted_id(connection.execute(insert(webhooks).values(row)))
            return NewWebhook(webhook=_record(connection, self._row(connection, number)), secret=secret)

    def records(self) -> list[Webhook]:
        """Every webhook, oldest first."""
        with self._db.read() as connection:
            rows = connection.execute(select(webhooks).order_by(webhooks.c.created_at, webhooks.c.id)).all()
            return [_record(connection, row) for row in rows if self._owns(row)]

    def remove(self, number: int) -> Webhook:
        """Remove a webhook with its deliveries, and return its record; raises NotFound."""
        with self._db.begin() as connection:
            record = _record(connection, self._row(connection, number))
            connection.execute(delete(webhooks).where(webhooks.c.id == number))
        return record

    def deliveries(self, number: int, *, limit: int = 50) -> list[Delivery]:
        """The last deliveries of a webhook, newest first; raises NotFound."""
        with self._db.begin() as connection:
            self._row(connection, number)
            outbox.number_events(connection)
            wanted = _DELIVERIES.where(deliveries.c.webhook_id == number).order_by(deliveries.c.id.desc())
            return [_delivery(row) for row in connection.execute(wanted.limit(min(limit, MOST_DELIVERIES)))]

    def ask_test(self, number: int) -> Delivery:
        """Let the server send the event `webhook.test`, once; a test that waits already is the one. Raises NotFound."""
        with self._db.begin() as connection:
            row = self._row(connection, number)
            lock_name(connection, f"test of webhook {number}")
            mine = (deliveries.c.webhook_id == number) & (events.c.type == outbox.TEST)
            waiting = connection.execute(_DELIVERIES.where(mine, deliveries.c.state == "waiting")).first()
            if waiting is not None:
                return _delivery(waiting)
            made = outbox.record_test(connection, row.scope, number, due_at=now_ms())
            return _delivery(connection.execute(_DELIVERIES.where(deliveries.c.id == made)).one())

    def _owns(self, row: Row[Any]) -> bool:
        return self._caller.owns(row.scope)

    def _row(self, connection: Connection, number: int) -> Row[Any]:
        row = connection.execute(select(webhooks).where(webhooks.c.id == number)).one_or_none()
        if row is None or not self._owns(row):
            raise NotFound(f"no webhook {number}", hint="list the webhooks: `adapt registry webhook list`")
        return row


_DELIVERIES = select(
    deliveries,
    events.c.number,
    events.c.public_id,
    events.c.type,
    events.c.repo,
    events.c.created_at.label("happened_at"),
).join(events, events.c.id == deliveries.c.event_id)


def _parse_scope(scope: str) -> str:
    namespace, slash, name = scope.partition("/")
    try:
        return str(parse_repo_id(namespace, name if slash else "any")).removesuffix("" if slash else "/any")
    except Refusal:
        raise NotFound(
            f"scope `{shown(scope)}`: expected a namespace such as acme, or a repository such as acme/legal-qa"
        ) from None


def _record(connection: Connection, row: Row[Any]) -> Webhook:
    counted = select(deliveries.c.state, func.count().label("number")).where(deliveries.c.webhook_id == row.id)
    numbers = {found.state: found.number for found in connection.execute(counted.group_by(deliveries.c.state))}
    return Webhook(
        id=row.id,
        scope=row.scope,
        url=row.url,
        types=tuple(json.loads(row.types)),
        owner=row.owner,
        created_at=Moment(row.created_at),
        waiting=numbers.get("waiting", 0),
        failed=numbers.get("failed", 0),
        silent=not delivery.may_hear(connection, row.owner, row.scope),
    )


def _delivery(row: Row[Any]) -> Delivery:
    return Delivery(
        id=row.number,
        event=row.public_id,
        type=row.type,
        repo=row.repo,
        state=row.state,
        attempts=row.attempts,
        status=row.status,
        problem=row.problem,
        created_at=Moment(row.happened_at),
        due_at=Moment(row.due_at) if row.state == "waiting" else None,
        ended_at=moment_or_none(row.ended_at),
    )
