"""The builds that are nearest to a question, by the vectors that one server holds in memory.

Only builds that the caller may see and that meet the conditions count: another build changes neither the answer nor its
order.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Row, func, select
from sqlalchemy.engine import Connection

from adapterhub.formats.meaning.model import MODEL
from adapterhub.formats.meaning.texts import FAR, FEWEST
from adapterhub.formats.relevance import MAX_QUESTION, MOST_RANKED, Matched
from adapterhub_registry.database.conditions import Met
from adapterhub_registry.database.db import adapters, repos
from adapterhub_registry.database.meaning_tables import meaning
from adapterhub_registry.errors import bad_request
from adapterhub_registry.meaning.vectors import has_model, model_place, parts
from adapterhub_registry.repos.adapter_search import SHOWN, AdapterPage, Fit, start_of

if TYPE_CHECKING:
    from adapterhub.formats.meaning.encoder import Encoder
    from adapterhub.formats.meaning.ranking import Block

_LOOKED_AT: Final = 8
"""So many times the builds that are needed are looked at first."""


@dataclass(frozen=True, slots=True)
class _Held:
    """What was read of the table: up to which row, how many rows, which build is where, and all vectors."""

    last: int
    count: int
    builds: list[tuple[int, str]]
    block: Block


class Nearest:
    """Search by meaning in the registry under `root`; the model and the vectors are read when first asked for."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._held: _Held | None = None

    def serves(self, text: str | None, by: str) -> bool:
        """Whether to search for `text` by meaning: on demand, else for several words where this server has the model.

        Raises:
            Refusal: 400 when it is demanded and the server lacks the model.
        """
        is_here = by != "words" and has_model(self._root)
        if by == "meaning" and not is_here:
            raise bad_request("by=meaning: this server lacks the model; by=words searches by words")
        return is_here and (by == "meaning" or len((text or "").split()) > 1)

    @cached_property
    def _encoder(self) -> Encoder:
        from adapterhub.formats.meaning.encoder import Encoder  # noqa: PLC0415 - numpy, only for this search

        return Encoder(model_place(self._root))

    def ranked(
        self,
        connection: Connection,
        text: str,
        wanted: Met,
        *,
        cursor: str | None,
        limit: int,
    ) -> AdapterPage:
        """The builds that meet the conditions, nearest first, as `adapter_search.ranked` gives them by words.

        When all are far from the text, the best five.

        Raises:
            Refusal: 400 for a malformed cursor.
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
        return AdapterPage(rows=listed, next_cursor=str(end) if end < len(near) else None, fits=fits)

    def _best(self, connection: Connection, text: str, wanted: Met, needed: int) -> list[tuple[int, float, int]]:
        """The best permitted builds by number, score and part: at least `needed`, if so many are there.

        It looks at the nearest of all first. When too few of them are permitted, it looks at every one.
        """
        held = self._read(connection)
        scores = held.block.scores(self._encoder.vectors([text[:MAX_QUESTION]])[0])
        permitted = select(adapters.c.repo_id, adapters.c.commit_id, repos.c.gated)
        permitted = permitted.join(repos, repos.c.id == adapters.c.repo_id).where(*wanted.filters)
        hits: list[tuple[int, float, int]] = []
        for most in (_LOOKED_AT * needed, len(held.builds)):
            every = most >= len(held.builds)
            best = held.block.best(scores, most)
            some = adapters.c.repo_id.in_([held.builds[at][0] for at, _, _ in best[: _LOOKED_AT * needed]])
            rows = connection.execute(permitted if every else permitted.where(some), wanted.given).all()
            gated = {(row.repo_id, row.commit_id): row.gated is not None for row in rows}
            hits = []
            for at, score, part in best:
                build = held.builds[at]
                if build in gated:
                    # a caller without access to the files behind a gate learns nothing of the examples in them
                    fit = (held.block.of_description(scores, at), 0) if gated[build] else (score, part)
                    hits.append((build[0], *fit))
            hits.sort(key=lambda one: (-one[1], one[0]))
            # of the builds that it did not look at, none is nearer than the last one
            least = best[-1][1] if best else 0.0
            has_all_near = least < FAR and any(score >= FAR for _, score, _ in hits)
            if every or has_all_near or sum(score > least for _, score, _ in hits) >= needed:
                break
        return hits

    def _read(self, connection: Connection) -> _Held:
        """The vectors, read again when the table has others; new ones are added to those that are there."""
        from adapterhub.formats.meaning.ranking import Block  # noqa: PLC0415 - numpy, only for this search

        mine = meaning.c.model == MODEL
        state = select(func.coalesce(func.max(meaning.c.id), 0), func.count()).where(mine)
        with self._lock:
            last, count = connection.execute(state).one()
            held = self._held
            if held is not None and (held.last, held.count) == (last, count):
                return held
            rows: Sequence[Any] = connection.execute(select(meaning).where(mine).order_by(meaning.c.id)).all()
            builds = [(row.repo_id, row.commit_id) for row in rows]
            self._held = _Held(last, count, builds, Block([row.vectors for row in rows]))
            return self._held


def _matched(row: Row[Any], part: int) -> Matched:
    return Matched("prompt", parts(row)[part]) if part else Matched("description", row.description or row.full_name)
