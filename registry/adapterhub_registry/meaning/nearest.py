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

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.engine import Connection

from adapterhub.formats.meaning.model import MODEL
from adapterhub.formats.meaning.texts import FAR
from adapterhub.formats.relevance import MAX_QUESTION
from adapterhub_registry.database.db import adapters, repos
from adapterhub_registry.database.meaning_tables import meaning
from adapterhub_registry.meaning.vectors import has_model, model_place

if TYPE_CHECKING:
    from adapterhub.formats.meaning.encoder import Encoder
    from adapterhub.formats.meaning.ranking import Block


@dataclass(frozen=True, slots=True)
class Near:
    """A build by its repository, its score up to 1, and the part of its texts that is nearest (see `vectors.parts`)."""

    repo_id: int
    score: float
    part: int

    @property
    def is_far(self) -> bool:
        """Whether the build has little to do with the question."""
        return self.score < FAR


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

    @property
    def is_ready(self) -> bool:
        """Whether this server has the model."""
        return has_model(self._root)

    @cached_property
    def _encoder(self) -> Encoder:
        from adapterhub.formats.meaning.encoder import Encoder  # noqa: PLC0415 - numpy, only for this search

        return Encoder(model_place(self._root))

    def search(
        self, connection: Connection, text: str, conditions: Sequence[ColumnElement[bool]], most: int
    ) -> list[Near]:
        """The builds that meet the conditions on `adapters` and `repos`, nearest first."""
        permitted = select(adapters.c.repo_id, adapters.c.commit_id).join(repos, repos.c.id == adapters.c.repo_id)
        found = connection.execute(permitted.where(*conditions)).all()
        held = self._read(connection)
        known = [(row.repo_id, place) for row in found if (place := held.places.get((row[0], row[1]))) is not None]
        if not known:
            return []
        question = self._encoder.vectors([text[:MAX_QUESTION]])[0]
        numbers = [number for number, _ in known]
        chosen = held.block.only([place for _, place in known])
        best = chosen.best(chosen.scores(question), most)
        return [Near(numbers[at], round(score, 4), part) for at, score, part in best]

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
