"""Tokens for programs that cannot show a page (RFC 8628): one asks for codes, a person approves, the program polls.

The program gets a long code that only it knows, and a short one that the person types on a page of this registry. Only
people who are signed in may look for short codes, so often a minute, and codes end after ten minutes. No link carries
one: a person who types it has the program's screen before them, and not a message from somebody.

A token of a person who signed in at an issuer does what the person may, within its scopes (`members`). One of a person
who signed in by a token does what that token may, within its scopes, and ends with it.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Row, delete, func, insert, select, update
from sqlalchemy.engine import Connection

from adapterhub.core.dates import Moment
from adapterhub_registry.access import tokens as own
from adapterhub_registry.access.audit import log_change
from adapterhub_registry.access.callers import SCOPES, SESSION, Caller
from adapterhub_registry.access.tokens import DAY_MS, PUBLISHER, Wanted
from adapterhub_registry.database.account_tables import device_requests
from adapterhub_registry.database.db import Database, lock_name, now_ms
from adapterhub_registry.errors import HttpRefusal, busy, forbidden, too_many

LIFE_S: Final = 600
WAIT_S: Final = 5
MOST_WAITING: Final = 10_000
MOST_OF_ADDRESS: Final = 20
LETTERS: Final = "BCDFGHJKLMNPQRSTVWXZ"
"""Without vowels, so that no code is a word, and without signs that look alike (RFC 8628, 6.1)."""
CODE_LETTERS: Final = 8
_WAITING, _APPROVED, _REFUSED_STATE = "waiting", "approved", "refused"


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The two codes of a program that waits."""

    device_code: str
    user_code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A program that waits, as the person who is asked sees it. It chose the text of `client` itself."""

    user_code: str
    client: str
    address: str
    scopes: tuple[str, ...]
    days: int
    created_at: Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """The token that a program got."""

    token: str
    user: str
    scopes: tuple[str, ...]
    namespaces: tuple[str, ...]
    label: str
    expires_at: Moment


class Devices:
    """The programs that wait for a token. A token of one's own lives `own_days` at most."""

    def __init__(self, database: Database, *, own_days: int) -> None:
        self._db = database
        self._own_days = own_days

    def start(self, client: str, *, address: str, scopes: Sequence[str], days: int) -> Started:
        """Make codes for a program that asks for a token.

        Raises:
            HttpRefusal: 429 while too many of this address wait, 503 while too many of all do.
        """
        made = Started(device_code=secrets.token_urlsafe(32), user_code=_user_code())
        now = now_ms()
        with self._db.begin() as connection:
            lock_name(connection, "device requests")
            connection.execute(delete(device_requests).where(device_requests.c.expires_at <= now))
            count = select(func.count()).select_from(device_requests)
            if connection.scalars(count.where(device_requests.c.address == address)).one() >= MOST_OF_ADDRESS:
                raise too_many(
                    "too many programs of this address wait for a token; try again in a few minutes", after_s=LIFE_S
                )
            if connection.scalars(count).one() >= MOST_WAITING:
                raise busy("too many programs wait for a token; try again")
            row = {
                "device_sha256": _digest(made.device_code),
                "user_code": made.user_code,
                "client": client,
                "address": address,
                "scopes": ",".join(scope for scope in SCOPES if scope in {"read", *scopes}),
                "days": days,
                "created_at": now,
                "expires_at": now + LIFE_S * 1000,
                "wait_s": WAIT_S,
                "state": _WAITING,
            }
            connection.execute(insert(device_requests).values(row))
        return made

    def find(self, text: str) -> Waiting | None:
        """Find the program whose code a person typed, in any case and with any hyphens; None if none waits."""
        with self._db.read() as connection:
            row = connection.execute(select(device_requests).where(_is_waiting(text))).one_or_none()
        if row is None:
            return None
        return Waiting(
            user_code=shown_code(row.user_code),
            client=row.client,
            address=row.address,
            scopes=tuple(row.scopes.split(",")),
            days=row.days,
            created_at=Moment(row.created_at),
        )

    def answer(self, text: str, caller: Caller, *, approve: bool) -> bool:
        """Approve a program that waits, or refuse it; False if none waits with this code any more.

        Raises:
            HttpRefusal: 403 for a job of a CI.
        """
        if caller.user is None or caller.token_id is None or caller.user.startswith(PUBLISHER):
            raise forbidden("only a person approves a token")
        state = _APPROVED if approve else _REFUSED_STATE
        answered = update(device_requests).where(_is_waiting(text)).values(state=state, approved_by=caller.token_id)
        with self._db.begin() as connection:
            row = connection.execute(answered.returning(device_requests.c.client)).one_or_none()
            if row is not None and not approve:  # the entry of an approval is that of its token
                log_change(connection, caller.by, "sign-in", f"refused a token for `{row.client}`")
            return row is not None

    def poll(self, device_code: str) -> Given:
        """Return the token of a program, once.

        Raises:
            HttpRefusal: 400 with a code of RFC 8628: `authorization_pending`, `slow_down`, `access_denied` or
                `expired_token`.
        """
        with self._db.begin() as connection:
            found = self._polled(connection, device_code)
        if isinstance(found, HttpRefusal):
            raise found
        return found

    def _polled(self, connection: Connection, device_code: str) -> Given | HttpRefusal:
        mine = device_requests.c.device_sha256 == _digest(device_code)
        lock_name(connection, f"device {_digest(device_code)}")
        row, now = connection.execute(select(device_requests).where(mine)).one_or_none(), now_ms()
        if row is None or row.expires_at <= now:
            return _problem("expired_token", "no one approved it in time, or it was taken; begin again")
        if row.state == _WAITING:
            is_early = row.polled_at is not None and now - row.polled_at < row.wait_s * 1000
            wait_s = row.wait_s + (WAIT_S if is_early else 0)
            connection.execute(update(device_requests).where(mine).values(polled_at=now, wait_s=wait_s))
            if is_early:
                return _problem("slow_down", f"ask every {wait_s} seconds")
            return _problem("authorization_pending", "no one has approved it yet")
        connection.execute(delete(device_requests).where(mine))
        above = own.row_numbered(connection, row.approved_by)
        lock_name(connection, f"user {above.user_name}")
        above = own.row_numbered(connection, row.approved_by)  # under the lock of its user
        caller = own.working(above)
        if row.state == _REFUSED_STATE or caller is None:
            return _problem("access_denied", "the person refused, or may approve nothing any more")
        return self._given(connection, row, caller, above.expires_at)

    def _given(self, connection: Connection, row: Row[Any], caller: Caller, ends: int | None) -> Given:
        """Add a token with at most the rights of the token of `caller`, which approved it and itself `ends`."""
        is_session = SESSION in (caller.scopes or ())
        is_own = caller.memberships is not None
        scopes = tuple(scope for scope in row.scopes.split(",") if scope in caller.rights)
        until = now_ms() + (min(row.days, self._own_days) if is_own else row.days) * DAY_MS
        wanted = Wanted(
            user=str(caller.user),
            globs=caller.namespaces,
            label=row.client,
            role=own.role_within(scopes),
            scopes=scopes,
            own=is_own,
            until=until if is_session or ends is None else min(until, ends),
            made_by=None if is_session else caller.token_id,
        )
        token = own.new_token()
        number = own.insert_token(connection, token, wanted)
        told = f"token {number} of {wanted.user}: {', '.join(scopes)} in {','.join(wanted.globs)}"
        log_change(connection, caller.by, "create", f"{told}, for `{row.client}` at {row.address}")
        return Given(
            token=token,
            user=wanted.user,
            scopes=scopes,
            namespaces=tuple(wanted.globs),
            label=row.client,
            expires_at=Moment(wanted.until or until),
        )


def shown_code(code: str) -> str:
    """Write a short code in two halves, which is easier to read and type."""
    return f"{code[: CODE_LETTERS // 2]}-{code[CODE_LETTERS // 2 :]}"


def _is_waiting(text: str) -> Any:
    code = "".join(letter for letter in text.upper()[:64] if letter in LETTERS)
    is_open = (device_requests.c.state == _WAITING) & (device_requests.c.expires_at > now_ms())
    return (device_requests.c.user_code == code) & is_open


def _user_code() -> str:
    return "".join(secrets.choice(LETTERS) for _ in range(CODE_LETTERS))


def _digest(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()


def _problem(code: str, why: str) -> HttpRefusal:
    return HttpRefusal(400, code, why, body={"error": code, "error_description": why})
