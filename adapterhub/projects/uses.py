"""Finds who needs an adapter: projects that lock it, aliases, merges made from it, and processes that read it now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Final, Literal

from adapterhub.core.disk.claims import Claim, living
from adapterhub.core.errors import AdapterHubError
from adapterhub.formats.documented import Documented
from adapterhub.library.store.aliases import Aliases
from adapterhub.library.store.roots import KnownProject, KnownProjects
from adapterhub.library.store.rows import BuildRow
from adapterhub.library.upkeep.lineage import Lineage
from adapterhub.projects.lock.lockfile import read_lock
from adapterhub.projects.values import Locked, LockedMerge

Kind = Literal["project", "alias", "merge", "process"]

_MOST_LEVELS: Final = 16


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


class Uses:
    """Everything that needs adapters of the library under `root`; read on first use."""

    def __init__(self, root: Path, lineage: Lineage) -> None:
        self._root = root
        self._lineage = lineage

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

    def of(self, digest: str, *, level: int = 0) -> tuple[Use, ...]:
        """Why the adapter with that manifest is needed; empty if nothing needs it."""
        aliases = [Use(kind="alias", who=name, why="means it") for name in self.aliases.get(digest, ())]
        return (*self._of_projects(digest), *aliases, *self._of_merges(digest, level), *self._of_processes(digest))

    def needed_by(self, claim: Claim) -> list[BuildRow]:
        """The installed builds that a claim needs."""
        return [row for row in self._lineage.rows if row.digest in claim.digests]

    def _of_projects(self, digest: str) -> Iterator[Use]:
        for holding in self.projects:
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
        for row, weight in self._lineage.children(digest):
            who, why = f"{row.full_name}=={row.version}", f"was merged from it ({weight:g} x)"
            yield Use(kind="merge", who=who, why=why, digest=row.digest, uses=self.of(row.digest, level=level + 1))

    def _of_processes(self, digest: str) -> Iterator[Use]:
        for claim in self.processes:
            if digest in claim.digests:
                is_lease = claim.path.parent.name == "leases"
                why = "has it open" if is_lease else f"is at work: {claim.what}"
                yield Use(kind="process", who=str(claim.holder), why=why)


def _in_lock(entries: Mapping[str, Locked], folder: str, digest: str) -> Iterator[Use]:
    """The entries of a lock for an adapter, and its merges made from it."""
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
