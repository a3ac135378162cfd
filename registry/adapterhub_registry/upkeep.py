"""Upkeep on the disk: checks what a registry has, gives space back, and copies it to another place.

The heads of branches, tagged commits and released versions always stay. Of the other commits, a policy keeps the newest
ones of each repository.

A blob stays while a commit names it, and two days after its last upload. Writers and `free_space` share a lock
(`lock_space`), so a blob goes only between two transactions. An upload of the same bytes makes the file new again, and
the server looks for the file before it records the upload.

The database is asked for each first digit of digests at once, so the number of statements does not grow with the blobs.
Those that seem to go are looked at again, some at a time, in the transactions that remove them.

A move skips blobs that the target has, so an interrupted move continues on the next run. One transaction writes the
rows, so the target gets all of them or none. The source stays unchanged.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Final

from sqlalchemy import Column, ColumnElement, Table, delete, exists, func, insert, select, text, update
from sqlalchemy.engine import Connection
from sqlalchemy.exc import SQLAlchemyError

from adapterhub.core.errors import AdapterHubError, BlobNotFound, Conflict, Malformed, UsageProblem, shown
from adapterhub.formats.administration import FreedSpace, Holdings, MovedRegistry
from adapterhub_registry import testing, vectors
from adapterhub_registry.api.context import Registry
from adapterhub_registry.database.db import (
    Database,
    blobs,
    commits,
    lock_name,
    lock_space,
    places,
    refs,
    releases,
    repos,
    slices,
    uploads,
)
from adapterhub_registry.database.db import blobs as blobs_table
from adapterhub_registry.database.db import commits as commits_table
from adapterhub_registry.database.schema import metadata, readable
from adapterhub_registry.database.trees import EMPTY, FileTree, stored_nodes
from adapterhub_registry.repos import quotas
from adapterhub_registry.repos.commits import drop_unnamed
from adapterhub_registry.storage.blobs import BlobStore, DiskBlobs, FreedBlobs, KeptBlob, digest_of
from adapterhub_registry.worker import forget_unnamed


@dataclass(frozen=True, slots=True, kw_only=True)
class RetentionPolicy:
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


def parse_policy(texts: tuple[str, ...]) -> RetentionPolicy:
    """The policy of options such as `20`, which is for every namespace, and `acme=50`.

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


def plan_policy(connection: Connection, repo_id: int, *, keep: int, before_ms: int) -> Dropped | None:
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
        for node in FileTree(connection, repo_id, row.root).unseen(seen) if row.id not in gone else ():
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


def apply_policy(connection: Connection, dropped: Dropped) -> None:
    """Remove the rows that a plan of the same transaction drops."""
    for some in slices(sorted(dropped.commits)):
        mine = (commits.c.repo_id == dropped.repo_id) & commits.c.id.in_(some)
        connection.execute(delete(commits).where(mine))
    for commit_id, parent in dropped.parents.items():
        mine = (commits.c.repo_id == dropped.repo_id) & (commits.c.id == commit_id)
        connection.execute(update(commits).where(mine).values(parent=parent))
    drop_unnamed(connection, dropped.repo_id)


KEEP_UPLOADS_S: Final = 48 * 3600
"""How long a blob stays after its upload, though no commit names it."""
AT_ONCE: Final = 100

Lost = set[tuple[int, str, str]]
"""The places, as `(repo_id, sha256, path)`, that go with the commits of a dry run."""


def free_space(registry: Registry, *, policy: RetentionPolicy | None = None, dry_run: bool = False) -> FreedSpace:
    """Remove the commits that `policy` drops, then every blob and xorb that nothing names. Servers may run meanwhile.

    Each step is a short transaction of its own: an interruption loses nothing, and the next call goes on.
    `dry_run` only counts.
    """
    before_s = time.time() - KEEP_UPLOADS_S
    dropped, lost = _drop_commits(registry, policy or RetentionPolicy(), before_s, dry_run=dry_run)
    if not dry_run:
        _forget(registry, before_s)
    freed = FreedBlobs()
    for some in _batches(_unnamed(registry, before_s, lost)):
        if dry_run:
            gone = {kept.sha256 for kept in some}
        else:
            digests = [kept.sha256 for kept in some]
            with registry.db.begin() as connection:
                lock_space(connection, shared=False)
                named = _named(connection, partial(_is_one_of, digests), before_s, lost)
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


def _drop_commits(registry: Registry, policy: RetentionPolicy, before_s: float, *, dry_run: bool) -> tuple[int, Lost]:
    count = 0
    lost: Lost = set()
    all_of = select(repos.c.id, repos.c.namespace, func.count().label("commits")).join(commits).group_by(repos.c.id)
    with registry.db.read() as connection:
        found = connection.execute(all_of.order_by(repos.c.id)).all() if policy != RetentionPolicy() else ()
    for repo in found:
        keep = policy.commits_of(repo.namespace)
        if keep is None or repo.commits <= keep:
            continue
        with registry.db.read() as connection:
            dropped = plan_policy(connection, repo.id, keep=keep, before_ms=int(before_s * 1000))
        if dropped is not None and not dry_run:
            with registry.db.begin() as connection:
                lock_space(connection, shared=False)
                dropped = plan_policy(connection, repo.id, keep=keep, before_ms=int(before_s * 1000))
                if dropped is not None:
                    apply_policy(connection, dropped)
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
        testing.forget(connection, before_ms)
        forget_unnamed(connection)
        vectors.forget_unnamed(connection)


def _unnamed(registry: Registry, before_s: float, lost: Lost) -> Iterator[KeptBlob]:
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


def _batches(found: Iterator[KeptBlob]) -> Iterator[list[KeptBlob]]:
    while some := list(islice(found, AT_ONCE)):
        yield some


def named_blobs(connection: Connection) -> dict[str, int]:
    """The size of every blob that a row or a tree names, by sha256."""
    known = select(blobs_table.c.sha256, blobs_table.c.size).order_by(blobs_table.c.sha256)
    named = {row.sha256: row.size for row in connection.execute(known)}
    for _, _, node in stored_nodes(connection):
        if node is not None and not node.height:
            named |= {entry.sha256: entry.size for entry in node.items}
    return named


def check_holdings(database: Database, blobs: BlobStore, *, read_bytes: bool = False) -> Holdings:
    """Check that everything that rows name exists: each blob, each ref's commit, each commit's tree.

    With `read_bytes`, also hash all bytes. This marks damaged blobs in the database, so that the server accepts their
    bytes again, and removes the mark from repaired ones.
    """
    with database.read() as connection:
        wanted = named_blobs(connection)
        known = set(connection.scalars(select(blobs_table.c.sha256)))
        sent = set(connection.scalars(select(uploads.c.sha256).distinct()))
        made = {
            (row.repo_id, row.id) for row in connection.execute(select(commits_table.c.repo_id, commits_table.c.id))
        }
        named_refs = connection.execute(
            select(refs.c.repo_id, refs.c.name, refs.c.commit_id, repos.c.full_name).join(repos)
        ).all()
        problems = _tree_problems(connection)
    problems += [
        f"{ref.full_name}: `{ref.name}` names commit {ref.commit_id}, which is missing"
        for ref in named_refs
        if (ref.repo_id, ref.commit_id) not in made
    ]
    problems += [
        f"blob {sha256}: an upload names it, but the table of blobs does not" for sha256 in sorted(sent - known)
    ]
    found = {sha256: _problem(blobs, sha256, size, read_bytes=read_bytes) for sha256, size in wanted.items()}
    if read_bytes:
        with database.begin() as connection:
            quotas.mark(connection, [sha256 for sha256, problem in found.items() if problem])
            quotas.unmark(connection, [sha256 for sha256, problem in found.items() if not problem])
    problems += [problem for problem in found.values() if problem]
    return Holdings(blobs=len(wanted), bytes=sum(wanted.values()), problems=tuple(problems))


def _tree_problems(connection: Connection) -> list[str]:
    """A sentence for each part of a tree that is missing or damaged."""
    names = {row.id: row.full_name for row in connection.execute(select(repos.c.id, repos.c.full_name))}
    trees = select(commits_table.c.repo_id, commits_table.c.root).where(commits_table.c.root != EMPTY)
    named = {(row.repo_id, row.root) for row in connection.execute(trees)}
    whole: set[tuple[int, str]] = set()
    damaged: set[tuple[int, str]] = set()
    for repo_id, node_id, node in stored_nodes(connection):
        (damaged if node is None else whole).add((repo_id, node_id))
        if node is not None and node.height:
            named |= {(repo_id, link.id) for link in node.items}
    problems = [f"{names[repo_id]}: part {node_id} of a tree is damaged" for repo_id, node_id in sorted(damaged)]
    missing = sorted(named - whole - damaged)
    return problems + [f"{names[repo_id]}: part {node_id} of a tree is missing" for repo_id, node_id in missing]


def _problem(blobs: BlobStore, sha256: str, size: int, *, read_bytes: bool) -> str | None:
    try:
        found = blobs.size(sha256)
        if found != size:
            return f"blob {sha256}: has {found} bytes, expected {size}"
        if read_bytes:
            digest = digest_of(blobs.open(sha256))
            if digest != sha256:
                return f"blob {sha256}: its bytes have the digest {digest}"
    except BlobNotFound:
        return f"blob {sha256}: is missing"
    except OSError as error:
        return f"blob {sha256}: cannot be read: {error.strerror or error}"
    return None


ROWS = 1000
COPIED_AT_ONCE = 8


class BlobsDamaged(AdapterHubError):
    """Some files that rows name cannot be copied; `problems` holds a sentence for each."""

    exit_code = 12

    def __init__(self, problems: list[str]) -> None:
        message = f"{len(problems)} files cannot be copied; no row was written"
        hint = "restore them from a backup, then run the command again: it skips copied files"
        super().__init__("\n".join([message, *(f"  {problem}" for problem in problems)]), hint=hint)
        self.problems = tuple(problems)


def move_registry(root: Path, target: Registry) -> MovedRegistry:
    """Copy the registry in the folder `root` to `target`; stop its server first.

    Raises:
        Conflict: a server uses the folder, or the target's database is not empty.
        BlobsDamaged: blobs of the folder are missing or damaged. No row was written.
        Malformed: the folder's database is not a registry's, or the target's refuses a row. No row was written.
        UsageProblem: source and target have the same database.
    """
    url = f"sqlite:///{root / 'registry.db'}"
    if target.settings.database == url:
        raise UsageProblem(
            "the target is the database in the folder; a move needs another one",
            hint="name the target with `--database postgresql://user@host/name` and `--blobs s3://bucket`",
        )
    with readable(str(root / "registry.db")):
        _check_stopped(root)
        return _move(url, root, target)


def _move(url: str, root: Path, target: Registry) -> MovedRegistry:
    with contextlib.closing(Database(url)) as source, source.begin() as old:  # blocks other writers
        with target.db.read() as new:
            _check_empty(new)
        blobs = named_blobs(old)
        _copy_blobs(DiskBlobs(root), target.blobs, blobs)
        with target.db.begin() as new:
            lock_name(new, "first token")  # a server that starts now waits for the tokens
            _check_empty(new)
            rows = sum(_copy_rows(old, new, table) for table in metadata.sorted_tables)
            if new.dialect.name == "postgresql":
                _go_on_counting(old, new)
    return MovedRegistry(blobs=len(blobs), bytes=sum(blobs.values()), rows=rows)


def _check_stopped(root: Path) -> None:
    """Raise when a server uses the folder, or its database is not a registry's."""
    # a server keeps connections open, and this mode gets no lock while another connection exists
    with contextlib.closing(sqlite3.connect(root / "registry.db", timeout=0, isolation_level=None)) as connection:
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError:
            raise Conflict(
                f"`{shown(str(root))}` is in use; the move would lose concurrent pushes, so nothing was copied",
                hint="stop its server, and keep it stopped",
            ) from None
        is_ours = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'facts'").fetchone()
        connection.execute("ROLLBACK")
    if is_ours is None:
        raise Malformed(f"`{shown(str(root / 'registry.db'), 200)}` has no tables of a registry; no row was written")


def _check_empty(connection: Connection) -> None:
    """Raise unless every table is empty."""
    filled = [
        table.name
        for table in metadata.sorted_tables
        if connection.execute(select(*table.primary_key).limit(1)).first() is not None
    ]
    if filled:
        names = ", ".join(filled)
        raise Conflict(
            f"the target database has rows ({names}); expected an empty one, no row was written",
            hint="create a new one with `createdb`, and start servers on it only after the move",
        )


def _copy_blobs(source: BlobStore, target: BlobStore, wanted: dict[str, int]) -> None:
    with ThreadPoolExecutor(COPIED_AT_ONCE) as pool:
        found = list(pool.map(partial(_copy_blob, source, target), wanted.items()))
    problems = [problem for problem in found if problem]
    if problems:
        raise BlobsDamaged(problems)


def _copy_blob(source: BlobStore, target: BlobStore, blob: tuple[str, int]) -> str | None:
    sha256, size = blob
    try:
        if not target.holds({sha256: size}):
            target.put(source.open(sha256), sha256, size)
    except AdapterHubError as error:
        return f"blob {sha256}: {error.message}"
    return None


def _copy_rows(old: Connection, new: Connection, table: Table) -> int:
    count = 0
    for rows in old.execution_options(yield_per=ROWS).execute(select(table)).mappings().partitions(ROWS):
        try:
            new.execute(insert(table), [dict(row) for row in rows])
        except SQLAlchemyError as error:
            why = str(getattr(error, "orig", error)).partition("\n")[0]
            raise Malformed(f"table {table.name}: {shown(why, 200)}; no row was written") from error
        count += len(rows)
    return count


def _go_on_counting(old: Connection, new: Connection) -> None:
    """Continue the numbers of the source: the next ones exceed those of all rows, removed ones included."""
    given = {row.name: row.seq for row in old.execute(text("SELECT name, seq FROM sqlite_sequence"))}
    for table in metadata.sorted_tables:
        number: Any = table.autoincrement_column
        if number is not None:
            last = max(given.get(table.name, 0), new.scalar(select(func.max(number))) or 0)
            if last:
                new.execute(select(func.setval(func.pg_get_serial_sequence(table.name, number.name), last)))
