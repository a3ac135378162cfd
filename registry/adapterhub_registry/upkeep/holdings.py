"""Checks that a registry has everything that its rows name.

Rows and files are read in the order of their digests, some at a time, outside of any lock. Blobs that seem to be
missing are looked for once more, as a server may have removed them in the meantime.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Row, exists, func, select, text
from sqlalchemy.engine import Connection

from adapterhub.core.errors import BlobNotFound
from adapterhub.formats.administration import Holdings
from adapterhub_registry.database.db import Database, adapters, blobs, commits, nodes, refs, repos, uploads
from adapterhub_registry.database.search_tables import among
from adapterhub_registry.database.steps import CHANGED, Progress, batches, note, noted, silent, windows
from adapterhub_registry.database.trees import EMPTY, TreeNode, stored_node
from adapterhub_registry.repos import quotas
from adapterhub_registry.storage.blobs import BlobStore, digest_of
from adapterhub_registry.upkeep.numbers import wrong_numbers

READ: Final = 50
"""How many blobs are read before their marks are written, and the place is noted."""
_PLACES: Final = 1 << 16
MOST_PROBLEMS: Final = 10_000
"""How many problems a report names; the last line counts the others."""
TASK: Final = "check --bytes"
GOES_ON_S: Final = 7 * 24 * 3600
"""So long an interrupted check of all bytes can go on; after that, the next one begins at the first."""


class WantedBlob(NamedTuple):
    """A blob that rows or trees name."""

    sha256: str
    size: int


class _Problems:
    """The problems found so far, of which a report names some."""

    def __init__(self) -> None:
        self._found: dict[str, None] = {}
        self._more = 0

    def add(self, problem: str) -> None:
        """Note a problem, once."""
        if len(self._found) < MOST_PROBLEMS:
            self._found[problem] = None
        elif problem not in self._found:
            self._more += 1

    def shown(self) -> tuple[str, ...]:
        """One sentence each."""
        return (*self._found, *([f"and {self._more} more"] if self._more else []))


def check_holdings(
    database: Database,
    store: BlobStore,
    *,
    read_bytes: bool = False,
    mends: bool = False,
    progress: Progress = silent,
) -> Holdings:
    """Check that everything that rows name exists: each blob, each ref's commit, each commit's tree.

    The numbers that the database keeps are compared with its rows; `mends` puts these numbers right.

    With `read_bytes`, also hash all bytes. This marks damaged blobs in the database, so that the server accepts their
    bytes again, and removes the mark from repaired ones. An interrupted check goes on where it was, and reports what is
    marked before that place.
    """
    problems = _Problems()
    _check_rows(database, problems, progress)
    mended = _Problems()
    for wrong in wrong_numbers(database, mends=mends, progress=progress):
        if mends:
            mended.add(str(wrong))
        else:
            problems.add(f"{wrong}; `adapt registry check --mend` puts it right")
    look = _read_blobs if read_bytes else _check_blobs
    number, size = look(database, store, problems, progress)
    others: set[WantedBlob] = set()  # mostly none
    for some in _other_blobs(database, problems, progress):
        for one in set(some) - others:
            if (problem := problem_of(store, one, read_bytes=read_bytes)) is not None:
                problems.add(problem)
            number, size = number + 1, size + one.size
        others.update(some)
    with database.read() as connection:
        builds = connection.scalar(select(func.count()).select_from(adapters)) or 0
        taken = database_bytes(connection)
    return Holdings(
        blobs=number,
        bytes=size,
        builds=builds,
        database_bytes=taken,
        problems=problems.shown(),
        mended=mended.shown(),
    )


def database_bytes(connection: Connection) -> int:
    """Return how many bytes the database takes on the disk, without the pages of SQLite that wait to be used again."""
    if connection.dialect.name == "postgresql":
        return int(connection.scalar(select(func.pg_database_size(func.current_database()))) or 0)
    pages, free, size = (
        int(connection.scalar(text(f"PRAGMA {name}")) or 0) for name in ("page_count", "freelist_count", "page_size")
    )
    return (pages - free) * size


# ------------------------------------------------------------ rows
class _Lookup(NamedTuple):
    """Rows that name something else by a condition that does not hold, and the problem of one."""

    table: Any
    lacks: ColumnElement[bool]
    problem: Callable[[Row[Any]], str]


def _check_rows(database: Database, problems: _Problems, progress: Progress) -> None:
    """Find the rows that name what is not there."""
    made = exists().where(commits.c.repo_id == refs.c.repo_id, commits.c.id == refs.c.commit_id)
    known = exists().where(blobs.c.sha256 == uploads.c.sha256)
    root = exists().where(nodes.c.repo_id == commits.c.repo_id, nodes.c.id == commits.c.root)
    lookups = (
        _Lookup(refs, ~made, lambda r: f"{r.full_name}: `{r.name}` names commit {r.commit_id}, which is missing"),
        _Lookup(uploads, ~known, lambda r: f"blob {r.sha256}: an upload names it, but the table of blobs does not"),
        _Lookup(
            commits, ~root & (commits.c.root != EMPTY), lambda r: f"{r.full_name}: part {r.root} of a tree is missing"
        ),
    )
    for at, lookup in enumerate(lookups):
        progress("tables", at, len(lookups))
        wanted = select(repos.c.full_name, lookup.table).join(repos, repos.c.id == lookup.table.c.repo_id)
        for window in windows(database, list(lookup.table.primary_key)):
            with database.read() as connection:
                for row in connection.execute(wanted.where(window, lookup.lacks)):
                    problems.add(lookup.problem(row))


class _StoredNode(NamedTuple):
    repo_id: int
    full_name: str
    id: str
    node: TreeNode | None


def _check_links(connection: Connection, some: Sequence[_StoredNode], problems: _Problems) -> None:
    """Note the damaged ones of some nodes, and the children that are missing."""
    for one in some:
        if one.node is None:
            problems.add(f"{one.full_name}: part {one.id} of a tree is damaged")
        elif one.node.height:
            links = [link.id for link in one.node.items]
            wanted = select(nodes.c.id).where(nodes.c.repo_id == one.repo_id, nodes.c.id.in_(links))
            for link in sorted(set(links).difference(connection.scalars(wanted))):
                problems.add(f"{one.full_name}: part {link} of a tree is missing")


# ------------------------------------------------------------ blobs
def wanted_blobs(database: Database) -> Iterator[list[WantedBlob]]:
    """Yield the blobs that rows or trees name, some at a time; one that only trees name may come several times."""
    yield from _known_blobs(database, "")
    yield from _other_blobs(database, _Problems(), silent)


def _known_blobs(database: Database, after: str) -> Iterator[list[WantedBlob]]:
    """Yield the blobs in the table of blobs past a digest, in the order of digests."""
    for window in windows(database, [blobs.c.sha256], after=[after] if after else ()):
        known = select(blobs.c.sha256, blobs.c.size).where(window).order_by(blobs.c.sha256)
        with database.read() as connection:
            rows = connection.execute(known).all()
        yield [WantedBlob(row.sha256, row.size) for row in rows]


def _other_blobs(database: Database, problems: _Problems, progress: Progress) -> Iterator[list[WantedBlob]]:
    """Yield the blobs that trees name and the table does not; notes what is wrong with the trees."""
    with database.read() as connection:
        total = connection.scalar(select(func.max(repos.c.id))) or 0
    wanted = select(repos.c.full_name, nodes).join(repos).order_by(nodes.c.repo_id, nodes.c.id)
    for window in windows(database, [nodes.c.repo_id, nodes.c.id]):
        with database.read() as connection:
            rows = connection.execute(wanted.where(window)).all()
            some = [_StoredNode(row.repo_id, row.full_name, row.id, stored_node(row.id, row.body)) for row in rows]
            _check_links(connection, some, problems)
            leaves = (one.node for one in some if one.node is not None and not one.node.height)
            named = {entry.sha256: entry.size for entry in chain.from_iterable(leaf.items for leaf in leaves)}
            found = set(connection.scalars(select(blobs.c.sha256).where(among(blobs.c.sha256, sorted(named)))))
        progress("trees", some[-1].repo_id if some else total, total)
        if others := sorted(named.keys() - found):
            yield [WantedBlob(sha256, named[sha256]) for sha256 in others]


def _check_blobs(database: Database, store: BlobStore, problems: _Problems, progress: Progress) -> tuple[int, int]:
    """Look for the bytes of each blob by the list of the store, which takes one question for a thousand."""
    number = size = 0
    kept = store.kept()
    at = next(kept, None)
    for some in _known_blobs(database, ""):
        for one in some:
            while at is not None and at.sha256 < one.sha256:
                at = next(kept, None)
            if at is None or (at.sha256, at.size) != one:
                _look(database, store, one, problems)
            size += one.size
        number += len(some)
        if some:
            progress("files", int(some[-1].sha256[:4], 16), _PLACES)
    return number, size


def _look(database: Database, store: BlobStore, one: WantedBlob, problems: _Problems) -> None:
    """Note the problem of a blob that the list of the store has not, unless it came or went meanwhile."""
    problem = problem_of(store, one, read_bytes=False)
    if problem is not None:
        with database.read() as connection:
            if connection.scalar(select(blobs.c.size).where(blobs.c.sha256 == one.sha256)) is not None:
                problems.add(problem)


def _read_blobs(database: Database, store: BlobStore, problems: _Problems, progress: Progress) -> tuple[int, int]:
    """Hash each blob and keep the marks of damaged ones; from where a check was interrupted lately."""
    with database.read() as connection:
        place, _, begun = noted(connection, TASK).partition(" ")
        begun_s = float(begun or 0)
        if begun_s < time.time() - GOES_ON_S:
            place, begun_s = "", time.time()
        before = blobs.c.sha256 <= place
        number, size = connection.execute(
            select(func.count(), func.coalesce(func.sum(blobs.c.size), 0)).where(before)
        ).one()
        marked = connection.execute(select(blobs.c.sha256, blobs.c.size).where(before, blobs.c.damaged_at.is_not(None)))
        again = [WantedBlob(row.sha256, row.size) for row in marked]
    size = int(size)
    for some in chain(
        batches(again, CHANGED), chain.from_iterable(batches(one, READ) for one in _known_blobs(database, place))
    ):
        found = {one.sha256: problem_of(store, one, read_bytes=True) for one in some}
        is_again = some[-1].sha256 <= place
        with database.begin() as connection:
            quotas.mark(connection, [sha256 for sha256, problem in found.items() if problem])
            quotas.unmark(connection, [sha256 for sha256, problem in found.items() if not problem])
            if not is_again:
                note(connection, TASK, f"{some[-1].sha256} {begun_s:.0f}")
        for problem in filter(None, found.values()):
            problems.add(problem)
        if not is_again:
            number, size = number + len(some), size + sum(one.size for one in some)
        progress("files", int(some[-1].sha256[:4], 16), _PLACES)
    with database.begin() as connection:
        note(connection, TASK, "")
    return number, size


def problem_of(store: BlobStore, one: WantedBlob, *, read_bytes: bool) -> str | None:
    """Return the fault of a stored blob: it is missing, has another size or other bytes, or cannot be read."""
    sha256, size = one
    try:
        found = store.size(sha256)
        if found != size:
            return f"blob {sha256}: has {found} bytes, expected {size}"
        if read_bytes:
            digest = digest_of(store.open(sha256))
            if digest != sha256:
                return f"blob {sha256}: its bytes have the digest {digest}"
    except BlobNotFound:
        return f"blob {sha256}: is missing"
    except OSError as error:
        return f"blob {sha256}: cannot be read: {error.strerror or error}"
    return None
