"""People who sign in at an issuer: who is which user here, and what the groups of a person may do.

A person is an issuer and a subject, which an issuer never gives to somebody else. No name and no address decides who
somebody is: a person with the name of another user becomes a user of another name. Only an administrator links a
person to a user who is there already.

Groups give memberships (`members`), which each sign-in sets again: sessions and tokens of the person follow at their
next request. Memberships that someone gave here stay.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, delete, func, insert, select, update
from sqlalchemy.engine import Connection

from adapterhub.core.dates import Moment, moment_or_none
from adapterhub.core.errors import Conflict, NotAllowed, NotFound, UsageProblem, shown
from adapterhub.formats.administration import Account
from adapterhub_registry.access import tokens as own
from adapterhub_registry.access.audit import MACHINE, By, log_change
from adapterhub_registry.access.callers import SCOPES
from adapterhub_registry.access.members import Held, Members
from adapterhub_registry.access.tokens import FIRST_USER, USER
from adapterhub_registry.database.account_tables import accounts
from adapterhub_registry.database.db import Database, inserted_id, lock_name, now_ms, tokens, users
from adapterhub_registry.errors import HttpRefusal, sign_in_refused

MOST_SUBJECT_CHARACTERS: Final = 255
MOST_GROUPS: Final = 1000
SOURCE: Final = "sign-in"
"""The source of memberships that groups give; there is one issuer at a time."""
_NAME_CHARACTERS: Final = 80
_HINT: Final = "list the accounts: `adapt registry accounts`"


@dataclass(frozen=True, slots=True, kw_only=True)
class Person:
    """Somebody whom an issuer named: `name` is a wish, and `groups` are as the issuer wrote them."""

    issuer: str
    subject: str
    name: str
    groups: tuple[str, ...] = ()


def held_by(
    groups: Iterable[str], granted: Mapping[str, Sequence[Held]], everyone: Sequence[Held] = ()
) -> tuple[Held, ...]:
    """Collect the memberships that groups give together: the highest role in each namespace, and places in teams."""
    found: dict[tuple[str, str], Held] = {}
    for one in (*everyone, *(held for group in groups for held in granted.get(group, ()))):
        place = (one.namespace, one.team)
        if place not in found or _rank(one) > _rank(found[place]):
            found[place] = one
    return tuple(found.values())


def _rank(held: Held) -> int:
    return SCOPES.index(held.role) if held.role in SCOPES else -1


class Accounts:
    """The accounts of one registry. Each change is logged with its `actor`."""

    def __init__(self, database: Database, *, actor: By = MACHINE) -> None:
        self._db = database
        self._actor = actor

    def by(self, actor: By) -> Accounts:
        """Return the same accounts, changed by someone else."""
        return Accounts(self._db, actor=actor)

    def records(self, *, after: str = "", limit: int | None = None) -> list[Account]:
        """List the accounts by the name of the user; `after` a name."""
        with self._db.read() as connection:
            return _records(connection, users.c.name > after, limit)

    def signed_in(self, person: Person, held: Sequence[Held], *, lasts_s: int, address: str | None = None) -> int:
        """Open a session of a person whose groups give `held`, and return the number of its token.

        Raises:
            HttpRefusal: 403 for a person without memberships, who loses those of former groups, for a user who was
                removed from the registry, and for an account that was removed meanwhile.
        """
        with self._db.begin() as connection:
            lock_name(connection, f"account {person.issuer} {person.subject}")
            user = _user_of(connection, person) or (self._added(connection, person, address) if held else None)
            if user is not None:
                stated = {"groups": json.dumps(person.groups[:MOST_GROUPS]), "signed_in_at": now_ms()}
                connection.execute(update(accounts).where(accounts.c.user_id == user.id).values(stated))
        if user is None:
            raise _refused("none of your groups may use this registry")
        issuer = _signer(user.name, person, address)
        members = Members(self._db, actor=issuer)
        try:
            members.set_from(user.name, SOURCE, held)
            if not members.of(user.name):
                self._end(user.id, issuer)
                raise _refused("none of your groups may use this registry")
            number = self._opened(person, user.name, issuer, lasts_s)
        except NotAllowed:
            raise _refused(f"the user `{user.name}` was removed from this registry") from None
        if number is None:
            members.set_from(user.name, SOURCE, ())
            raise _refused(f"the account of `{user.name}` was removed just now")
        return number

    def _opened(self, person: Person, user: str, issuer: By, lasts_s: int) -> int | None:
        """Open a session; None if the account was removed since the person was found."""
        with self._db.begin() as connection:
            lock_name(connection, f"user {user}")
            found = _user_of(connection, person)
            if found is None or found.name != user:
                return None
            number = own.open_session(connection, user, lasts_s=lasts_s, label="sign-in")
            told = f"session by token {number}, as {_named(person.issuer, person.subject)}"
            log_change(connection, issuer, "sign-in", told)
        return number

    def _end(self, user_id: int, actor: By) -> None:
        """End all rights of a person who may do nothing any more, except those that an administrator granted."""
        with self._db.begin() as connection:
            own.revoke_where(connection, (tokens.c.user_id == user_id) & tokens.c.reach.is_not(None), actor)

    def _added(self, connection: Connection, person: Person, address: str | None) -> Row[Any]:
        """Add a user for a person, whose name no user has, had, or could be taken for."""
        lock_name(connection, "account names")
        name = _free_name(connection, person.name)
        number = inserted_id(connection.execute(insert(users).values(name=name, created_at=now_ms())))
        self._link(connection, number, person.issuer, person.subject)
        told = f"account {name}: {_named(person.issuer, person.subject)}"
        log_change(connection, _signer(name, person, address), "create", told)
        return connection.execute(select(users).where(users.c.id == number)).one()

    def _link(self, connection: Connection, user_id: int, issuer: str, subject: str) -> None:
        row = {"user_id": user_id, "issuer": issuer, "subject": subject, "created_at": now_ms(), "groups": "[]"}
        connection.execute(insert(accounts).values(row))

    def link(self, user: str, issuer: str, subject: str) -> Account:
        """Let a person sign in as a user who is there already.

        Raises:
            UsageProblem: no person has that subject.
            NotFound: no such user.
            Conflict: the user has an account, or the person is another user.
        """
        if not 0 < len(subject) <= MOST_SUBJECT_CHARACTERS or not subject.isprintable():
            raise UsageProblem(f"subject: expected 1 to {MOST_SUBJECT_CHARACTERS} printable characters")
        with self._db.begin() as connection:
            lock_name(connection, f"account {issuer} {subject}")
            row = _user(connection, user)
            mine = (accounts.c.issuer == issuer) & (accounts.c.subject == subject)
            there = connection.execute(
                select(users.c.name).join(accounts).where((accounts.c.user_id == row.id) | mine)
            ).first()
            if there is not None:
                raise Conflict(
                    f"`{user}` has an account already" if there.name == user else f"this person is `{there.name}`",
                    hint=f"`adapt registry accounts --unlink {there.name}` first",
                )
            self._link(connection, row.id, issuer, subject)
            log_change(connection, self._actor, "create", f"account {user}: {_named(issuer, subject)}")
            return _records(connection, users.c.id == row.id, 1)[0]

    def unlink(self, user: str) -> Account:
        """Remove the account of a user, with its memberships by groups, sessions and own tokens. The user stays.

        Raises:
            NotFound: no such user, or one without an account.
        """
        with self._db.begin() as connection:
            row = _user(connection, user)
            found = _records(connection, users.c.id == row.id, 1)
            if not found:
                raise NotFound(f"`{user}` has no account at an issuer", hint=_HINT)
            connection.execute(delete(accounts).where(accounts.c.user_id == row.id))
            own.revoke_where(connection, (tokens.c.user_id == row.id) & tokens.c.reach.is_not(None), self._actor)
            told = f"account {user}: {_named(found[0].issuer, found[0].subject)}"
            log_change(connection, self._actor, "revoke", told)
        if found[0].removed_at is None:
            Members(self._db, actor=self._actor).set_from(user, SOURCE, ())
        return found[0]

    def readmit(self, user: str) -> Account:
        """Let a user with an account sign in again who was removed from the registry.

        Raises:
            NotFound: no such user, or one without an account.
        """
        with self._db.begin() as connection:
            row = _user(connection, user)
            if not _records(connection, users.c.id == row.id, 1):
                raise NotFound(f"`{user}` has no account at an issuer", hint=_HINT)
            if row.removed_at is not None:
                connection.execute(update(users).where(users.c.id == row.id).values(removed_at=None))
                log_change(connection, self._actor, "create", f"user {user}: may sign in again")
            return _records(connection, users.c.id == row.id, 1)[0]


def _user(connection: Connection, name: str) -> Row[Any]:
    lock_name(connection, f"user {name}")
    row = connection.execute(select(users).where(users.c.name == name)).one_or_none()
    if row is None or not USER.fullmatch(name):
        raise NotFound(f"no user `{shown(name)}`", hint="list the users: `adapt registry token list --users`")
    return row


def _user_of(connection: Connection, person: Person) -> Row[Any] | None:
    mine = (accounts.c.issuer == person.issuer) & (accounts.c.subject == person.subject)
    return connection.execute(select(users).join(accounts).where(mine)).one_or_none()


def _free_name(connection: Connection, wish: str) -> str:
    """Find the name that was wished for, or the first with a number behind it that no user has in any case."""
    plain = re.sub(r"[^A-Za-z0-9_.-]+", "-", wish)[:_NAME_CHARACTERS].strip("-._") or "user"
    begins = func.lower(users.c.name).startswith(plain.lower(), autoescape=True)
    taken = {FIRST_USER, *connection.scalars(select(func.lower(users.c.name)).where(begins))}
    number, name = 2, plain
    while name.lower() in taken:
        number, name = number + 1, f"{plain}-{number}"
    return name


def _records(connection: Connection, which: ColumnElement[bool], limit: int | None) -> list[Account]:
    wanted = select(accounts, users.c.name, users.c.removed_at).join(users)
    return [
        Account(
            user=row.name,
            issuer=row.issuer,
            subject=row.subject,
            groups=tuple(json.loads(row.groups)),
            created_at=Moment(row.created_at),
            signed_in_at=moment_or_none(row.signed_in_at),
            removed_at=moment_or_none(row.removed_at),
        )
        for row in connection.execute(wanted.where(which).order_by(users.c.name).limit(limit)).all()
    ]


def _signer(name: str, person: Person, address: str | None) -> By:
    """Return the actor of a sign-in for the log."""
    return By(f"{name} (sign-in at {person.issuer})"[:200], name, address)


def _named(issuer: str, subject: str) -> str:
    return f"{issuer} {shown(subject)}"


def _refused(why: str) -> HttpRefusal:
    return sign_in_refused(why)
