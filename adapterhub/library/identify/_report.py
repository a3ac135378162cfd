"""The results of `identify`, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from adapterhub.core.digests import Digest

Sureness = Literal["proven", "likely", "possible"]
What = Literal["adapter", "object", "base", "family"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """One possible match; `how` is the reason as a clause. `digest` and `folder` are those of the match."""

    what: What
    name: str
    sure: Sureness
    how: str
    digest: str | None = None
    folder: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        folder = str(self.folder) if self.folder else None
        named = {"what": self.what, "name": self.name, "sure": self.sure, "how": self.how}
        return {**named, "digest": self.digest, "path": folder}


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """The orphan with the digests of its files, and its matches; `notes` list what could not be used."""

    path: Path
    files: Mapping[str, Digest]
    notes: tuple[str, ...]
    matches: tuple[Match, ...]

    def to_json(self) -> dict[str, Any]:
        """Everything."""
        return {
            "path": str(self.path),
            "files": dict(self.files),
            "matches": [match.to_json() for match in self.matches],
            "notes": list(self.notes),
        }
