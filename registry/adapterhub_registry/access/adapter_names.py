"""Whose the name of an adapter is: what a manifest claims gives no right, the path of a repository does.

`acme/legal` belongs to those who may write the repository of that name, whether it exists or not. They may release
`legal` in other repositories of `acme`, too, such as one for each base; these keep the name, until it is moved. No one
else releases it, whatever other repositories there are: a refusal tells nothing of private ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import ColumnElement, Row, Select, delete, select
from sqlalchemy.engine import Connection

from adapterhub.core.errors import shown
from adapterhub.formats.administration import HeldName
from adapterhub_registry.database.db import insert_new, lock_name, now_ms, repo_tags, repos
from adapterhub_registry.database.name_tables import adapter_names
from adapterhub_registry.errors import Refusal, forbidden

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
        Refusal: 403.
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
        Refusal: as `check`.
    """
    lock_name(connection, f"adapter {repo.namespace}/{name}")  # a move at the same moment comes before or after
    check(connection, repo, name, writes)
    _note(connection, repo, name)


def move(connection: Connection, namespace: str, name: str, target: str) -> None:
    """Give a name of a namespace to one of its repositories alone; the caller has checked the right.

    Raises:
        Refusal: 404.
    """
    mine = (repos.c.full_name == target) & (repos.c.namespace == namespace)
    repo = connection.execute(select(repos).where(mine)).one_or_none()
    if repo is None:
        raise Refusal(404, "RepoNotFound", f"`{shown(namespace)}` has no repository `{shown(target)}`; nothing changed")
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
        Refusal: as `check`, of a name in the new namespace.
    """
    repo = connection.execute(select(repos).where(repos.c.id == before.id)).one()
    if repo.namespace == before.namespace:
        return
    names = names_of(connection, repo.id)
    connection.execute(delete(adapter_names).where(adapter_names.c.repo_id == repo.id))
    for name in names:
        claim(connection, repo, name, writes)


def names_of(connection: Connection, repo_id: int) -> list[str]:
    """The names that a repository may release."""
    mine = adapter_names.c.repo_id == repo_id
    return list(connection.scalars(select(adapter_names.c.name).where(mine).order_by(adapter_names.c.name)))


def held_in(connection: Connection, namespace: str, visible: ColumnElement[bool]) -> list[HeldName]:
    """The names of a namespace with their visible repositories."""
    wanted = select(adapter_names.c.name, repos.c.full_name).join(repos)
    wanted = wanted.where(adapter_names.c.namespace == namespace, visible)
    rows = connection.execute(wanted.order_by(adapter_names.c.name, repos.c.full_name)).all()
    return [HeldName(name=row.name, repo=row.full_name) for row in rows]


def held(name: str, namespace: str) -> Select[Any]:
    """The numbers of the repositories that may answer for a name."""
    mine = (adapter_names.c.namespace == namespace) & (adapter_names.c.name == name)
    return select(adapter_names.c.repo_id).where(mine)


def _note(connection: Connection, repo: Row[Any], name: str) -> None:
    row = {"namespace": repo.namespace, "name": name, "repo_id": repo.id, "created_at": now_ms()}
    insert_new(connection, adapter_names, [row])
    at = connection.scalars(select(repos.c.modified_at).where(repos.c.id == repo.id)).one()
    insert_new(connection, repo_tags, [{"repo_id": repo.id, "tag": f"{TAG}{name}", "modified_at": at}])
