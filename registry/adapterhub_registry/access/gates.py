"""Requests for the files of gated repositories: who asked, and what the repository's owners answered."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, get_args

from sqlalchemy import Row, bindparam, delete, select, update
from sqlalchemy.engine import Connection

from adapterhub_registry.database.db import access_requests, insert_new, now_ms, users
from adapterhub_registry.database.prepared import Prepared
from adapterhub_registry.errors import Refusal, bad_request

Status = Literal["pending", "accepted", "rejected"]
STATUSES: Final[tuple[Status, ...]] = get_args(Status)
MAX_REASON_CHARACTERS: Final = 200
MAX_FIELDS_CHARACTERS: Final = 10_000


def is_accepted(connection: Connection, repo_id: int, user: str | None) -> bool:
    """Whether the owners let this user read the files."""
    return user is not None and _status(connection, repo_id, user) == "accepted"


def ask(connection: Connection, repo: Row[Any], user: str, fields: Mapping[str, Any]) -> Status:
    """Ask for access and return the answer: `accepted` at once where the repository says `auto`, else `pending`.

    Asking again changes nothing.

    Raises:
        Refusal: 400 when the repository is not gated or the fields are too long, 403 when the owners rejected the user.
    """
    _check_gated(repo)
    text = json.dumps(fields) if fields else None
    if text is not None and len(text) > MAX_FIELDS_CHARACTERS:
        raise bad_request(f"fields: expected at most {MAX_FIELDS_CHARACTERS} characters")
    status: Status = "accepted" if repo.gated == "auto" else "pending"
    _add(connection, repo, user, status, text)
    now = _status(connection, repo.id, user)
    if now == "rejected":
        raise Refusal(403, "GatedRepo", f"the owners of `{repo.full_name}` rejected your request for access")
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
        Refusal: 400 when the repository is not gated or the user has access, 404 for an unknown user.
    """
    _check_gated(repo)
    _check_known(connection, user)
    if is_accepted(connection, repo.id, user):
        raise bad_request(f"`{user}` already has access to `{repo.full_name}`")
    _add(connection, repo, user, "accepted", None)
    _set(connection, repo, user, "accepted", None)


def answer(connection: Connection, repo: Row[Any], user: str, status: Status, reason: str | None) -> None:
    """Accept or reject a request, or put it back among the pending ones.

    Raises:
        Refusal: 400 when the repository is not gated, 404 for an unknown user, for a user who did not ask, and for a
            request that has this status.
    """
    _check_gated(repo)
    _check_known(connection, user)
    before = _status(connection, repo.id, user)
    if before is None:
        raise _no_request(repo, user)
    if before == status:
        raise Refusal(404, "NotFound", f"the request of `{user}` for `{repo.full_name}` is {status} already")
    _set(connection, repo, user, status, reason)


def _status(connection: Connection, repo_id: int, user: str) -> Status | None:
    row = _STATUS.first(connection, repo=repo_id, user=user)
    return None if row is None else row.status


_mine = (access_requests.c.repo_id == bindparam("repo")) & (access_requests.c.user_name == bindparam("user"))
_STATUS: Final = Prepared(select(access_requests.c.status).where(_mine))


def _add(connection: Connection, repo: Row[Any], user: str, status: Status, fields: str | None) -> None:
    row = {"repo_id": repo.id, "user_name": user, "status": status, "fields": fields, "created_at": now_ms()}
    insert_new(connection, access_requests, [row])


def _set(connection: Connection, repo: Row[Any], user: str, status: Status, reason: str | None) -> None:
    mine = (access_requests.c.repo_id == repo.id) & (access_requests.c.user_name == user)
    connection.execute(update(access_requests).where(mine).values(status=status, reason=reason))


def _check_gated(repo: Row[Any]) -> None:
    if not repo.gated:
        raise bad_request(f"`{repo.full_name}` is not gated: everyone who sees it may read its files")


def _check_known(connection: Connection, user: str) -> None:
    if connection.scalar(select(users.c.id).where(users.c.name == user)) is None:
        raise Refusal(404, "NotFound", f"this registry has no user `{user}`")


def _no_request(repo: Row[Any], user: str) -> Refusal:
    return Refusal(404, "NotFound", f"`{user}` has no request for access to `{repo.full_name}`")
