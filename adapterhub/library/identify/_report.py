"""The results of `identify`, as values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from adapterhub.core.digests import Digest
from adapterhub.formats.documented import Documented
from adapterhub.library.identify.lora_files import Hashes, LoraFile

Sureness = Literal["proven", "likely", "possible"]
What = Literal["adapter", "object", "base", "family"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Match(Documented, keys="what name sure how digest path=folder"):
    """A possible identity of a file. `how` is the reason as a clause; `digest` and `folder` are those of the match."""

    what: Annotated[What, "`adapter`, `object`, `base` or `family`"]
    name: str
    sure: Annotated[Sureness, "`proven`, `likely` or `possible`"]
    how: Annotated[str, "the evidence"]
    digest: str | None = None
    folder: Annotated[Path | None, "a path on this machine"] = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity(Documented, keys="path files lora hashes matches notes", title="Identified"):
    """The possible identities of a file or folder. `notes` list what could not be used.

    `lora` is what the header of another program's file says, and `hashes` are those that sites know it by.
    """

    path: Annotated[Path, "a path on this machine"]
    files: Annotated[Mapping[str, Digest], "digest of each file"] = field(hash=False)
    notes: Annotated[tuple[str, ...], "remarks, as text"]
    matches: Annotated[tuple[Match, ...], "most certain first"]
    lora: Annotated[LoraFile | None, "null for PEFT's own files"] = None
    hashes: Annotated[Hashes | None, "null where no single file was given"] = None
