"""Search by meaning: the vectors of builds, and the builds nearest to a question.

A push waits for nothing: a build without vectors is simply due. Several workers may make the same ones; the first wins.

Only builds that the caller may see and that meet the conditions count: another build changes neither the answer nor its
order.
"""

from __future__ import annotations

import contextlib
import threading
from functools import cached_property
from pathlib import Path
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import ColumnElement, Row, and_, delete, exists, func, insert, select, true
from sqlalchemy.engine import Connection
from sqlalchemy.exc import IntegrityError

from adapterhub.core.extras import missing
from adapterhub.formats.meaning.model import MODEL, is_model
from adapterhub.formats.meaning.texts import FAR, FEWEST, parts_of
from adapterhub.formats.relevance import MAX_QUESTION, MOST_RANKED, Matched
from adapterhub_registry.database.db import Database, adapters, meaning, repos
from adapterhub_registry.database.prepared import Met
from adapterhub_registry.database.search_tables import among
from adapterhub_registry.errors import bad_request
from adapterhub_registry.repos.search import SHOWN, Fit, FoundAdapters, start_of

if TYPE_CHECKING:
    from adapterhub.formats.meaning.encoder import Encoder
    from adapterhub.formats.meaning.ranking import VectorBlock


AT_ONCE: Final = 32
DUE: Final = adapters.c.is_listed & ~exists().where(
    meaning.c.repo_id == adapters.c.repo_id, meaning.c.commit_id == adapters.c.commit_id, meaning.c.model == MODEL
)
"""The builds that wait for vectors."""


def model_place(root: Path) -> Path:
    """Where the registry under `root` keeps the model."""
    return root / "meaning" / MODEL


def has_model(root: Path) -> bool:
    """Whether the model and the packages for it are on this machine."""
    return is_model(model_place(root)) and not missing("find")


def parts(row: Row[Any]) -> list[str]:
    """The texts of a build, a row of `adapters` with its `full_name`, whose vectors stand for it."""
    name = row.name or row.full_name.partition("/")[2]
    return parts_of(name, row.task or "", row.description or "", (row.examples or "").splitlines())


def make(database: Database, root: Path, *, stopped: Event | None = None) -> int:
    """Make the vectors of the builds that are due, until `stopped` is set; their number. Nothing without the model."""
    if not has_model(root):
        return 0
    done, encoder = 0, None
    wanted = select(adapters, repos.c.full_name).join(repos, repos.c.id == adapters.c.repo_id).where(DUE)
    while stopped is None or not stopped.is_set():
        with database.read() as connection:
            rows = connection.execute(wanted.order_by(adapters.c.repo_id).limit(AT_ONCE)).all()
        if not rows:
            break
        encoder = encoder or _encoder(root)
        for row in rows:
            _keep(database, row, _packed(encoder, parts(row)))
        done += len(rows)
    if done:
        with database.begin() as connection:
            forget_unnamed(connection)
    return done


def _keep(database: Database, row: Row[Any], vectors: bytes) -> None:
    mine = {"repo_id": row.repo_id, "commit_id": row.commit_id}
    here = and_(*(meaning.c[name] == value for name, value in mine.items()))
    with contextlib.suppress(IntegrityError), database.begin() as connection:  # another worker, or no such repository
        connection.execute(delete(meaning).where(here))
        connection.execute(insert(meaning).values(**mine, model=MODEL, vectors=vectors))


def forget_unnamed(connection: Connection) -> None:
    """Remove the vectors of builds that searches no longer show."""
    same = (adapters.c.repo_id == meaning.c.repo_id) & (adapters.c.commit_id == meaning.c.commit_id)
    connection.execute(delete(meaning).where(~exists().where(same, adapters.c.is_listed)))


def rebuild(database: Database) -> int:
    """Let every build wait for new vectors; the number of those that had some."""
    with database.begin() as connection:
        return connection.execute(delete(meaning)).rowcount


def waiting(connection: Connection) -> int:
    """How many builds wait for vectors."""
    return connection.scalar(select(func.count()).select_from(adapters).where(DUE)) or 0


def _encoder(root: Path) -> Encoder:
    from adapterhub.formats.meaning.encoder import Encoder

    return Encoder(model_place(root))


def _packed(encoder: Encoder, texts: list[str]) -> bytes:
    from adapterhub.formats.meaning.ranking import packed_build

    return packed_build(encoder.vectors(texts))


_LOOKED_AT: Final = 8
"""So many times the builds that are needed are looked at first."""
_AT_ONCE: Final = 2000
"""So many rows are read at once, so that all of them are in memory once."""
_COMPARED_S: Final = 60.0
"""So often the rows in memory are compared with those of the table: some go, and one may come late."""
_MINE: Final = meaning.c.model == MODEL
_GONE: Final = (0, "")


class _Held:
    """The rows of the table that are in memory, the build and the vectors of each; only `block` is ever replaced.

    A row that is gone stays in its place, as `_GONE`. Until that is known, it is no build that a caller may see.
    """

    def __init__(self, block: VectorBlock) -> None:
        self.block = block
        self.builds: list[tuple[int, str]] = []
        self.last = 0
        self._ids: list[int] = []
        self._place_of: dict[tuple[int, str], int] = {}

    def add(self, connection: Connection, which: ColumnElement[bool], room_for: int = 0) -> None:
        """Read some rows, the first time with room for all."""
        wanted = select(meaning).where(_MINE, which).order_by(meaning.c.id).execution_options(yield_per=_AT_ONCE)
        for rows in connection.execute(wanted).partitions():
            new, first = [(row.repo_id, row.commit_id) for row in rows], len(self.builds)
            for build in self._place_of.keys() & new:  # made again
                self._drop(build)
            self._place_of |= {build: at for at, build in enumerate(new, first)}
            self.block = self.block.with_more([row.vectors for row in rows], room_for)
            self.builds += new
            self._ids += [row.id for row in rows]
            self.last = max(self.last, rows[-1].id)

    def compare(self, connection: Connection) -> None:
        """Drop the rows that the table no longer has, and read those that came late."""
        there = set(connection.scalars(select(meaning.c.id).where(_MINE)))
        for build, at in list(self._place_of.items()):
            if self._ids[at] in there:
                there.remove(self._ids[at])
            else:
                self._drop(build)
        if there:
            self.add(connection, among(meaning.c.id, there))

    def _drop(self, build: tuple[int, str]) -> None:
        at = self._place_of.pop(build)
        self.builds[at] = _GONE
        self.block.forget(at)

    @property
    def count(self) -> int:
        """How many rows this index knows."""
        return len(self._place_of)


class Nearest:
    """Search by meaning in the registry under `root`; the model and the vectors are read when first asked for."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._held: _Held | None = None
        self._compared_at = 0.0

    def serves(self, text: str | None, by: str) -> bool:
        """Whether to search for `text` by meaning: on demand, else for several words where this server has the model.

        Raises:
            HttpRefusal: 400 when it is demanded and the server lacks the model.
        """
        is_here = by != "words" and has_model(self._root)
        if by == "meaning" and not is_here:
            raise bad_request("by=meaning: this server lacks the model; by=words searches by words")
        return is_here and (by == "meaning" or len((text or "").split()) > 1)

    @cached_property
    def _encoder(self) -> Encoder:
        from adapterhub.formats.meaning.encoder import Encoder

        return Encoder(model_place(self._root))

    def ranked(
        self,
        connection: Connection,
        text: str,
        wanted: Met,
        *,
        cursor: str | None,
        limit: int,
    ) -> FoundAdapters:
        """The builds that meet the conditions, nearest first, as `adapter_search.ranked` gives them by words.

        When all are far from the text, the best five.

        Raises:
            HttpRefusal: 400 for a malformed cursor.
        """
        first = start_of(cursor)
        needed = min(first + limit + 1, MOST_RANKED)
        best = self._best(connection, text, wanted, needed)[:MOST_RANKED]
        near = [one for one in best if one[1] >= FAR] or best[:FEWEST]
        page, end = near[first : first + limit], first + limit
        query = SHOWN.join(repos, repos.c.id == adapters.c.repo_id).where(*wanted.filters)
        query = query.where(adapters.c.repo_id.in_([number for number, *_ in page]))
        found = {row.repo_id: row for row in connection.execute(query, wanted.given)}
        fits = {
            number: Fit(score=round(score, 4), matched=_matched(found[number], part))
            for number, score, part in page
            if number in found
        }
        listed: list[Row[Any]] = [found[number] for number in fits]
        return FoundAdapters(rows=listed, next_cursor=str(end) if end < len(near) else None, fits=fits)

    def _best(self, connection: Connection, text: str, wanted: Met, needed: int) -> list[tuple[int, float, int]]:
        """The best permitted builds by number, score and part: at least `needed`, if so many are there.

        It looks at the nearest of all first. When too few of them are permitted, it looks at every one.
        """
        builds, block = self._read(connection)
        scores = block.scores(self._encoder.vectors([text[:MAX_QUESTION]])[0])
        permitted = select(adapters.c.repo_id, adapters.c.commit_id, repos.c.gated)
        permitted = permitted.join(repos, repos.c.id == adapters.c.repo_id).where(*wanted.filters)
        hits: list[tuple[int, float, int]] = []
        for most in (_LOOKED_AT * needed, len(block)):
            every = most >= len(block)
            best = block.best(scores, most)
            some = adapters.c.repo_id.in_([builds[at][0] for at, _, _ in best[: _LOOKED_AT * needed]])
            rows = connection.execute(permitted if every else permitted.where(some), wanted.given).all()
            gated = {(row.repo_id, row.commit_id): row.gated is not None for row in rows}
            hits = []
            for at, score, part in best:
                build = builds[at]
                if build in gated:
                    # a caller without access to the files behind a gate learns nothing of the examples in them
                    fit = (block.of_description(scores, at), 0) if gated[build] else (score, part)
                    hits.append((build[0], *fit))
            hits.sort(key=lambda one: (-one[1], one[0]))
            # of the builds that it did not look at, none is nearer than the last one
            least = best[-1][1] if best else 0.0
            has_all_near = least < FAR and any(score >= FAR for _, score, _ in hits)
            if every or has_all_near or sum(score > least for _, score, _ in hits) >= needed:
                break
        return hits

    def _read(self, connection: Connection) -> tuple[list[tuple[int, str]], VectorBlock]:
        """The builds and their vectors: rows that are new since the last time come behind those in memory."""
        with self._lock:
            if self._held is not None and (connection.scalar(_LAST) or 0) > self._held.last:
                self._held.add(connection, meaning.c.id > self._held.last)
            if self._held is None or monotonic() > self._compared_at + _COMPARED_S:
                self._held = self._compared(connection, self._held)
                self._compared_at = monotonic()
            return self._held.builds, self._held.block

    @staticmethod
    def _compared(connection: Connection, held: _Held | None) -> _Held:
        from adapterhub.formats.meaning.ranking import VectorBlock

        count = connection.scalar(_COUNT) or 0
        if held is not None and held.count != count:
            held.compare(connection)
        if held is None or len(held.builds) > 2 * max(count, _AT_ONCE):  # most rows are gone
            held = _Held(VectorBlock([]))
            held.add(connection, true(), count)
        return held


_LAST: Final = select(func.max(meaning.c.id)).where(_MINE)
_COUNT: Final = select(func.count()).where(_MINE)


def _matched(row: Row[Any], part: int) -> Matched:
    return Matched("prompt", parts(row)[part]) if part else Matched("description", row.description or row.full_name)
