"""Remembers which builds their servers have yanked, so that a command tells it again when the server does not answer.

    yanked/<64 hex of the manifest>.json   {"adapter", "places": {address: reason}}

An address is a URL with the repository. A record counts for a build only if it came from there: no other server can
withdraw it, nor can another repository that holds the same bytes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from adapterhub.core.digests import Digest, canonical_json, hex_of
from adapterhub.core.disk.files import read_json
from adapterhub.core.errors import NotAllowed
from adapterhub.library.store.blobs import Store


class Yanks:
    """The records of one library."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def reason(self, adapter: Digest, address: str) -> str | None:
        """Why a build was yanked at `address`, as far as was seen; "" without a reason, None if it was not."""
        return self.places(adapter).get(address)

    def noted(self) -> set[str]:
        """The digests of the builds that some place was seen to have yanked; one read of a folder."""
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
        """The reason of each address where a build was seen to be yanked."""
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
