"""The origins of installed builds, so that a damaged file can be fetched again by its digest.

    origins/<64 hex of the manifest>.json               {"adapter", "name", "place", "repository"}
    origins/<64 hex of the manifest>.<namespace>.json   an earlier one under another full name; `-` for none

`place` is a URL or an absolute path; it is empty for a build that was made in this library, which has no origin.
`repository` is that of a server which the build came from; records of earlier versions lack it. Bytes from there are
hashed, so the record need not be trusted for them. For the name it counts: under a namespace that the user gave to a
server, a build answers only if it came from there (`admission.py`).
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapterhub.core.digests import Digest, canonical_json, hex_of, parse_digest
from adapterhub.core.disk.files import read_json
from adapterhub.core.disk.root import absolute
from adapterhub.core.errors import NotAllowed
from adapterhub.library.store.blobs import Store

_KEYS: Final = ("adapter", "name", "place")
_URL: Final = re.compile(r"[a-z][a-z0-9+.-]*://")


def is_url(place: str) -> bool:
    """Return whether a place is reached over a network; otherwise it is a path."""
    return _URL.match(place) is not None


def address_in(place: str, repository: str) -> str:
    """Return a repository of a place, as one text; without a repository the place."""
    return f"{place}/{repository}" if repository else place


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """`name` is the full name under which `place`, a URL or an absolute path, offers the build `adapter`.

    `repository` is where on a server; "" for a path, and where it is not known.
    """

    adapter: Digest
    name: str
    place: str
    repository: str = ""

    @property
    def is_server(self) -> bool:
        """Whether it is reached over a network; a directory is an absolute path."""
        return is_url(self.place)

    @property
    def address(self) -> str:
        """The place, and the repository there where it is known: whose word on the build counts."""
        return address_in(self.place, self.repository)


@dataclass(frozen=True)
class Origins:
    """The records of one library."""

    _store: Store

    def record(self, origin: Origin) -> None:
        """Record the origin of a build under its full name; this replaces an older record of that name."""
        latest = self.of(origin.adapter)
        if latest == origin:
            return
        if latest is not None and latest.name != origin.name:  # kept first: a crash in between loses nothing
            self._write(self._path_under(latest.adapter, latest.name), latest)
        self._write(self._path(origin.adapter), origin)

    def _write(self, path: Path, origin: Origin) -> None:
        value = {"adapter": origin.adapter, "name": origin.name, "place": origin.place}
        value |= {"repository": origin.repository} if origin.repository else {}
        self._store.write(path, canonical_json(value), sync=False)

    def record_made_here(self, adapter: Digest, name: str) -> None:
        """Record that a build was made in this library, unless it has an origin."""
        if self.of(adapter) is None:
            self._write(self._path(adapter), Origin(adapter=adapter, name=name, place=""))

    def is_made_here(self, adapter: Digest) -> bool:
        """Return whether a build was made in this library and came from nowhere else since."""
        found = self._read(self._path(adapter))
        return found is not None and not found.place

    def of(self, adapter: Digest) -> Origin | None:
        """Return the latest origin of a build under any name.

        None if it was made here or the record is missing or damaged.
        """
        found = self._read(self._path(adapter))
        return found if found is not None and found.place else None

    def under(self, adapter: Digest, name: str) -> Origin | None:
        """Return the origin of a build under this full name; None if the record is missing or damaged."""
        latest = self.of(adapter)
        found = latest if latest is not None and latest.name == name else self._read(self._path_under(adapter, name))
        return found if found is not None and (found.adapter, found.name) == (adapter, name) else None

    def place_of(self, adapter: Digest, name: str) -> str:
        """Return the place that a build came from under this full name; the library itself if no record exists."""
        origin = self.under(adapter, name)
        return origin.place if origin else absolute(self._store.root)

    @staticmethod
    def _read(path: Path) -> Origin | None:
        try:
            return read_origin(path)
        except (OSError, ValueError):
            return None

    def _path(self, adapter: Digest) -> Path:
        return self._store.root / "origins" / f"{hex_of(adapter)}.json"

    def _path_under(self, adapter: Digest, name: str) -> Path:
        namespace = name.rpartition("/")[0] or "-"  # which no namespace is
        return self._store.root / "origins" / f"{hex_of(adapter)}.{namespace}.json"


def read_origin(path: Path) -> Origin:
    """Return the origin in a file.

    Raises:
        OSError, ValueError: it is missing or damaged.
    """
    value = read_json(path)
    if not isinstance(value, dict) or not all(isinstance(value.get(key), str) for key in _KEYS):
        raise ValueError(f"expected an object with the texts {', '.join(_KEYS)}")
    repository = value.get("repository", "")
    if not isinstance(repository, str):
        raise ValueError("expected a text as `repository`")
    digest = parse_digest(value["adapter"])
    return Origin(adapter=digest, name=value["name"], place=value["place"], repository=repository)


@dataclass(frozen=True)
class Yanks:
    """The records of one library."""

    _store: Store

    def reason(self, adapter: Digest, address: str) -> str | None:
        """Return why a build was yanked at `address`, as far as was seen; "" without a reason, None if it was not."""
        return self.places(adapter).get(address)

    def noted(self) -> set[str]:
        """Return the digests of the builds that some place was seen to have yanked; one read of a folder."""
        try:
            names = os.listdir(self._store.root / "yanked")  # noqa: PTH208 - names alone
        except OSError:
            return set()
        return {f"sha256:{name.removesuffix('.json')}" for name in names}

    def note(self, adapter: Digest, address: str, reason: str | None) -> None:
        """Remember that a build of this library was yanked at `address`; with None, that it was not."""
        if not self._store.has_manifest(adapter):
            return
        places = dict(self.places(adapter))
        before = dict(places)
        places.pop(address, None)
        if reason is not None:
            places[address] = reason
        if places == before:
            return
        path = self._path(adapter)
        with contextlib.suppress(NotAllowed):  # a library that cannot be written is still good to read
            if places:
                self._store.write(path, canonical_json({"adapter": adapter, "places": places}), sync=False)
            else:
                with self._store.os_errors_as_refusals():
                    path.unlink(missing_ok=True)

    def places(self, adapter: Digest) -> Mapping[str, str]:
        """Return the reason of each address where a build was seen to be yanked."""
        try:
            value = read_json(self._path(adapter))
        except (OSError, ValueError):
            return {}
        places = value.get("places") if isinstance(value, dict) else None
        if not isinstance(places, dict):
            return {}
        return {place: why for place, why in places.items() if isinstance(why, str)}

    def _path(self, adapter: Digest) -> Path:
        return self._store.root / "yanked" / f"{hex_of(adapter)}.json"
