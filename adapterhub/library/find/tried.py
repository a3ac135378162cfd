"""Losses that were measured by trying builds on a base, kept so that the same trial is free the second time.

    cache/tried/<64 hex of the manifest>/<64 hex of the question>.json

The question names the base, the examples, the prompt form and the engine. The cache may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from adapterhub.core.digests import Digest, canonical_json, digest_of, hex_of
from adapterhub.core.disk.files import read_json
from adapterhub.core.errors import NotAllowed
from adapterhub.library.store.blobs import Store

_LIMIT_BYTES: Final = 1 << 20


class KeptTrials:
    """The kept losses of one library."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def find(self, what: Digest, question: Mapping[str, Any]) -> tuple[float, int] | None:
        """Return the loss in nats a token of a build, or of a base by its weights, and the tokens.

        None if none is kept.
        """
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            value = read_json(self._path(what, question), _LIMIT_BYTES)
            loss, tokens = float(value["loss"]), int(value["tokens"])
            if value["question"] == dict(question) and math.isfinite(loss) and loss >= 0 and tokens > 0:
                return loss, tokens
        return None

    def keep(self, what: Digest, question: Mapping[str, Any], loss: float, tokens: int) -> None:
        """Keep a loss; a library that cannot be written keeps none."""
        with contextlib.suppress(NotAllowed):
            value = canonical_json({"question": dict(question), "loss": loss, "tokens": tokens})
            self._store.write(self._path(what, question), value, sync=False)

    def _path(self, what: Digest, question: Mapping[str, Any]) -> Path:
        name = f"{hex_of(digest_of(canonical_json(dict(question))))}.json"
        return self._store.root / "cache" / "tried" / hex_of(what) / name
