"""Counts of one server: requests, refusals, downloads, and the rate of each caller.

Neither metrics nor the log contain tokens, signed links or file names. Metrics name routes, not paths; a log line
names the path without its query, and only the beginning of a path that grants access (`/_lfs/…`, `/_xet/…`).

Each server counts for itself: behind a load balancer with N servers, a caller gets up to N times the rate.

Of refusals, the newest `KEPT` stay. Repeats of one refusal share a row, so that a client that tries again and again
does not push out what others did.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import sys
import threading
import time
from collections import Counter as Tally
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any, Final, TextIO

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.registry import Collector
from sqlalchemy import BindParameter, bindparam, delete, func, insert, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import Scope

from adapterhub.core.errors import shown
from adapterhub.core.redaction import without_secrets
from adapterhub.formats.administration import RefusedChange
from adapterhub_registry.database.db import Database, downloads, insert_new, now_ms, refusals, repos
from adapterhub_registry.errors import HttpRefusal
from adapterhub_registry.settings import Network

BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)


@dataclass(slots=True)
class RequestRecord:
    """The facts about one request that the layers collect for its log line."""

    user: str | None = None
    token_id: int | None = None
    address: str | None = None
    route: str = "none"
    status: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    began: float = field(default_factory=time.perf_counter)


class Telemetry:
    """The metrics of one server; writes the request lines to `log`, if any."""

    def __init__(self, log: TextIO | None = None) -> None:
        self._log = log
        self.collected = CollectorRegistry()
        names = ("method", "route", "status")
        self._requests = Counter("adapterhub_requests", "Requests answered", names, registry=self.collected)
        self._seconds = Histogram(
            "adapterhub_request_seconds",
            "Time to the last byte of a response",
            ("method", "route"),
            buckets=BUCKETS,
            registry=self.collected,
        )
        self._running = Gauge("adapterhub_requests_running", "Requests being answered", registry=self.collected)
        self._received = Counter("adapterhub_received_bytes", "Bytes of bodies received", registry=self.collected)
        self._sent = Counter("adapterhub_sent_bytes", "Bytes of bodies sent", registry=self.collected)
        self.refused = Counter("adapterhub_refused", "Requests over a rate", ("kind",), registry=self.collected)

    def add(self, collector: Collector) -> None:
        """Include the metrics of `collector`."""
        self.collected.register(collector)

    def began(self) -> None:
        """Count a request that starts."""
        self._running.inc()

    def ended(self, scope: Scope, record: RequestRecord, number: str) -> None:
        """Count and log a request that was answered, or aborted (status 0)."""
        method = scope["method"] if scope["method"] in _METHODS else "other"
        spent_s = time.perf_counter() - record.began
        self._running.dec()
        self._requests.labels(method, record.route, str(record.status)).inc()
        self._seconds.labels(method, record.route).observe(spent_s)
        self._received.inc(record.received_bytes)
        self._sent.inc(record.sent_bytes)
        if self._log is None:
            return
        line = {
            "time": _now(),
            "level": "info",
            "request": number,
            "method": method,
            "path": logged_path(str(scope["path"])),
            "status": record.status,
            "ms": round(spent_s * 1000, 1),
            "received_bytes": record.received_bytes,
            "sent_bytes": record.sent_bytes,
            "address": record.address,
            "user": record.user,
            "token": record.token_id,
        }
        self._log.write(without_secrets(json.dumps(line)) + "\n")

    def exposition(self) -> bytes:
        """All metrics in the text format of Prometheus."""
        return generate_latest(self.collected)


_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def logged_path(path: str) -> str:
    """Return a path in the form that is safe to log."""
    parts = path.split("/")
    if parts[1:2] in (["_lfs"], ["_xet"]):
        return "/".join(parts[:3])
    return shown(path, 300)


class JsonLines(logging.Formatter):
    """Formats log records as JSON lines without secrets; a member holds the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the JSON line of a record."""
        line: dict[str, Any] = {"time": _now(), "level": record.levelname.lower(), "message": record.getMessage()}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return without_secrets(json.dumps(line))


def log_as_json(stream: TextIO = sys.stderr) -> None:
    """Write every log record of this process as a JSON line."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines())
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


FLUSH_EVERY_S = 5.0
DAY_S = 86_400
STEP = 500


class Downloads:
    """The counts of one process. Killing it loses the last few seconds."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._lock = threading.Lock()
        self._pending: Tally[tuple[int, int]] = Tally()

    def count(self, repo_id: int) -> None:
        """Count one download of a repository, without any input or output."""
        with self._lock:
            self._pending[repo_id, int(time.time()) // DAY_S] += 1

    def flush(self) -> None:
        """Write the pending counts; those that fail stay for the next time."""
        with self._lock:
            pending, self._pending = self._pending, Tally()
        # sorted: two servers that write the same rows in different orders would deadlock
        items = sorted(pending.items())
        for start in range(0, len(items), STEP):
            try:
                self._write(items[start : start + STEP])
            except BaseException:
                with self._lock:
                    self._pending.update(dict(items[start:]))
                raise

    def _write(self, items: Sequence[tuple[tuple[int, int], int]]) -> None:
        """Write many rows with few statements: several statements a row would leave a busy server no time to answer."""
        rows = [{"repo": repo_id, "on": day, "number": number} for (repo_id, day), number in items]
        more: BindParameter[int] = bindparam("number")
        total = update(repos).where(repos.c.id == bindparam("repo")).values(downloads=repos.c.downloads + more)
        of_day = (downloads.c.repo_id == bindparam("repo")) & (downloads.c.day == bindparam("on"))
        with self._db.begin() as connection:
            wanted = select(repos.c.id).where(repos.c.id.in_({row["repo"] for row in rows}))
            known = set(connection.scalars(wanted))
            rows = [row for row in rows if row["repo"] in known]  # skips repositories that were removed meanwhile
            if not rows:
                return
            connection.execute(total, [{"repo": row["repo"], "number": row["number"]} for row in rows])
            new = [{"repo_id": row["repo"], "day": row["on"], "count": 0} for row in rows]
            insert_new(connection, downloads, new)
            connection.execute(update(downloads).where(of_day).values(count=downloads.c.count + more), rows)


MINUTE_S = 60.0
MOST_CALLERS = 20_000


class Rates:
    """The rate of each caller, in requests a minute. A quiet caller may send a minute's share at once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._buckets: OrderedDict[str, tuple[float, float]] = (
            OrderedDict()
        )  # requests left, and the time of that count

    def wait_s(self, caller: str, per_minute: int) -> int:
        """Return 0 when one more request is within the rate, and count it; otherwise the seconds until it would be."""
        if per_minute == 0:
            return 0
        now = self._clock()
        with self._lock:
            left, then = self._buckets.pop(caller, (float(per_minute), now))
            left = min(float(per_minute), left + (now - then) * per_minute / MINUTE_S)
            allowed = left >= 1
            self._buckets[caller] = (left - 1 if allowed else left, now)
            if len(self._buckets) > MOST_CALLERS:
                self._buckets.popitem(last=False)  # the caller that was quiet for longest
        return 0 if allowed else ceil(round((1 - left) * MINUTE_S / per_minute, 6))


def address_of(peer: str | None, forwarded: Sequence[str], trusted: Sequence[Network]) -> str:
    """Return the address that sent a request. For IPv6 it is the network of 64 bits, which has one owner.

    `forwarded` holds the X-Forwarded-For headers. They count only when `peer` is a trusted proxy, and are read from the
    end: the first address that is not a trusted proxy is the one that a trusted proxy saw.
    """
    hops = [hop.strip() for line in forwarded for hop in line.split(",")]
    address = _address(peer or "")
    while hops and address is not None and any(address in network for network in trusted):
        before = _address(hops.pop())
        if before is None:
            break
        address = before
    if address is None:
        return "unknown"
    is_v6 = isinstance(address, ipaddress.IPv6Address)
    return str(ipaddress.ip_network((address, 64), strict=False) if is_v6 else address)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(found, "ipv4_mapped", None)
    return mapped or found


log = logging.getLogger("adapterhub_registry")

KEPT: Final = 1000
_STATUSES: Final = frozenset({400, 403, 409, 412, 413, 422, 507})
_ACTIONS: Final[Mapping[str, str]] = {
    "/api/repos/create": "create",
    "/api/repos/move": "rename",
    "/api/repos/delete": "delete",
    "/api/models/{namespace}/{name}/preupload/{rev}": "upload",
    "/{namespace}/{name}.git/info/lfs/objects/batch": "upload",
    "/api/models/{namespace}/{name}/xet-write-token/{revision:path}": "upload",
    "/api/models/{namespace}/{name}/commit/{rev}": "commit",
    "/api/models/{namespace}/{name}/tag/{rev}": "tag",
    "/api/adapt/v1/adapters/{namespace}/{name}/yank": "yank",
    "/api/adapt/v1/adapters/{namespace}/{name}/unyank": "unyank",
    "/api/adapt/v1/adapters/{namespace}/{name}/aliases/{alias}": "alias",
}
"""By route: the changes whose refusals count."""


def record_refusal(database: Database, scope: Scope, refusal: HttpRefusal) -> None:
    """Record a refusal of a change by a known user; one that cannot be recorded is logged, and changes no answer."""
    record: RequestRecord | None = scope.get("adapterhub.record")
    action = _ACTIONS.get(getattr(scope.get("route"), "path", ""))
    if record is None or record.user is None or action is None or refusal.status not in _STATUSES:
        return
    of: Mapping[str, Any] = scope.get("path_params", {})
    repo = f"{of['namespace']}/{of['name']}" if {"namespace", "name"} <= of.keys() else ""
    same = {
        "user_name": record.user,
        "token_id": record.token_id,
        "repo": repo[:200],
        "action": action,
        "status": refusal.status,
        "code": refusal.code,
        "message": without_secrets(refusal.message),
    }
    try:
        with database.begin() as connection:
            mine = [refusals.c[name].is_not_distinct_from(value) for name, value in same.items()]
            again = update(refusals).where(*mine).values(count=refusals.c.count + 1, created_at=now_ms())
            if connection.execute(again).rowcount == 0:
                connection.execute(insert(refusals).values(**same, count=1, created_at=now_ms()))
                _prune(connection)
    except SQLAlchemyError as error:
        log.warning("a refusal could not be recorded: %s", shown(str(error).partition("\n")[0], 200))


def _prune(connection: Connection) -> None:
    if (connection.scalar(select(func.count()).select_from(refusals)) or 0) > KEPT:
        newest = select(refusals.c.id).order_by(refusals.c.created_at.desc(), refusals.c.id.desc()).limit(KEPT)
        connection.execute(delete(refusals).where(refusals.c.id.not_in(newest)))


def refusal_records(database: Database, *, user: str = "", limit: int = 200) -> list[RefusedChange]:
    """Return the newest refusals, newest first; with `user`, only those of one user."""
    columns = [column for column in refusals.c if column.name not in {"id", "user_name"}]
    wanted = (
        select(*columns, refusals.c.user_name.label("user"))
        .order_by(refusals.c.created_at.desc(), refusals.c.id.desc())
        .limit(limit)
    )
    if user:
        wanted = wanted.where(refusals.c.user_name == user)
    with database.read() as connection:
        rows = connection.execute(wanted).mappings().all()
    return [RefusedChange(**row) for row in rows]
