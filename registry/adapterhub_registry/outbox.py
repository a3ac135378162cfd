"""Events, and the webhooks that get them: a change is written with its events, which others follow or receive.

An event has a place in the order, its number, only after its commit: the first reader gives it. So a reader of all
events up to a number never finds a smaller one later, though several servers write at once. A number is the time in
microseconds, moved on where two would be equal. Gaps in the numbers thus do not reveal how many events of private
repositories lie between.

To deliver, the server resolves the host name once, refuses every address that is not public, and connects to the
address that it checked: a name that changes its address meanwhile gains nothing. It follows no redirect, uses no proxy,
reads a few kilobytes of the answer, and gives up after ten seconds, however slowly the receiver sends.

What is to be delivered stands in the database since the transaction of the change. A server claims a delivery by moving
its time on, and notes the result after the attempt: one that is killed in between leaves it to the next server, and the
receiver knows a repeat by its id. A receiver that does not answer rests as a whole, so that it costs one attempt at a
time, however many events wait for it.

A webhook belongs to the user who added it. It gets an event only while one of this user's tokens may change the
repository: revoking the tokens of someone who leaves also silences the webhooks.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
import random
import re
import secrets
import socket
import ssl
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime, timezone
from http import HTTPStatus
from typing import Any, Final, Literal, get_args
from urllib.parse import SplitResult, urlsplit

import h11
from sqlalchemy import ColumnElement, Row, delete, func, insert, or_, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from adapterhub.core.dates import Moment, moment_or_none
from adapterhub.core.errors import Conflict, NotAllowed, NotFound, UsageProblem, shown
from adapterhub.core.webhooks import new_secret, signed_headers
from adapterhub.formats.administration import Delivery, NewWebhook, Webhook
from adapterhub_registry import treelog
from adapterhub_registry.access.audit import log_change
from adapterhub_registry.access.callers import LOCAL, OPERATOR, Caller, reached_names
from adapterhub_registry.access.tokens import callers_of
from adapterhub_registry.database.db import (
    Database,
    deliveries,
    events,
    inserted_id,
    lock_name,
    now_ms,
    repos,
    webhooks,
)
from adapterhub_registry.errors import HttpRefusal
from adapterhub_registry.names import parse_repo_id
from adapterhub_registry.settings import Network, ServerLimits

Change = Literal[
    "version.published",
    "version.yanked",
    "version.unyanked",
    "version.deleted",
    "alias.moved",
    "alias.retention",
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
class EventPart:
    """Events in their order. `next` is the number to continue from; `missed`: some after the start may be gone."""

    events: list[dict[str, Any]]
    next: int
    missed: bool


def record(connection: Connection, repo: Row[Any], kind: EventType, **data: object) -> None:
    """Record an event of a repository, also in the log, and a delivery for each webhook that listens.

    It is part of the change's transaction.
    """
    treelog.note(connection, repo, kind, data)
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
    """Return a number that grows with each event, for a look whether there is a new one."""
    with database.read() as connection:
        return connection.scalar(select(func.max(events.c.id))) or 0


def read_page(
    database: Database, caller: Caller, readable: ColumnElement[bool], *, since: int | None, limit: int
) -> EventPart:
    """Return the events after `since` of repositories that the caller sees; with None, no event, but where to begin.

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
            return EventPart(events=[], next=start, missed=False)
        wanted = select(events).where(events.c.number > since, visible).order_by(events.c.number).limit(limit)
        rows = connection.execute(wanted).all()
    oldest = int((time.time() - KEPT_S) * 1_000_000)
    return EventPart(
        events=[document(row) for row in rows], next=rows[-1].number if rows else since, missed=since < oldest
    )


def document(row: Row[Any]) -> dict[str, Any]:
    """Return an event as receivers and followers read it."""
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
    """Return whether the caller may learn of an event: by who could read its repository then, and who can now."""
    # of `EXISTS`, PostgreSQL would make a list of all hidden repositories first
    hidden_now = select(repos.c.id).where(repos.c.full_name == events.c.repo, ~readable).scalar_subquery()
    public = events.c.private.is_(False) & hidden_now.is_(None)
    mine = reached_names(caller, events.c.repo)
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


FRESH_S: Final = 0.25
"""How old the answer of the database may be."""


class EventWatch:
    """The newest event of one database, as the waiting requests of one server see it."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._asked_at = float("-inf")
        self._latest = 0
        self._asking = asyncio.Lock()

    async def latest(self) -> int:
        """Return a number that grows with each event."""
        async with self._asking:
            if time.monotonic() - self._asked_at > FRESH_S:
                self._latest = await run_in_threadpool(latest, self._db)
                self._asked_at = time.monotonic()
            return self._latest


TIMEOUT_S: Final = 10.0
MOST_ANSWER_BYTES: Final = 1 << 16
MOST_URL_CHARACTERS: Final = 2000
_PORT: Final = r":([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
URL: Final = re.compile(rf"https?://([A-Za-z0-9.-]{{1,253}}|\[[0-9A-Fa-f:.]{{2,45}}\])({_PORT})?([/?][!\"$-~]*)?")
_BLOCK_BYTES: Final = 1 << 14
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
# slow name servers hold up nothing else: a look-up lasts up to three times as long as the attempt that it is for
_DNS = ThreadPoolExecutor(64, thread_name_prefix="webhook-dns")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryOutcome:
    """The status of an answer, or None; `problem` says in a few words why the message did not arrive."""

    status: int | None
    problem: str | None


class _NotSent(Exception):
    """The message cannot be sent; the text holds the reason, and never more than its sender may know."""


def check_url(url: str, allowed: tuple[Network, ...]) -> None:
    """Check the address of a receiver as far as that goes without a connection.

    Raises:
        UsageProblem: it is not a URL of a web server.
        NotAllowed: it is not https (http, where some networks are `allowed`), or names an address that is refused.
    """
    if len(url) > MOST_URL_CHARACTERS or not URL.fullmatch(url):
        raise UsageProblem(f"webhook URL `{shown(url)}`: expected one such as https://hooks.example.org/adapters")
    try:
        place = urlsplit(url)
    except ValueError:  # brackets around what is no address
        raise NotAllowed(
            f"webhook URL `{shown(url)}`: expected an address in the brackets; nothing was changed"
        ) from None
    host = place.hostname or ""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        if place.scheme == "http" and not allowed:
            raise NotAllowed(f"webhook URL `{shown(url)}`: expected https; nothing was changed") from None
        return
    if not _may_reach(address, allowed, scheme=place.scheme):
        raise NotAllowed(
            f"webhook URL `{shown(url)}`: the server sends to public addresses by https only",
            hint="the operator allows others: `adapt registry serve --webhook-network 10.0.0.0/8`",
        )


async def post(url: str, body: bytes, headers: Mapping[str, str], *, allowed: tuple[Network, ...]) -> DeliveryOutcome:
    """Send a JSON body. Hosts in the networks `allowed` may be private, and may use http."""
    try:
        return await asyncio.wait_for(_post(urlsplit(url), body, headers, allowed), TIMEOUT_S)
    except (asyncio.TimeoutError, TimeoutError):
        return DeliveryOutcome(status=None, problem=f"no answer within {TIMEOUT_S:.0f} s")
    except _NotSent as error:
        return DeliveryOutcome(status=None, problem=str(error))
    except ssl.SSLError as error:
        return DeliveryOutcome(status=None, problem=f"TLS: {shown(error.reason or 'failed', 100)}")
    except OSError:
        return DeliveryOutcome(status=None, problem="could not connect")
    except (h11.RemoteProtocolError, h11.LocalProtocolError):
        return DeliveryOutcome(status=None, problem="the answer is not HTTP")


async def _post(
    place: SplitResult, body: bytes, headers: Mapping[str, str], allowed: tuple[Network, ...]
) -> DeliveryOutcome:
    host = place.hostname or ""
    port = place.port or (443 if place.scheme == "https" else 80)
    address = await _resolved(host, port, allowed, scheme=place.scheme)
    secured = {"ssl": ssl.create_default_context(), "server_hostname": host} if place.scheme == "https" else {}
    reader, writer = await asyncio.open_connection(str(address), port, **secured)  # type: ignore[arg-type]
    try:
        target = (place.path or "/") + (f"?{place.query}" if place.query else "")
        sent = {"Host": place.netloc, "Content-Type": "application/json", "User-Agent": "adapterhub-registry"}
        sent |= {"Content-Length": str(len(body)), "Connection": "close", **headers}
        connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MOST_ANSWER_BYTES)
        request = h11.Request(method="POST", target=target, headers=list(sent.items()))
        for event in (request, h11.Data(data=body), h11.EndOfMessage()):
            writer.write(connection.send(event) or b"")
        await writer.drain()
        return await _answer(connection, reader)
    finally:
        writer.transport.abort()


async def _answer(connection: h11.Connection, reader: asyncio.StreamReader) -> DeliveryOutcome:
    read = 0
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            data = await reader.read(_BLOCK_BYTES)
            read += len(data)
            if read > MOST_ANSWER_BYTES:
                return DeliveryOutcome(status=None, problem="the head of the answer is too long")
            connection.receive_data(data)
        elif isinstance(event, h11.Response):
            return DeliveryOutcome(status=event.status_code, problem=_problem(event.status_code))
        elif not isinstance(event, h11.InformationalResponse):
            return DeliveryOutcome(status=None, problem="no answer")


def _problem(status: int) -> str | None:
    if 200 <= status < 300:
        return None
    if 300 <= status < 400:
        return f"status {status}: redirects are not followed"
    return f"status {status}"


async def _resolved(host: str, port: int, allowed: tuple[Network, ...], *, scheme: str) -> Address:
    """Return the address to connect to, checked.

    Raises:
        _NotSent: the name has no address, or one that is refused.
    """
    loop = asyncio.get_running_loop()
    try:
        found = await loop.run_in_executor(_DNS, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
    except (OSError, UnicodeError):
        raise _NotSent("the host name has no address") from None
    addresses = [ipaddress.ip_address(entry[4][0]) for entry in found]
    if not addresses or not all(_may_reach(address, allowed, scheme=scheme) for address in addresses):
        raise _NotSent("the host name leads to an address that this server does not send to")
    return addresses[0]


def _may_reach(address: Address, allowed: tuple[Network, ...], *, scheme: str) -> bool:
    inner = _inside(address)
    if any(inner in network for network in allowed if network.version == inner.version):
        return True
    return scheme == "https" and is_public(inner)


def is_public(address: Address) -> bool:
    """Return whether an address is on the public internet, also one that is written inside another."""
    address = _inside(address)
    if isinstance(address, ipaddress.IPv6Address) and (address.teredo or address.is_site_local):
        return False
    special = address.is_multicast or address.is_reserved or address.is_unspecified or address.is_loopback
    return address.is_global and not special and not address.is_link_local


def _inside(address: Address) -> Address:
    """Return the IPv4 address that an IPv6 address stands for, where it stands for one."""
    if not isinstance(address, ipaddress.IPv6Address):
        return address
    if address in _NAT64 or 1 < int(address) < 1 << 32:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or address


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

    def _note(self, one: Claimed, outcome: DeliveryOutcome) -> None:
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
                _end(
                    connection,
                    number,
                    "withheld",
                    DeliveryOutcome(status=None, problem="its owner may not know this event"),
                )
                continue
            values = {"due_at": now_ms() + CLAIM_MS, "attempts": row.attempts + 1}
            connection.execute(update(deliveries).where(deliveries.c.id == number).values(values))
            claimed.append(_claimed(row))
        return claimed


def note(connection: Connection, one: Claimed, outcome: DeliveryOutcome, *, retry_s: float) -> None:
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


async def _attempt(one: Claimed, allowed: tuple[Network, ...]) -> DeliveryOutcome:
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


def _end(connection: Connection, number: int, state: str, outcome: DeliveryOutcome) -> None:
    values = {"state": state, "status": outcome.status, "problem": _short(outcome.problem), "ended_at": now_ms()}
    connection.execute(update(deliveries).where(deliveries.c.id == number).values(values))


def _short(problem: str | None) -> str | None:
    return None if problem is None else problem[:MOST_PROBLEM_CHARACTERS]


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
        limits: ServerLimits | None = None,
        caller: Caller = OPERATOR,
    ) -> None:
        self._db = database
        self._networks = networks
        self._limits = limits or ServerLimits()
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
        unknown = [name for name in types if name not in TYPES]
        if unknown:
            raise UsageProblem(f"event `{shown(unknown[0])}`: expected one of {', '.join(TYPES)}")
        check_url(url, self._networks)
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
            row |= {"owner": self._caller.user if self._caller.user != LOCAL else None, "created_at": now_ms()}
            log_change(connection, self._caller.by, "webhook", f"to {urlsplit(url).hostname}", repo=scope)
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
            log_change(
                connection, self._caller.by, "webhook", f"no more to {urlsplit(record.url).hostname}", repo=record.scope
            )
        return record

    def deliveries(self, number: int, *, limit: int = 50) -> list[Delivery]:
        """Return the last deliveries of a webhook, newest first; raises NotFound."""
        with self._db.begin() as connection:
            self._row(connection, number)
            number_events(connection)
            wanted = _DELIVERIES.where(deliveries.c.webhook_id == number).order_by(deliveries.c.id.desc())
            return [_delivery(row) for row in connection.execute(wanted.limit(min(limit, MOST_DELIVERIES)))]

    def ask_test(self, number: int) -> Delivery:
        """Let the server send the event `webhook.test`, once; a test that waits already is the one. Raises NotFound."""
        with self._db.begin() as connection:
            row = self._row(connection, number)
            lock_name(connection, f"test of webhook {number}")
            mine = (deliveries.c.webhook_id == number) & (events.c.type == TEST)
            waiting = connection.execute(_DELIVERIES.where(mine, deliveries.c.state == "waiting")).first()
            if waiting is not None:
                return _delivery(waiting)
            made = record_test(connection, row.scope, number, due_at=now_ms())
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
    except HttpRefusal:
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
        silent=not may_hear(connection, row.owner, row.scope),
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
