"""The graph of merges: the parents and the children of adapters, from the index, the store and the manifests.

A node is an adapter by the digest of its manifest. Only the manifests of merges are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Protocol, TypeVar

from adapterhub.core.digests import Digest, hex_of, parse_digest
from adapterhub.core.errors import MalformedManifest, no_adapter, shown
from adapterhub.formats.documented import Documented
from adapterhub.library.store.rows import BuildRow, Filters

if TYPE_CHECKING:
    from adapterhub.core.specs import AdapterSpec
    from adapterhub.formats.manifest import Manifest
    from adapterhub.library.store.index_reader import IndexReader

T = TypeVar("T")
State = Literal["installed", "stored", "missing", "unknown"]
Branch = tuple[str, Sequence[Any]]
"""A line of a tree, and what is below it."""
LONGEST: Final = 400
"""Characters in a line: a manifest may name a parent with any text."""
MOST_LEVELS: Final = 64
"""Levels that are followed; digests allow no circle, but a damaged store might."""


class Ask(Protocol):
    """Puts a question to the index of a library."""

    def __call__(self, question: Callable[[IndexReader], T], /) -> T:
        """Return the answer."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Node(Documented):
    """One adapter in a lineage. `weight` is its weight in the merge; `parents` are its own parents.

    `state`: `installed`; `stored` (removed, and the store still has its manifest); `missing` from here; `unknown`, a
    parent that was a folder or is named without a digest.
    """

    name: str
    version: str | None
    digest: str | None
    rank: int | None
    state: Annotated[State, "`installed`, `stored`, `missing` or `unknown`"]
    method: Annotated[str | None, "merge method"] = None
    weight: Annotated[float | None, "weight in the merge above it"] = None
    parents: tuple[Node, ...] = ()

    @property
    def label(self) -> str:
        """`acme/legal-qa 1.2.0 (rank 16)`."""
        version = f" {self.version}" if self.version else ""
        return f"{self.name}{version}" + (f" (rank {self.rank})" if self.rank else "")

    def __repr__(self) -> str:
        made_of = ", ".join(f"{one.weight or 1:g} x {one.label}" for one in self.parents)
        return f"<Node {self.label}{f' of {made_of}' if made_of else ''}>"


class Lineage:
    """The graph of the library under `root`; `ask` puts questions to its index, which one build costs a few of."""

    def __init__(self, root: Path, ask: Ask) -> None:
        self._root, self._ask = root, ask
        self._rows: dict[str, BuildRow | None] = {}
        self._manifests: dict[str, Manifest | None] = {}
        self._childless: set[str] = set()

    def look_ahead(self, digests: Sequence[str]) -> None:
        """Find out at once which of some adapters have children; `newest_children` asks only about those."""
        self._childless |= {*digests} - self._ask(lambda index: index.parents_among(digests))

    @cached_property
    def rows(self) -> Sequence[BuildRow]:
        """Every installed build, in the order of the index."""
        return self._ask(lambda index: index.search(Filters()))

    @cached_property
    def _parents_of_any(self) -> set[str]:
        return self._ask(lambda index: index.parents())

    def row(self, digest: str) -> BuildRow | None:
        """Return the installed build with that digest, the first by name; None if there is none."""
        if digest not in self._rows:
            self._rows[digest] = self._ask(lambda index: index.of_digest(digest))
        return self._rows[digest]

    def node_of(self, row: BuildRow) -> Node:
        """Return an installed build and all its ancestors, under its own full name."""
        return replace(self.node(row.digest), name=row.full_name)

    def node(self, digest: str, *, weight: float | None = None, spec: str = "", level: int = 0) -> Node:
        """Return the adapter with that manifest and all its ancestors; `spec` names one that is not here."""
        row = self.row(digest)
        manifest = self._manifest(digest) if row is None or row.parents else None
        if row is None and manifest is None:
            name, _, rest = spec.partition("==")
            return Node(
                name=name or digest[:19],
                version=rest.partition("#")[0] or None,
                digest=digest,
                rank=None,
                state="missing",
                weight=weight,
            )
        known = row or manifest
        assert known is not None  # one of the two is here
        return Node(
            name=row.full_name if row else str(known.name),
            version=known.version,
            digest=digest,
            rank=known.rank,
            state="installed" if row else "stored",
            method=str(manifest.recipe.get("method") or "") or None if manifest else None,
            weight=weight,
            parents=self._parents(manifest, level) if manifest and level < MOST_LEVELS else (),
        )

    def _parents(self, manifest: Manifest, level: int) -> tuple[Node, ...]:
        return tuple(
            self.node(parent.digest, weight=parent.weight, spec=parent.spec, level=level + 1)
            if parent.digest
            else Node(name=parent.spec, version=None, digest=None, rank=None, state="unknown", weight=parent.weight)
            for parent in manifest.parents
        )

    def children(self, digest: str) -> Iterator[tuple[BuildRow, float]]:
        """Installed merges made directly from the adapter, each with the adapter's weight."""
        if "rows" in vars(self) and digest not in self._parents_of_any:  # every build is asked about, one by one
            return
        yield from self._weighed(digest, self._ask(lambda index: index.children(digest)))

    def _weighed(self, digest: str, rows: Iterable[BuildRow]) -> Iterator[tuple[BuildRow, float]]:
        for row in rows:
            self._rows.setdefault(row.digest, row)
            if (manifest := self._manifest(row.digest)) is not None:
                weights = [parent.weight for parent in manifest.parents if parent.digest == digest]
                if weights:
                    yield row, sum(weights)

    def newest_children(self, digest: str, of_name: int, most: int) -> tuple[list[tuple[BuildRow, float]], int]:
        """Return the newest of `children`, at most so many of each name and in all, and how many are left out."""
        if digest in self._childless:
            return [], 0
        rows, count = self._ask(lambda index: index.newest_children(digest, of_name, most))
        return [*self._weighed(digest, rows)], count - len(rows)

    def near(self, digest: str) -> Node:
        """Return the adapter with that manifest, and only its parents of its ancestors."""
        return self.node(digest, level=MOST_LEVELS - 1)

    def roots(self) -> list[BuildRow]:
        """Installed builds that no installed merge was made from, in the order of the index."""
        roots = [row for row in self.rows if row.digest not in self._parents_of_any]
        self._rows.update((row.digest, row) for row in reversed(roots))
        return roots

    def named(self, spec: AdapterSpec) -> list[BuildRow]:
        """Every installed build that matches a spec, for any base.

        Raises:
            AdapterNotFound: none.
        """
        same = Filters(name=spec.name, namespace=spec.namespace)
        found = [
            row
            for row in self._ask(lambda index: index.search(same))
            if spec.matches(row.version) and row.digest.startswith(spec.digest_prefix or "")
        ]
        if not found:
            raise no_adapter(spec, f"library `{self._root}`", hint="`adapt list` shows what is installed")
        return found

    def _manifest(self, digest: str) -> Manifest | None:
        if digest not in self._manifests:
            from adapterhub.formats.manifest import MANIFEST_FILE  # its import costs more than a tree without merges

            row = self.row(digest)
            places = [self._root / row.folder / MANIFEST_FILE] if row else []
            with suppress(ValueError):
                places.append(self._root / "manifests" / "sha256" / f"{hex_of(Digest(parse_digest(digest)))}.json")
            self._manifests[digest] = next((m for m in map(_read, places) if m is not None), None)
        return self._manifests[digest]


def _read(path: Path) -> Manifest | None:
    from adapterhub.formats.manifest import Manifest

    try:
        return Manifest.read(path)
    except (FileNotFoundError, MalformedManifest):  # `verify` reports the damage
        return None


def drawn(label: str, children: Sequence[Any], draw: Callable[[Any], tuple[str, Sequence[Any]]]) -> Iterator[str]:
    """Yield the lines of a tree under `label`; `draw` gives the label and the children of a child."""
    yield label
    for number, child in enumerate(children):
        is_last = number == len(children) - 1
        inner = drawn(*draw(child), draw)
        yield ("└── " if is_last else "├── ") + next(inner)
        yield from (("    " if is_last else "│   ") + line for line in inner)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DrawnLineage:
    """A tree; `str` of it is how a terminal shows it."""

    text: str

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        first, _, rest = self.text.partition("\n")
        return f"<{type(self).__name__} {first}{' …' if rest else ''}>"


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Tree(DrawnLineage, Documented, keys="project adapters"):
    """Adapters and their parents."""

    project: Annotated[str | None, "the project's folder; null for the library"] = None
    adapters: tuple[Node, ...]

    @classmethod
    def of(cls, nodes: Sequence[Node]) -> Tree:
        """Return the tree under each node."""
        return cls(
            text=lines_of(line for node in nodes for line in drawn(*branch_of(node), branch_of)), adapters=tuple(nodes)
        )


def lines_of(lines: Iterable[str]) -> str:
    """Return the lines as one text, none too long."""
    return "\n".join(shown(line, LONGEST) for line in lines)


def branch_of(node: Node) -> Branch:
    """Return a node as a line, and what is below it."""
    weight = f"{node.weight:g} x " if node.weight is not None else ""
    method = f" [{node.method}]" if node.method else ""
    state = {"stored": "  (removed)", "missing": "  (not here)"}.get(node.state, "")
    return f"{weight}{node.label}{method}{state}", node.parents
