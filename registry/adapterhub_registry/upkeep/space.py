"""Gives space back: removes the commits that a policy drops, then what nothing names.

The heads of branches, tagged commits and released versions always stay. Of the other commits, a policy keeps the newest
ones of each repository.

A blob stays while a commit names it, and two days after its last upload. Writers and `free_space` share a lock
(`lock_space`), so a blob goes only between two transactions. An upload of the same bytes makes the file new again, and
the server looks for the file before it records the upload.

Files come from the store in the order of their digests, some at a time, and the database is asked for these. Those that
seem to go are looked at again in the short transactions that remove them.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Final

from sqlalchemy import bindparam, cast, delete, exists, func, literal, or_, select, update
from sqlalchemy.engine import Connection

from adapterhub.core.errors import UsageProblem, shown
from adapterhub.formats.administration import FreedSpace
from adapterhub_registry import kin, testing, vectors, worker
from adapterhub_registry.api.context import Registry
from adapterhub_registry.database.db import (
    Database,
    blobs,
    commits,
    facts,
    lock_space,
    places,
    refs,
    releases,
    repos,
    uploads,
)
from adapterhub_registry.database.search_tables import rows_of
from adapterhub_registry.database.steps import (
    CHANGED,
    LOOKED_AT,
    Leftover,
    Progress,
    batches,
    drop,
    note,
    noted,
    silent,
    windows,
)
from adapterhub_registry.repos import retention, unnamed
from adapterhub_registry.storage.blobs import BlobStore, FreedBlobs, KeptBlob


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicy:
    """How many unreleased commits stay: the number for each named namespace, and for the `others`; None keeps all."""

    others: int | None = None
    namespaces: tuple[tuple[str, int], ...] = ()

    def commits_of(self, namespace: str) -> int | None:
        """Return the number of unreleased commits that a repository in `namespace` keeps; None for all."""
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


def parse_policy(texts: tuple[str, ...]) -> RetentionPolicy:
    """Return the policy of options such as `20`, which is for every namespace, and `acme=50`.

    Raises:
        UsageProblem: a text that is neither.
    """
    others, named = None, {}
    for keep in texts:
        namespace, sign, number = keep.rpartition("=")
        if not (number.isascii() and number.isdigit()) or (sign and not namespace):
            raise UsageProblem(
                f"keep `{shown(keep)}`: expected a number of commits, or NAMESPACE=NUMBER",
                hint="for all repositories: `--keep 20`; for those in acme: `--keep acme=20`",
            )
        if sign:
            named[namespace] = int(number)
        else:
            others = int(number)
    return RetentionPolicy(others=others, namespaces=tuple(named.items()))


def plan_policy(
    connection: Connection, repo_id: int, *, keep: int, before_ms: int, counts: bool = False
) -> Dropped | None:
    """Return the commits to remove when a repository keeps `keep` unreleased ones and all since `before_ms`; or None.

    Only a plan that `counts` has the places.
    """
    mine = select(commits.c.id, commits.c.parent, commits.c.root, commits.c.created_at)
    rows = connection.execute(mine.where(commits.c.repo_id == repo_id).order_by(commits.c.created_at.desc())).all()
    held = set(connection.scalars(select(refs.c.commit_id).where(refs.c.repo_id == repo_id)))
    held |= set(connection.scalars(select(releases.c.commit_id).where(releases.c.repo_id == repo_id)))
    free = [row for row in rows if row.id not in held]
    gone = {row.id for row in free[keep:] if row.created_at < before_ms}
    if not gone:
        return None
    kept = [row.root for row in rows if row.id not in gone]
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
        places=_lost_places(connection, repo_id, kept) if counts else frozenset(),
        parents=parents,
    )


def _lost_places(connection: Connection, repo_id: int, roots: Sequence[str]) -> frozenset[unnamed.Place]:
    """Return the places of a repository that none of some trees has."""
    seen: set[str] = set()
    named = select(places.c.sha256, places.c.path).where(places.c.repo_id == repo_id)
    lost = {(row.sha256, row.path) for row in connection.execute(named)}
    for root in roots:
        lost.difference_update(
            (entry.sha256, entry.path) for entry in unnamed.new_entries(connection, repo_id, root, seen)
        )
    return frozenset(lost)


def apply_policy(database: Database, dropped: Dropped) -> None:
    """Remove the commits that a plan drops, some at a time, except those that a branch, tag or release names by now."""
    mine = commits.c.repo_id == dropped.repo_id
    one = mine & (commits.c.id == bindparam("one"))
    for some in batches(dropped.parents.items(), CHANGED):
        with database.begin() as connection:
            lock_space(connection, shared=False)
            note(connection, f"{THINNED}{dropped.repo_id}", "begun")
            rows = [{"one": commit_id, "before": parent} for commit_id, parent in some]
            connection.execute(update(commits).where(one).values(parent=bindparam("before")), rows)
    held = or_(
        *(
            exists().where(table.c.repo_id == commits.c.repo_id, table.c.commit_id == commits.c.id)
            for table in (refs, releases)
        )
    )
    for gone in batches(sorted(dropped.commits), CHANGED):
        with database.begin() as connection:
            lock_space(connection, shared=False)
            note(connection, f"{THINNED}{dropped.repo_id}", "begun")
            connection.execute(delete(commits).where(one, ~held), [{"one": commit_id} for commit_id in gone])


KEEP_UPLOADS_S: Final = 48 * 3600
"""How long a blob stays after its upload, though no commit names it."""
AT_ONCE: Final = 100
"""How many blobs go in one transaction."""
NOTED: Final = 20
"""After so many reads the place is noted."""
TASK: Final = "gc"
THINNED: Final = "thinned "
"""Before the number of a repository in `facts`: some of its commits went, and what only they named is still there."""
_PLACES: Final = 1 << 16


def free_space(
    registry: Registry, *, policy: RetentionPolicy | None = None, dry_run: bool = False, progress: Progress = silent
) -> FreedSpace:
    """Remove the commits that `policy` drops, then every blob and xorb that nothing names. Servers may run meanwhile.

    Each step is a short transaction of its own. After an interruption, the next call goes on with the blobs where this
    one ended, and comes round to those before. `dry_run` only counts.
    """
    before_s = time.time() - KEEP_UPLOADS_S
    if not dry_run:
        retention.apply(registry.db)  # before the policy, which may then drop their commits
    with contextlib.closing(_Lost()) as lost:
        dropped = _drop_commits(registry, policy or RetentionPolicy(), before_s, lost if dry_run else None, progress)
        if not dry_run:
            _forget(registry, before_s, progress)
        freed = FreedBlobs()
        for some in _unnamed(registry, before_s, lost, dry_run=dry_run, progress=progress):
            if dry_run:
                gone = {kept.sha256 for kept in some}
            else:
                digests = [kept.sha256 for kept in some]
                registry.blobs.set_aside(some)
                with registry.db.begin() as connection:
                    lock_space(connection, shared=False)
                    named = _named(connection, digests, before_s)
                    gone = registry.blobs.remove(sorted(set(digests) - named), before_s)
            freed = FreedBlobs(
                freed.number + len(gone), freed.bytes + sum(kept.size for kept in some if kept.sha256 in gone)
            )
    xorbs = sweep_xorbs(registry, dry_run=dry_run)
    return FreedSpace(
        dry_run=dry_run,
        commits=dropped,
        blobs=freed.number,
        blob_bytes=freed.bytes,
        xorbs=xorbs.number,
        xorb_bytes=xorbs.bytes,
    )


def sweep_xorbs(registry: Registry, *, dry_run: bool = False) -> FreedBlobs:
    """Remove the xorbs of closed epochs and of repositories that are gone; `dry_run` only counts them."""

    def wanted(scope: str) -> bool:
        number, _, made = scope.partition("-")
        mine = (repos.c.id == int(number)) & (repos.c.created_at == int(made.partition("-")[0]))
        with registry.db.read() as connection:
            return connection.scalar(select(repos.c.id).where(mine)) is not None

    return registry.xorbs.sweep(time.time(), wanted=wanted, dry_run=dry_run)


# ------------------------------------------------------------ commits
def _drop_commits(
    registry: Registry, policy: RetentionPolicy, before_s: float, lost: _Lost | None, progress: Progress
) -> int:
    """Drop what `policy` drops, and return how many commits that is; with `lost`, only note what they name."""
    database, count = registry.db, 0
    if lost is None:
        with database.read() as connection:
            begun = connection.scalars(select(facts.c.name).where(facts.c.name.startswith(THINNED))).all()
        for name in begun:
            _drop_rest(database, int(name.removeprefix(THINNED)))
    for repo_id, keep in _crowded(database, policy, progress):
        with database.read() as connection:
            dropped = plan_policy(
                connection, repo_id, keep=keep, before_ms=int(before_s * 1000), counts=lost is not None
            )
        if dropped is None:
            continue
        count += len(dropped.commits)
        if lost is not None:
            lost.add(dropped)
            continue
        apply_policy(database, dropped)
        _drop_rest(database, repo_id)
    return count


def _crowded(database: Database, policy: RetentionPolicy, progress: Progress) -> Iterator[tuple[int, int]]:
    """Yield the repositories that may have more commits than the policy keeps, and the number that stays in each."""
    kept = [number for number in (policy.others, *(number for _, number in policy.namespaces)) if number is not None]
    if not kept:
        return
    of_each = select(repos.c.id, repos.c.namespace, func.count().label("commits")).join(commits).group_by(repos.c.id)
    of_each = of_each.having(func.count() > min(kept)).order_by(repos.c.id)
    with database.read() as connection:
        total = connection.scalar(select(func.max(repos.c.id))) or 0
    for window in windows(database, [repos.c.id]):
        with database.read() as connection:
            found = connection.execute(of_each.where(window)).all()
        for repo in found:
            keep = policy.commits_of(repo.namespace)
            if keep is not None and repo.commits > keep:
                progress("repositories", repo.id, total)
                yield repo.id, keep


def _drop_rest(database: Database, repo_id: int) -> None:
    """Remove what no commit of a repository names any more, and note that it is done."""
    with database.read() as connection:
        rest = unnamed.plan_unnamed(connection, repo_id)
    is_left = True
    while is_left:
        with database.begin() as connection:
            lock_space(connection, shared=False)
            is_left = unnamed.drop(connection, rest, CHANGED)
            if not is_left:
                note(connection, f"{THINNED}{repo_id}", "")


class _Lost:
    """The places that go with the commits of a dry run: a table on the disk, so that memory does not grow."""

    def __init__(self) -> None:
        self._rows = sqlite3.connect("")
        self._rows.execute("CREATE TABLE lost (sha256 TEXT, number INTEGER, path TEXT)")
        self._is_sorted = False

    def add(self, dropped: Dropped) -> None:
        """Note what goes with the commits of a repository."""
        rows = ((sha256, dropped.repo_id, path) for sha256, path in dropped.places)
        self._rows.executemany("INSERT INTO lost VALUES (?, ?, ?)", rows)

    def of(self, digests: Sequence[str]) -> dict[str, int]:
        """Return how many places of each digest go; those of which none goes are left out."""
        if not self._is_sorted:
            self._rows.execute("CREATE INDEX lost_by_sha256 ON lost (sha256)")
            self._is_sorted = True
        counted = "SELECT sha256, count(*) FROM lost WHERE sha256 IN (SELECT value FROM json_each(?)) GROUP BY sha256"
        return dict(self._rows.execute(counted, [json.dumps(list(digests))]).fetchall())

    def close(self) -> None:
        """Remove the table."""
        self._rows.close()


# ------------------------------------------------------------ rows and blobs
def _forget(registry: Registry, before_s: float, progress: Progress) -> None:
    """Remove the rows of old uploads that no commit of their repository names, and of blobs that nothing names."""
    before_ms = int(before_s * 1000)
    committed = exists().where(places.c.repo_id == uploads.c.repo_id, places.c.sha256 == uploads.c.sha256)
    placed = exists().where(places.c.sha256 == blobs.c.sha256)
    sent = exists().where(uploads.c.sha256 == blobs.c.sha256)
    leftovers = [
        Leftover(uploads, (uploads.c.created_at < before_ms) & ~committed),
        Leftover(blobs, (blobs.c.created_at < before_ms) & ~placed & ~sent),
        testing.unneeded(before_ms),
        *worker.unneeded(),
        vectors.unneeded(),
        *kin.unneeded(),
    ]
    for at, leftover in enumerate(leftovers):
        progress("tables", at, len(leftovers))
        drop(registry.db, leftover)


def _unnamed(
    registry: Registry, before_s: float, lost: _Lost, *, dry_run: bool, progress: Progress
) -> Iterator[list[KeptBlob]]:
    """Yield the blobs that were uploaded before `before_s` and that nothing names, some at a time.

    They begin where the last run was interrupted, and come round to that place. A dry run begins at the first.
    """
    with registry.db.read() as connection:
        begun = "" if dry_run else noted(connection, TASK)
    first = int(begun[:4] or "0", 16)
    found: list[KeptBlob] = []
    for at, some in enumerate(batches(_round(registry.blobs, begun), LOOKED_AT), 1):
        progress("files", (int(some[-1].sha256[:4], 16) - first) % _PLACES, _PLACES)
        old = [kept for kept in some if kept.uploaded_s < before_s]
        with registry.db.read() as connection:
            digests = [kept.sha256 for kept in old]
            named = _named(connection, digests, before_s) - _going(connection, lost.of(digests), before_s)
        found = [kept for kept in old if kept.sha256 not in named]
        yield from batches(found, AT_ONCE)
        if not dry_run and at % NOTED == 0:
            with registry.db.begin() as connection:
                note(connection, TASK, some[-1].sha256)
    if not dry_run:
        with registry.db.begin() as connection:
            note(connection, TASK, "")


def _round(store: BlobStore, begun: str) -> Iterator[KeptBlob]:
    """Every blob, from the one after a digest on."""
    yield from store.kept(begun)
    if begun:
        yield from takewhile(lambda kept: kept.sha256 <= begun, store.kept())


def _named(connection: Connection, digests: Sequence[str], before_s: float) -> set[str]:
    """Those of some digests that a commit or an upload since `before_s` names; each is one look into an index."""
    given = rows_of(literal(json.dumps(list(digests))))
    sha256 = cast(given.c.value, places.c.sha256.type)
    placed = exists().where(places.c.sha256 == sha256)
    sent = exists().where(uploads.c.sha256 == sha256, uploads.c.created_at >= int(before_s * 1000))
    return set(connection.scalars(select(sha256).select_from(given).where(or_(placed, sent))))


def _going(connection: Connection, lost: Mapping[str, int], before_s: float) -> set[str]:
    """Return the digests whose last places go with the commits of a dry run, without an upload since then."""
    gone = set()
    for sha256, number in lost.items():
        one_more = select(places.c.path).where(places.c.sha256 == sha256).limit(1).offset(number)
        lately = uploads.c.created_at >= int(before_s * 1000)
        sent = select(uploads.c.repo_id).where(uploads.c.sha256 == sha256, lately).limit(1)
        if connection.scalar(one_more) is None and connection.scalar(sent) is None:
            gone.add(sha256)
    return gone
