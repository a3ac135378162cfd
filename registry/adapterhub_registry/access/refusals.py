"""The log of refused changes, for administrators: who tried what, and why the server refused it.

The newest `KEPT` stay. Repeats of one refusal share a row, so that a client that tries again and again does not push
out what others did.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import Scope

from adapterhub.core.errors import shown
from adapterhub.core.redaction import without_secrets
from adapterhub.formats.administration import RefusedChange
from adapterhub_registry.access.telemetry import RequestRecord
from adapterhub_registry.database.db import Database, now_ms
from adapterhub_registry.database.refusal_tables import refusals
from adapterhub_registry.errors import Refusal

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


def record_refusal(database: Database, scope: Scope, refusal: Refusal) -> None:
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
    """The newest refusals, newest first; with `user`, only those of one user."""
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
