"""Shows what adapters were made from, and who needs one: projects, aliases, merges, and processes that read it now."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from adapterhub.core.digests import Digest
from adapterhub.core.disk.root import Claim, living
from adapterhub.core.errors import AdapterHubError
from adapterhub.formats.documented import Documented
from adapterhub.library.store.aliases import Aliases
from adapterhub.library.store.roots import KnownProject, KnownProjects
from adapterhub.library.store.rows import BuildRow
from adapterhub.library.upkeep.lineage import Branch, DrawnLineage, Lineage, Node, State, branch_of, drawn, lines_of
from adapterhub.projects.lock.lockfile import read_lock
from adapterhub.projects.values import Lock, Locked, LockedAdapter, LockedMerge
from adapterhub.weights.recipes.toml import Inner, Leaf, MergeStep

Kind = Literal["project", "alias", "merge", "process"]

_MOST_LEVELS: Final = 16
MOST_NEAR: Final = 100
"""So many of the merges that are made from an adapter are looked at where a page tells who needs it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Use(Documented):
    """One reason to keep an adapter. `who` is a project's folder, an alias, a merge as `name==version`, or a process.

    `why` is the reason in words; `key` is the adapter's name in the project; `uses` are the reasons to keep the merge.
    """

    kind: Annotated[Kind, "`project`, `alias`, `merge` or `process`"]
    who: Annotated[str, "a folder, an alias, a name and version, or a process"]
    why: Annotated[str, "as text"]
    key: Annotated[str | None, "the adapter's name in the project"] = None
    digest: Annotated[str | None, "digest of the merge"] = None
    uses: Annotated[tuple[Use, ...], "reasons to keep the merge"] = ()


@dataclass(frozen=True, kw_only=True)
class Holding:
    """A known project and its lock's entries by name; `entries` is None without a readable lock."""

    project: KnownProject
    entries: Mapping[str, Locked] | None

    @cached_property
    def digests(self) -> Collection[str]:
        """The builds that it has locked, now or before, and the inputs of its merges."""
        entries = (self.entries or {}).values()
        leaves = (leaf for entry in entries if isinstance(entry, LockedMerge) for leaf in entry.step.leaves())
        return {*self.project.digests, *(one.digest or "" for one in (*entries, *leaves))}


class Uses:
    """Everything that needs adapters of the library under `root`; read on first use."""

    def __init__(self, root: Path, lineage: Lineage, *, is_near: bool = False) -> None:
        """With `is_near`, a merge is a reason without its own reasons, and at most `MOST_NEAR` of them are."""
        self._root = root
        self._lineage = lineage
        self._is_near = is_near
        self._named: dict[str, Mapping[str, Sequence[str]]] = {}

    @cached_property
    def projects(self) -> Sequence[Holding]:
        """Every project that has used this library, by folder."""
        return [_holding(project) for project in KnownProjects(self._root).all()]

    @cached_property
    def processes(self) -> Sequence[Claim]:
        """Running processes: leases, then adds and installs in progress.

        Raises:
            StoreLocked: a claim is held and cannot be read.
        """
        return [*living(self._root / "leases"), *living(self._root / "intents")]

    @cached_property
    def aliases(self) -> Mapping[str, Sequence[str]]:
        """By digest, the aliases of the library that have the build as a target."""
        found: dict[str, list[str]] = {}
        for (adapter, digest), names in Aliases(self._root).by_build().items():
            found.setdefault(digest, []).extend(f"{adapter}@{name}" for name in names)
        return found

    def of(self, digest: str, *, full_name: str = "", level: int = 0) -> tuple[Use, ...]:
        """Return why the adapter with that manifest is needed; empty if nothing needs it.

        With `full_name`, only the aliases of that name are read.
        """
        if full_name:
            if full_name not in self._named:
                self._named[full_name] = Aliases(self._root).shown_with(full_name)
            names: Sequence[str] = [f"{full_name}@{name}" for name in self._named[full_name].get(digest, ())]
        else:
            names = self.aliases.get(digest, ())
        aliases = [Use(kind="alias", who=name, why="means it") for name in names]
        return (*self._of_projects(digest), *aliases, *self._of_merges(digest, level), *self._of_processes(digest))

    def look_ahead(self, digests: Sequence[str]) -> None:
        """Find out at once which of some adapters no merge was made from."""
        self._lineage.look_ahead(digests)

    def needed_by(self, claim: Claim) -> list[BuildRow]:
        """Return the installed builds that a claim needs."""
        return [row for row in self._lineage.rows if row.digest in claim.digests]

    def _of_projects(self, digest: str) -> Iterator[Use]:
        for holding in self.projects:
            if digest not in holding.digests:
                continue
            folder = str(holding.project.folder)
            if holding.entries is None:
                if digest in holding.project.digests:
                    yield Use(kind="project", who=folder, why="it was locked there, and its lock file cannot be read")
                continue
            found = list(_in_lock(holding.entries, folder, digest))
            yield from found
            if not found and digest in holding.project.digests:
                yield Use(kind="project", who=folder, why="it was locked there before")

    def _of_merges(self, digest: str, level: int) -> Iterator[Use]:
        if level > _MOST_LEVELS:
            return
        if self._is_near:
            made: Iterable[tuple[BuildRow, float]] = self._lineage.newest_children(digest, MOST_NEAR, MOST_NEAR)[0]
        else:
            made = self._lineage.children(digest)
        for row, weight in made:
            who, why = f"{row.full_name}=={row.version}", f"was merged from it ({weight:g} x)"
            uses = () if self._is_near else self.of(row.digest, level=level + 1)
            yield Use(kind="merge", who=who, why=why, digest=row.digest, uses=uses)

    def _of_processes(self, digest: str) -> Iterator[Use]:
        for claim in self.processes:
            if digest in claim.digests:
                is_lease = claim.path.parent.name == "leases"
                why = "has it open" if is_lease else f"is at work: {claim.what}"
                yield Use(kind="process", who=str(claim.holder), why=why)


def _in_lock(entries: Mapping[str, Locked], folder: str, digest: str) -> Iterator[Use]:
    """Yield the entries of a lock for an adapter, and its merges made from it."""
    for entry in entries.values():
        if entry.digest == digest:
            yield Use(kind="project", who=folder, why=_wanted(entry), key=entry.key)
    for entry in entries.values():
        if isinstance(entry, LockedMerge):
            weights = [leaf.weight for leaf in entry.step.leaves() if leaf.digest == digest]
            if weights:
                why = f"its merge `{entry.key}` is made from it ({sum(weights):g} x)"
                yield Use(kind="project", who=folder, why=why, key=entry.key, digest=entry.digest)


def _holding(project: KnownProject) -> Holding:
    try:
        entries = read_lock(project.folder).entries
    except AdapterHubError:
        return Holding(project=project, entries=None)
    return Holding(project=project, entries={str(key): entry for key, entry in entries.items()})


def _wanted(entry: Locked) -> str:
    group = f" in the group `{entry.group}`" if entry.group else ""
    if isinstance(entry, LockedMerge):
        return f"`{entry.key}`{group}, a merge of its own"
    return f"`{entry.key}`{group}, wanted as `{entry.wanted}`"


# ---------------------------------------------------------------- what adapters were made from
@dataclass(frozen=True, slots=True, kw_only=True)
class ProjectNode(Documented):
    """An adapter of the project and its parents."""

    key: Annotated[str, "its name in the project"]
    name: Annotated[str, "its own name, with its namespace"]
    version: str
    digest: Digest
    rank: int | None
    group: str | None
    wanted: Annotated[str | None, "the requirement that it meets; null for a merge"]
    state: Annotated[State, "`installed`, `stored` or `missing`"]
    method: Annotated[str | None, "merge method"]
    parents: Annotated[tuple[Any, ...], "nodes of this kind or [Node](#node), each with its `weight`"]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ProjectTree(DrawnLineage, Documented, keys="project adapters"):
    """The locked adapters of a project."""

    project: Path
    adapters: tuple[ProjectNode, ...]

    @classmethod
    def of(cls, folder: Path, lock: Lock, lineage: Lineage, keys: Sequence[str] = ()) -> ProjectTree:
        """Return the locked builds, all or `keys`, with the inputs of merges."""
        entries = sorted((e for e in lock.entries.values() if not keys or e.key in keys), key=lambda entry: entry.key)
        title = f"{folder}" + (f"  (base {lock.base.spec})" if lock.base else "")
        return cls(
            text=lines_of(drawn(title, entries, _locked(lock, lineage))),
            project=folder,
            adapters=tuple(_node_of(entry, lock, lineage) for entry in entries),
        )


def _node_of(entry: Locked, lock: Lock, lineage: Lineage) -> ProjectNode:
    node = lineage.node(entry.digest)
    return ProjectNode(
        key=entry.key,
        name=entry.name,
        version=entry.version,
        digest=entry.digest,
        rank=entry.rank,
        group=entry.group,
        wanted=None if isinstance(entry, LockedMerge) else entry.wanted,
        state=node.state,
        method=entry.step.method if isinstance(entry, LockedMerge) else node.method,
        parents=_inputs(entry.step, lock, lineage) if isinstance(entry, LockedMerge) else node.parents,
    )


def _inputs(step: MergeStep, lock: Lock, lineage: Lineage) -> tuple[Mapping[str, Any], ...]:
    by_digest = {entry.digest: entry for entry in lock.entries.values()}
    found: list[Mapping[str, Any]] = []
    for item in step.inputs:
        if isinstance(item, Inner):
            inner = _inputs(item.step, lock, lineage)
            found.append({"weight": item.weight, "method": item.step.method, "parents": inner})
        elif item.digest and (entry := by_digest.get(item.digest)) is not None:
            found.append({"weight": item.weight, **_node_of(entry, lock, lineage).to_json()})
        else:
            found.append({"weight": item.weight, "name": item.spec, "digest": item.digest, "parents": []})
    return tuple(found)


def _locked(lock: Lock, lineage: Lineage) -> Callable[[Any], Branch]:
    """Return a function that draws an entry of the lock, an input of its recipe or an ancestor."""
    by_digest = {entry.digest: entry for entry in lock.entries.values()}

    def draw(item: LockedAdapter | LockedMerge | Leaf | Inner | Node) -> Branch:
        if isinstance(item, LockedAdapter | LockedMerge):
            node = lineage.node(item.digest)
            rank = f" (rank {item.rank})" if item.rank else ""
            group = f"  (group {item.group})" if item.group else ""
            state = group + ("" if node.state == "installed" else "  (not installed)")
            if isinstance(item, LockedMerge):
                return f"{item.key} {item.version}{rank} [{item.step.method}]{state}", item.step.inputs
            called = "" if item.name == item.key else f"{item.key}: "
            return f"{called}{item.name} {item.version}{rank}{state}", node.parents
        if isinstance(item, Inner):
            return f"{item.weight:g} x [{item.step.method}]", item.step.inputs
        if isinstance(item, Leaf):
            entry = by_digest.get(item.digest) if item.digest else None
            if isinstance(entry, LockedMerge):
                return f"{item.weight:g} x {entry.key} {entry.version} [{entry.step.method}]", entry.step.inputs
            if entry is not None:
                return f"{item.weight:g} x {entry.key} {entry.version}", lineage.node(entry.digest).parents
            return f"{item.weight:g} x {item.spec}", ()
        return branch_of(item)

    return draw


# ---------------------------------------------------------------- who needs them
@dataclass(frozen=True, slots=True, kw_only=True)
class HeldAdapter(Documented):
    """An adapter in use."""

    key: Annotated[str, "its name in the project, otherwise its own name"]
    version: str
    digest: Digest


@dataclass(frozen=True, slots=True, kw_only=True)
class HoldingGroup(Documented):
    """A holder and the adapters it needs."""

    kind: Annotated[Literal["project", "process", "nobody"], "`project`, `process` or `nobody`"]
    who: Annotated[str | None, "a folder or process"]
    adapters: tuple[HeldAdapter, ...]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Holders(DrawnLineage, Documented, keys="holders"):
    """Holders and the adapters they need."""

    holders: tuple[HoldingGroup, ...]

    @classmethod
    def of(cls, uses: Uses, lineage: Lineage) -> Holders:
        """Return the holdings of each project and process, and the builds that nothing holds."""

        def held(rows: Sequence[BuildRow]) -> tuple[HeldAdapter, ...]:
            return tuple(HeldAdapter(key=row.full_name, version=row.version, digest=Digest(row.digest)) for row in rows)

        groups = []
        for holding in uses.projects:
            entries = sorted((holding.entries or {}).values(), key=lambda entry: entry.key)
            locked = tuple(HeldAdapter(key=e.key, version=e.version, digest=e.digest) for e in entries)
            groups.append(HoldingGroup(kind="project", who=str(holding.project.folder), adapters=locked))
        for claim in uses.processes:
            who = f"{claim.holder}, {claim.what}"
            groups.append(HoldingGroup(kind="process", who=who, adapters=held(uses.needed_by(claim))))
        unused = [row for row in lineage.rows if not uses.of(row.digest)]
        groups.append(HoldingGroup(kind="nobody", who=None, adapters=held(unused)))
        text = lines_of(
            line
            for group in groups
            if group.adapters or group.kind == "project"
            for line in drawn(
                "unused" if group.who is None else f"{group.kind} {group.who.removeprefix('process ')}",
                group.adapters,
                lambda one: (f"{one.key} {one.version}", ()),
            )
        )
        return cls(text=text, holders=tuple(groups))


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Why(DrawnLineage, Documented, keys="adapter digest uses"):
    """The uses of an adapter."""

    adapter: Annotated[str, "name and version"]
    digest: Digest
    uses: tuple[Use, ...]

    @classmethod
    def of(cls, uses: Uses, digest: Digest, label: str) -> Why:
        """Return who needs the build with that digest."""
        found = uses.of(digest)
        text = lines_of(drawn(label if found else f"{label}: nothing needs it", found, _use))
        return cls(text=text, adapter=label, digest=digest, uses=found)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Needs(DrawnLineage):
    """The uses of each of several builds."""

    builds: tuple[Why, ...]

    @classmethod
    def of(cls, uses: Uses, builds: Sequence[tuple[str, str]]) -> Needs:
        """Return who needs the builds, each a digest and a label."""
        found = tuple(Why.of(uses, Digest(digest), label) for digest, label in builds)
        return cls(text="\n".join(map(str, found)), builds=found)

    def to_json(self) -> list[dict[str, Any]]:
        """Return the JSON value."""
        return [one.to_json() for one in self.builds]


def _use(use: Use) -> Branch:
    if use.kind == "merge":
        return f"merge {use.who} {use.why}", use.uses
    who = {"process": use.who, "alias": f"alias {use.who}"}.get(use.kind, f"project {use.who}")
    separator = " " if use.kind == "process" else ": "
    return f"{who}{separator}{use.why}", use.uses
