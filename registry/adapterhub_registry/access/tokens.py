"""Authentication: tokens with their users, roles and log, sessions of browsers, signed links, the server's operator.

A token is `hf_adp_<32 characters>_<8 hex>`: 160 random bits and check digits. The digits let a scanner, or this
server before it queries the database, tell a token from a typo. Some clients of the Hub refuse a token without `hf_`.
Earlier versions made tokens without it; the server takes every token in both forms.

The holder of a link can neither read nor change the claims: they hold numbers, from which one could count what is
hidden.

A session that was signed out is remembered until its end, so that a copy of its cookie opens nothing any more.

Anyone with access to the folder of a server may change the registry anyway. The operator's token only administers, and
is written nowhere else.

There are two kinds of tokens. An administrator grants one what its role and `namespaces` say. A person makes the other:
within its scopes and its reach, it may do what its user may do as a member (`members`) at that moment.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import re
import secrets
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Row,
    String,
    bindparam,
    case,
    cast,
    delete,
    exists,
    func,
    insert,
    select,
    true,
    update,
)
from sqlalchemy.engine import Connection

from adapterhub.core.dates import Moment, moment_or_none
from adapterhub.core.disk.files import make_folder
from adapterhub.core.disk.root import claim, finished, living
from adapterhub.core.errors import NotAllowed, NotFound, RemoteUnreachable, UsageProblem, shown
from adapterhub.formats.administration import Token, User
from adapterhub_registry.access.audit import MACHINE, By, log_change
from adapterhub_registry.access.callers import (
    RIGHTS,
    ROLES,
    SCOPES,
    SESSION,
    Caller,
    Membership,
    Role,
    covers,
)
from adapterhub_registry.database.db import (
    Database,
    facts,
    insert_new,
    inserted_id,
    lock_name,
    now_ms,
    tokens,
    users,
)
from adapterhub_registry.database.people import members, teams
from adapterhub_registry.database.prepared import JsonList, PreparedSql

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

FIRST_USER: Final = "admin"
"""The user of the token that the first start prints."""
PUBLISHER: Final = "publisher:"
"""How the names of users begin whose tokens jobs of a CI have (`trusted`); no other user has such a name."""
HUB_PREFIX = "hf_"
PREFIX = "adp_"
RANDOM_BYTES = 20
DAY_MS = 86_400_000
MAX_DAYS = 36_500  # a century
USED_EVERY_MS = 60_000  # writes down the last use at most once a minute
_SHAPE = re.compile(r"adp_[a-z2-7]{32}_[0-9a-f]{8}")
USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
GLOB = re.compile(r"[A-Za-z0-9_.*?-]{1,96}(/[A-Za-z0-9_.*?-]{1,96})?")


class Tokens:
    """The tokens of one registry. Each change is logged with its `actor`."""

    def __init__(self, database: Database, *, actor: By = MACHINE) -> None:
        self._db = database
        self._actor = actor
        self._used: dict[int, int] = {}  # when, by the number of the token: of the last minute
        self._unwritten: set[int] = set()

    def by(self, actor: By) -> Tokens:
        """Return the same tokens, changed by someone else."""
        return Tokens(self._db, actor=actor)

    def create(
        self,
        user: str,
        role: str,
        *,
        namespaces: Sequence[str] = (),
        label: str = "",
        days: float | None = None,
        scopes: Sequence[str] = (),
    ) -> str:
        """Grant a token and return it, this once. Default `namespaces`: all for an admin, otherwise `USER/*`.

        With `scopes`, these decide and not the role. The user may be new, or one who was removed.

        Raises:
            UsageProblem: an invalid user, role, scope, glob or lifetime.
        """
        if not USER.fullmatch(user):
            raise UsageProblem(f"user `{shown(user)}`: expected 1 to 96 letters, digits, `.`, `_`, `-`")
        if role not in ROLES:
            raise UsageProblem(f"role `{shown(role)}`: expected one of {', '.join(ROLES)}")
        globs = _checked_globs(namespaces) or (["*"] if role == "admin" else [f"{user}/*"])
        kept, until, token = _checked_scopes(scopes), _until(days), new_token()
        with self._db.begin() as connection:
            lock_name(connection, f"user {user}")
            connection.execute(update(users).where(users.c.name == user).values(removed_at=None))
            role = role_within(kept) if kept else role
            label = label or f"{user}-{role}"
            wanted = Wanted(user=user, globs=globs, label=label, role=role, scopes=kept, until=until)
            number = insert_token(connection, token, wanted)
            told = ", ".join(kept) or role
            log_change(connection, self._actor, "create", f"token {number} of {user}: {told} in {','.join(globs)}")
        return token

    def create_own(
        self,
        caller: Caller,
        *,
        scopes: Sequence[str] = (),
        namespaces: Sequence[str] = (),
        label: str = "",
        days: float | None = None,
    ) -> str:
        """Create a token for the caller's user and return it, this once. Default: read, wherever the user may.

        It works only as far as the user's memberships reach. One that a token makes can do no more than that token, and
        ends with it: when that one is revoked, or expires.

        Raises:
            UsageProblem: an invalid scope, glob or lifetime.
            NotAllowed: the caller's token may not do as much, or is over.
        """
        kept = _checked_scopes(scopes) or ("read",)
        globs = _checked_globs(namespaces) or list(caller.namespaces)
        beyond = [scope for scope in kept if scope not in caller.rights]
        wider = [glob for glob in globs if not covers(caller.namespaces, glob)]
        if caller.user is None or not USER.fullmatch(caller.user) or beyond or wider:
            what = f"`{(beyond or wider)[0]}`" if beyond or wider else "tokens"
            raise NotAllowed(
                f"the token that you use cannot create one for {what}; nothing was changed",
                hint="ask for less with `--scope` and `--namespaces`, or use a token that may do as much",
            )
        until, token = _until(days), new_token()
        with self._db.begin() as connection:
            lock_name(connection, f"user {caller.user}")
            mine = working(connection.execute(_SELECT.where(tokens.c.id == caller.token_id)).one_or_none())
            if mine is None:
                raise NotAllowed(
                    "the token that you use is over; nothing was changed",
                    hint="sign in again with `adapt remote login`",
                )
            made_by = None if SESSION in (mine.scopes or ()) else caller.token_id
            if made_by is not None:
                ends = connection.scalar(select(tokens.c.expires_at).where(tokens.c.id == made_by))
                until = min((one for one in (until, ends) if one is not None), default=None)
            wanted = Wanted(
                user=caller.user, globs=globs, label=label, scopes=kept, own=True, until=until, made_by=made_by
            )
            number = insert_token(connection, token, wanted)
            told = f"token {number} of {caller.user}: {', '.join(kept)} in {','.join(globs)}"
            log_change(connection, self._actor, "create", told)
        return token

    def create_first(self) -> str | None:
        """Create the first administrator's token; None when a token exists. Only one of several servers creates it."""
        token = new_token()
        with self._db.begin() as connection:
            lock_name(connection, "first token")
            if connection.scalar(select(tokens.c.id).limit(1)) is not None:
                return None
            wanted = Wanted(user=FIRST_USER, globs=["*"], label="first start", role="admin")
            number = insert_token(connection, token, wanted)
            log_change(connection, self._actor, "create", f"token {number} of admin: admin in *")
        return token

    def records(self, *, user: str | None = None, after: int = 0, limit: int | None = None) -> list[Token]:
        """Every token, or those of a user, oldest first, including revoked and expired ones; `after` a number.

        Those of jobs of a CI and of sessions are left out once they expired, as each job and each sign-in has one.
        """
        return self._records(_of(user) & (tokens.c.id > after), tokens.c.id, limit)

    def newest(self, limit: int, *, user: str | None = None) -> list[Token]:
        """Return the newest tokens, or those of a user, newest first."""
        return self._records(_of(user), tokens.c.id.desc(), limit)

    def _records(self, which: ColumnElement[bool], order: ColumnElement[Any], limit: int | None) -> list[Token]:
        passing = users.c.name.startswith(PUBLISHER) | (func.coalesce(tokens.c.scopes, "") == SESSION)
        lasting = ~passing | (tokens.c.expires_at > now_ms())
        with self._db.read() as connection:
            rows = connection.execute(_SELECT.where(which, lasting).order_by(order).limit(limit)).all()
        found = [_record(row) for row in rows]
        return [replace(one, used_at=moment_or_none(self._used.get(one.id, one.used_at))) for one in found]

    def user_of(self, token_id: int) -> str | None:
        """Return the user of a token; None without one."""
        with self._db.read() as connection:
            row = connection.execute(_SELECT.where(tokens.c.id == token_id)).one_or_none()
        return None if row is None else str(row.user_name)

    def revoke(self, token_id: int) -> Token:
        """Revoke a token and return its record.

        Raises:
            NotFound: no such token.
        """
        with self._db.begin() as connection:
            rows = revoke_where(connection, tokens.c.id == token_id, self._actor)
        if not rows:
            raise NotFound(f"no token {token_id}", hint="list the tokens: `adapt registry token list`")
        return rows[0]

    def users(self, *, after: str = "", limit: int | None = None) -> list[User]:
        """Every user that has or had a token, by name; `after` a name."""
        works = tokens.c.revoked_at.is_(None) & (tokens.c.expires_at.is_(None) | (tokens.c.expires_at > now_ms()))
        counted = select(func.count()).where(tokens.c.user_id == users.c.id, works).scalar_subquery()
        wanted = select(users.c.name, users.c.created_at, counted.label("tokens")).where(users.c.name > after)
        with self._db.read() as connection:
            rows = connection.execute(wanted.order_by(users.c.name).limit(limit)).all()
        return [User(name=row.name, created_at=Moment(row.created_at), tokens=row.tokens) for row in rows]

    def revoke_user(self, name: str) -> list[Token]:
        """Revoke all tokens of a user and return the records of all.

        Raises:
            NotFound: no such user.
        """
        with self._db.begin() as connection:
            lock_name(connection, f"user {name}")
            rows = revoke_where(
                connection, tokens.c.user_id.in_(select(users.c.id).where(users.c.name == name)), self._actor
            )
        if not rows:
            raise NotFound(f"no user `{shown(name)}`", hint="list the users: `adapt registry token list --users`")
        return rows

    def authenticate(self, token: str) -> Caller | None:
        """Return the caller of `token`; None when it is unknown, expired or revoked."""
        with self._db.read() as connection:
            row = row_of(connection, token)
        return self._noted(row)

    def caller_numbered(self, token_id: int) -> Caller | None:
        """Return the caller of the token with this number, which a session holds.

        None when it is expired or revoked.
        """
        with self._db.read() as connection:
            row = connection.execute(_SELECT.where(tokens.c.id == token_id)).one_or_none()
        return self._noted(row)

    def _noted(self, row: Row[Any] | None) -> Caller | None:
        caller = working(row)
        if row is not None and caller is not None:
            self.note_use(row)
        return caller

    def note_use(self, row: Row[Any]) -> None:
        """Note that a token that works was used, at most once a minute; `flush` writes it down."""
        now = now_ms()
        if max(row.used_at or 0, self._used.get(row.id, 0)) < now - USED_EVERY_MS:
            self._used[row.id] = now
            self._unwritten.add(row.id)

    def flush(self) -> None:
        """Write down which tokens were used since; a failure leaves them for the next time."""
        used = {number: self._used[number] for number in sorted(self._unwritten)}
        if used:
            which, at = bindparam("number", type_=BigInteger), bindparam("at", type_=BigInteger)
            noted = update(tokens).where(tokens.c.id == which, func.coalesce(tokens.c.used_at, 0) < at)
            with self._db.begin() as connection:
                given = [{"number": number, "at": when} for number, when in used.items()]
                connection.execute(noted.values(used_at=at), given)
            self._unwritten -= used.keys()
        old = now_ms() - USED_EVERY_MS
        for number in [number for number, when in list(self._used.items()) if when < old]:
            if number not in self._unwritten:
                del self._used[number]


def row_of(connection: Connection, token: str) -> Row[Any] | None:
    """Return the row of a token, which may be expired or revoked; None for one that is unknown."""
    digest = digest_of(token)
    return None if digest is None else _BY_DIGEST.first(connection, token=digest)


def row_numbered(connection: Connection, token_id: int) -> Row[Any]:
    """Return the row of the token with a number, which may be expired or revoked."""
    return connection.execute(_SELECT.where(tokens.c.id == token_id)).one()


def digest_of(token: str) -> str | None:
    """Return the digest of a token, the parameter `token` of `BY_DIGEST`; None if the text cannot be one.

    The search goes by digest, so that its time discloses nothing about a token.
    """
    token = token.removeprefix(HUB_PREFIX)
    if not _SHAPE.fullmatch(token) or not secrets.compare_digest(_check_digits(token[4:36]), token[37:]):
        return None
    return _digest(token)


def working(row: Row[Any] | None) -> Caller | None:
    """Return the caller of the token in a row; None when it is expired or revoked, or its user was removed."""
    if row is None or row.revoked_at is not None or row.removed_at is not None:
        return None
    return None if row.expires_at is not None and row.expires_at <= now_ms() else _caller(row)


def callers_of(connection: Connection, user: str) -> list[Caller]:
    """Return the rights of the user's active tokens."""
    rows = connection.execute(_SELECT.where(users.c.name == user, tokens.c.revoked_at.is_(None))).all()
    return [caller for caller in map(working, rows) if caller is not None]


def _of(user: str | None) -> ColumnElement[bool]:
    return true() if user is None else users.c.name == user


_TEAM = (teams.c.namespace == members.c.namespace) & (teams.c.name == members.c.team)
_WORDS = (
    func.coalesce(teams.c.role, members.c.role),
    func.coalesce(cast(members.c.expires_at, String), ""),
    members.c.namespace,
    members.c.team,
    func.coalesce(teams.c.repos, "*"),
)
_HELD: Any = JsonList(reduce(lambda text, word: text + "\n" + word, _WORDS))
_MEMBERSHIPS = select(_HELD).select_from(members.outerjoin(teams, _TEAM))
_MEMBERSHIPS = _MEMBERSHIPS.where(members.c.user_id == tokens.c.user_id).correlate(tokens)
_SELECT = select(
    tokens,
    users.c.name.label("user_name"),
    users.c.removed_at,
    case((tokens.c.reach.is_not(None), _MEMBERSHIPS.scalar_subquery())).label("held"),  # in the same statement
).join(users, users.c.id == tokens.c.user_id)
BY_DIGEST = _SELECT.where(tokens.c.sha256 == bindparam("token"))
_BY_DIGEST = PreparedSql(BY_DIGEST)


def revoke_where(connection: Connection, which: ColumnElement[bool], actor: By) -> list[Token]:
    """Revoke tokens, with those that they approved or made, and return their records, but not those of the latter.

    One that is revoked already stays unchanged.
    """
    ending = connection.execute(_SELECT.where(which, tokens.c.revoked_at.is_(None)).order_by(tokens.c.id)).all()
    while ending:
        for row in ending:
            connection.execute(update(tokens).where(tokens.c.id == row.id).values(revoked_at=now_ms()))
            log_change(connection, actor, "revoke", f"token {row.id} of {row.user_name}")
        below = tokens.c.made_by.in_([row.id for row in ending]) & tokens.c.revoked_at.is_(None)
        ending = connection.execute(_SELECT.where(below).order_by(tokens.c.id)).all()
    return [_record(row) for row in connection.execute(_SELECT.where(which).order_by(tokens.c.id)).all()]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """A token that is added, and expires at `until`. One's `own` does in `globs` what its user may, in its scopes."""

    user: str
    globs: Sequence[str]
    label: str
    role: str = "read"
    scopes: Sequence[str] = ()
    own: bool = False
    until: int | None = None
    made_by: int | None = None


def insert_token(connection: Connection, token: str, wanted: Wanted) -> int:
    """Add a token, and return its number; its user is added when new. Earlier versions grant nothing to one's own.

    Raises:
        NotAllowed: the user was removed.
    """
    user_id = user_id_of(connection, wanted.user)
    if connection.scalar(select(users.c.removed_at).where(users.c.id == user_id)) is not None:
        hint = "an administrator can invite the user"
        raise NotAllowed(f"`{shown(wanted.user)}` was removed from this registry", hint=hint)
    made = connection.execute(
        insert(tokens).values(
            sha256=_digest(token),
            user_id=user_id,
            label=wanted.label[:200] or f"{wanted.user}-{'-'.join(wanted.scopes) or wanted.role}",
            role="read" if wanted.own else wanted.role,
            namespaces=json.dumps([] if wanted.own else wanted.globs),
            created_at=now_ms(),
            expires_at=wanted.until,
            scopes=",".join(wanted.scopes) or None,
            reach=json.dumps(wanted.globs) if wanted.own else None,
            made_by=wanted.made_by,
        )
    )
    return inserted_id(made)


def open_session(connection: Connection, user: str, *, lasts_s: int, label: str) -> int:
    """Add the token of a person who signed in, for `cookie_for`, and return its number.

    Raises:
        NotAllowed: the user was removed.
    """
    lock_name(connection, f"user {user}")
    until = now_ms() + lasts_s * 1000
    wanted = Wanted(user=user, globs=["*"], label=label, scopes=[SESSION], own=True, until=until)
    return insert_token(connection, new_token(), wanted)


def user_id_of(connection: Connection, user: str) -> int:
    """Return the number of a user, who is added when new."""
    insert_new(connection, users, [{"name": user, "created_at": now_ms()}])
    return int(connection.scalars(select(users.c.id).where(users.c.name == user)).one())


def _role_of(scopes: Sequence[str]) -> Role:
    """Return the role that comes nearest to some scopes, for clients that know only roles."""
    if {"administer", SESSION} & set(scopes):
        return "admin"
    return "write" if {"write", "release"} & set(scopes) else "read"


def role_within(scopes: Sequence[str]) -> Role:
    """Return the role that gives no more than some scopes, for servers that know only roles."""
    if set(SCOPES) <= set(scopes):
        return "admin"
    return "write" if {"write", "release"} <= set(scopes) else "read"


def _checked_globs(namespaces: Sequence[str]) -> list[str]:
    for glob in namespaces:
        if not GLOB.fullmatch(glob):
            raise UsageProblem(f"namespace `{shown(glob)}`: expected a name or a pattern such as `acme/*`")
    return [glob if "/" in glob or glob == "*" else f"{glob}/*" for glob in namespaces]


def _checked_scopes(scopes: Sequence[str]) -> tuple[str, ...]:
    for scope in scopes:
        if scope not in SCOPES:
            raise UsageProblem(f"scope `{shown(scope)}`: expected one of {', '.join(SCOPES)}")
    return tuple(scope for scope in SCOPES if scope in {"read", *scopes}) if scopes else ()


def _until(days: float | None) -> int | None:
    if days is not None and not 0 < days <= MAX_DAYS:
        raise UsageProblem(f"days {days}: expected more than 0 and at most {MAX_DAYS}")
    return None if days is None else now_ms() + int(days * DAY_MS)


def _record(row: Row[Any]) -> Token:
    caller = _caller(row)
    return Token(
        id=row.id,
        user=row.user_name,
        label=row.label,
        role=caller.role,
        namespaces=caller.namespaces,
        scopes=caller.scopes or tuple(scope for scope in SCOPES if scope in caller.rights),
        own=row.reach is not None,
        created_at=Moment(row.created_at),
        expires_at=moment_or_none(row.expires_at),
        used_at=moment_or_none(row.used_at),
        revoked_at=moment_or_none(row.revoked_at),
    )


def _caller(row: Row[Any]) -> Caller:
    scopes = None if row.scopes is None else tuple(row.scopes.split(","))
    return Caller(
        user=row.user_name,
        role=row.role if scopes is None else _role_of(scopes),
        namespaces=tuple(json.loads(row.namespaces if row.reach is None else row.reach)),
        label=row.label,
        token_id=row.id,
        scopes=scopes,
        memberships=None if row.reach is None else _memberships(json.loads(row.held)),
    )


def _memberships(texts: Sequence[str]) -> tuple[Membership, ...]:
    """Those that last. One in a team ends with that in the namespace, where the person has one."""
    now, held = now_ms(), [text.split("\n") for text in texts]
    lasting = [one for one in held if not one[1] or int(one[1]) > now]
    ended = {one[2] for one in held if not one[3]} - {one[2] for one in lasting if not one[3]}
    return tuple(
        Membership(globs=_globs_in(namespace, names), rights=RIGHTS[role])
        for role, _, namespace, team, names in lasting
        if not (team and namespace in ended)
    )


def _globs_in(namespace: str, names: str) -> tuple[str, ...]:
    return ("*",) if namespace == "*" else tuple(f"{namespace}/{name}" for name in names.split(","))


def new_token() -> str:
    """Return a random token, with its prefix and check digits."""
    random = base64.b32encode(secrets.token_bytes(RANDOM_BYTES)).decode("ascii").lower()
    return f"{HUB_PREFIX}{PREFIX}{random}_{_check_digits(random)}"


def _check_digits(random: str) -> str:
    return f"{zlib.crc32(random.encode('ascii')):08x}"


def _digest(token: str) -> str:
    return hashlib.sha256(token.removeprefix(HUB_PREFIX).encode("ascii")).hexdigest()


MAX_TOKEN_CHARACTERS = 4096
LONGEST_TTL_S = 3600
_STEP_CHARACTERS = 64
"""The length of what is sealed is a multiple, so that the length of a token counts nothing either."""


class BadSignature(Exception):
    """This server did not make the token, someone changed it, or it has expired; the text names the cause."""


def sign(claims: Mapping[str, Any], secret: bytes, ttl_s: int) -> str:
    """Return a token for `claims` that expires in `ttl_s` seconds, at most an hour.

    Adds the claim `exp` (Unix seconds).

    Raises:
        ValueError: unless 1 <= `ttl_s` <= 3600.
    """
    if not 1 <= ttl_s <= LONGEST_TTL_S:
        raise ValueError(f"a signed token lives 1 to {LONGEST_TTL_S} seconds, not {ttl_s}")
    text = json.dumps({**claims, "exp": int(time.time()) + ttl_s}, separators=(",", ":"))
    return seal(text.ljust(-len(text) // _STEP_CHARACTERS * -_STEP_CHARACTERS), secret).rstrip("=")


def check(token: str, secret: bytes, *, purpose: str | None = None) -> dict[str, Any]:
    """Return the claims of a valid token; with `purpose`, the claim `purpose` must match.

    Raises:
        BadSignature: the token was not made with `secret`, changed, expired, or has another purpose.
    """
    if len(token) > MAX_TOKEN_CHARACTERS or not token.isascii():
        raise BadSignature("the signature is not valid")
    sealed = token + "=" * (-len(token) % 4)
    try:
        is_exact = base64.urlsafe_b64encode(base64.urlsafe_b64decode(sealed)).decode().rstrip("=") == token
        claims: dict[str, Any] = json.loads(unseal(sealed if is_exact else "", secret))
    except (BadSignature, ValueError):
        raise BadSignature("the signature is not valid") from None
    if claims["exp"] < time.time():
        raise BadSignature("the link has expired")
    if purpose is not None and claims.get("purpose") != purpose:
        raise BadSignature("the link has another purpose")
    return claims


def seal(text: str, secret: bytes) -> str:
    """Encrypt `text`: only a server with `secret` can read or make the result."""
    return _box(secret).encrypt(text.encode()).decode("ascii")


def unseal(sealed: str, secret: bytes) -> str:
    """Decrypt a sealed text.

    Raises:
        BadSignature: the text was not sealed with `secret`, or was changed.
    """
    from cryptography.fernet import InvalidToken

    try:
        return _box(secret).decrypt(sealed.encode()).decode()
    except (InvalidToken, ValueError):
        raise BadSignature("does not come from this server") from None


def _box(secret: bytes) -> Fernet:
    from cryptography.fernet import Fernet

    return Fernet(base64.urlsafe_b64encode(hashlib.sha256(b"sealed by a registry " + secret).digest()))


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
    """Return the cookie of a new session."""
    claims = f"{_PURPOSE} {token_id} {int(time.time()) + lasts_s} {secrets.token_hex(_BYTES)}"
    return seal(claims, secret).rstrip("=")  # which clients would quote


def session_of(cookie: str, secret: bytes, database: Database) -> BrowserSession | None:
    """Return the session of a cookie; None for one that was changed, is over, or was signed out."""
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


def end(database: Database, session: BrowserSession, by: By) -> bool:
    """Let nothing open by a session any more, nor by its token if it has its own; whether it has one."""
    if not spend(database, _SIGNED_OUT, session.name, session.ends_s):
        return False
    with database.begin() as connection:
        mine = (tokens.c.id == session.token_id) & (tokens.c.scopes == SESSION)
        has_own = bool(revoke_where(connection, mine, by))
        log_change(connection, by, "sign-out", f"session by token {session.token_id}")
    return has_own


def spend(database: Database, kind: str, name: str, ends_s: int) -> bool:
    """Let something work no more that ends by itself at `ends_s`; False if it worked no more before.

    What is over by itself is forgotten.
    """
    over = facts.c.name.startswith(kind) & (cast(facts.c.value, BigInteger) < int(time.time()))
    with database.begin() as connection:
        connection.execute(delete(facts).where(over))
        lock_name(connection, f"spend {name}")
        if connection.scalar(select(exists().where(facts.c.name == kind + name))):
            return False
        insert_new(connection, facts, [{"name": kind + name, "value": str(ends_s)}])
    return True


FOLDER: Final = "servers"
DATABASE_FILE: Final = "registry.db"


@contextlib.contextmanager
def door(root: Path, url: str, token: str) -> Iterator[None]:
    """Let commands on this machine find the server at `url` while the block runs; only the file's owner can read it."""
    folder = root / FOLDER
    make_folder(folder)
    folder.chmod(0o700)
    for left in finished(folder):
        left.unlink(missing_ok=True)
    with claim(folder, f"{url} {token}", mode=0o600):
        yield


def door_of(root: Path) -> tuple[str, str]:
    """Return the address and the operator's token of a server that runs over the folder `root`.

    Raises:
        NotFound: `root` is not the folder of a registry; nothing was created.
        RemoteUnreachable: no server runs over it on this machine.
    """
    if not (root / FOLDER).is_dir():
        check_is_registry(root)
    for server in living(root / FOLDER):
        url, _, token = server.what.partition(" ")
        return url, token
    raise RemoteUnreachable(
        f"no server of `{shown(str(root))}` runs on this machine; nothing was changed",
        hint=f"start it: `adapt registry serve --root {root}`; or name a server elsewhere: `--url URL`",
    )


def check_is_registry(root: Path) -> None:
    """Raise unless `root` holds the database of a registry.

    Raises:
        NotFound: it is not; nothing was created.
    """
    if not (root / DATABASE_FILE).exists():
        raise NotFound(
            f"`{root}` is not a registry; nothing was created", hint=f"create one: `adapt registry serve --root {root}`"
        )
