"""The documents that lists and searches print, which a table does without."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from adapterhub.formats.documented import Documented
from adapterhub.formats.peft.methods import attaches
from adapterhub.library.store.rows import BaseRow, BuildRow, Hit

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
    family: Annotated[str | None, "models of images or videos that have its modules"]
    triggers: Annotated[tuple[str, ...], "words that it may have been trained on, as its original says"]


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
    fits: Annotated[str, "how it matches --base: `by weights`, `another form` of the base, `by name`, or empty"]

    @property
    def description(self) -> str | None:
        """Its own description of its purpose."""
        return self.hit.description or None


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFolder(Documented):
    """An adapter and its plain PEFT folder, for an inference server."""

    name: Annotated[str, "its name in the project, otherwise its own name"]
    path: Annotated[str, "a path on this machine"]
    version: str
    digest: Digest
    rank: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedBase(Documented, keys="alias weights model_type dtype parameters hub_id path form copied sources copy_of"):
    """A registered base in a list; unknown fields are null."""

    alias: str
    weights: Annotated[str, "`sha256:` and 64 hex digits"]
    hub_id: str | None
    model_type: str | None
    dtype: str | None
    parameters: int | None
    path: Annotated[str | None, "a path on this machine"]
    form: Annotated[str | None, "the format of a quantised copy, such as `fp8-block`"]
    copied: Annotated[str | None, "how it is known to be a copy: `proven`, `accepted` or `likely`"]
    sources: Annotated[tuple[str, ...], "the weights of the bases that it is a copy of"]
    copy_of: Annotated[tuple[str, ...], "the names of those that are registered here"]


def base_listed(row: BaseRow, names: Mapping[str, str]) -> ListedBase:
    """Return the document of a base; `names` has the alias of each by its weights."""
    facts: dict[str, Any] = {name: value or None for name, value in row._asdict().items()}
    facts |= {"sources": _sources(row), "copy_of": tuple(names[one] for one in _sources(row) if one in names)}
    return ListedBase(**facts)


def copy_text(row: BaseRow, names: Mapping[str, str]) -> str:
    """Of which base a quantised one is the copy, for one column: `fp8-block copy of base-7b`."""
    known = [names.get(one, one[7:19]) for one in _sources(row)]
    how = "" if row.copied in ("", "proven") else f"{row.copied} "
    return f"{how}{row.form} copy" + (f" of {', '.join(known)}" if known else "")


def _sources(row: BaseRow) -> tuple[str, ...]:
    return tuple(row.sources.split(",")) if row.sources else ()


def listed(one: BuildRow | Hit, *, root: Path, by: str | None, base: str, aliases: Sequence[str]) -> Listed:
    """Return the document of a build that a list or a search shows."""
    row = one if isinstance(one, BuildRow) else one.row
    facts: dict[str, Any] = {name: None if value == "" else value for name, value in row._asdict().items()}
    for name in ("folder", "prompts", "told", "license", "has_tests", "weights_file", "made_from"):
        del facts[name]
    method = tuple(row.method.split(","))
    facts |= {"path": os.fspath(root / row.folder), "base": base, "aliases": tuple(aliases)}
    facts |= {"method": method, "attaches": attaches(method)}
    facts |= {"triggers": tuple(row.triggers.splitlines())}
    facts |= {"target_modules": tuple(row.target_modules.split(",")) if row.target_modules else ()}
    if isinstance(one, BuildRow):
        return Listed(**facts)
    return FoundBuild(**facts, score=one.score, by=by, matched=one.matched)


@dataclass(frozen=True, slots=True, kw_only=True)
class NotTried(Documented):
    """A candidate that was not tried, and why."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial(Documented):
    """The trial of a build on the examples. Losses are in nats per token, on the first `examples`.

    `share` is the part of the gap between the plain base and the best build that this build closes: 1 for the best,
    below 0 if the base does better without an adapter.
    """

    loss: Annotated[float, "loss in nats per token"]
    base_loss: Annotated[float, "of the plain base, on the same examples"]
    share: Annotated[float | None, "of the gap between base and best; null where no build beats the base"]
    examples: Annotated[int, "how many were asked: 1 for those that the first round left behind"]
    form: Annotated[str, "the prompt form that did better, such as `raw`"]
    leads: Annotated[bool, "as good as the best: within 1 % of the gap, and better than the base"]
    cpu_s: Annotated[float, "CPU seconds, loading included"]
    is_cached: Annotated[bool, "every loss was measured earlier"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TriedBuild(Documented):
    """A build of a search, with its trial."""

    name: str
    version: str
    digest: str
    spec: Annotated[str, "selects exactly this build"]
    tried: Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried(Documented):
    """Results of a search with trials, best first; `best` is None if no build beats the plain base."""

    query: str
    base: str
    base_loss: Annotated[float | None, "of the plain base on all examples; null: there was nothing to try"]
    examples: int
    best: Annotated[str | None, "the name of the first that leads; null: the plain base does better"]
    results: tuple[TriedBuild, ...]
    left_out: tuple[NotTried, ...] = ()
