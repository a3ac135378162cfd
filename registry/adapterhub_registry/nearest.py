"""Search by meaning: the builds nearest to a question.

Only builds that the caller may see and that meet the conditions count: another build changes neither the answer nor its
order. The vectors in memory and in the file of cells propose; the rows of the database give rights and scores. So an
index that is behind, or of another database, shows nothing that is not there.

Up to `EXACT` builds are in memory, and each is compared. Of more, a file beside the database has the rest: see
`formats.meaning.cells`. A new build is in memory until the file is written again. Each machine has its file; processes
with one folder share it, and one of them writes it. Without the file, a server of so many builds searches by words
until it is written.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import threading
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from time import monotonic
from typing import IO, TYPE_CHECKING, Any, Final, NamedTuple

from sqlalchemy import ColumnElement, Integer, Row, and_, bindparam, func, select
from sqlalchemy.engine import Connection

from adapterhub.core.disk.files import make_folder
from adapterhub.core.errors import Malformed
from adapterhub.formats.meaning.model import MODEL
from adapterhub.formats.meaning.texts import FAR, FEWEST
from adapterhub.formats.relevance import MAX_QUESTION, MOST_RANKED, Matched
from adapterhub_registry.database.db import Database, adapters, meaning, repos
from adapterhub_registry.database.prepared import Met, PreparedSql
from adapterhub_registry.database.search_tables import among
from adapterhub_registry.errors import bad_request, busy
from adapterhub_registry.repos.search import SHOWN, Fit, FoundAdapters, start_of
from adapterhub_registry.vectors import has_model, model_place, parts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adapterhub.formats.meaning.cells import Builds, CellFile, Found
    from adapterhub.formats.meaning.encoder import Encoder
    from adapterhub.formats.meaning.ranking import VectorBlock

log = logging.getLogger("adapterhub_registry")

EXACT: Final = 100_000
"""Up to so many builds are in memory, where each is compared."""
_MOST: Final = 3 * EXACT // 2
"""With more, a server waits for its file."""
_NEW: Final = 5000
"""So many new builds, or a hundredth of all, are in memory beside the file until it is written again."""
_LOOKS: Final = ((8, 0.15), (64, 0.25), (512, 0.5))
"""How many builds a search looks at, for each that it needs, and in which share of the cells. Then it looks at all."""
_FEW: Final = 2000
"""The vectors of so many builds are read from the table, whatever index there is."""
_AT_ONCE: Final = 2000
_COUNTED_S: Final = 60.0
"""So often what is in memory is compared with the number of rows."""

_MINE: Final = meaning.c.model == MODEL
_SAME: Final = and_(meaning.c.repo_id == adapters.c.repo_id, meaning.c.commit_id == adapters.c.commit_id, _MINE)
_COUNT: Final = select(func.count()).where(_MINE)
_NEXT: Final = PreparedSql(
    select(meaning.c.id, meaning.c.commit_id, meaning.c.vectors)
    .where(_MINE, meaning.c.id > bindparam("last", type_=Integer))
    .order_by(meaning.c.id)
    .limit(_AT_ONCE)
)
_NEXT_MARKS: Final = PreparedSql(
    select(meaning.c.id, meaning.c.commit_id)
    .where(_MINE, meaning.c.id > bindparam("last", type_=Integer))
    .order_by(meaning.c.id)
    .limit(10 * _AT_ONCE)
)
_VECTORS: Final = PreparedSql(
    select(meaning.c.id, meaning.c.commit_id, meaning.c.vectors).where(among(meaning.c.id, "wanted"))
)


class _Permitted(NamedTuple):
    """The statements for the builds that meet some conditions: all, those of `wanted`, and what a page shows."""

    every: PreparedSql
    of_wanted: PreparedSql
    shown: PreparedSql


class _Hit(NamedTuple):
    repo_id: int
    score: float
    part: int


@lru_cache(maxsize=128)
def _permitted(conditions: tuple[ColumnElement[bool], ...]) -> _Permitted:
    seen = select(meaning.c.id, meaning.c.repo_id, repos.c.gated).join_from(meaning, adapters, _SAME)
    seen = seen.join(repos, repos.c.id == adapters.c.repo_id).where(*conditions)
    shown = SHOWN.join(repos, repos.c.id == adapters.c.repo_id).where(*conditions)
    return _Permitted(
        every=PreparedSql(seen),
        of_wanted=PreparedSql(seen.where(among(meaning.c.id, "wanted"))),
        shown=PreparedSql(shown.where(among(adapters.c.repo_id, "wanted"))),
    )


class _Held:
    """The vectors that a search looks at: a file, and what came since in memory; only `block` is ever replaced."""

    def __init__(self, cells: CellFile | None, gone: int = 0) -> None:
        from adapterhub.formats.meaning.ranking import VectorBlock

        self.cells, self._gone = cells, gone
        self.block: VectorBlock = VectorBlock([])
        self.ids: list[int] = []
        self.last = 0

    def add(self, rows: Sequence[tuple[int, str, bytes]], room_for: int = 0) -> None:
        """Take in some rows, the first time with room for all."""
        self.block = self.block.with_more([vectors for *_, vectors in rows], room_for)
        self.ids += [number for number, *_ in rows]
        self.last = max(self.last, rows[-1][0])

    def __len__(self) -> int:
        return len(self.ids) + (0 if self.cells is None else len(self.cells))

    @property
    def is_due(self) -> bool:
        """Whether the file is to be written again, or for the first time."""
        if self.cells is None:
            return len(self.ids) > EXACT
        return max(len(self.ids), self._gone // 25) > max(_NEW, len(self.cells) // 100)

    def best(self, block: VectorBlock, scores: NDArray[Any], question: NDArray[Any], most: int, share: float) -> Found:
        """Return the nearest builds, at most `most`, the nearest first."""
        import numpy as np

        from adapterhub.formats.meaning.cells import Found

        places, tops = block.nearest(scores, most)
        ids = np.array([self.ids[at] for at in places.tolist()], np.int64)
        found = Found(ids, tops.astype(np.float32), np.zeros(len(ids), np.float32))
        if self.cells is None:
            return found
        return found.joined(self.cells.best(question, most, share)).nearest(most)

    def every(self, block: VectorBlock, scores: NDArray[Any], question: NDArray[Any]) -> Found:
        """All builds."""
        import numpy as np

        from adapterhub.formats.meaning.cells import Found

        ids = np.array(self.ids[: len(block)], np.int64)
        found = Found(ids, block.tops(scores), block.of_descriptions(scores))
        return found if self.cells is None else found.joined(self.cells.every(question))


class Nearest:
    """Search by meaning in the registry under `root`; the model and the vectors are read when first asked for."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._place = root / "meaning" / f"{MODEL}.cells"
        self._lock = threading.Lock()
        self._held: _Held | None = None
        self._looked_at = self._counted_at = -1e9
        self._file: tuple[int, int] | None = None

    def serves(self, connection: Connection, text: str | None, by: str) -> bool:
        """Return True to search for `text` by meaning: on demand, or for several words if this server can.

        Raises:
            HttpRefusal: 400 when it is demanded and the server lacks the model, 503 while it makes its index.
        """
        if by == "words" or (by != "meaning" and len((text or "").split()) <= 1):
            return False
        is_here = has_model(self._root)
        if by == "meaning" and not is_here:
            raise bad_request("by=meaning: this server lacks the model; search with by=words")
        is_ready = is_here and self._read(connection) is not None
        if by == "meaning" and not is_ready:
            raise busy("by=meaning: this server is still building its index of vectors; try again, or search by=words")
        return is_ready

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
        is_few: bool,
    ) -> FoundAdapters:
        """Return the builds that meet the conditions, nearest first, as `search.ranked` gives them by words.

        When all are far from the text, the best five. `is_few` says that the conditions name the few that may match.

        Raises:
            HttpRefusal: 400 for a malformed cursor.
        """
        first = start_of(cursor)
        needed = min(first + limit + 1, MOST_RANKED)
        best = self._best(connection, text, wanted, needed, is_few=is_few)[:MOST_RANKED]
        near = [one for one in best if one.score >= FAR] or best[:FEWEST]
        page, end = near[first : first + limit], first + limit
        numbers = json.dumps([hit.repo_id for hit in page])
        shown = _permitted(tuple(wanted.filters)).shown.rows(connection, **wanted.given, wanted=numbers)
        found = {row.repo_id: row for row in shown}
        fits = {
            hit.repo_id: Fit(score=round(hit.score, 4), matched=_matched(found[hit.repo_id], hit.part))
            for hit in page
            if hit.repo_id in found
        }
        return FoundAdapters(
            rows=[found[number] for number in fits], next_cursor=str(end) if end < len(near) else None, fits=fits
        )

    def _best(self, connection: Connection, text: str, wanted: Met, needed: int, *, is_few: bool) -> list[_Hit]:
        """Return the best permitted builds: at least `needed`, if so many are there.

        It looks at the nearest of all first. When too few of them are permitted, it looks at more, in the end at all.
        """
        held = self._read(connection)
        if held is None:  # since `serves`
            raise busy("this server is still building its index of vectors; try again")
        statements = _permitted(tuple(wanted.filters))
        question = self._encoder.vectors([text[:MAX_QUESTION]])[0]
        if is_few:
            return _weighed(connection, question, statements.every.tuples(connection, **wanted.given), None, needed)
        block = held.block
        scores = block.scores(question)
        for many, share in _LOOKS:
            most = many * needed
            if most >= len(held):
                break
            best = held.best(block, scores, question, most, share)
            numbers = json.dumps(best.ids.tolist())
            rows = statements.of_wanted.tuples(connection, **wanted.given, wanted=numbers)
            hits = _weighed(connection, question, rows, best.ids, needed)
            # of the builds that it did not look at, none is nearer than the last one
            least = float(best.scores[-1]) if len(best.scores) == most else -1.0
            has_all_near = least < FAR and any(hit.score >= FAR for hit in hits)
            if has_all_near or sum(hit.score > least for hit in hits) >= needed:
                return hits
        rows = statements.every.tuples(connection, **wanted.given)
        if len(rows) > _FEW:
            rows = _nearest_of(rows, held.every(block, scores, question), needed)
        return _weighed(connection, question, rows, None, needed)

    def _read(self, connection: Connection) -> _Held | None:
        """Return the index for searches, with rows that are new since the last time; None while the file is made."""
        with self._lock:
            if self._held is None and monotonic() > self._looked_at + 1:
                self._file, self._looked_at = _stamp(self._place), monotonic()
                self._held = _held_of(connection, self._known(connection))
            held = self._held
            if held is not None:
                _add_new(connection, held)
            return held

    def keep(self, database: Database) -> bool:
        """Take in what is new, and write the file where that is due; whether it was written.

        Of several processes with one folder, one writes at a time; the others take its file.
        """
        if not has_model(self._root):
            return False
        with database.read() as connection:
            held = self._read(connection)
            count = connection.scalar(_COUNT) if held is None or self._is_to_count() else None
        is_other = _stamp(self._place) != self._file
        if held is not None and not is_other and not held.is_due:
            if held.cells is None and count is not None and len(held) > 2 * max(count, _AT_ONCE):  # most rows are gone
                with self._lock:
                    self._held, self._looked_at = None, -1e9
            return False
        if held is None and (count or 0) <= _MOST and not is_other:
            return False
        with _alone(self._place) as is_mine:
            return is_mine and self._renew(database)

    def _is_to_count(self) -> bool:
        is_time = monotonic() > self._counted_at + _COUNTED_S
        if is_time:
            self._counted_at = monotonic()
        return is_time

    def _renew(self, database: Database) -> bool:
        """Take the file, and write it first where it lacks much; whether it was written."""
        from adapterhub.formats.meaning.cells import write_cells

        file = _stamp(self._place)
        with database.read() as connection:
            known = self._known(connection)
            held = _held_of(connection, known)
        is_due = held is None or held.is_due
        if is_due:
            more = _builds(database, None if known is None else known.lacking)
            before, keeps = (None, None) if known is None else (known.cells, known.keeps)
            write_cells(self._place, MODEL, more, before, keeps)
            file = _stamp(self._place)
            with database.read() as connection:
                held = _held_of(connection, self._known(connection))
        with self._lock:
            self._held, self._file = held, file
        return is_due

    def _known(self, connection: Connection) -> _Known | None:
        """Return the file beside the rows of the table; None without it, or where it is of another database."""
        import numpy as np

        from adapterhub.formats.meaning.cells import CellFile

        try:
            cells = CellFile.opened(self._place, MODEL)
        except FileNotFoundError:
            return None
        except (Malformed, OSError) as error:
            log.warning("the index of vectors is made again: %s", error)
            return None
        ids, marks, last, lacking = cells.columns["ids"], cells.columns["marks"], 0, list[int]()
        keeps, order = np.zeros(len(ids), bool), np.argsort(ids, kind="stable")
        while rows := _NEXT_MARKS.tuples(connection, last=last):
            numbers, mine = (np.array([row[at] for row in rows], kind) for at, kind in ((0, "i8"), (1, "S40")))
            last = int(numbers[-1])
            places = order[np.minimum(np.searchsorted(ids, numbers, sorter=order), len(ids) - 1)]
            is_there = ids[places] == numbers
            if (marks[places] != mine)[is_there].any():
                log.warning("the index of vectors is of another database, and is made again")
                return None
            keeps[places[is_there]] = True
            lacking += numbers[~is_there].tolist()
        return _Known(cells, keeps, lacking)


class _Known(NamedTuple):
    """The file, which of its builds the table still has, and the numbers of those that it lacks."""

    cells: CellFile
    keeps: NDArray[Any]
    lacking: list[int]


def _held_of(connection: Connection, known: _Known | None) -> _Held | None:
    """Return the file and the rows that it lacks; None when these are too many for memory."""
    if known is None:
        count = connection.scalar(_COUNT) or 0
        if count > _MOST:
            return None
        held = _Held(None)
        _add_new(connection, held, count)
        return held
    if len(known.lacking) > _MOST:
        return None
    held = _Held(known.cells, gone=int((~known.keeps).sum()))
    held.last = int(known.cells.columns["ids"].max())
    for at in range(0, len(known.lacking), _AT_ONCE):
        rows = _VECTORS.tuples(connection, wanted=json.dumps(known.lacking[at : at + _AT_ONCE]))
        held.add(sorted((row[0], row[1], row[2]) for row in rows))
    return held


def _stamp(path: Path) -> tuple[int, int] | None:
    """Return the stamp that tells a file from another one at its place."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


@contextlib.contextmanager
def _alone(place: Path) -> Iterator[bool]:
    """Whether no other process writes the file, until the block ends."""
    make_folder(place.parent)
    with place.with_suffix(".lock").open("w") as lock:
        yield _locked(lock)


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _add_new(connection: Connection, held: _Held, room_for: int = 0) -> None:
    while True:
        rows = _NEXT.tuples(connection, last=held.last)
        if rows:
            held.add([(row[0], row[1], row[2]) for row in rows], room_for)
        if len(rows) < _AT_ONCE:
            return


def _builds(database: Database, numbers: Sequence[int] | None) -> Iterator[Builds]:
    """Yield the builds of the table with these numbers, or all, each time in a transaction that soon ends."""
    from adapterhub.formats.meaning.cells import Builds

    last, at = 0, 0
    while numbers is None or at < len(numbers):
        with database.read() as connection:
            if numbers is None:
                rows = _NEXT.tuples(connection, last=last)
            else:
                rows = _VECTORS.tuples(connection, wanted=json.dumps(numbers[at : at + _AT_ONCE]))
        at += _AT_ONCE
        if rows:
            last = max(row[0] for row in rows)
            yield Builds(*zip(*rows, strict=True))
        elif numbers is None:
            return


def _weighed(
    connection: Connection,
    question: NDArray[Any],
    rows: Sequence[tuple[Any, ...]],
    order: NDArray[Any] | None,
    needed: int,
) -> list[_Hit]:
    """Return the permitted rows with their scores by the vectors of the table, the nearest first.

    In the `order` of an index, those behind the first ones are left out. A caller without access to the files behind a
    gate learns nothing of the examples in them: these count by their descriptions, wherever they are in that order.
    """
    from adapterhub.formats.meaning.ranking import VectorBlock

    known = {number: (repo_id, gated is not None) for number, repo_id, gated in rows}
    if order is None:
        wanted = list(known)
    else:
        open_ones = [number for number in order.tolist() if number in known and not known[number][1]]
        wanted = [*open_ones[: 2 * needed], *(number for number, (_, is_gated) in known.items() if is_gated)]
    hits: list[_Hit] = []
    for at in range(0, len(wanted), _AT_ONCE):
        found = _VECTORS.tuples(connection, wanted=json.dumps(wanted[at : at + _AT_ONCE]))
        block = VectorBlock([vectors for *_, vectors in found])
        scores = block.scores(question)
        plain = block.of_descriptions(scores).tolist()
        for place, score, part in block.best(scores, len(found)):
            repo_id, is_gated = known[found[place][0]]
            hits.append(_Hit(repo_id, *((plain[place], 0) if is_gated else (score, part))))
    return sorted(hits, key=lambda hit: (-hit.score, hit.repo_id))


def _nearest_of(rows: Sequence[tuple[Any, ...]], every: Found, needed: int) -> list[tuple[Any, ...]]:
    """Return the nearest of very many permitted rows."""
    import numpy as np

    order = np.argsort(every.ids, kind="stable")
    numbers = np.array([row[0] for row in rows])
    places = order[np.minimum(np.searchsorted(every.ids, numbers, sorter=order), len(order) - 1)]
    is_gated = np.array([row[2] is not None for row in rows])
    scores = np.where(is_gated, every.plain[places], every.scores[places])
    scores[every.ids[places] != numbers] = -2
    return [rows[at] for at in np.argsort(-scores, kind="stable")[: 2 * needed].tolist()]


def _matched(row: Row[Any], part: int) -> Matched:
    return Matched("prompt", parts(row)[part]) if part else Matched("description", row.description or row.full_name)
