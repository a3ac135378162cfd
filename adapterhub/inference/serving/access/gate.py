"""Lets requests in: by their key and quota, and with a line in the audit log when they end."""

from __future__ import annotations

import contextlib
import hmac
import itertools
import json
import logging
import os
import secrets
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapterhub.core.errors import NotAllowed, shown
from adapterhub.formats.route import BASE
from adapterhub.inference.serving.access.tenants import Quotas, Tenant, TenantDemand, Tenants, bearer_key
from adapterhub.inference.serving.access.watched import WatchedFile
from adapterhub.inference.serving.answers import Usage, kind_in
from adapterhub.inference.serving.refusal import RequestRefused

if TYPE_CHECKING:
    from typing_extensions import Self

OPEN_ROUTES: Final = frozenset({"/health", "/ping", "/metrics", "/version"})
"""Routes that need no key and have no line in the audit log."""

ROUTED_HEADER: Final = "x-adapterhub-adapter"
"""Names the adapter that answers a request for `auto`: its name and version, or `base`."""

_ID_CHARACTERS: Final = 128
_ROUTE_CHARACTERS: Final = 200
_BYTES_A_TOKEN: Final = 4
_PROCESS: Final = secrets.token_hex(8)
_NUMBERS: Final = itertools.count(1)


@dataclass(slots=True)
class AskedName:
    """One request, from its first byte to the last of its answer. What is not known stays None."""

    route: str
    request_id: str
    began: float = field(default_factory=time.monotonic)
    began_at: float = field(default_factory=time.time)
    tenant: Tenant | None = None
    model: str | None = None
    adapter: str | None = None
    digest: str | None = None
    base: str | None = None
    status: int | None = None
    refusal: str | None = None
    usage: Usage | None = None
    asked_bytes: int = 0
    events: int = 0
    """Of a stream, each with at least one token."""
    is_routed: bool = False
    """Whether the server chose the adapter, or the base, itself."""
    is_engaged: bool = False
    """Whether the engine got the request."""
    reserved: int = 0
    """The tokens that count against the quota until the answer has ended."""

    def asks_for(self, name: str | None, *, is_base: bool) -> str | None:
        """Return the name to look up for the name that a request asks for; a bare name has its tenant's namespace.

        Raises:
            RequestRefused: its tenant may not ask for it.
        """
        self.model = None if name is None else shown(name, 300)
        if self.tenant is None:
            return name
        if name is None or is_base:
            self.tenant.ensure_may_use_base()
            return name
        return self.tenant.name_for(name)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """Return the headers that name the adapter that answers."""
        found = {ROUTED_HEADER: self.adapter or BASE} if self.is_routed else {}
        if self.adapter is not None:
            names = ("x-adapter-name", "x-adapter-digest", "x-base-digest")
            found |= zip(names, (self.adapter, self.digest or "", self.base or ""), strict=True)
        return [(name.encode(), text.encode("ascii", "replace")) for name, text in found.items()]

    def begins(self, body_bytes: int) -> None:
        """Note that the engine gets the request."""
        self.is_engaged, self.asked_bytes = True, body_bytes

    def is_for(self, label: str, digest: str, base: str) -> None:
        """Note the adapter that answers."""
        self.adapter, self.digest, self.base = label, digest, base

    def refused(self, refusal: RequestRefused) -> None:
        """Note a refusal of our own."""
        self.status, self.refusal = refusal.status, refusal.kind

    def failed(self, body: bytes) -> None:
        """Note the error that the engine answered with."""
        if self.refusal is None:
            self.refusal = kind_in(body) or "Error"

    @property
    def tokens(self) -> int:
        """The tokens that count against the quota: the usage, or an estimate if the client left before it was known."""
        if self.usage is not None:
            return sum(self.usage)
        if not self.is_engaged or (self.status is not None and self.status >= HTTPStatus.BAD_REQUEST):
            return 0
        return self.events + self.asked_bytes // _BYTES_A_TOKEN

    def record(self) -> dict[str, Any]:
        """Return the line of the audit log."""
        prompt, completion = self.usage or (None, None)
        return {
            "time": stamp(self.began_at),
            "request_id": self.request_id,
            "tenant": self.tenant.name if self.tenant else None,
            "route": shown(self.route, _ROUTE_CHARACTERS),
            "model": self.model,
            "adapter": self.adapter,
            "digest": self.digest,
            "base": self.base,
            "status": self.status,
            "refusal": self.refusal,
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "duration_s": round(time.monotonic() - self.began, 3),
        }


class Gate:
    """The entrance of one server. Without tenants and `key` all may enter; without an audit log nothing is written.

    Raises:
        NotFound, Malformed: the file of the tenants.
        NotAllowed: the audit log.
    """

    def __init__(self, tenants: Path | None = None, audit_log: str | None = None, key: str = "") -> None:
        self._key = key.encode()
        self._tenants = None if tenants is None else WatchedFile(tenants, Tenants.parse)
        self._audit = None if audit_log is None else AuditLog(audit_log)
        self._quotas = Quotas()

    @property
    def tenants(self) -> Tenants | None:
        """The tenants now; None if there are none, and every client may use everything."""
        return self._tenants.value if self._tenants else None

    @property
    def has_keys(self) -> bool:
        """Whether a request needs a key."""
        return self._tenants is not None or bool(self._key)

    def accept(self, tenants: Callable[[Tenants], None]) -> None:
        """Apply one more rule to the file of the tenants, now and whenever it is read again."""
        if self._tenants is not None:
            tenants(self._tenants.value)
            self._tenants.rule = tenants

    def refresh(self) -> None:
        """Read the file of the tenants again if it changed."""
        if self._tenants is not None:
            self._tenants.refresh()

    @contextlib.contextmanager
    def open(self) -> Iterator[None]:
        """Write the audit log while the block runs."""
        with self._audit or contextlib.nullcontext():
            yield

    def note(self, event: str, **told: object) -> None:
        """Write a line about the server itself into the audit log."""
        if self._audit is not None:
            self._audit.write({"time": stamp(time.time()), "event": event, **told})

    def reserve(self, asked: AskedName, demand: TenantDemand) -> None:
        """Count what the request of a tenant may use, before the engine gets it.

        Raises:
            RequestRefused: 429, for a quota.
        """
        if asked.tenant is not None:
            self._quotas.reserve(asked.tenant, demand)
            asked.reserved = demand.tokens

    def _ensure_key(self, authorization: bytes) -> None:
        if self._key and not hmac.compare_digest(bearer_key(authorization), self._key):
            raise RequestRefused(401, "this key is not known to this server")

    @contextlib.contextmanager
    def passing(self, asked: AskedName, authorization: bytes) -> Iterator[None]:
        """Let a request in for the time of the block, and write its line afterwards.

        Raises:
            RequestRefused: 401 for its key, 429 for a quota; one that the block raises is passed on after it is noted.
        """
        entered: Tenant | None = None
        try:
            self._ensure_key(authorization)
            if self._tenants is not None:
                asked.tenant = self._tenants.value.of(authorization)
                self._quotas.enter(asked.tenant)
                entered = asked.tenant
            yield
        except RequestRefused as refusal:
            asked.refused(refusal)
            raise
        finally:
            if entered is not None:
                self._quotas.leave(entered, asked.tokens, asked.reserved)
            if self._audit is not None:
                self._audit.write(asked.record())


def request_id(given: str) -> str:
    """Return the id that the client gave its request, if it is printable and short, or a new one."""
    return given if given and len(given) <= _ID_CHARACTERS and given.isprintable() else f"{_PROCESS}-{next(_NUMBERS)}"


STDERR: Final = "-"
"""The name that means standard error, where the engine's own log goes."""

MOST_WAITING: Final = 10_000
"""How many lines may wait for the disk; later ones are dropped and counted."""

_AT_ONCE: Final = 1000
_END_S: Final = 5.0
_WRITES_EVERY_S: Final = 0.1
_STDERR_HANDLE: Final = 2
_SAID_EVERY_S: Final = 60.0
_FLAGS: Final = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0)
_log = logging.getLogger("vllm.adapterhub")


class AuditLog:
    """Appends lines to the file at `path`, or to standard error, while a block runs; then writes what still waits.

    The log makes a file that was renamed or deleted again, so any tool may rotate it. When the disk is full, or the log
    cannot keep up, lines are lost and requests go on; the next line that is written contains their number.

    Raises:
        NotAllowed: the file cannot be opened, or is not a regular file.
    """

    def __init__(self, path: str, *, most_waiting: int = MOST_WAITING) -> None:
        self._path = None if path == STDERR else Path(path).absolute()
        self._most = most_waiting
        self._waiting: deque[Mapping[str, Any]] = deque()
        self._dropped = 0
        self._said_at = -_SAID_EVERY_S
        self._ends = threading.Event()
        self._is_torn = False
        """Whether the file ends in half a line."""
        self._handle = -1
        self._close(self._opened())  # reports a bad place before anything starts
        self._thread = threading.Thread(target=self._run, name="adapterhub-audit", daemon=True)

    def __enter__(self) -> Self:
        self._handle = self._opened()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join(_END_S)

    def write(self, record: Mapping[str, Any]) -> None:
        """Add a line. Never blocks and never raises."""
        if len(self._waiting) < self._most:
            self._waiting.append(record)
        else:
            self._dropped += 1

    # ------------------------------------------------------------ the thread
    def _run(self) -> None:
        # It looks by itself from time to time: to wake it for each line would cost a request more than the line.
        while not self._ends.wait(_WRITES_EVERY_S):
            self._write_waiting()
        self._write_waiting()

    def _write_waiting(self) -> None:
        while self._waiting:
            records = [self._waiting.popleft() for _ in range(min(_AT_ONCE, len(self._waiting)))]
            dropped, self._dropped = self._dropped, 0
            if dropped:
                records.insert(0, {"time": stamp(time.time()), "dropped": dropped})
            try:
                self._append("".join(json.dumps(record) + "\n" for record in records).encode())
            except OSError as error:
                self._dropped += dropped + len(records) - bool(dropped)
                self._say(f"the audit log loses lines: {error.strerror}")

    def _append(self, data: bytes) -> None:
        self._reopen_if_moved()
        left = memoryview(b"\n" + data if self._is_torn else data)
        while left:
            written = os.write(self._handle, left)
            self._is_torn = left[written - 1] != ord("\n")
            left = left[written:]

    def _reopen_if_moved(self) -> None:
        if self._path is None:
            return
        here = os.fstat(self._handle)
        try:
            there = self._path.stat()
            if (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino):
                return
        except FileNotFoundError:
            pass
        try:
            opened = self._opened()
        except NotAllowed as error:
            raise OSError(0, error.message) from None
        self._close(self._handle)
        self._handle, self._is_torn = opened, False

    def _opened(self) -> int:
        if self._path is None:
            return _STDERR_HANDLE
        name = shown(str(self._path), 200)
        try:
            handle = os.open(self._path, _FLAGS, 0o600)
        except OSError as error:
            raise NotAllowed(
                f"cannot write the audit log `{name}`: {error.strerror}",
                hint="choose a file that you may write with `--audit-log`",
            ) from None
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            hint = "`--audit-log -` writes to standard error"
            raise NotAllowed(f"the audit log `{name}` is not a regular file", hint=hint)
        return handle

    @staticmethod
    def _close(handle: int) -> None:
        if handle != _STDERR_HANDLE:
            os.close(handle)

    def _say(self, words: str) -> None:
        if time.monotonic() - self._said_at >= _SAID_EVERY_S:
            self._said_at = time.monotonic()
            with contextlib.suppress(Exception):
                _log.error(words)


def stamp(seconds: float) -> str:
    """Return a Unix time in UTC, to the millisecond: `2026-05-01T12:00:00.123Z`."""
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{whole}.{int(seconds % 1 * 1000):03d}Z"
