"""Retention: which commits a repository keeps, and what only the others name.

The heads of branches, tagged commits and released versions always stay. Of the other commits, a policy keeps the
newest ones of each repository.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, select, update
from sqlalchemy.engine import Connection

from adapterhub.core.errors import UsageProblem, shown
from adapterhub_registry.database.db import commits, places, refs, releases, slices
from adapterhub_registry.database.trees.trees import Tree
from adapterhub_registry.repos.history import drop_unnamed


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How many unreleased commits stay: the number for each named namespace, and for the `others`; None keeps all."""

    others: int | None = None
    namespaces: tuple[tuple[str, int], ...] = ()

    def commits_of(self, namespace: str) -> int | None:
        """The number of unreleased commits that a repository in `namespace` keeps; None for all."""
        return dict(self.namespaces).get(namespace, self.others)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """The commits that go, and the `(sha256, path)` that only they have.

    `parents` has the new parent of each commit that needs one.
    """

    repo_id: int
    commits: frozenset[str]
    places: frozenset[tuple[str, str]]
    parents: dict[str, str | None]


def parse_policy(texts: tuple[str, ...]) -> Policy:
    """The policy of options such as `20`, which is for every namespace, and `acme=50`.

    Raises:
        UsageProblem: a text that is neither.
    """
    others, named = None, {}
    for text in texts:
        namespace, sign, number = text.rpartition("=")
        if not (number.isascii() and number.isdigit()) or (sign and not namespace):
            raise UsageProblem(
                f"keep `{shown(text)}`: expected a number of commits, or NAMESPACE=NUMBER",
                hint="for all repositories: `--keep 20`; for those in acme: `--keep acme=20`",
            )
        if sign:
            named[namespace] = int(number)
        else:
            others = int(number)
    return Policy(others=others, namespaces=tuple(named.items()))


def plan(connection: Connection, repo_id: int, *, keep: int, before_ms: int) -> Dropped | None:
    """What goes when a repository keeps `keep` unreleased commits and all since `before_ms`; None for nothing."""
    mine = select(commits.c.id, commits.c.parent, commits.c.root, commits.c.created_at)
    rows = connection.execute(mine.where(commits.c.repo_id == repo_id).order_by(commits.c.created_at.desc())).all()
    held = set(connection.scalars(select(refs.c.commit_id).where(refs.c.repo_id == repo_id)))
    held |= set(connection.scalars(select(releases.c.commit_id).where(releases.c.repo_id == repo_id)))
    free = [row for row in rows if row.id not in held]
    gone = {row.id for row in free[keep:] if row.created_at < before_ms}
    if not gone:
        return None
    seen: set[str] = set()
    kept: set[tuple[str, str]] = set()
    for row in rows:
        for node in Tree(connection, repo_id, row.root).unseen(seen) if row.id not in gone else ():
            kept.update((entry.sha256, entry.path) for entry in (() if node.height else node.items))
    named = select(places.c.sha256, places.c.path).where(places.c.repo_id == repo_id)
    lost = {(row.sha256, row.path) for row in connection.execute(named)} - kept
    parent_of = {row.id: row.parent for row in rows}
    parents = {}
    for row in rows:
        parent = row.parent
        while parent in gone:
            parent = parent_of[parent]
        if parent != row.parent and row.id not in gone:
            parents[row.id] = parent
    return Dropped(
        repo_id=repo_id,
        commits=frozenset(gone),
        places=frozenset(lost),
        parents=parents,
    )


def apply(connection: Connection, dropped: Dropped) -> None:
    """Remove the rows that a plan of the same transaction drops."""
    for some in slices(sorted(dropped.commits)):
        mine = (commits.c.repo_id == dropped.repo_id) & commits.c.id.in_(some)
        connection.execute(delete(commits).where(mine))
    for commit_id, parent in dropped.parents.items():
        mine = (commits.c.repo_id == dropped.repo_id) & (commits.c.id == commit_id)
        connection.execute(update(commits).where(mine).values(parent=parent))
    drop_unnamed(connection, dropped.repo_id)
