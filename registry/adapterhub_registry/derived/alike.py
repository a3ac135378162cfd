"""Builds whose updates are alike, by their sketches: all of them in memory, and compared in one pass.

What a caller may read is decided afterwards, for every build that is near, so that hidden ones change neither the
answer nor its length.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import ColumnElement, Row, func, select, true
from sqlalchemy.engine import Connection

from adapterhub_registry.database.derived_tables import sketches

if TYPE_CHECKING:
    from adapterhub.formats.derived.likeness import Sketches

FLOOR: Final = 0.9
"""The least cosine in an answer. Below, sketches err too much, and each answer would tell more of their key."""
DIGITS: Final = 2
_COUNTED_S: Final = 60.0
"""Sketches are counted when there is a later one, and this often: some go, and one may be of the same millisecond."""


@dataclass(frozen=True, slots=True)
class _Known:
    digests: list[str]
    packed: Sketches


@dataclass(slots=True)
class KnownSketches:
    """The sketches of a database: new ones are added to those in memory; all are read again when one is gone."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _count: int = 0
    _last_ms: int = 0
    _counted_at: float = -_COUNTED_S
    _at_last: set[str] = field(default_factory=set)
    _of_key: dict[str, _Known] = field(default_factory=dict)

    def near(self, connection: Connection, digest: str, above: float) -> dict[str, float] | None:
        """The cosine with each build, by digest, that is `above` or more or as much negated; None without a sketch.

        The cosines are rounded to `DIGITS`, and `above` is at least `FLOOR`.
        """
        wanted = select(sketches.c.key_id, sketches.c.sketch).where(sketches.c.digest == digest)
        mine = connection.execute(wanted).one_or_none()
        if mine is None:
            return None
        known = self._read(connection).get(mine.key_id)
        if known is None:
            return {}
        found = known.packed.cosines(mine.sketch).round(DIGITS)
        least = max(above, FLOOR) - 10.0 ** -(DIGITS + 3)  # float32 has no 0.9
        near = (abs(found) >= least).nonzero()[0].tolist()
        return {known.digests[at]: round(float(found[at]), DIGITS) for at in near if known.digests[at] != digest}

    def _read(self, connection: Connection) -> dict[str, _Known]:
        last_ms = connection.scalar(select(func.max(sketches.c.made_at))) or 0
        with self._lock:
            if last_ms == self._last_ms and monotonic() < self._counted_at + _COUNTED_S:
                return self._of_key
            count = connection.scalar(select(func.count()).select_from(sketches)) or 0
            self._counted_at = monotonic()
            if (count, last_ms) == (self._count, self._last_ms):
                return self._of_key
            since = _rows(connection, sketches.c.made_at >= self._last_ms)
            new = [row for row in since if row.digest not in self._at_last]
            if self._count + len(new) != count:  # some are gone, or were made again
                self._of_key, new = {}, _rows(connection, true())
            self._of_key = _with(self._of_key, new)
            self._count, self._last_ms = count, last_ms
            self._at_last = {row.digest for row in (*since, *new) if row.made_at == self._last_ms}
            return self._of_key


def _rows(connection: Connection, which: ColumnElement[bool]) -> list[Row[Any]]:
    return list(connection.execute(select(sketches).where(which)).all())


def _with(before: Mapping[str, _Known], rows: Sequence[Row[Any]]) -> dict[str, _Known]:
    from adapterhub.formats.derived.likeness import Sketches  # noqa: PLC0415 - numpy, for these answers alone

    after = dict(before)
    for key in {row.key_id for row in rows}:
        mine = [row for row in rows if row.key_id == key]
        found, packed = after.get(key), [row.sketch for row in mine]
        digests = [row.digest for row in mine]
        after[key] = (
            _Known(digests, Sketches(packed))
            if found is None
            else _Known([*found.digests, *digests], found.packed.with_more(packed))
        )
    return after
