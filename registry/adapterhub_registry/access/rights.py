"""Rights beside those of a token: gated repositories, which repositories are seen, and whose the name of an adapter is.

The record of weights of a build is kept by its digest. So the same bytes in a hidden repository have made it before,
and a push of known bytes would reveal whether a hidden repository has them.

`acme/legal` belongs to those who may write the repository of that name, whether it exists or not. They may also release
`legal` in other repositories of `acme`, such as one for each base; these keep the name, until it is moved. No one
else can release it, whatever other repositories exist: a refusal reveals nothing about private ones.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, get_args

from sqlalchemy import BigInteger, ColumnElement, Row, Select, bindparam, cast, delete, func, or_, select, update
from sqlalchemy.engine import Connection

from adapterhub.core.errors import shown
from adapterhub.formats.administration import HeldName
from adapterhub_registry.database.db import (
    access_requests,
    adapter_names,
    adapters,
    derived,
    facts,
    insert_new,
    lock_name,
    now_ms,
    repo_tags,
    repos,
    users,
)
from adapterhub_registry.database.prepared import PreparedSql
from adapterhub_registry.errors import HttpRefusal, bad_request, forbidden

Status = Literal["pending", "accepted", "rejected"]
STATUSES: Final[tuple[Status, ...]] = get_args(Status)
MAX_REASON_CHARACTERS: Final = 200
MAX_FIELDS_CHARACTERS: Final = 10_000


def is_accepted(connection: Connection, repo_id: int, user: str | None) -> bool:
    """Return whether the owners let this user read the files."""
    return user is not None and _status(connection, repo_id, user) == "accepted"


def ask(connection: Connection, repo: Row[Any], user: str, fields: Mapping[str, Any]) -> Status:
    """Request access and return the answer: `accepted` at once if the repository has `auto`, otherwise `pending`.

    Asking again changes nothing.

    Raises:
        HttpRefusal: 400 when the repository is not gated or the fields are too long, 403 when the owners rejected the
            user.
    """
    _check_gated(repo)
    text = json.dumps(fields) if fields else None
    if text is not None and len(text) > MAX_FIELDS_CHARACTERS:
        raise bad_request(f"fields: expected at most {MAX_FIELDS_CHARACTERS} characters")
    status: Status = "accepted" if repo.gated == "auto" else "pending"
    _add(connection, repo, user, status, text)
    now = _status(connection, repo.id, user)
    if now == "rejected":
        raise HttpRefusal(
            403,
            "GatedRepo",
            f"the owners of `{repo.full_name}` rejected your request for access; ask them to grant it",
        )
    return now or status


def withdraw(connection: Connection, repo: Row[Any], user: str) -> None:
    """Take back a request that the owners have not rejected; 404 without one."""
    mine = (access_requests.c.repo_id == repo.id) & (access_requests.c.user_name == user)
    gone = connection.execute(delete(access_requests).where(mine, access_requests.c.status != "rejected"))
    if not gone.rowcount:
        raise _no_request(repo, user)


def listed(connection: Connection, repo: Row[Any], status: Status, *, after: str, limit: int) -> Sequence[Row[Any]]:
    """One page of the requests with this status, by user name."""
    _check_gated(repo)
    mine = (access_requests.c.repo_id == repo.id) & (access_requests.c.status == status)
    wanted = select(access_requests).where(mine, access_requests.c.user_name > after)
    return connection.execute(wanted.order_by(access_requests.c.user_name).limit(limit)).all()


def grant(connection: Connection, repo: Row[Any], user: str) -> None:
    """Let a user read the files who may not have asked.

    Raises:
        HttpRefusal: 400 when the repository is not gated or the user has access, 404 for an unknown user.
    """
    _check_gated(repo)
    _check_known(connection, user)
    if is_accepted(connection, repo.id, user):
        raise bad_request(f"`{user}` already has access to `{repo.full_name}`, expected a user without it")
    _add(connection, repo, user, "accepted", None)
    _set(connection, repo, user, "accepted", None)


def answer(connection: Connection, repo: Row[Any], user: str, status: Status, reason: str | None) -> None:
    """Accept or reject a request, or put it back among the pending ones.

    Raises:
        HttpRefusal: 400 when the repository is not gated, 404 for an unknown user, for a user who did not ask, and for
            a request that has this status.
    """
    _check_gated(repo)
    _check_known(connection, user)
    before = _status(connection, repo.id, user)
    if before is None:
        raise _no_request(repo, user)
    if before == status:
        raise HttpRefusal(
            404,
            "NotFound",
            f"the request of `{user}` for `{repo.full_name}` is {status} already; choose another answer",
        )
    _set(connection, repo, user, status, reason)


def _status(connection: Connection, repo_id: int, user: str) -> Status | None:
    row = _STATUS.first(connection, repo=repo_id, user=user)
    return None if row is None else row.status


_mine = (access_requests.c.repo_id == bindparam("repo")) & (access_requests.c.user_name == bindparam("user"))
_STATUS: Final = PreparedSql(select(access_requests.c.status).where(_mine))


def _add(connection: Connection, repo: Row[Any], user: str, status: Status, fields: str | None) -> None:
    row = {"repo_id": repo.id, "user_name": user, "status": status, "fields": fields, "created_at": now_ms()}
    insert_new(connection, access_requests, [row])


def _set(connection: Connection, repo: Row[Any], user: str, status: Status, reason: str | None) -> None:
    mine = (access_requests.c.repo_id == repo.id) & (access_requests.c.user_name == user)
    connection.execute(update(access_requests).where(mine).values(status=status, reason=reason))


def _check_gated(repo: Row[Any]) -> None:
    if not repo.gated:
        raise bad_request(
            f"`{repo.full_name}` is not gated: everyone who sees it may read its files; read them without a request"
        )


def _check_known(connection: Connection, user: str) -> None:
    if connection.scalar(select(users.c.id).where(users.c.name == user)) is None:
        raise HttpRefusal(
            404, "NotFound", f"this registry has no user `{user}`, expected one with a token or an account"
        )


def _no_request(repo: Row[Any], user: str) -> HttpRefusal:
    return HttpRefusal(
        404, "NotFound", f"`{user}` has no request for access to `{repo.full_name}`, expected a user who asked"
    )


_NAME: Final = "derived until"
_ALWAYS: Final = (1 << 63) - 1
_VALUE: Final = cast(facts.c.value, BigInteger)
_UNTIL: Final = func.coalesce(select(_VALUE).where(facts.c.name == _NAME).scalar_subquery(), _ALWAYS)
"""Until when everything pushed has been seen; without a value, as before the first run of this version, all has."""

SEEN: Final[ColumnElement[bool]] = adapters.c.created_at <= _UNTIL
"""Whether the worker has come to the build of a row of `adapters`."""


def is_seen(connection: Connection, created_at: int) -> bool:
    """Return True if the worker has read the pushes up to a time."""
    return bool(connection.scalar(select(created_at <= _UNTIL)))


def push_again(connection: Connection, digest: str) -> None:
    """Let the worker come to a build again that has its record already."""
    known = (derived.c.digest == digest) & (derived.c.state != "waiting")
    connection.execute(update(derived).where(known).values(due_at=now_ms()))


def note(connection: Connection, until_ms: int) -> None:
    """All that was due by `until_ms` has been seen."""
    insert_new(connection, facts, [{"name": _NAME, "value": "0"}])
    connection.execute(update(facts).where(facts.c.name == _NAME, until_ms > _VALUE).values(value=str(until_ms)))


def is_behind(connection: Connection) -> bool:
    """Return whether a build that has its record was pushed again since."""
    last = (select(func.max(derived.c.due_at)).where(derived.c.state == state) for state in ("made", "none"))
    return bool(connection.scalar(select(or_(*(one.scalar_subquery() > _UNTIL for one in last)))))


TAG: Final = "adapter-name:"
"""How the tag begins by which clients find the repositories of a name."""

Writes = Callable[[str], bool]
"""Whether someone may write a repository."""


def nobody(_repo: str) -> bool:
    """Nothing may be written: the rights of a change that the server makes itself."""
    return False


def anyone(_repo: str) -> bool:
    """Everything may be written: of a head that was checked when it was committed."""
    return True


def check(connection: Connection, repo: Row[Any], name: str, writes: Writes) -> None:
    """Raise unless a repository may release the adapter `name` of its namespace.

    Raises:
        HttpRefusal: 403.
    """
    full_name = f"{repo.namespace}/{name}"
    if writes(full_name) or repo.full_name == full_name or name in names_of(connection, repo.id):
        return
    raise forbidden(
        f"the name `{full_name}` belongs to those who may write `{full_name}`, so `{repo.full_name}` cannot release "
        f"it: rename the adapter, use a token that may write `{full_name}`, or let an owner of `{repo.namespace}` give "
        f"it the name: `adapt registry names {repo.namespace} {name} --to {repo.full_name}`"
    )


def claim(connection: Connection, repo: Row[Any], name: str, writes: Writes) -> None:
    """Note that a repository releases the adapter `name`; call it in the transaction of the release.

    Raises:
        HttpRefusal: as `check`.
    """
    lock_name(connection, f"adapter {repo.namespace}/{name}")  # a move at the same moment comes before or after
    check(connection, repo, name, writes)
    _note(connection, repo, name)


def move(connection: Connection, namespace: str, name: str, target: str) -> None:
    """Give a name of a namespace to only one of its repositories; the caller has checked the right.

    Raises:
        HttpRefusal: 404.
    """
    mine = (repos.c.full_name == target) & (repos.c.namespace == namespace)
    repo = connection.execute(select(repos).where(mine)).one_or_none()
    if repo is None:
        raise HttpRefusal(
            404,
            "RepoNotFound",
            f"`{shown(namespace)}` has no repository `{shown(target)}`, expected one of its own; nothing changed",
        )
    lock_name(connection, f"adapter {namespace}/{name}")
    others = held(name, namespace).where(adapter_names.c.repo_id != repo.id)
    gone = connection.scalars(others).all()
    connection.execute(delete(repo_tags).where(repo_tags.c.repo_id.in_(gone), repo_tags.c.tag == f"{TAG}{name}"))
    lost = (adapter_names.c.namespace == namespace) & (adapter_names.c.name == name) & adapter_names.c.repo_id.in_(gone)
    connection.execute(delete(adapter_names).where(lost))
    _note(connection, repo, name)


def follow(connection: Connection, before: Row[Any], writes: Writes) -> None:
    """Let a repository, whose row was `before`, keep its names in another namespace; call it when it is there.

    Raises:
        HttpRefusal: as `check`, of a name in the new namespace.
    """
    repo = connection.execute(select(repos).where(repos.c.id == before.id)).one()
    if repo.namespace == before.namespace:
        return
    names = names_of(connection, repo.id)
    connection.execute(delete(adapter_names).where(adapter_names.c.repo_id == repo.id))
    for name in names:
        claim(connection, repo, name, writes)


def names_of(connection: Connection, repo_id: int) -> list[str]:
    """Return the names that a repository may release."""
    mine = adapter_names.c.repo_id == repo_id
    return list(connection.scalars(select(adapter_names.c.name).where(mine).order_by(adapter_names.c.name)))


def held_in(
    connection: Connection,
    namespace: str,
    visible: ColumnElement[bool],
    *,
    only: str | None = None,
    after: str = "",
    limit: int | None = None,
) -> list[HeldName]:
    """Return the names of a namespace with their visible repositories, or `only` one; `after` a name."""
    wanted = select(adapter_names.c.name, repos.c.full_name).join(repos)
    wanted = wanted.where(adapter_names.c.namespace == namespace, adapter_names.c.name > after, visible)
    wanted = wanted if only is None else wanted.where(adapter_names.c.name == only)
    rows = connection.execute(wanted.order_by(adapter_names.c.name, adapter_names.c.repo_id).limit(limit)).all()
    return [HeldName(name=row.name, repo=row.full_name) for row in rows]


def held(name: str, namespace: str) -> Select[Any]:
    """Return the numbers of the repositories that may answer for a name."""
    mine = (adapter_names.c.namespace == namespace) & (adapter_names.c.name == name)
    return select(adapter_names.c.repo_id).where(mine)


def _note(connection: Connection, repo: Row[Any], name: str) -> None:
    row = {"namespace": repo.namespace, "name": name, "repo_id": repo.id, "created_at": now_ms()}
    insert_new(connection, adapter_names, [row])
    at = connection.scalars(select(repos.c.modified_at).where(repos.c.id == repo.id)).one()
    insert_new(connection, repo_tags, [{"repo_id": repo.id, "tag": f"{TAG}{name}", "modified_at": at}])
