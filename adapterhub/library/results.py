"""Results of checks of contracts, kept so that the same check is free the second time.

    cache/tests/<64 hex of the manifest>/<64 hex of the question>.json

A result counts only for the very question: the same manifest, contract, base, precision, engine and bounds. The folder
may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from adapterhub.core.digests import Digest, canonical_json, digest_of, hex_of
from adapterhub.core.disk.files import read_json
from adapterhub.core.errors import NotAllowed
from adapterhub.formats.contract.results import Tested
from adapterhub.library.store.blobs import Store

_LIMIT_BYTES: Final = 4 << 20


class KeptResults:
    """The kept results of one library."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def find(self, manifest: Digest, question: Mapping[str, Any]) -> Tested | None:
        """The result of the very same question; None if there is none, or it cannot be read."""
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            value = read_json(self._path(manifest, question), _LIMIT_BYTES)
            if isinstance(value, dict) and value.get("question") == dict(question):
                return Tested.from_json({**value["result"], "is_cached": True})
        return None

    def latest(self, manifest: Digest, contract: str) -> tuple[Tested, float] | None:
        """The newest result of a build by its contract, and its age in seconds; None if there is none."""
        newest: tuple[float, Tested] | None = None
        for path in (self._store.root / "cache" / "tests" / hex_of(manifest)).glob("*.json"):
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
                result = Tested.from_json(read_json(path, _LIMIT_BYTES)["result"])  # type: ignore[index,call-overload]
                at = path.stat().st_mtime
                if result.contract == contract and (newest is None or at > newest[0]):
                    newest = at, result
        return None if newest is None else (newest[1], max(0.0, time.time() - newest[0]))

    def keep(self, manifest: Digest, question: Mapping[str, Any], result: Tested) -> None:
        """Keep a result; a library that cannot be written keeps none."""
        with contextlib.suppress(NotAllowed):
            value = canonical_json({"question": dict(question), "result": result.to_json()})
            self._store.write(self._path(manifest, question), value, sync=False)

    def _path(self, manifest: Digest, question: Mapping[str, Any]) -> Path:
        name = hex_of(digest_of(canonical_json(dict(question))))
        return self._store.root / "cache" / "tests" / hex_of(manifest) / f"{name}.json"
