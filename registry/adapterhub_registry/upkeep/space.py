"""Gives space back while servers run: removes commits beyond a policy, and the blobs and xorbs that nothing names.

A blob stays while a commit names it, and two days after its last upload. Writers and `free_space` share a lock
(`lock_space`), so a blob goes only between two transactions. An upload of the same bytes makes the file new again, and
the server looks for the file before it records the upload.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

from sqlalchemy import delete, exists, select
from sqlalchemy.engine import Connection

from adapterhub_registry.api.context import Registry
from adapterhub_registry.database.db import blobs, lock_space, places, repos, slices, uploads
from adapterhub_registry.derived.worker import forget_unnamed
from adapterhub_registry.meaning import vectors
from adapterhub_registry.results import results
from adapterhub_registry.storage.blobs import Freed, Kept
from adapterhub_registry.upkeep import retention
from adapterhub_registry.upkeep.retention import Policy

KEEP_UPLOADS_S: Final = 48 * 3600
"""How long a blob stays after its upload, though no commit names it."""
AT_ONCE: Final = 100

Lost = set[tuple[int, str, str]]
"""The places, as `(repo_id, sha256, path)`, that go with the commits of a dry run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """What was removed, or would be: commits, blobs and xorbs."""

    commits: int
    blobs: Freed
    xorbs: Freed

    @property
    def bytes(self) -> int:
        """The bytes of the blobs and the xorbs."""
        return self.blobs.bytes + self.xorbs.bytes


def free_space(registry: Registry, *, policy: Policy | None = None, dry_run: bool = False) -> Space:
    """Remove the commits that `policy` drops, then every blob and xorb that nothing names. Servers may run meanwhile.

    Each step is a short transaction of its own: an interruption loses nothing, and the next call goes on.
    `dry_run` only counts.
    """
    before_s = time.time() - KEEP_UPLOADS_S
    commits, lost = _drop_commits(registry, policy or Policy(), before_s, dry_run=dry_run)
    if not dry_run:
        _forget(registry, before_s)
    freed = Freed()
    for some in _batches(kept for kept in registry.blobs.kept() if kept.uploaded_s < before_s):
        if dry_run:
            with registry.db.read() as connection:
                gone = _unnamed(connection, some, before_s, lost)
        else:
            with registry.db.begin() as connection:
                lock_space(connection, shared=False)
                gone = registry.blobs.remove(sorted(_unnamed(connection, some, before_s, lost)), before_s)
        freed = Freed(freed.number + len(gone), freed.bytes + sum(kept.size for kept in some if kept.sha256 in gone))
    return Space(commits=commits, blobs=freed, xorbs=sweep_xorbs(registry, dry_run=dry_run))


def sweep_xorbs(registry: Registry, *, dry_run: bool = False) -> Freed:
    """Remove the xorbs of closed epochs and of repositories that are gone; `dry_run` only counts them."""

    def wanted(scope: str) -> bool:
        number, _, made = scope.partition("-")
        mine = (repos.c.id == int(number)) & (repos.c.created_at == int(made.partition("-")[0]))
        with registry.db.read() as connection:
            return connection.scalar(select(repos.c.id).where(mine)) is not None

    return registry.xorbs.sweep(time.time(), wanted=wanted, dry_run=dry_run)


def _drop_commits(registry: Registry, policy: Policy, before_s: float, *, dry_run: bool) -> tuple[int, Lost]:
    count = 0
    lost: Lost = set()
    with registry.db.read() as connection:
        found = connection.execute(select(repos.c.id, repos.c.namespace).order_by(repos.c.id)).all()
    for repo in found:
        keep = policy.commits_of(repo.namespace)
        if keep is None:
            continue
        with registry.db.read() as connection:
            dropped = retention.plan(connection, repo.id, keep=keep, before_ms=int(before_s * 1000))
        if dropped is not None and not dry_run:
            with registry.db.begin() as connection:
                lock_space(connection, shared=False)
                dropped = retention.plan(connection, repo.id, keep=keep, before_ms=int(before_s * 1000))
                if dropped is not None:
                    retention.apply(connection, dropped)
        if dropped is not None:
            count += len(dropped.commits)
            lost |= {(repo.id, sha256, path) for sha256, path in dropped.places}
    return count, lost


def _forget(registry: Registry, before_s: float) -> None:
    """Remove the rows of old uploads that no commit of their repository names, and of blobs that nothing names."""
    before_ms = int(before_s * 1000)
    with registry.db.begin() as connection:
        lock_space(connection, shared=False)
        committed = exists().where(places.c.repo_id == uploads.c.repo_id, places.c.sha256 == uploads.c.sha256)
        connection.execute(delete(uploads).where(uploads.c.created_at < before_ms, ~committed))
        placed = exists().where(places.c.sha256 == blobs.c.sha256)
        sent = exists().where(uploads.c.sha256 == blobs.c.sha256)
        connection.execute(delete(blobs).where(blobs.c.created_at < before_ms, ~placed, ~sent))
        results.forget(connection, before_ms)
        forget_unnamed(connection)
        vectors.forget_unnamed(connection)


def _unnamed(connection: Connection, some: Sequence[Kept], before_s: float, lost: Lost) -> set[str]:
    """Those of `some` that no commit and no upload since `before_s` names; `lost` does not count."""
    digests = [kept.sha256 for kept in some]
    named: set[str] = set()
    for part in slices(digests):
        held = select(places.c.repo_id, places.c.sha256, places.c.path).where(places.c.sha256.in_(part))
        named |= {row.sha256 for row in connection.execute(held) if (row.repo_id, row.sha256, row.path) not in lost}
        sent = uploads.c.sha256.in_(part) & (uploads.c.created_at >= int(before_s * 1000))
        named |= set(connection.scalars(select(uploads.c.sha256).where(sent)))
    return set(digests) - named


def _batches(found: Iterator[Kept]) -> Iterator[list[Kept]]:
    while some := list(islice(found, AT_ONCE)):
        yield some
