"""Which names a new branch or tag may have: the one decision for every way to make a ref, or to bring one along.

The name of a released version answers with that version's bytes, or with nothing. So no branch ever takes it, here or
in a later repository of the same name, and a tag takes it again on the same bytes only (`adapters.index_commit`).
"""

from __future__ import annotations

import unicodedata
from typing import Any, Literal

from sqlalchemy import Row, func, select
from sqlalchemy.engine import Connection

from adapterhub_registry.database.db import lock_name, refs, releases, repos, tombstones
from adapterhub_registry.errors import Refusal, conflict
from adapterhub_registry.names import parse_ref_name
from adapterhub_registry.repos.adapters import version_of

Kind = Literal["branch", "tag"]


def refuse_new(connection: Connection, repo: Row[Any], kind: Kind, name: str, *, most: int) -> None:
    """Refuse a name that a new branch or tag of `repo` must not have; until the transaction ends, no other ref is made.

    Raises:
        Refusal: 400 for what cannot name a ref, 409 for a name that is taken or belongs to a released version, 413 for
            one more than `most` refs.
    """
    parse_ref_name(name)
    _lock(connection, repo)
    taken = connection.scalar(select(refs.c.kind).where(refs.c.repo_id == repo.id, refs.c.name == name))
    if taken is not None:
        raise conflict(f"`{repo.full_name}` has a {taken} named `{name}`")
    count = connection.scalar(select(func.count()).where(refs.c.repo_id == repo.id)) or 0
    if count >= most:
        raise Refusal(413, "TooLarge", f"a repository has at most {most} branches and tags; remove some first")
    full_name = connection.scalars(select(repos.c.full_name).where(repos.c.id == repo.id)).one_or_none()
    version = _version_like(name)
    if version is None or (kind == "tag" and version_of(name) is not None):
        return  # what a version tag holds is compared with the release when the tag is written
    mine = select(releases.c.version).where(releases.c.repo_id == repo.id, releases.c.version == version)
    if connection.scalar(mine) is not None or version in _buried(connection, full_name, [version]):
        raise _belongs(name, repo.full_name, version)


def refuse_arrival(connection: Connection, repo: Row[Any], full_name: str) -> None:
    """Refuse to move `repo` to a name under which one of its refs would answer for another repository's release.

    Raises:
        Refusal: 409.
    """
    _lock(connection, repo)
    named = connection.execute(select(refs.c.kind, refs.c.name).where(refs.c.repo_id == repo.id)).all()
    mine = set(connection.scalars(select(releases.c.version).where(releases.c.repo_id == repo.id)))
    versions = {(ref.kind, ref.name): _version_like(ref.name) for ref in named}
    buried = _buried(connection, full_name, sorted({version for version in versions.values() if version}))
    for (kind, name), version in versions.items():
        # the tag of a release of the repository: `tombstones` compared its bytes
        own = kind == "tag" and version in mine and version_of(name) is not None
        if version in buried and not own:
            raise _belongs(name, full_name, version)


def _lock(connection: Connection, repo: Row[Any]) -> None:
    # a branch and a tag have different keys, so no index stops two transactions that make one of each
    lock_name(connection, f"refs of {repo.id}")


def _version_like(name: str) -> str | None:
    """The version that people, and file systems that ignore case, read in a name."""
    return version_of(unicodedata.normalize("NFKC", name).casefold())


def _buried(connection: Connection, full_name: str | None, versions: list[str]) -> set[str]:
    wanted = select(tombstones.c.version).where(tombstones.c.full_name == full_name, tombstones.c.version.in_(versions))
    return set(connection.scalars(wanted)) if versions else set()


def _belongs(name: str, full_name: str, version: str) -> Refusal:
    return conflict(
        f"`{name}` names version {version} of `{full_name}`, which was released, and released names never change; "
        "nothing was made, choose another name"
    )
