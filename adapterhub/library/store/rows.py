"""The rows of a library's index, and the conditions of a search for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from adapterhub.core.ranks import ANY_RANK, RankRange

if TYPE_CHECKING:
    from adapterhub.formats.relevance import Matched


# Rows are named tuples, unlike other values: `list` makes a thousand of them, and a tuple straight from SQLite costs a
# tenth of a dataclass.


class BuildRow(NamedTuple):
    """One installed build as lists show it; `base_weights` is the pinned or declared fingerprint, "" if unknown.

    `prompts` are examples of what one asks it, one a line; `told` is what its card says where it has no description.
    `license` is in lower case, "" without one, and `has_tests` is 1 with a contract.
    `folder` is the key: one build may be installed under two full names. It is a path below the library's root, so
    that the index holds wherever the library lies.
    """

    digest: str
    namespace: str
    name: str
    version: str
    base_weights: str
    base_tensors: str
    base_hub_id: str
    task: str
    description: str
    method: str
    rank: int | None
    alpha: float | None
    dtype: str
    parameters: int
    size_bytes: int
    target_modules: str
    parents: int
    folder: str
    added_at: float
    prompts: str = ""
    told: str = ""
    license: str = ""
    has_tests: int = 0

    @property
    def says(self) -> str:
        """What the build says it is for: its description, else its card."""
        return self.description or self.told

    @property
    def full_name(self) -> str:
        """`acme/legal-qa` or `legal-qa`."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class Hit(NamedTuple):
    """A build that a search found, and why; `score` is None where the order is that of the names."""

    row: BuildRow
    score: float | None
    matched: Matched | None


class BaseRow(NamedTuple):
    """One registered base as lists show it."""

    alias: str
    weights: str
    hub_id: str
    model_type: str
    dtype: str
    parameters: int
    path: str


class SketchRow(NamedTuple):
    """The sketch of a build's weights (`formats.derived.likeness`); `sketch` is empty where `flags` says why.

    `flags` is `partial` where the sketch is of the factors alone, and they are not the whole update. `norm` estimates
    the norm of the update.
    """

    digest: str
    norm: float
    flags: str
    sketch: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """The conditions of a search; empty fields set none. A build matches `bases` by any of the fingerprints.

    A build matches `text` if it holds any word of it, or with `all_words` if each begins one of its words. `license` is
    that of its manifest, in any case; `signed` asks for a signature by any key, and `tested` for recorded tests.
    """

    text: str = ""
    all_words: bool = False
    bases: tuple[str, ...] | None = None
    base_hub_id: str = ""
    name: str = ""
    namespace: str | None = None
    task: str = ""
    ranks: RankRange = ANY_RANK
    method: str = ""
    license: str = ""
    signed: bool = False
    tested: bool = False
    limit: int | None = None


def conditions_of(filters: Filters) -> tuple[list[str], list[Any]]:
    """The conditions in SQL on the table `builds`, and their values."""
    where: list[str] = []
    values: list[Any] = []

    def add(condition: str, *items: object) -> None:
        where.append(condition)
        values.extend(items)

    if filters.bases is not None:
        add(f"builds.base_weights IN ({', '.join('?' * len(filters.bases))})", *filters.bases)
    equal = {"base_hub_id": filters.base_hub_id, "name": filters.name, "task": filters.task}
    for column, wanted in (equal | {"license": filters.license.lower()}).items():
        if wanted:
            add(f"builds.{column} = ?", wanted)
    if filters.namespace is not None:
        add("builds.namespace = ?", filters.namespace)
    ranks = filters.ranks
    for comparison, rank in ((">=", ranks.low), ("<=", ranks.high)):
        if rank is not None:
            add(f"builds.rank {comparison} ?", rank)
    if filters.method:
        add("instr(',' || lower(builds.method) || ',', ?) > 0", f",{filters.method.lower()},")
    if filters.tested:
        add("builds.has_tests")
    if filters.signed:  # last: it looks at the folder
        add("is_signed(builds.folder)")
    return where, values
