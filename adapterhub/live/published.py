"""The events of a stream's past."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from adapterhub.core.dates import time_text
from adapterhub.core.digests import Digest
from adapterhub.formats.documented import Documented


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveEvent(Documented, keys="kind version digest time why?"):
    """The alias of a stream moved to a version, or its gate refused one. `place` orders the events of a stream."""

    kind: Literal["moved", "refused"]
    version: str
    digest: Annotated[Digest, "of the manifest"]
    at: float
    why: str | None = None
    place: tuple[int, int] = (0, 0)

    @property
    def time(self) -> str:
        """RFC 3339."""
        return time_text(self.at)
