"""Remembers which builds their servers have yanked, so that a command tells it again when the server does not answer.

    yanked/<64 hex of the manifest>.json   {"adapter", "places": {url: reason}}

A record counts for a build only if it came from that place: no other server can withdraw it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.core.digests import Digest, canonical_json, hex_of
from adapterhub.core.disk.files import read_json
from adapterhub.core.errors import NotAllowed
from adapterhub.library.store.blobs import Store

if TYPE_CHECKING:
    from adapterhub.formats.release import Release


class Yanks:
    """The records of one library."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def reason(self, adapter: Digest, place: str) -> str | None:
        """Why `place` yanked a build, as far as was seen; "" without a reason, None if it did not."""
        return self.places(adapter).get(place)

    def saw(self, place: str, releases: Iterable[Release]) -> None:
        """Remember what `place` says of the builds that the library has."""
        noted = self.noted()
        for release in releases:
            if release.yanked is not None or release.digest in noted:
                self.note(release.digest, place, release.yanked)

    def noted(self) -> set[str]:
        """The digests of the builds that some place was seen to have yanked; one read of a folder."""
        try:
            names = os.listdir(self._store.root / "yanked")  # noqa: PTH208 - names alone
        except OSError:
            return set()
        return {f"sha256:{name.removesuffix('.json')}" for name in names}

    def note(self, adapter: Digest, place: str, reason: str | None) -> None:
        """Remember that `place` yanked a build of this library; with None, that it did not."""
        if not self._store.has_manifest(adapter):
            return
        places = dict(self.places(adapter))
        before = dict(places)
        places.pop(place, None)
        if reason is not None:
            places[place] = reason
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
        """The reason of each place that was seen to have yanked a build."""
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
