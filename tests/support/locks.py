"""Locks made from what a library holds, for tests of what comes after `adapt lock`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from adapterhub.core.errors import AdapterNotFound
from adapterhub.core.specs import parse_name
from adapterhub.library.library import Library
from adapterhub.library.store.catalog import Installed
from adapterhub.library.transfer import Source
from adapterhub.projects.merges import Merges
from adapterhub.projects.sync import BuildSources, SyncPlan, SyncResult, plan_sync, run_sync, syncing, wanted_entries
from adapterhub.projects.sync.folders import opened
from adapterhub.projects.values import Lock, Locked, LockedAdapter, LockedBase, LockedFile, LockedSource


def entry_of(
    build: Installed, key: str | None = None, *, group: str | None = None, source: LockedSource | None = None
) -> LockedAdapter:
    """The build as a lock names it."""
    fingerprint = build.base.fingerprint
    return LockedAdapter(
        key=parse_name(key or build.manifest.name),
        wanted=build.full_name,
        name=build.full_name,
        version=build.manifest.version,
        digest=build.manifest.digest,
        base=fingerprint.weights if fingerprint else None,
        rank=build.manifest.rank,
        source=source or LockedSource(),
        files=LockedFile.all_of(build.manifest),
        group=group,
    )


def in_directory(path: str, remote: str = "") -> LockedSource:
    """A directory, as the project writes it."""
    return LockedSource(remote=remote, kind="directory", address=path)


def on_hub(url: str, repo: str, commit: str, remote: str = "") -> LockedSource:
    """A commit of a repository on a server."""
    return LockedSource(remote=remote, kind="hub", address=url, pin={"repo": repo, "commit": commit})


def lock_of(*entries: Locked, base: LockedBase | None = None) -> Lock:
    """A lock of these."""
    return Lock.of(entries, base)


def nowhere(entry: Locked) -> Iterable[Source]:
    """No place has it."""
    raise AdapterNotFound(f"nobody has `{entry.key}`")


def means(library: Library, *places: Source, lock: Lock | None = None) -> BuildSources:
    """Builds come from these places, and merges are made again."""

    def found(_entry: Locked) -> Sequence[Source]:
        return places

    return Merges(library=library, base=lock.base if lock else None, places=found).means


def planned(library: Library, project: Path, entries: Iterable[Locked]) -> SyncPlan:
    """How the folders of a project stand, by stamps where there are any."""
    with opened(library.store, project) as target:
        return plan_sync(target, entries)


def sync(
    library: Library, project: Path, lock: Lock, *places: Source, groups: Any = (), check: bool = False, **options: Any
) -> SyncResult:
    """One sync, as the command does it."""
    with syncing(library, project) as target:
        plan = plan_sync(target, wanted_entries(lock, groups), reads_all=check)
        return run_sync(library, lock, plan, means(library, *places, lock=lock), reads_all=check, **options)
