"""Decides which names a new branch or tag may have, for every way to create or move refs.

The name of a released version serves that version's bytes or nothing. No branch may therefore take it, not even in a
later repository of the same name, and a tag may take it only for the same bytes (`adapters.index_commit`).
"""

from __future__ import annotations

import unicodedata
from typing import Any, Literal

from sqlalchemy import Row, func, select
from sqlalchemy.engine import Connection

from adapterhub.core.specs import version_key
from adapterhub_registry.database.db import lock_name, refs, releases, repos, tombstones
from adapterhub_registry.errors import Refusal, conflict
from adapterhub_registry.names import parse_ref_name
from adapterhub_registry.repos.adapters import version_of

Kind = Literal["branch", "tag", "alias"]


def check_new(connection: Connection, repo: Row[Any], kind: Kind, name: str, *, most: int) -> None:
    """Raise unless a new branch or tag of `repo` may have this name. Blocks other new refs until the transaction ends.

    Raises:
        Refusal: 400 for an invalid name, 409 for a name that is taken or belongs to a released version, 413 when the
            repository has `most` refs.
    """
    parse_ref_name(name)
    _lock(connection, repo)
    taken = set(connection.scalars(select(refs.c.kind).where(refs.c.repo_id == repo.id, refs.c.name == name)))
    if kind != "branch" or taken & {"branch", "alias"}:  # a branch may have the name of a tag, which then means the tag
        for one in sorted(taken):
            place = "tags" if one == "tag" else "heads"
            raise conflict(f"Reference refs/{place}/{name} already exists in `{repo.full_name}`")
    count = connection.scalar(select(func.count()).where(refs.c.repo_id == repo.id)) or 0
    if count >= most:
        raise Refusal(413, "TooLarge", f"a repository has at most {most} branches and tags; remove some")
    full_name = connection.scalars(select(repos.c.full_name).where(repos.c.id == repo.id)).one_or_none()
    version = _version_like(name)
    if version is None or (kind == "tag" and version_of(name) is not None):
        return  # writing a version tag compares its bytes with the release
    key = version_key(version)
    mine = select(releases.c.version).where(releases.c.repo_id == repo.id, releases.c.version_key == key)
    held = connection.scalar(mine) or _buried(connection, full_name, [key]).get(key)
    if held is not None:
        raise _belongs(name, repo.full_name, held)


def check_arrival(connection: Connection, repo: Row[Any], full_name: str) -> None:
    """Raise when one of the refs of `repo` would name another repository's release under the new full name.

    Raises:
        Refusal: 409.
    """
    _lock(connection, repo)
    named = connection.execute(select(refs.c.kind, refs.c.name).where(refs.c.repo_id == repo.id)).all()
    mine = set(connection.scalars(select(releases.c.version_key).where(releases.c.repo_id == repo.id)))
    keys = {(ref.kind, ref.name): version_key(read) for ref in named if (read := _version_like(ref.name))}
    buried = _buried(connection, full_name, sorted(set(keys.values())))
    for (kind, name), key in keys.items():
        # the tag of a release of the repository: `tombstones` compared its bytes
        own = kind == "tag" and key in mine and version_of(name) is not None
        if key in buried and not own:
            raise _belongs(name, full_name, buried[key])


def _lock(connection: Connection, repo: Row[Any]) -> None:
    # a branch and a tag have different keys, so no unique index stops two transactions that make one each
    lock_name(connection, f"refs of {repo.id}")


def _version_like(name: str) -> str | None:
    """The version that people, and case-insensitive file systems, read in a name."""
    return version_of(unicodedata.normalize("NFKC", name).casefold())


def _buried(connection: Connection, full_name: str | None, keys: list[str]) -> dict[str, str]:
    """The removed versions with these keys."""
    buried = (tombstones.c.full_name == full_name) & tombstones.c.version_key.in_(keys)
    rows = (
        connection.execute(select(tombstones.c.version_key, tombstones.c.version).where(buried)).all() if keys else ()
    )
    return {row.version_key: row.version for row in rows}


def _belongs(name: str, full_name: str, version: str) -> Refusal:
    return conflict(
        f"`{name}` names the released version {version} of `{full_name}`, and released names never change; "
        "nothing was created, choose another name"
    )
