"""Whose the name of an adapter is: what a manifest claims gives no right, the path of a repository does.

`acme/legal` belongs to those who may write the repository of that name. They may release `legal` in other repositories
of `acme`, too, such as one for each base. Anyone else may release it only in the repository that was first, and only
until one of them releases it, makes a repository of that name, or moves the name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Select, delete, insert, or_, select
from sqlalchemy.engine import Connection

from adapterhub.core.errors import shown
from adapterhub_registry.database.db import lock_name, now_ms, repo_tags, repos, tombstones
from adapterhub_registry.database.name_tables import adapter_names
from adapterhub_registry.errors import Refusal, forbidden

TAG: Final = "adapter-name:"
"""How the tag begins by which clients find the repositories of a name."""

Writes = Callable[[str], bool]
"""Whether someone may write a repository."""


def nobody(_repo: str) -> bool:
    """Nothing may be written: the rights of a change that the server makes itself."""
    return False


def check(connection: Connection, repo: Row[Any], name: str, writes: Writes) -> None:
    """Raise unless a repository may release the adapter `name` of its namespace.

    Raises:
        Refusal: 403.
    """
    full_name = f"{repo.namespace}/{name}"
    if writes(full_name) or repo.full_name == full_name:
        return
    held = connection.execute(_holding(repo.namespace, name)).all()
    if any(row.id == repo.id for row in held):
        return
    by_name = connection.execute(select(repos).where(repos.c.full_name == full_name)).one_or_none()
    holders = [*([by_name] if by_name is not None else []), *held]
    gone = (tombstones.c.namespace == repo.namespace) & (tombstones.c.full_name != repo.full_name)
    gone &= or_(tombstones.c.name == name, tombstones.c.full_name == full_name)
    if not holders and connection.scalar(select(tombstones.c.version).where(gone).limit(1)) is None:
        return
    public = next((f"repository `{row.full_name}`" for row in holders if not row.private), "another repository")
    raise forbidden(
        f"the name `{full_name}` belongs to {public}, so `{repo.full_name}` cannot release it: rename the adapter, or "
        f"use a token that may write `{full_name}`"
    )


def claim(connection: Connection, repo: Row[Any], name: str, writes: Writes) -> None:
    """Note that a repository releases the adapter `name`; call it in the transaction of the release.

    Raises:
        Refusal: as `check`.
    """
    lock_name(connection, f"adapter {repo.namespace}/{name}")  # of two that are first at one moment, one is
    check(connection, repo, name, writes)
    full_name = f"{repo.namespace}/{name}"
    granted = writes(full_name) or repo.full_name == full_name
    if granted:
        free(connection, full_name)
    _note(connection, repo, name, granted=granted)


def free(connection: Connection, full_name: str) -> None:
    """Take a name from a repository that was only first: someone with a right to it came."""
    namespace, _, name = full_name.partition("/")
    _drop(connection, namespace, name, adapter_names.c.granted.is_(False))


def move(connection: Connection, namespace: str, name: str, target: str) -> None:
    """Give a name of a namespace to one of its repositories alone; the caller has checked the right.

    Raises:
        Refusal: 404.
    """
    mine = (repos.c.full_name == target) & (repos.c.namespace == namespace)
    repo = connection.execute(select(repos).where(mine)).one_or_none()
    if repo is None:
        raise Refusal(404, "RepoNotFound", f"`{shown(namespace)}` has no repository `{shown(target)}`; nothing changed")
    lock_name(connection, f"adapter {repo.namespace}/{name}")
    _drop(connection, repo.namespace, name, adapter_names.c.repo_id != repo.id)
    _note(connection, repo, name, granted=True)


def follow(connection: Connection, before: Row[Any], writes: Writes) -> None:
    """Let a repository, whose row was `before`, keep its names under its new one; call it when it has that.

    Raises:
        Refusal: as `check`, of a name in the new namespace.
    """
    repo = connection.execute(select(repos).where(repos.c.id == before.id)).one()
    free(connection, repo.full_name)
    if repo.namespace == before.namespace:
        return
    mine = adapter_names.c.repo_id == repo.id
    names = connection.scalars(select(adapter_names.c.name).where(mine)).all()
    connection.execute(delete(adapter_names).where(mine))
    for name in names:
        claim(connection, repo, name, writes)


def names_of(connection: Connection, repo_id: int) -> list[str]:
    """The names that a repository may release."""
    mine = adapter_names.c.repo_id == repo_id
    return list(connection.scalars(select(adapter_names.c.name).where(mine).order_by(adapter_names.c.name)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A name and a repository that may release it; one that is not `granted` only was the first."""

    name: str
    repo: str
    granted: bool


def held_in(connection: Connection, namespace: str, visible: ColumnElement[bool]) -> list[Held]:
    """The names of a namespace with their visible repositories."""
    wanted = select(adapter_names.c.name, repos.c.full_name, adapter_names.c.granted).join(repos)
    wanted = wanted.where(adapter_names.c.namespace == namespace, visible)
    rows = connection.execute(wanted.order_by(adapter_names.c.name, repos.c.full_name)).all()
    return [Held(name=row.name, repo=row.full_name, granted=row.granted) for row in rows]


def held(name: str, namespace: str) -> Select[Any]:
    """The numbers of the repositories that may answer for a name."""
    mine = (adapter_names.c.namespace == namespace) & (adapter_names.c.name == name)
    return select(adapter_names.c.repo_id).where(mine)


def _holding(namespace: str, name: str) -> Select[Any]:
    mine = (adapter_names.c.namespace == namespace) & (adapter_names.c.name == name)
    return select(repos).join(adapter_names, adapter_names.c.repo_id == repos.c.id).where(mine).order_by(repos.c.id)


def _note(connection: Connection, repo: Row[Any], name: str, *, granted: bool) -> None:
    mine = {"namespace": repo.namespace, "name": name, "repo_id": repo.id}
    key = [adapter_names.c[column] == value for column, value in mine.items()]
    before = connection.scalar(select(adapter_names.c.granted).where(*key))
    if before is None:
        connection.execute(insert(adapter_names).values(**mine, granted=granted, created_at=now_ms()))
    elif granted and not before:
        connection.execute(adapter_names.update().where(*key).values(granted=True))
    tagged = (repo_tags.c.repo_id == repo.id) & (repo_tags.c.tag == f"{TAG}{name}")
    if connection.scalar(select(repo_tags.c.tag).where(tagged)) is None:
        at = connection.scalars(select(repos.c.modified_at).where(repos.c.id == repo.id)).one()
        connection.execute(insert(repo_tags).values(repo_id=repo.id, tag=f"{TAG}{name}", modified_at=at))


def _drop(connection: Connection, namespace: str, name: str, which: ColumnElement[bool]) -> None:
    mine = (adapter_names.c.namespace == namespace) & (adapter_names.c.name == name) & which
    gone = connection.scalars(select(adapter_names.c.repo_id).where(mine)).all()
    connection.execute(delete(adapter_names).where(mine))
    connection.execute(delete(repo_tags).where(repo_tags.c.repo_id.in_(gone), repo_tags.c.tag == f"{TAG}{name}"))
