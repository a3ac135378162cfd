"""Builds whose updates are alike, by their sketches: all of them in memory, and compared in one pass.

What a caller may read is decided afterwards, for every build that is near, so that hidden ones change neither the
answer nor its length.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select
from sqlalchemy.engine import Connection

from adapterhub_registry.database.derived_tables import sketches

if TYPE_CHECKING:
    from adapterhub.formats.derived.sketch import Sketches

FLOOR: Final = 0.9
"""The least cosine in an answer. Below, sketches err too much, and each answer would tell more of their key."""
DIGITS: Final = 2


@dataclass(frozen=True, slots=True)
class _Known:
    digests: list[str]
    packed: Sketches


@dataclass(slots=True)
class KnownSketches:
    """The sketches of a database, read again when one was added or is gone."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _generation: tuple[object, ...] = ()
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
        generation = tuple(connection.execute(select(func.count(), func.max(sketches.c.made_at))).one())
        with self._lock:
            if generation != self._generation:
                self._of_key, self._generation = _read_all(connection), generation
            return self._of_key


def _read_all(connection: Connection) -> dict[str, _Known]:
    from adapterhub.formats.derived.sketch import Sketches  # noqa: PLC0415 - numpy, for these answers alone

    rows: dict[str, list[tuple[str, bytes]]] = {}
    for digest, key_id, sketch in connection.execute(select(sketches.c.digest, sketches.c.key_id, sketches.c.sketch)):
        rows.setdefault(key_id, []).append((digest, sketch))
    return {key: _Known([one for one, _ in pairs], Sketches([one for _, one in pairs])) for key, pairs in rows.items()}
