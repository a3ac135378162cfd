"""How many of the versions that an alias had a repository keeps: a training that publishes each step fills no disk.

A repository may keep the newest versions of an alias only. Of those that the alias named and left, the others go after
a time of grace, their tags and their records with them. A version that something else needs stays: one that an alias
names now or another alias ever had, that is signed, yanked or the parent of a build, or the head of `main`. A version
that the alias never had is not touched. The name of one that went never gets other bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Row, delete, func, select
from sqlalchemy.engine import Connection

from adapterhub.core.dates import Moment
from adapterhub.core.digests import Digest, hex_of
from adapterhub.formats.administration import AliasRetention
from adapterhub.formats.alias import AliasTarget
from adapterhub.formats.manifest import SIGNATURE_FILE
from adapterhub_registry import outbox
from adapterhub_registry.database.db import (
    Database,
    alias_moves,
    alias_retention,
    insert_new,
    lock_space,
    now_ms,
    parents,
    refs,
    releases,
    repos,
)
from adapterhub_registry.database.steps import batches
from adapterhub_registry.errors import alias_not_found
from adapterhub_registry.repos import adapters, aliases
from adapterhub_registry.repos.commits import tree_of

DAY_MS: Final = 86_400_000
AT_ONCE: Final = 200
"""How many versions go in one transaction."""


def of_alias(connection: Connection, repo: Row[Any], alias: str) -> AliasRetention:
    """Return the setting of an alias, there or not."""
    mine = (one for one in of_repo(connection, repo) if one.alias == alias)
    return next(mine, AliasRetention(repo=repo.full_name, alias=alias))


def of_repo(connection: Connection, repo: Row[Any]) -> list[AliasRetention]:
    """Return the settings of a repository's aliases, by name."""
    mine = select(alias_retention).where(alias_retention.c.repo_id == repo.id).order_by(alias_retention.c.alias)
    return [
        AliasRetention(
            repo=repo.full_name,
            alias=row.alias,
            newest=row.newest,
            grace_days=row.grace_ms / DAY_MS,
            set_by=row.actor,
            set_at=Moment(row.set_at),
        )
        for row in connection.execute(mine)
    ]


def change(
    connection: Connection, repo: Row[Any], alias: str, *, newest: int | None, grace_days: float, by: str
) -> AliasRetention:
    """Keep the `newest` versions of an alias, or, without a number, all; a change is an event. Return what is set.

    Raises:
        HttpRefusal: 404 where there is no such alias.
    """
    if newest is not None and aliases.find(connection, repo, alias) is None:
        raise alias_not_found(repo.full_name, alias)
    before = of_alias(connection, repo, alias)
    mine = (alias_retention.c.repo_id == repo.id) & (alias_retention.c.alias == alias)
    connection.execute(delete(alias_retention).where(mine))
    if newest is not None:
        row = {"repo_id": repo.id, "alias": alias, "newest": newest, "actor": by, "set_at": now_ms()}
        insert_new(connection, alias_retention, [row | {"grace_ms": int(grace_days * DAY_MS)}])
    after = of_alias(connection, repo, alias)
    if (before.newest, before.grace_days) != (after.newest, after.grace_days):
        said = {"newest": after.newest, "grace_days": after.grace_days, "before": before.newest}
        outbox.record(connection, repo, "alias.retention", alias=alias, **said, by=by)
    return after


def apply(database: Database) -> int:
    """Drop what is beyond the retention of each alias, in short transactions; the number of versions that went."""
    with database.read() as connection:
        named = connection.execute(select(alias_retention.c.repo_id, alias_retention.c.alias)).all()
    count = 0
    for repo_id, alias in named:
        with database.read() as connection:
            plan = _plan(connection, repo_id, alias)
        for some in batches(plan.old if plan else (), AT_ONCE):
            with database.begin() as connection:
                lock_space(connection)
                count += _drop_some(connection, plan, some) if plan else 0
    return count


@dataclass(frozen=True, slots=True)
class _Plan:
    """The builds beyond the retention of an alias, after the move `last_move` of the repository."""

    rule: AliasRetention
    repo_id: int
    last_move: int
    old: tuple[Digest, ...]


def _plan(connection: Connection, repo_id: int, alias: str) -> _Plan | None:
    """Return the versions to remove, by the whole history of the aliases; None without such an alias."""
    repo = connection.execute(select(repos).where(repos.c.id == repo_id)).one_or_none()
    if repo is None or aliases.find(connection, repo, alias) is None:
        return None
    rule = of_alias(connection, repo, alias)
    last = connection.scalar(select(func.max(alias_moves.c.id)).where(alias_moves.c.repo_id == repo_id)) or 0
    return _Plan(rule, repo_id, last, tuple(_old(connection, repo_id, rule)))


def _drop_some(connection: Connection, plan: _Plan, old: Sequence[Digest]) -> int:
    """Drop some builds of a plan, unless the rule has changed or an alias has come to one since."""
    repo_id = plan.repo_id
    repo = connection.execute(select(repos).where(repos.c.id == repo_id).with_for_update()).one_or_none()
    if repo is None or of_alias(connection, repo, plan.rule.alias) != plan.rule:
        return 0
    later = select(alias_moves.c.targets).where(alias_moves.c.repo_id == repo_id, alias_moves.c.id > plan.last_move)
    named = {target for targets in connection.scalars(later) for target in _digests(targets)}
    rows = _rows(connection, repo_id, [one for one in old if one not in named])
    going = [row for row in rows if not _is_needed(connection, repo, row)]
    for row in going:
        adapters.record_release(connection, repo, "version.deleted", tag=row.tag, by=f"retention of {plan.rule.alias}")
    adapters.bury(connection, repo, [row.version for row in going])
    for row in going:
        tag = (refs.c.repo_id == repo_id) & (refs.c.kind == "tag") & (refs.c.name == row.tag)
        connection.execute(delete(refs).where(tag))
        one = (releases.c.repo_id == repo_id) & (releases.c.version == row.version)
        connection.execute(delete(releases).where(one))
    if going:
        adapters.forget(connection, repo_id, [row.commit_id for row in going])
        adapters.choose_listed(connection, repo_id)
    return len(going)


def _digests(targets: str) -> list[Digest]:
    return [AliasTarget.from_json(one).digest for one in json.loads(targets)]


def _old(connection: Connection, repo_id: int, rule: AliasRetention) -> list[Digest]:
    """Return the builds that the alias left before the time of grace and that are not among its newest."""
    if rule.newest is None or rule.grace_days is None:
        return []
    before = now_ms() - int(rule.grace_days * DAY_MS)
    last_named: dict[Digest, int] = {}
    others: set[Digest] = set()
    mine = select(alias_moves).where(alias_moves.c.repo_id == repo_id).order_by(alias_moves.c.id)
    named: list[Digest] = []
    for row in connection.execute(mine):
        targets = _digests(row.targets)
        if row.alias != rule.alias:
            others.update(targets)
            continue
        last_named |= dict.fromkeys(named, row.created_at)  # until this move
        named = targets
        last_named |= dict.fromkeys(named, now_ms())
    newest = sorted(last_named, key=lambda digest: last_named[digest], reverse=True)
    return [
        one for one in newest[rule.newest :] if last_named[one] <= before and one not in named and one not in others
    ]


def _rows(connection: Connection, repo_id: int, digests: Sequence[Digest]) -> list[Row[Any]]:
    """Return the releases of these builds that are not yanked."""
    found: list[Row[Any]] = []
    for start in range(0, len(digests), AT_ONCE):
        some = [hex_of(one) for one in digests[start : start + AT_ONCE]]
        mine = (releases.c.repo_id == repo_id) & releases.c.digest.in_(some) & releases.c.yanked_at.is_(None)
        found += connection.execute(select(releases).where(mine).order_by(releases.c.place)).all()
    return found


def _is_needed(connection: Connection, repo: Row[Any], row: Row[Any]) -> bool:
    """Return whether something else needs a release: a build that was merged from it, its signature, or the branch."""
    if row.commit_id == repo.head:
        return True
    if connection.scalar(select(parents.c.digest).where(parents.c.parent == row.digest).limit(1)) is not None:
        return True
    return tree_of(connection, repo.id, row.commit_id).find(SIGNATURE_FILE) is not None
