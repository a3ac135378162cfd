"""The log of changes: who changed what, in which repository, when, and from which address.

A change and its entry are one transaction, whose last step appends it. So entries have the order in which changes
became visible, and each holds the digest of the one before. An operator can write another log into the database; a
reader who kept one digest sees that. Only the age that the operator sets removes entries, the oldest first, and no
number of newer entries does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Select, delete, insert, select, update
from sqlalchemy.engine import Connection

from adapterhub.core.dates import Moment
from adapterhub.formats.administration import LogEntry
from adapterhub_registry.database.db import Database, before_commit, facts, insert_new, lock_name, now_ms
from adapterhub_registry.database.people import records
from adapterhub_registry.database.prepared import plan_for_values
from adapterhub_registry.database.search_tables import Unindexed

DAY_MS: Final = 86_400_000
STEP: Final = 1000
"""Entries of one page of an export, and of one step of a removal."""
CLOCKS_DIFFER_MS: Final = 60_000
"""By so much the clocks of the servers of one database may differ."""
_REMOVED: Final = "log removed"
"""The fact of the seal of the newest entry that was removed."""


@dataclass(frozen=True, slots=True)
class By:
    """The author of a change: as the log names it, the user, and the address of the request."""

    text: str
    user: str | None = None
    address: str | None = None

    def __str__(self) -> str:
        return self.text


MACHINE: Final = By("a command on the server's machine")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSearch:
    """What entries meet; None meets all. `repo` is `namespace/name`; times are milliseconds since 1970."""

    user: str | None = None
    action: str | None = None
    namespace: str | None = None
    repo: str | None = None
    address: str | None = None
    since: int | None = None
    until: int | None = None


def log_change(connection: Connection, by: By, action: str, subject: str, *, repo: str = "") -> None:
    """Log who changed what; `repo` is the repository or the namespace, empty for the registry."""
    entry = {
        "created_at": now_ms(),
        "actor": by.text,
        "user_name": by.user,
        "address": by.address,
        "action": action,
        "namespace": repo.partition("/")[0],
        "repo": repo,
        "subject": subject,
    }
    before_commit(connection, _append, entry)


def _append(connection: Connection, entries: Sequence[dict[str, Any]]) -> None:
    lock_name(connection, "log of changes")
    last = connection.execute(_IN_ORDER.order_by(records.c.position.desc()).limit(1)).first()
    position, seal = (0, _seal_removed(connection)) if last is None else (last.position, last.seal)
    # those that a server of an earlier version wrote
    for row in connection.execute(select(records).where(records.c.position.is_(None)).order_by(records.c.id)).all():
        position, seal = position + 1, _sealed(row._asdict() | {"position": position + 1}, seal)
        values = {"position": position, "seal": seal}
        connection.execute(update(records).where(records.c.id == row.id).values(values))
    rows = []
    for entry in entries:
        position += 1
        seal = _sealed(entry | {"position": position}, seal)
        rows.append(entry | {"position": position, "seal": seal})
    connection.execute(insert(records), rows)


def _seal_removed(connection: Connection) -> str:
    return connection.scalar(select(facts.c.value).where(facts.c.name == _REMOVED)) or ""


def _sealed(row: dict[str, Any], before: str) -> str:
    return _entry({"seal": ""} | row).seal_after(before)


def _entry(row: dict[str, Any]) -> LogEntry:
    return LogEntry(
        number=row["position"],
        created_at=Moment(row["created_at"]),
        actor=row["actor"],
        user=row["user_name"],
        address=row["address"],
        action=row["action"],
        repo=row["repo"],
        subject=row["subject"],
        seal=row["seal"],
    )


_IN_ORDER: Final = select(records).where(records.c.position.is_not(None))


def entries(
    connection: Connection, wanted: LogSearch, *, after: int = 0, below: int | None = None, limit: int | None = None
) -> list[LogEntry]:
    """Return the entries that meet a search, oldest first after a number, or newest first `below` one (0: the end)."""
    if wanted.since is not None or wanted.until is not None:
        plan_for_values(connection)  # for any times, PostgreSQL would read all entries between two
    found = _IN_ORDER.where(*_conditions(connection, wanted))
    if below is None:
        found = found.where(records.c.position > after).order_by(records.c.position)
    else:
        found = found.where(records.c.position < below) if below else found
        found = found.order_by(records.c.position.desc())
    return [_entry(row._asdict()) for row in connection.execute(found.limit(limit)).all()]


def _conditions(connection: Connection, wanted: LogSearch) -> Iterator[ColumnElement[bool]]:
    for column, value in (
        (records.c.user_name, wanted.user),
        (records.c.action, wanted.action),
        (records.c.namespace, wanted.namespace),
        (records.c.repo, wanted.repo),
        (records.c.address, wanted.address),
    ):
        if value is not None:
            yield column == value
    at: Any = Unindexed(records.c.created_at)
    if wanted.since is not None:  # positions have nearly the order of times, so that pages need no sorting
        near = _nearest(connection, records.c.created_at >= wanted.since - CLOCKS_DIFFER_MS, newest=False)
        yield at >= wanted.since
        yield records.c.position >= (near or 0)
    if wanted.until is not None:
        near = _nearest(connection, records.c.created_at <= wanted.until + CLOCKS_DIFFER_MS, newest=True)
        yield at <= wanted.until
        yield records.c.position <= (near or 0)


def _nearest(connection: Connection, which: ColumnElement[bool], *, newest: bool) -> int | None:
    order: list[Any] = [records.c.created_at, records.c.position]
    found: Select[Any] = select(records.c.position).where(which, records.c.position.is_not(None))
    found = found.order_by(*(one.desc() if newest else one for one in order)).limit(1)
    return connection.execute(found).scalar_one_or_none()


def pages(database: Database, wanted: LogSearch, *, after: int = 0) -> Iterator[list[LogEntry]]:
    """Yield the entries that meet a search, oldest first, in constant memory: one transaction reads each page."""
    while True:
        with database.read() as connection:
            page = entries(connection, wanted, after=after, limit=STEP)
        yield page
        if len(page) < STEP:
            return
        after = page[-1].number


def prune(database: Database, days: int) -> None:
    """Remove the entries that are older than `days`, but never the last one; 0 keeps all."""
    while days:
        with database.begin() as connection:
            lock_name(connection, "log of changes")
            front = connection.execute(_IN_ORDER.order_by(records.c.position).limit(STEP + 1)).all()
            old = _old(front[:-1], now_ms() - days * DAY_MS)
            if not old:
                return
            connection.execute(delete(records).where(records.c.position <= old[-1].position))
            insert_new(connection, facts, [{"name": _REMOVED, "value": ""}])
            connection.execute(update(facts).where(facts.c.name == _REMOVED).values(value=old[-1].seal))


def _old(rows: Sequence[Row[Any]], before: int) -> Sequence[Row[Any]]:
    """Those at the front that are older than a time."""
    until = next((at for at, row in enumerate(rows) if row.created_at >= before), len(rows))
    return rows[:until]
