"""The documents that lists and searches print, which a table does without."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from adapterhub.formats.documented import Documented
from adapterhub.formats.peft.methods import attaches
from adapterhub.library.store.rows import BuildRow, Hit

if TYPE_CHECKING:
    from adapterhub.core.digests import Digest
    from adapterhub.distribution.hub import SearchHit
    from adapterhub.formats.relevance import Matched


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed(Documented):
    """An installed build; unknown fields are null."""

    digest: Annotated[str, "of the manifest"]
    namespace: str | None
    name: str
    version: str
    base_weights: Annotated[str | None, "weights digest of its base, declared or pinned"]
    base_tensors: Annotated[str | None, "digest of the same base without tensor names"]
    base_hub_id: str | None
    task: str | None
    description: str | None
    method: Annotated[tuple[str, ...], "PEFT type, then variants"]
    rank: Annotated[int | None, "the largest rank"]
    alpha: float | None
    dtype: str | None
    parameters: int
    size_bytes: Annotated[int, "bytes"]
    target_modules: tuple[str, ...]
    parents: Annotated[int, "number of adapters merged into it"]
    added_at: Annotated[float, "seconds since 1970"]
    path: Annotated[str, "its plain PEFT folder"]
    base: Annotated[str, "alias, else Hub id, else 12 hex digits, else `unknown`"]
    attaches: Annotated[bool, "whether `run`, `attach` and the bank take its method"]
    aliases: Annotated[tuple[str, ...], "aliases that have it as a target, such as `prod`"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundBuild(Listed):
    """An installed build that a search found; without words, it has no score and no match."""

    score: Annotated[float | None, "how well it fits the text, more is better; null where names give the order"]
    by: Annotated[str | None, "`words` or `meaning`: what the score compares; by meaning, 1 is the same text"]
    matched: Matched | None


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundThere(
    Documented,
    keys="repository=hit.repo name=hit.name version=hit.version base base_weights=hit.base_weights"
    " base_hub_id=hit.base_hub_id fits task=hit.task rank=hit.rank method=hit.method description digest=hit.digest"
    " score=hit.score by=hit.by matched=hit.matched",
    title="Found",
):
    """An adapter on a server."""

    hit: SearchHit
    base: str
    fits: Annotated[str, "how it matches --base: `by weights`, `by name`, or empty"]

    @property
    def description(self) -> str | None:
        """What it says it is for."""
        return self.hit.description or None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFolder(Documented):
    """An adapter for another program: a name that no other has, and its plain PEFT folder."""

    name: str
    path: str
    version: str
    digest: Digest
    rank: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedBase(Documented, keys="alias weights model_type dtype parameters hub_id path"):
    """A registered base in a list; unknown fields are null."""

    alias: str
    weights: Annotated[str, "`sha256:` and 64 hex digits"]
    hub_id: str | None
    model_type: str | None
    dtype: str | None
    parameters: int | None
    path: Annotated[str | None, "a path on this machine"]


def listed(one: BuildRow | Hit, *, root: Path, by: str | None, base: str, aliases: Sequence[str]) -> Listed:
    """The document of a build that a list or a search shows."""
    row = one if isinstance(one, BuildRow) else one.row
    facts: dict[str, Any] = {name: None if value == "" else value for name, value in row._asdict().items()}
    for name in ("folder", "prompts", "told", "license", "has_tests"):
        del facts[name]
    method = tuple(row.method.split(","))
    facts |= {"path": os.fspath(root / row.folder), "base": base, "aliases": tuple(aliases)}
    facts |= {"method": method, "attaches": attaches(method)}
    facts |= {"target_modules": tuple(row.target_modules.split(",")) if row.target_modules else ()}
    if isinstance(one, BuildRow):
        return Listed(**facts)
    return FoundBuild(**facts, score=one.score, by=by, matched=one.matched)
