"""Trusted publishers: which jobs of a CI may publish to which repository, without any secret that they keep.

A job proves by a token of its CI what it is (`issuers`). When a publisher of the repository pins what the token states,
the job gets a token of this registry: for a quarter of an hour, for this repository, and once for each token of the CI.
Administrators name publishers, and the issuers on the list are those of the publishers. One who administers only a
namespace names publishers of its repositories, of issuers that are on the list already, or that serve everyone.

`publisher:NUMBER` is the user of such tokens. No administrator can create a user of this form. The number is random: it
is visible in public histories, and a count would reveal how many publishers private repositories have.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Row, delete, insert, select, true
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from adapterhub.core.dates import Moment
from adapterhub.core.errors import Conflict, NotFound, UsageProblem, shown
from adapterhub.formats.administration import Publisher
from adapterhub.formats.publication import GITHUB
from adapterhub_registry.access import tokens as own
from adapterhub_registry.access.audit import MACHINE, By, log_change
from adapterhub_registry.access.callers import Caller
from adapterhub_registry.access.issuers import Identity, Issuers
from adapterhub_registry.database.db import (
    Database,
    identities,
    lock_name,
    now_ms,
    publishers,
    users,
)
from adapterhub_registry.database.db import tokens as token_rows
from adapterhub_registry.errors import HttpRefusal, forbidden, identity_refused
from adapterhub_registry.names import RepoId, parse_repo_id, split

LIFE_MS: Final = 15 * 60 * 1000
MOST_PINS: Final = 20
MOST_VALUE_CHARACTERS: Final = 500
NAME: Final = re.compile(r"[A-Za-z0-9_.:/-]{1,100}")
VALUE: Final = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_WHO: Final = ("sub", "repository", "repository_id", "project_path", "project_id")
"""Claims that tell whose job it is. Anyone can run a job whose branch or environment has a given name."""
_SERVE_EVERYONE: Final = frozenset({GITHUB, "https://gitlab.com"})
_NEVER: Final = frozenset({"iss", "aud", "exp", "nbf", "iat", "jti"})
_KEPT: Final = (*_WHO, "ref", "sha", "environment", "workflow_ref", "run_id", "pipeline_id", "job_id")
"""Claims that a release records besides those that its publisher pins: none names a person."""
_MOST_KEPT_CHARACTERS: Final = 300
_OLDEST: Final = (publishers.c.created_at, publishers.c.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchanged:
    """A token for one repository, for `LIFE_MS`."""

    token: str
    user: str
    repo: str
    expires_at: Moment


class Publishers:
    """The trusted publishers of one registry. Each change is logged with the `actor`."""

    def __init__(
        self, database: Database, issuers: Issuers, *, actor: By = MACHINE, namespace: str | None = None
    ) -> None:
        self._db = database
        self._issuers = issuers
        self._actor = actor
        self._namespace = namespace

    def by(self, actor: By, *, namespace: str | None = None) -> Publishers:
        """Return the same publishers, or only those of a namespace, changed by someone else."""
        return Publishers(self._db, self._issuers, actor=actor, namespace=namespace)

    def records(self) -> list[Publisher]:
        """Every publisher, oldest first."""
        space = self._namespace
        mine = true() if space is None else publishers.c.repo.startswith(f"{space}/", autoescape=True)
        found = select(publishers).where(mine).order_by(*_OLDEST)
        with self._db.read() as connection:
            return [_record(row) for row in connection.execute(found).all()]

    def add(self, repo: str, issuer: str, claims: Mapping[str, str]) -> Publisher:
        """Let jobs publish to `repo` whose token of `issuer` states all `claims`. The repository may be new.

        In a claim, `*` stands for any characters but `/`, and `**` for any at all.

        Raises:
            HttpRefusal: 400 for a name that no repository can have, or a URL that no issuer can have; 403 for another
                namespace, and for an issuer that an administrator of the registry has to name first.
            UsageProblem: a claim is malformed, or none names the owner of the jobs.
            Conflict: the publisher exists.
        """
        repo_id = parse_repo_id(*split(repo))
        if self._namespace not in (None, split(repo_id)[0]):
            raise forbidden(f"`{repo_id}` is not in `{self._namespace}`; name a repository of that namespace")
        self._issuers.check_url(issuer)
        _check_pins(claims)
        row: dict[str, Any] = {"repo": repo_id, "issuer": issuer, "claims": json.dumps(claims, sort_keys=True)}
        same = [publishers.c[name] == value for name, value in row.items()]
        row |= {"created_at": now_ms(), "created_by": self._actor.text}
        with self._db.begin() as connection:
            lock_name(connection, "publishers")
            if self._namespace is not None and issuer not in _SERVE_EVERYONE:
                listed = select(publishers.c.id).where(publishers.c.issuer == issuer).limit(1)
                if connection.scalar(listed) is None:
                    raise forbidden(
                        f"no publisher is of the issuer `{shown(issuer)}` yet; wait until an administrator of the"
                        " registry adds the first"
                    )
            there = connection.scalar(select(publishers.c.id).where(*same))
            if there is not None:
                raise Conflict(
                    f"`{repo_id}` has this publisher already: number {there}",
                    hint=f"`adapt registry publishers --remove {there}` removes it",
                )
            number = _new_number(connection)
            connection.execute(insert(publishers).values(row | {"id": number}))
            made = connection.execute(select(publishers).where(publishers.c.id == number)).one()
            record = _record(made)
            log_change(connection, self._actor, "create", _described(record), repo=record.repo)
        return record

    def remove(self, number: int) -> Publisher:
        """Remove a publisher, and revoke the tokens that its jobs have.

        Raises:
            NotFound: no such publisher.
        """
        mine = publishers.c.id == number
        with self._db.begin() as connection:
            lock_name(connection, f"user {_user(number)}")
            row = connection.execute(select(publishers).where(mine)).one_or_none()
            if row is None or self._namespace not in (None, split(row.repo)[0]):
                raise NotFound(f"no publisher {number}", hint="list the publishers: `adapt registry publishers`")
            return end(connection, row, self._actor)

    def exchange(self, repo_id: RepoId, token: str, *, audience: str) -> Exchanged:
        """Return a token of this registry for a job that a publisher of the repository fits.

        Raises:
            HttpRefusal: as `Issuers.identity`; 403 IdentityRefused where no publisher fits, or it was exchanged before.
        """
        with self._db.read() as connection:
            listed = set(connection.scalars(select(publishers.c.issuer).distinct()).all())
        identity = self._issuers.identity(token, listed=listed, audience=audience)
        made, mine = own.new_token(), (publishers.c.repo == repo_id) & (publishers.c.issuer == identity.issuer)
        with self._db.begin() as connection:
            found = connection.execute(select(publishers).where(mine).order_by(*_OLDEST)).all()
            row = next((row for row in found if _fits(json.loads(row.claims), identity.claims)), None)
            if row is None:
                raise _refused(f"`{repo_id}` has no publisher that fits {_stated(identity)}")
            lock_name(connection, f"user {_user(row.id)}")
            if connection.scalar(select(publishers.c.id).where(publishers.c.id == row.id)) is None:
                raise _refused(f"`{repo_id}` has no publisher that fits {_stated(identity)}")
            expires_at = now_ms() + LIFE_MS
            number = own.insert_token(
                connection,
                made,
                own.Wanted(
                    user=_user(row.id), role="write", globs=[repo_id], label=f"job for {repo_id}", until=expires_at
                ),
            )
            origin = _origin(identity, json.loads(row.claims))
            kept = {"token_id": number, "publisher_id": row.id, "proof": identity.proof, "origin": json.dumps(origin)}
            try:
                connection.execute(insert(identities).values(kept))
            except IntegrityError:
                raise _refused("it was exchanged before; get another one from the CI") from None
            told = f"token {number} of {_user(row.id)}: write in {repo_id}, for {_stated(identity)}"
            log_change(connection, By(_user(row.id), _user(row.id), self._actor.address), "create", told, repo=repo_id)
        return Exchanged(token=made, user=_user(row.id), repo=repo_id, expires_at=Moment(expires_at))


def end(connection: Connection, row: Row[Any], actor: By) -> Publisher:
    """Remove the publisher of a row, and revoke the tokens that its jobs have."""
    connection.execute(delete(publishers).where(publishers.c.id == row.id))
    its = token_rows.c.user_id.in_(select(users.c.id).where(users.c.name == _user(row.id)))
    own.revoke_where(connection, its & (token_rows.c.expires_at > now_ms()), actor)
    record = _record(row)
    log_change(connection, actor, "revoke", _described(record), repo=record.repo)
    return record


def origin_of(connection: Connection, caller: Caller) -> str | None:
    """Return the proven identity of a caller's job, as JSON; None for any other caller."""
    wanted = select(identities.c.origin).where(identities.c.token_id == caller.token_id)
    return None if caller.token_id is None else connection.scalar(wanted)


def _new_number(connection: Connection) -> int:
    """Return a number that no publisher has or had."""
    while True:
        number = 10**9 + secrets.randbelow(2**31 - 10**9)  # ten digits each
        known = select(users.c.id).where(users.c.name == _user(number))
        mine = select(publishers.c.id).where(publishers.c.id == number)
        if connection.scalar(known) is None and connection.scalar(mine) is None:
            return number


def _user(number: int) -> str:
    return f"{own.PUBLISHER}{number}"


def pin_in(text: str) -> tuple[str, str]:
    """Return name and value of a claim that is written as `NAME=VALUE`; raises `UsageProblem`."""
    name, _, value = text.strip().partition("=")
    if not name or not value:
        raise UsageProblem(f"claim `{shown(text)}`: expected NAME=VALUE; nothing was changed")
    return name, value


def _check_pins(claims: Mapping[str, str]) -> None:
    if not 0 < len(claims) <= MOST_PINS:
        raise UsageProblem(f"claims: expected 1 to {MOST_PINS}")
    for name, value in claims.items():
        if not NAME.fullmatch(name) or name in _NEVER:
            raise UsageProblem(f"claim `{shown(name)}`: expected the name of one, besides {', '.join(sorted(_NEVER))}")
        if not VALUE.fullmatch(value) or len(value) > MOST_VALUE_CHARACTERS or "***" in value:
            raise UsageProblem(f"claim `{shown(name)}`: expected one line of text, got `{shown(value)}`")
    if not any(_tells_whose(claims[name]) for name in _WHO if name in claims):
        raise UsageProblem(
            f"the claims fit jobs of anyone; expected one of {', '.join(_WHO)}, with its owner written out",
            hint="such as `repository=acme/training`",
        )


def _tells_whose(value: str) -> bool:
    """Return whether a value names one, or all of one owner."""
    before, star, _ = value.partition("*")
    return not star or "/" in before


def _fits(pins: Mapping[str, str], claims: Mapping[str, Any]) -> bool:
    return all(name in claims and _matches(value, _text(claims[name])) for name, value in pins.items())


def _matches(pin: str, text: str | None) -> bool:
    """Return whether a value fits a pattern, in time that grows with the product of their lengths."""
    if text is None or "*" not in pin:
        return text == pin
    ends = {0}  # where what was read so far of the pattern may end in the text
    for part in filter(None, re.split(r"(\*\*?)", pin)):
        if part == "**":
            ends = set(range(min(ends), len(text) + 1))
        elif part == "*":
            ends = {end for start in ends for end in _within(text, start, ends)}
        else:
            ends = {start + len(part) for start in ends if text.startswith(part, start)}
        if not ends:
            return False
    return len(text) in ends


def _within(text: str, start: int, starts: set[int]) -> Iterator[int]:
    """Yield the ends of `*` from `start` on, until a slash, or where another start goes on."""
    yield start
    for end in range(start + 1, len(text) + 1):
        if text[end - 1] == "/" or end in starts:
            return
        yield end


def _text(value: object) -> str | None:
    """Return a claim as text; None if it is not a single value."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, str | int) else None


def _origin(identity: Identity, pins: Mapping[str, str]) -> dict[str, Any]:
    texts = {name: _text(identity.claims.get(name)) for name in sorted({*pins, *_KEPT})}
    kept = {name: text[:_MOST_KEPT_CHARACTERS] for name, text in texts.items() if text is not None}
    return {"issuer": identity.issuer, "claims": kept}


def _stated(identity: Identity) -> str:
    """Word the claims of a token: the sender knows them, and learns nothing about the publishers."""
    names = ("repository", "project_path", "ref", "environment")
    texts = {name: _text(identity.claims.get(name)) for name in names}
    told = [f"{name}={shown(text, 120)}" for name, text in texts.items() if text is not None]
    return ", ".join(told or [f"sub={shown(str(identity.claims.get('sub')), 120)}"])


def _described(record: Publisher) -> str:
    return f"publisher {record.id} of {record.repo}: {record.issuer}, {record.pins}"


def _record(row: Row[Any]) -> Publisher:
    return Publisher(
        id=row.id,
        repo=row.repo,
        issuer=row.issuer,
        claims=json.loads(row.claims),
        created_at=Moment(row.created_at),
        created_by=row.created_by,
    )


def _refused(why: str) -> HttpRefusal:
    return identity_refused(why)
