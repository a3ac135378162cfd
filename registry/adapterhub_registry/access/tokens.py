"""Who may ask: tokens with their users, roles and log, sessions of browsers, signed links, and the server's operator.

A token is `hf_adp_<32 characters>_<8 hex>`: 160 random bits and check digits. The digits let a scanner, or this
server before it queries the database, tell a token from a typo. Some clients of the Hub refuse a token without `hf_`.
Earlier versions made tokens without it; the server takes every token in both forms.

The holder of a link can neither read nor change the claims: they hold numbers, from which one could count what is
hidden.

A session that was signed out is remembered until its end, so that a copy of its cookie opens nothing any more.

Who may read the folder of a server may change the registry anyway. The operator's token only administers, and is
written nowhere else.
"""

from __future__ import annotations

import base64
import contextlib
import fnmatch
import hashlib
import json
import re
import secrets
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Row,
    String,
    bindparam,
    cast,
    delete,
    exists,
    false,
    func,
    insert,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.engine import Connection
from sqlalchemy.exc import OperationalError

from adapterhub.core.dates import Moment, moment_or_none
from adapterhub.core.disk.files import make_folder
from adapterhub.core.disk.root import claim, finished, living
from adapterhub.core.errors import NotFound, RemoteUnreachable, UsageProblem, shown
from adapterhub.formats.administration import LogEntry, Token, User
from adapterhub_registry.database.db import (
    Database,
    facts,
    insert_new,
    inserted_id,
    lock_name,
    now_ms,
    repos,
    tokens,
    users,
)
from adapterhub_registry.database.db import records as logged
from adapterhub_registry.database.prepared import Met, PreparedSql

if TYPE_CHECKING:
    from cryptography.fernet import Fernet

Role = Literal["read", "write", "admin"]
FIRST_USER: Final = "admin"
"""The user of the token that the first start prints."""
ROLES: tuple[Role, ...] = get_args(Role)
HUB_PREFIX = "hf_"
PREFIX = "adp_"
RANDOM_BYTES = 20
LOCAL = "a command on the server's machine"
DAY_MS = 86_400_000
MAX_DAYS = 36_500  # a century
USED_EVERY_MS = 3_600_000  # records the last use at most once an hour, so that reads need no write
_SHAPE = re.compile(r"adp_[a-z2-7]{32}_[0-9a-f]{8}")
USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,95}")
GLOB = re.compile(r"[A-Za-z0-9_.*?-]{1,96}(/[A-Za-z0-9_.*?-]{1,96})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """The sender of a request. Its role applies in `namespaces`, which are globs over `ns/name`."""

    user: str | None
    role: Role
    namespaces: tuple[str, ...]
    label: str = ""
    token_id: int | None = None

    def reaches(self, repo_id: str) -> bool:
        """Whether the token covers this repository."""
        return any(fnmatch.fnmatchcase(repo_id, glob) for glob in self.namespaces)

    def writes(self, repo_id: str) -> bool:
        """Whether the caller may change this repository."""
        return self.role != "read" and self.reaches(repo_id)

    def owns(self, scope: str) -> bool:
        """Whether the caller may change this repository, or every repository of this namespace."""
        if "/" in scope:
            return self.writes(scope)
        named = [glob.partition("/") for glob in self.namespaces]
        whole = any(name in {"*", ""} and fnmatch.fnmatchcase(scope, space) for space, _, name in named)
        return self.role != "read" and whole

    @property
    def actor(self) -> str:
        """The caller as the logs name it."""
        return f"{self.user} (token {self.token_id})" if self is not OPERATOR else LOCAL

    @property
    def is_admin(self) -> bool:
        """Whether the caller may administer the whole registry."""
        return self.role == "admin" and "*" in self.namespaces

    @property
    def sees_all(self) -> bool:
        """Whether the caller sees every repository, so that total counts disclose nothing."""
        return bool({"*", "*/*"} & set(self.namespaces))


ANONYMOUS = Caller(user=None, role="read", namespaces=())
OPERATOR = Caller(user=LOCAL, role="admin", namespaces=("*",), label="operator")
"""A command on the server's machine, which read a running server's own token; it only administers."""


def reached_names(namespaces: Sequence[str], column: ColumnElement[str]) -> ColumnElement[bool]:
    """The SQL condition for a column of full names that a token for `namespaces` covers."""
    return or_(false(), *(column.like(_like(glob), escape="\\") for glob in namespaces))


def seen_with(caller: Caller, *, reads_public: bool) -> Met:
    """The repositories that a caller sees, in SQL that is the same for each with as many namespaces."""
    if caller.sees_all:
        return Met([true()], {})
    given = {f"glob_{at}": _like(glob) for at, glob in enumerate(caller.namespaces)}
    return Met([_seen_with(len(given), reads_public=reads_public)], given)


@lru_cache
def _seen_with(globs: int, *, reads_public: bool) -> ColumnElement[bool]:
    public = repos.c.private.is_(False) if reads_public else false()
    wanted = (bindparam(f"glob_{at}", type_=String) for at in range(globs))
    return or_(public, *(repos.c.full_name.like(glob, escape="\\") for glob in wanted))


def _like(glob: str) -> str:
    escaped = glob.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return escaped.replace("*", "%").replace("?", "_")


class Tokens:
    """The tokens of one registry. Each change is logged with the `actor`, such as `ann (token 3)`."""

    def __init__(self, database: Database, *, actor: str = LOCAL) -> None:
        self._db = database
        self._actor = actor

    def by(self, actor: str) -> Tokens:
        """The same tokens, changed by someone else."""
        return Tokens(self._db, actor=actor)

    def create(
        self,
        user: str,
        role: str,
        *,
        namespaces: Sequence[str] = (),
        label: str = "",
        days: float | None = None,
    ) -> str:
        """Create a token and return it, this once. Default `namespaces`: all for an admin, else `USER/*`.

        Raises:
            UsageProblem: an invalid user, role, glob or lifetime.
        """
        if not USER.fullmatch(user):
            raise UsageProblem(f"user `{shown(user)}`: expected 1 to 96 letters, digits, `.`, `_`, `-`")
        if role not in ROLES:
            raise UsageProblem(f"role `{shown(role)}`: expected one of {', '.join(ROLES)}")
        for glob in namespaces:
            if not GLOB.fullmatch(glob):
                raise UsageProblem(f"namespace `{shown(glob)}`: expected a name or a pattern such as `acme/*`")
        if days is not None and not 0 < days <= MAX_DAYS:
            raise UsageProblem(f"days {days}: expected more than 0 and at most {MAX_DAYS}")
        globs = [glob if "/" in glob or glob == "*" else f"{glob}/*" for glob in namespaces]
        globs = globs or (["*"] if role == "admin" else [f"{user}/*"])
        token = new_token()
        with self._db.begin() as connection:
            lock_name(connection, f"user {user}")
            number = _insert(connection, token, user, role, globs, label=label or f"{user}-{role}", days=days)
            _log(connection, self._actor, "create", f"token {number} of {user}: {role} in {','.join(globs)}")
        return token

    def create_first(self) -> str | None:
        """Create the first administrator's token; None when a token exists. Only one of several servers creates it."""
        token = new_token()
        with self._db.begin() as connection:
            lock_name(connection, "first token")
            if connection.scalar(select(tokens.c.id).limit(1)) is not None:
                return None
            number = _insert(connection, token, FIRST_USER, "admin", ["*"], label="first start", days=None)
            _log(connection, self._actor, "create", f"token {number} of admin: admin in *")
        return token

    def records(self) -> list[Token]:
        """Every token, oldest first, including revoked and expired ones."""
        with self._db.read() as connection:
            rows = connection.execute(_SELECT.order_by(tokens.c.id)).all()
        return [_record(row) for row in rows]

    def revoke(self, token_id: int) -> Token:
        """Revoke a token and return its record.

        Raises:
            NotFound: no such token.
        """
        with self._db.begin() as connection:
            rows = _revoke(connection, tokens.c.id == token_id, self._actor)
        if not rows:
            raise NotFound(f"no token {token_id}", hint="list the tokens: `adapt registry token list`")
        return rows[0]

    def users(self) -> list[User]:
        """Every user that has or had a token, by name."""
        works = tokens.c.revoked_at.is_(None) & (tokens.c.expires_at.is_(None) | (tokens.c.expires_at > now_ms()))
        counted = select(users.c.name, users.c.created_at, func.count(tokens.c.id).label("tokens"))
        counted = counted.join(tokens, (tokens.c.user_id == users.c.id) & works, isouter=True)
        with self._db.read() as connection:
            rows = connection.execute(counted.group_by(users.c.name, users.c.created_at).order_by(users.c.name)).all()
        return [User(name=row.name, created_at=Moment(row.created_at), tokens=row.tokens) for row in rows]

    def revoke_user(self, name: str) -> list[Token]:
        """Revoke all tokens of a user and return the records of all.

        Raises:
            NotFound: no such user.
        """
        with self._db.begin() as connection:
            lock_name(connection, f"user {name}")
            rows = _revoke(
                connection, tokens.c.user_id.in_(select(users.c.id).where(users.c.name == name)), self._actor
            )
        if not rows:
            raise NotFound(f"no user `{shown(name)}`", hint="list the users: `adapt registry user list`")
        return rows

    def log(self) -> list[LogEntry]:
        """Every creation and revocation of a token, oldest first."""
        with self._db.read() as connection:
            rows = connection.execute(select(logged).order_by(logged.c.id)).all()
        return [
            LogEntry(created_at=Moment(row.created_at), actor=row.actor, action=row.action, subject=row.subject)
            for row in rows
        ]

    def authenticate(self, token: str) -> Caller | None:
        """The caller of `token`; None when it is unknown, expired or revoked."""
        with self._db.read() as connection:
            row = row_of(connection, token)
        return self._used(row)

    def caller_numbered(self, token_id: int) -> Caller | None:
        """The caller of the token with this number, which a session holds; None when it is expired or revoked."""
        with self._db.read() as connection:
            row = connection.execute(_SELECT.where(tokens.c.id == token_id)).one_or_none()
        return self._used(row)

    def _used(self, row: Row[Any] | None) -> Caller | None:
        caller = working(row)
        if row is not None and caller is not None:
            self.note_use(row)
        return caller

    def note_use(self, row: Row[Any]) -> None:
        """Record that a token that works was used, at most once an hour. Call it outside of any transaction."""
        now = now_ms()
        if row.used_at is None or row.used_at < now - USED_EVERY_MS:
            # readers must get through even when the disk is full
            with contextlib.suppress(OperationalError), self._db.begin() as connection:
                connection.execute(update(tokens).where(tokens.c.id == row.id).values(used_at=now))


def row_of(connection: Connection, token: str) -> Row[Any] | None:
    """The row of a token, which may be expired or revoked; None for one that is unknown."""
    digest = digest_of(token)
    return None if digest is None else _BY_DIGEST.first(connection, token=digest)


def digest_of(token: str) -> str | None:
    """The digest of a token, the parameter `token` of `BY_DIGEST`; None for what cannot be one.

    The search goes by digest, so that its time discloses nothing about a token.
    """
    token = token.removeprefix(HUB_PREFIX)
    if not _SHAPE.fullmatch(token) or not secrets.compare_digest(_check_digits(token[4:36]), token[37:]):
        return None
    return _digest(token)


def working(row: Row[Any] | None) -> Caller | None:
    """The caller of the token in a row; None when it is expired or revoked."""
    if row is None or row.revoked_at is not None or (row.expires_at is not None and row.expires_at <= now_ms()):
        return None
    return _caller(row)


def callers_of(connection: Connection, user: str) -> list[Caller]:
    """What the user's tokens that work may do."""
    works = tokens.c.revoked_at.is_(None) & (tokens.c.expires_at.is_(None) | (tokens.c.expires_at > now_ms()))
    return [_caller(row) for row in connection.execute(_SELECT.where(users.c.name == user, works)).all()]


_SELECT = select(tokens, users.c.name.label("user_name")).join(users, users.c.id == tokens.c.user_id)
BY_DIGEST = _SELECT.where(tokens.c.sha256 == bindparam("token"))
_BY_DIGEST = PreparedSql(BY_DIGEST)


def _log(connection: Connection, actor: str, action: str, subject: str) -> None:
    connection.execute(insert(logged).values(created_at=now_ms(), actor=actor, action=action, subject=subject))


def _revoke(connection: Connection, which: ColumnElement[bool], actor: str) -> list[Token]:
    """Revoke tokens and return their records; one that is revoked already stays unchanged."""
    for row in connection.execute(_SELECT.where(which, tokens.c.revoked_at.is_(None)).order_by(tokens.c.id)).all():
        connection.execute(update(tokens).where(tokens.c.id == row.id).values(revoked_at=now_ms()))
        _log(connection, actor, "revoke", f"token {row.id} of {row.user_name}")
    return [_record(row) for row in connection.execute(_SELECT.where(which).order_by(tokens.c.id)).all()]


def _insert(
    connection: Connection, token: str, user: str, role: str, globs: Sequence[str], *, label: str, days: float | None
) -> int:
    now = now_ms()
    user_id = connection.scalar(select(users.c.id).where(users.c.name == user))
    if user_id is None:
        user_id = inserted_id(connection.execute(insert(users).values(name=user, created_at=now)))
    made = connection.execute(
        insert(tokens).values(
            sha256=_digest(token),
            user_id=user_id,
            label=label,
            role=role,
            namespaces=json.dumps(globs),
            created_at=now,
            expires_at=None if days is None else now + int(days * DAY_MS),
        )
    )
    return inserted_id(made)


def _record(row: Row[Any]) -> Token:
    return Token(
        id=row.id,
        user=row.user_name,
        label=row.label,
        role=row.role,
        namespaces=tuple(json.loads(row.namespaces)),
        created_at=Moment(row.created_at),
        expires_at=moment_or_none(row.expires_at),
        used_at=moment_or_none(row.used_at),
        revoked_at=moment_or_none(row.revoked_at),
    )


def _caller(row: Row[Any]) -> Caller:
    globs = tuple(json.loads(row.namespaces))
    return Caller(user=row.user_name, role=row.role, namespaces=globs, label=row.label, token_id=row.id)


def new_token() -> str:
    """A random token, with its prefix and check digits."""
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
    """This server did not make the token, someone changed it, or it has expired; the text says which."""


def sign(claims: Mapping[str, Any], secret: bytes, ttl_s: int) -> str:
    """A token for `claims` that expires in `ttl_s` seconds, at most an hour; adds the claim `exp` (Unix seconds).

    Raises:
        ValueError: unless 1 <= `ttl_s` <= 3600.
    """
    if not 1 <= ttl_s <= LONGEST_TTL_S:
        raise ValueError(f"a signed token lives 1 to {LONGEST_TTL_S} seconds, not {ttl_s}")
    text = json.dumps({**claims, "exp": int(time.time()) + ttl_s}, separators=(",", ":"))
    return seal(text.ljust(-len(text) // _STEP_CHARACTERS * -_STEP_CHARACTERS), secret).rstrip("=")


def check(token: str, secret: bytes, *, purpose: str | None = None) -> dict[str, Any]:
    """The claims of a valid token; with `purpose`, the claim `purpose` must match.

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
    """The address and the operator's token of a server that runs over the folder `root`.

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
