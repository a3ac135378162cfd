"""Where installed builds came from, so that a damaged file can be fetched again by its digest.

    origins/<64 hex of the manifest>.json   {"adapter", "name", "place"}

`place` is a URL or an absolute path. The record is a help, not a truth: whatever comes from there is hashed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapterhub.digests import Digest, canonical_json, hex_of, parse_digest, read_json
from adapterhub.store import Store

_KEYS: Final = ("adapter", "name", "place")


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """`name` is the full name under which `place`, a URL or an absolute path, offers the build `adapter`."""

    adapter: Digest
    name: str
    place: str

    @property
    def is_server(self) -> bool:
        """Whether it is asked by HTTP."""
        return self.place.startswith(("http://", "https://"))


class Origins:
    """The records of one library."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def record(self, origin: Origin) -> None:
        """Remember where a build came from; an older record of the same build gives way."""
        if self.of(origin.adapter) == origin:
            return
        value = {"adapter": origin.adapter, "name": origin.name, "place": origin.place}
        self._store.write(self._path(origin.adapter), canonical_json(value), sync=False)

    def of(self, adapter: Digest) -> Origin | None:
        """Where the build came from; None when nobody noted it or the note is damaged."""
        try:
            value = read_json(self._path(adapter))
        except (OSError, ValueError):
            return None
        if not isinstance(value, dict) or not all(isinstance(value.get(key), str) for key in _KEYS):
            return None
        try:
            return Origin(adapter=parse_digest(value["adapter"]), name=value["name"], place=value["place"])
        except ValueError:
            return None

    def _path(self, adapter: Digest) -> Path:
        return self._store.root / "origins" / f"{hex_of(adapter)}.json"
