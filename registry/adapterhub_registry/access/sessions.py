"""Sessions of browsers: a sealed cookie with the number of a token, until it ends or its browser signs out.

A session that was signed out is remembered until its end, so that a copy of its cookie opens nothing any more.
"""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Final

from sqlalchemy import BigInteger, cast, delete, exists, select

from adapterhub_registry.access.signing import BadSignature, seal, unseal
from adapterhub_registry.database.db import Database, facts, insert_new

_PURPOSE: Final = "session"
_SIGNED_OUT: Final = "signed out "
_BYTES: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class BrowserSession:
    """One sign-in: the number of its token, its end in Unix seconds, and a random name."""

    token_id: int
    ends_s: int
    name: str


def cookie_for(token_id: int, secret: bytes, *, lasts_s: int) -> str:
    """The cookie of a new session."""
    claims = f"{_PURPOSE} {token_id} {int(time.time()) + lasts_s} {secrets.token_hex(_BYTES)}"
    return seal(claims, secret).rstrip("=")  # which clients would quote


def session_of(cookie: str, secret: bytes, database: Database) -> BrowserSession | None:
    """The session of a cookie; None for one that was changed, is over, or was signed out."""
    try:
        purpose, token_id, ends_s, name = unseal(f"{cookie}{'=' * (-len(cookie) % 4)}", secret).split(" ")
    except (BadSignature, ValueError):
        return None
    if purpose != _PURPOSE or int(ends_s) < time.time():
        return None
    with database.read() as connection:
        if connection.scalar(select(exists().where(facts.c.name == _SIGNED_OUT + name))):
            return None
    return BrowserSession(token_id=int(token_id), ends_s=int(ends_s), name=name)


def end(database: Database, session: BrowserSession) -> None:
    """Let nothing open by a session any more, and forget those that are over by themselves."""
    over = facts.c.name.startswith(_SIGNED_OUT) & (cast(facts.c.value, BigInteger) < int(time.time()))
    with database.begin() as connection:
        connection.execute(delete(facts).where(over))
        insert_new(connection, facts, [{"name": _SIGNED_OUT + session.name, "value": str(session.ends_s)}])
