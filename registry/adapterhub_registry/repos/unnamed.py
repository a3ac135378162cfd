"""What no commit of a repository names any more: nodes of trees, and places of files. Blobs are left to `gc`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from sqlalchemy import bindparam, delete, select, update
from sqlalchemy.engine import Connection

from adapterhub_registry.database.db import commits, nodes, now_ms, places, slices
from adapterhub_registry.database.trees import FileTree, TreeFile

_LONGEST_MS = 600_000
"""How long before its end a transaction may have chosen the time of its commit."""

Item = TypeVar("Item")
Place = tuple[str, str]
"""A sha256 and a path."""


@dataclass(frozen=True, slots=True)
class Unnamed:
    """The nodes and places of a repository that no commit names, and the places that another commit names first.

    `seen` are the ids of the nodes that commits name; `named` are the places of commits that came after `until_ms`.
    """

    repo_id: int
    until_ms: int
    nodes: list[str]
    gone: list[Place]
    moved: list[tuple[Place, str]]
    seen: set[str]
    named: set[Place] = field(default_factory=set)


def plan_unnamed(connection: Connection, repo_id: int) -> Unnamed:
    """Find what no commit names; `drop` removes it in this transaction or in later ones."""
    until_ms = now_ms() - _LONGEST_MS
    left = select(commits.c.id, commits.c.root).where(commits.c.repo_id == repo_id).order_by(commits.c.created_at)
    seen: set[str] = set()
    homes: dict[Place, str] = {}
    for commit_id, root in connection.execute(left).all():
        for entry in new_entries(connection, repo_id, root, seen):
            homes.setdefault((entry.sha256, entry.path), commit_id)
    stored = connection.scalars(select(nodes.c.id).where(nodes.c.repo_id == repo_id))
    gone, moved = [], []
    known = select(places.c.sha256, places.c.path, places.c.commit_id).where(places.c.repo_id == repo_id)
    unnamed = [node_id for node_id in stored if node_id not in seen]
    for sha256, path, commit_id in connection.execute(known):
        home = homes.get((sha256, path))
        if home is None:
            gone.append((sha256, path))
        elif home != commit_id:
            moved.append(((sha256, path), home))
    return Unnamed(repo_id=repo_id, until_ms=until_ms, nodes=unnamed, gone=gone, moved=moved, seen=seen)


def drop(connection: Connection, rest: Unnamed, most: int | None = None) -> bool:
    """Remove some of the rest, at most `most` of each kind, unless a later commit names it; whether more is left."""
    repo_id, seen = rest.repo_id, rest.seen
    later = select(commits.c.root).where(commits.c.repo_id == repo_id, commits.c.created_at >= rest.until_ms)
    for root in connection.scalars(later).all():
        rest.named.update((entry.sha256, entry.path) for entry in new_entries(connection, repo_id, root, seen))
    for some in slices([one for one in _taken(rest.nodes, most) if one not in seen]):
        connection.execute(delete(nodes).where(nodes.c.repo_id == repo_id, nodes.c.id.in_(some)))
    at = (places.c.repo_id == repo_id) & (places.c.sha256 == bindparam("digest")) & (places.c.path == bindparam("at"))
    gone = [{"digest": one[0], "at": one[1]} for one in _taken(rest.gone, most) if one not in rest.named]
    if gone:
        connection.execute(delete(places).where(at), gone)
    moved = [{"digest": one[0], "at": one[1], "home": home} for one, home in _taken(rest.moved, most)]
    if moved:
        connection.execute(update(places).where(at).values(commit_id=bindparam("home")), moved)
    return bool(rest.nodes or rest.gone or rest.moved)


def drop_unnamed(connection: Connection, repo_id: int) -> None:
    """Remove the nodes that no commit's tree has, and the places that no commit has."""
    drop(connection, plan_unnamed(connection, repo_id))


def new_entries(connection: Connection, repo_id: int, root: str, seen: set[str]) -> Iterator[TreeFile]:
    """Yield the files of a tree in nodes that are not in `seen`."""
    for node in FileTree(connection, repo_id, root).unseen(seen):
        if not node.height:
            yield from node.items


def _taken(items: list[Item], most: int | None) -> list[Item]:
    """Take the last items off a list."""
    start = 0 if most is None else max(len(items) - most, 0)
    some = items[start:]
    del items[start:]
    return some
