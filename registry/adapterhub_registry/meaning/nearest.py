"""The builds that are nearest to a question, by the vectors that one server holds in memory.

A search first reads which builds the caller may see and the conditions admit, and ranks only those: another build
changes neither the answer nor its order.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Row, func, select
from sqlalchemy.engine import Connection

from adapterhub.formats.meaning.model import MODEL
from adapterhub.formats.meaning.texts import FAR, FEWEST
from adapterhub.formats.relevance import MAX_QUESTION, MOST_RANKED, Matched
from adapterhub_registry.database.db import adapters, repos
from adapterhub_registry.database.meaning_tables import meaning
from adapterhub_registry.errors import bad_request
from adapterhub_registry.meaning.vectors import has_model, model_place, parts
from adapterhub_registry.repos.adapter_search import SHOWN, AdapterPage, Fit, start_of

if TYPE_CHECKING:
    from adapterhub.formats.meaning.encoder import Encoder
    from adapterhub.formats.meaning.ranking import Block


@dataclass(frozen=True, slots=True)
class _Held:
    """What was read of the table: up to which row, how many rows, where each build is, and all vectors."""

    last: int
    count: int
    places: dict[tuple[int, str], int]
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
        conditions: Sequence[ColumnElement[bool]],
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
        joined = repos.c.id == adapters.c.repo_id
        permitted = select(adapters.c.repo_id, adapters.c.commit_id, repos.c.gated).join(repos, joined)
        held = self._read(connection)
        rows = connection.execute(permitted.where(*conditions).order_by(adapters.c.repo_id)).all()
        known = [(row, place) for row in rows if (place := held.places.get((row.repo_id, row.commit_id))) is not None]
        question = self._encoder.vectors([text[:MAX_QUESTION]])[0]
        # who may not read the files of a gated repository learns nothing of the examples in them
        block = held.block.only([(place, row.gated is None) for row, place in known])
        best = [(known[at][0].repo_id, *fit) for at, *fit in block.best(block.scores(question), MOST_RANKED)]
        near = [one for one in best if one[1] >= FAR] or best[:FEWEST]
        page, end = near[first : first + limit], first + limit
        shown_rows = SHOWN.join(repos, joined).where(*conditions, adapters.c.repo_id.in_([one[0] for one in page]))
        found = {row.repo_id: row for row in connection.execute(shown_rows)}
        fits = {
            number: Fit(score=round(score, 4), matched=_matched(found[number], part))
            for number, score, part in page
            if number in found
        }
        listed: list[Row[Any]] = [found[number] for number in fits]
        return AdapterPage(rows=listed, next_cursor=str(end) if end < len(near) else None, fits=fits)

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
            places = {(row.repo_id, row.commit_id): at for at, row in enumerate(rows)}
            self._held = _Held(last, count, places, Block([row.vectors for row in rows]))
            return self._held


def _matched(row: Row[Any], part: int) -> Matched:
    return Matched("prompt", parts(row)[part]) if part else Matched("description", row.description or row.full_name)
