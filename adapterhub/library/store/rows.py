"""The rows of a library's index, and the conditions of a search for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from adapterhub.core.ranks import ANY_RANK, RankRange

if TYPE_CHECKING:
    from adapterhub.core.arguments import Sort
    from adapterhub.formats.relevance import Matched


# Rows are named tuples, unlike other values: `list` makes a thousand of them, and a tuple straight from SQLite costs a
# tenth of a dataclass.


class BuildRow(NamedTuple):
    """One installed build as lists show it; `base_weights` is the pinned or declared fingerprint, "" if unknown.

    `prompts` are example prompts, one per line; `told` is a description from its card if it has none of its own.
    `license` is in lower case, "" without one, and `has_tests` is 1 with a contract. `family` is that of image models,
    and `triggers` are words that the original's header has, one per line. `made_from` are the digests of the parents
    that are known by one, one per line.
    `folder` is the key: one build may be installed under two full names. It is a path below the library's root, so
    that the index holds wherever the library lies. `weights_file` is the digest of its file of weights.
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
    family: str = ""
    triggers: str = ""
    weights_file: str = ""
    made_from: str = ""

    @property
    def says(self) -> str:
        """The stated purpose of the build: its description, or its card."""
        return self.description or self.told

    @property
    def full_name(self) -> str:
        """`acme/legal-qa` or `legal-qa`."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class BuildFacts(NamedTuple):
    """What `builds` builds have in common, as in their rows."""

    base_weights: str
    base_hub_id: str
    task: str
    method: str
    rank: int | None
    license: str
    builds: int


class Hit(NamedTuple):
    """A build that a search found, and why; `score` is None if the order is that of the names.

    `number` is that of its row in the index.
    """

    row: BuildRow
    score: float | None
    matched: Matched | None
    number: int


class BaseCount(NamedTuple):
    """How many builds declare a base, "" for none, and the sum of their sizes; `tensors` is that of one of them."""

    weights: str
    tensors: str
    builds: int
    size_bytes: int


class PlaceRow(NamedTuple):
    """A folder that holds builds, or names, and the time of its last change when the index held all that is in it.

    `folder` is a path below the library's root, `changed_ns` is in nanoseconds.
    """

    folder: str
    changed_ns: int


class PlaceChange(NamedTuple):
    """The time of a folder's last change before a change of ours and after it; None if it was not there."""

    folder: str
    before_ns: int | None
    after_ns: int | None


class BaseRow(NamedTuple):
    """One registered base as lists show it.

    Of a quantised copy, `form` is its format and `copied` how it is known to be one: `proven`, `accepted`, `likely` or
    "". `sources` are the weights of the bases that it is a copy of, with a comma between.
    """

    alias: str
    weights: str
    hub_id: str
    model_type: str
    dtype: str
    parameters: int
    path: str
    form: str = ""
    copied: str = ""
    sources: str = ""


class SketchRow(NamedTuple):
    """The sketch of a build's weights (`formats.derived.likeness`); `sketch` is empty if `flags` holds a reason.

    `flags` is `partial` if the sketch is only of the factors, and they are not the whole update. `norm` estimates
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
    weights_file: str = ""
    names: tuple[str, ...] = ()
    """Parts of a full name, or patterns for a whole one such as `legal-*`, of which one must match."""
    sort: Sort = "name"
    reverse: bool = False
    limit: int | None = None
    skip: int = 0
    """How many of the first are left out; not for a text of several words, which has a best and no order."""


ORDER: Final = "builds.name, builds.namespace, builds.added_at DESC, builds.digest"
_FIRST: Final[Mapping[str, str]] = {
    "name": "",
    "task": "builds.task, ",
    "rank": "builds.rank DESC, ",
    "size": "builds.size_bytes DESC, ",
    "date": "builds.added_at DESC, ",
}
"""What goes before the name in each order: texts from a to z, numbers from the largest, dates from the newest."""


def order_of(filters: Filters) -> str:
    """Return the order in SQL.

    An index has each as a whole (`Index`), so that a first page reads no more than it shows.
    """
    order = _FIRST[filters.sort] + ORDER
    if filters.reverse:
        order = ", ".join(
            part.removesuffix(" DESC") if part.endswith(" DESC") else f"{part} DESC" for part in order.split(", ")
        )
    return order


def has_name(full_name: str, name: str, wanted: str) -> bool:
    """Return whether a build has a name with the part `wanted`, or one that the pattern `wanted` matches as a whole."""
    wanted = wanted.lower()
    if any(mark in wanted for mark in "*?["):
        return fnmatchcase(full_name, wanted) or fnmatchcase(name, wanted)
    return wanted in full_name


def conditions_of(filters: Filters) -> tuple[list[str], list[Any]]:
    """Return the conditions in SQL on the table `builds`, and their values."""
    where: list[str] = []
    values: list[Any] = []

    def add(condition: str, *items: object) -> None:
        where.append(condition)
        values.extend(items)

    if filters.bases is not None:
        add(f"builds.base_weights IN ({', '.join('?' * len(filters.bases))})", *filters.bases)
    equal = {"base_hub_id": filters.base_hub_id, "name": filters.name, "task": filters.task}
    equal |= {"license": filters.license.lower(), "weights_file": filters.weights_file}
    for column, wanted in equal.items():
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
    if filters.names:
        add("is_named(builds.namespace, builds.name)")
    if filters.signed:  # last: it looks at the folder
        add("is_signed(builds.folder)")
    return where, values
