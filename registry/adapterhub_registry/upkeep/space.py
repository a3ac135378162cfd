"""Gives space back while servers run: removes commits beyond a policy, and the blobs and xorbs that nothing names.

A blob stays while a commit names it, and two days after its last upload. Writers and `free_space` share a lock
(`lock_space`), so a blob goes only between two transactions. An upload of the same bytes makes the file new again, and
the server looks for the file before it records the upload.

The database is asked for each first digit of digests at once, so the number of statements does not grow with the blobs.
Those that seem to go are looked at again, some at a time, in the transactions that remove them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import groupby, islice
from typing import Final

from sqlalchemy import Column, ColumnElement, delete, exists, func, select
from sqlalchemy.engine import Connection

from adapterhub.formats.administration import FreedSpace
from adapterhub_registry.api.context import Registry
from adapterhub_registry.database.db import blobs, commits, lock_space, places, repos, uploads
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


def free_space(registry: Registry, *, policy: Policy | None = None, dry_run: bool = False) -> FreedSpace:
    """Remove the commits that `policy` drops, then every blob and xorb that nothing names. Servers may run meanwhile.

    Each step is a short transaction of its own: an interruption loses nothing, and the next call goes on.
    `dry_run` only counts.
    """
    before_s = time.time() - KEEP_UPLOADS_S
    dropped, lost = _drop_commits(registry, policy or Policy(), before_s, dry_run=dry_run)
    if not dry_run:
        _forget(registry, before_s)
    freed = Freed()
    for some in _batches(_unnamed(registry, before_s, lost)):
        if dry_run:
            gone = {kept.sha256 for kept in some}
        else:
            digests = [kept.sha256 for kept in some]
            with registry.db.begin() as connection:
                lock_space(connection, shared=False)
                named = _named(connection, partial(_is_one_of, digests), before_s, lost)
                gone = registry.blobs.remove(sorted(set(digests) - named), before_s)
        freed = Freed(freed.number + len(gone), freed.bytes + sum(kept.size for kept in some if kept.sha256 in gone))
    xorbs = sweep_xorbs(registry, dry_run=dry_run)
    return FreedSpace(
        dry_run=dry_run,
        commits=dropped,
        blobs=freed.number,
        blob_bytes=freed.bytes,
        xorbs=xorbs.number,
        xorb_bytes=xorbs.bytes,
    )


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
    all_of = select(repos.c.id, repos.c.namespace, func.count().label("commits")).join(commits).group_by(repos.c.id)
    with registry.db.read() as connection:
        found = connection.execute(all_of.order_by(repos.c.id)).all() if policy != Policy() else ()
    for repo in found:
        keep = policy.commits_of(repo.namespace)
        if keep is None or repo.commits <= keep:
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
        sent = blobs.c.sha256.in_(select(uploads.c.sha256))  # `exists` would read all uploads for each blob
        connection.execute(delete(blobs).where(blobs.c.created_at < before_ms, ~placed, ~sent))
        results.forget(connection, before_ms)
        forget_unnamed(connection)
        vectors.forget_unnamed(connection)


def _unnamed(registry: Registry, before_s: float, lost: Lost) -> Iterator[Kept]:
    """The blobs that were uploaded before `before_s` and that nothing names."""
    old = (kept for kept in registry.blobs.kept() if kept.uploaded_s < before_s)
    for digit, some in groupby(old, lambda kept: kept.sha256[0]):
        with registry.db.read() as connection:
            named = _named(connection, partial(_begins_with, digit), before_s, lost)
        yield from (kept for kept in some if kept.sha256 not in named)


def _named(
    connection: Connection, chosen: Callable[[Column[str]], ColumnElement[bool]], before_s: float, lost: Lost
) -> set[str]:
    """The `chosen` digests that a commit or an upload since `before_s` names; a place of `lost` does not count."""
    held = select(places.c.sha256, *((places.c.repo_id, places.c.path) if lost else ())).distinct()
    rows = connection.execute(held.where(chosen(places.c.sha256)))
    named = {row.sha256 for row in rows if not lost or (row.repo_id, row.sha256, row.path) not in lost}
    sent = select(uploads.c.sha256).where(chosen(uploads.c.sha256), uploads.c.created_at >= int(before_s * 1000))
    return named | set(connection.scalars(sent))


def _begins_with(digit: str, column: Column[str]) -> ColumnElement[bool]:
    return column.between(digit + "0" * 63, digit + "f" * 63)  # LIKE would not use the index


def _is_one_of(digests: list[str], column: Column[str]) -> ColumnElement[bool]:
    return column.in_(digests)


def _batches(found: Iterator[Kept]) -> Iterator[list[Kept]]:
    while some := list(islice(found, AT_ONCE)):
        yield some
