"""Makes `adapters/` of a project match its lock: correct folders stay, the rest is fetched, linked and put in place.

Every locked build comes into the library before any folder changes. Each folder changes in one step, so an interrupted
sync leaves each folder either old or new.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal

from adapterhub.core.digests import Digest, Progress
from adapterhub.core.disk.files import RealFolder, is_sound
from adapterhub.core.disk.home import ADAPTERS_FOLDER
from adapterhub.core.disk.root import alone_in
from adapterhub.core.errors import Conflict, UsageProblem
from adapterhub.core.specs import AdapterName
from adapterhub.distribution.install import looking_ahead
from adapterhub.formats.contract.results import Tested
from adapterhub.formats.documented import Documented
from adapterhub.library.admission import Admission
from adapterhub.library.directory import PublishedDirectory
from adapterhub.library.library import Library
from adapterhub.library.transfer import Source
from adapterhub.projects.builds import (
    base_here,
    ensure_admissible,
    exact_spec,
    has_files,
    has_objects,
    installed_folder,
    locked_build,
    namespace_of,
)
from adapterhub.projects.lock.lockfile import read_lock
from adapterhub.projects.reporting import Reporter
from adapterhub.projects.sync.bringing import (
    Brought,
    Places,
    PolicyFor,
    bring,
    bring_together,
    ensure_tested,
    server_of,
)
from adapterhub.projects.sync.folders import (
    FolderState,
    Placed,
    SyncTarget,
    clear_leftovers,
    folders_of,
    is_ours,
    opened,
    place,
    read_state,
    stamps_in,
    state_of,
    take_away,
    write_state,
)
from adapterhub.projects.values import Lock, Locked, LockedMerge

Bar = Callable[[str, int], AbstractContextManager[Progress]]
"""Shows a progress bar for a number of bytes."""

Rebuild = Callable[[LockedMerge], Brought]
"""Rebuilds a locked merge from its recipe; its inputs are in the library."""

FolderChange = Literal["kept", "linked", "replaced"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSources:
    """The places that locked builds come from if they are not in the library.

    `test` looks at them once they are there, and raises if no folder may change.
    """

    places: Places
    rebuild: Rebuild
    policy: PolicyFor = lambda _entry: None
    bar: Bar | None = None
    test: Callable[[Lock, Sequence[Locked]], None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncStep:
    """One locked adapter and the state of its folder in `adapters`."""

    entry: Locked
    adapters: Path
    state: FolderState

    @property
    def folder(self) -> Path:
        """The folder; not a field, because a `Path` costs as much as a stat."""
        return self.adapters / self.entry.key


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncPlan:
    """What a sync would do. `left` are folders that sync created and the lock no longer has, `foreign` all others.

    `ours` is the record of what sync created, by key.
    """

    target: SyncTarget
    ours: Mapping[str, Placed] = field(hash=False)
    steps: tuple[SyncStep, ...]
    left: tuple[Path, ...]
    foreign: tuple[Path, ...]

    @property
    def blocked(self) -> tuple[SyncStep, ...]:
        """Locked adapters whose place holds something that sync did not create."""
        return tuple(step for step in self.steps if step.state.standing == "foreign")


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncResult:
    """What a sync did: with each locked adapter, where fetched builds came from, and what was removed.

    `warnings` name the builds that the policy `tests = "require"` would refuse.
    """

    steps: tuple[tuple[SyncStep, FolderChange], ...]
    brought: tuple[Brought, ...]
    removed: tuple[Path, ...]
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncedFolder(
    Documented, keys="key name version digest group path done from=origin repaired", title="SyncedAdapter"
):
    """A folder of `adapters/`; `from` is the place it was fetched from, as text."""

    key: Annotated[str, "its name in the project and of its folder"]
    name: Annotated[str, "with its namespace"]
    version: str
    digest: Digest
    group: str | None
    path: Path
    done: Annotated[FolderChange, "`kept`, `linked` or `replaced`"]
    origin: str | None
    repaired: Annotated[tuple[str, ...], "what did not match the lock, as text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftFolder(Documented, title="Left"):
    """A folder in `adapters/` that does not belong to the project."""

    path: Path
    made_by_sync: Annotated[bool, "true: `--prune` removes it"]


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Synced(
    Documented, keys="project locked_anew=is_locked_anew adapters fetched_bytes removed left tests?", title="Sync"
):
    """The result of a sync."""

    lock: Lock
    plan: SyncPlan
    done: SyncResult
    is_locked_anew: Annotated[bool, "true: the lock file was stale or missing and was rewritten"]
    tests: Annotated[tuple[Tested, ...] | None, "with --test: one for each build that has a contract"] = None

    @property
    def project(self) -> Path:
        """Its folder."""
        return self.plan.target.project

    @property
    def adapters(self) -> tuple[SyncedFolder, ...]:
        """The folders of `adapters/`."""
        brought = {one.entry.key: one.origin for one in self.done.brought}
        return tuple(
            SyncedFolder(
                key=step.entry.key,
                name=step.entry.name,
                version=step.entry.version,
                digest=step.entry.digest,
                group=step.entry.group,
                path=step.folder,
                done=what,
                origin=brought.get(step.entry.key),
                repaired=step.state.reasons if what == "replaced" else (),
            )
            for step, what in self.done.steps
        )

    @property
    def fetched_bytes(self) -> int:
        """Bytes received."""
        return sum(one.sent_bytes for one in self.done.brought)

    @property
    def removed(self) -> tuple[Path, ...]:
        """Folders removed by --prune."""
        return tuple(sorted(self.done.removed))

    @property
    def left(self) -> tuple[LeftFolder, ...]:
        """Folders that do not belong to the project."""
        every = [(path, True) for path in self.plan.left] + [(path, False) for path in self.plan.foreign]
        return tuple(LeftFolder(path=p, made_by_sync=ours) for p, ours in every if p not in self.done.removed)

    @property
    def changed(self) -> tuple[str, ...]:
        """The names whose folders were linked or replaced."""
        return tuple(str(step.entry.key) for step, what in self.done.steps if what != "kept")

    @property
    def warnings(self) -> tuple[str, ...]:
        """What to tell the user of the builds that came."""
        return (*(warning for one in self.done.brought for warning in one.warnings), *self.done.warnings)

    def __repr__(self) -> str:
        count = len(self.done.steps)
        return f"<Synced {count} adapter{'s' * (count != 1)}, {len(self.changed)} changed>"


def wanted_entries(lock: Lock, groups: Collection[str] | None = ()) -> list[Locked]:
    """Return the entries for `adapters/`: those in no group and those in `groups` (None: all groups)."""
    return [e for e in lock.entries.values() if e.group is None or groups is None or e.group in groups]


def exact_list(folder: Path, out: Reporter, groups: Collection[str], *, all_groups: bool) -> list[str]:
    """Return the builds of the lock in `folder`, one `name==version#sha256:…` each, in order; merges only if published.

    Raises:
        NotFound: nothing is locked yet.
        UsageProblem: the lock has no adapter in a group.
    """
    lock = read_lock(folder)
    if unknown := [name for name in groups if name not in {entry.group for entry in lock.entries.values()}]:
        raise UsageProblem(
            f"the lock file has no adapter in a group `{unknown[0]}`",
            hint="`adapt lock` locks the groups of `adapters.toml`",
        )
    entries = wanted_entries(lock, None if all_groups else groups)
    left = [entry for entry in entries if isinstance(entry, LockedMerge) and entry.source.is_library]
    if left:
        names = ", ".join(f"`{entry.key}`" for entry in left)
        out.warn(f"skipped, because only their recipe is published: {names}")
    return sorted(f"{exact_spec(entry)}#{entry.digest}" for entry in entries if entry not in left)


@contextlib.contextmanager
def syncing(library: Library, project: Path) -> Iterator[SyncTarget]:
    """Provide the project's `adapters/`, locked for one sync at a time; cleans up after a killed one.

    Raises:
        StoreLocked: another sync of the project is running.
        NotAllowed: `adapters/` is a link, another user's, or a mount of something else.
    """
    with alone_in(project, library.store, "sync"), opened(library.store, project) as target:
        if target.adapters is not None:
            clear_leftovers(target.adapters)
        yield target


def plan_sync(target: SyncTarget, entries: Iterable[Locked], *, reads_all: bool = False) -> SyncPlan:
    """Compare `adapters/` of the project with the lock; `reads_all` reads every byte."""
    adapters, ours, path = target.adapters, read_state(target.store, target.project), target.path
    names = dict.fromkeys(adapters.names() if adapters else ())
    steps = [
        SyncStep(
            entry=entry,
            adapters=path,
            state=state_of(adapters if entry.key in names else None, entry, ours.get(entry.key), reads_all=reads_all),
        )
        for entry in entries
    ]
    others = folders_of(adapters, names, but={step.entry.key for step in steps}) if adapters else []
    left = [name for name in others if adapters and name in ours and is_ours(adapters, name, ours[name])]
    return SyncPlan(
        target=target,
        ours=ours,
        steps=tuple(steps),
        left=tuple(target.path / name for name in left),
        foreign=tuple(target.path / name for name in others if name not in left),
    )


def run_sync(
    library: Library,
    lock: Lock,
    plan: SyncPlan,
    means: BuildSources,
    *,
    prune: bool = False,
    delete: Collection[Path] = (),
    reads_all: bool = False,
) -> SyncResult:
    """Carry a plan out. `prune` removes folders that sync created and the lock no longer has.

    `reads_all` also hashes the linked objects; damaged ones are fetched again. `delete` are foreign folders that may
    be deleted.

    Raises:
        Conflict: something that sync did not create is where an adapter belongs; nothing was changed.
        DigestMismatch, AdapterNotFound, RemoteUnreachable: a build is not available; no folder changed.
        SignatureRefused, NamespaceBound: a build may not be used; no folder changed.
        BehaviourChanged, CouldNotTell: a build does not pass the test of `means`; no folder changed.
        NotAllowed: a build did not pass its contract, and the policy requires it; no folder changed.
    """
    ensure_unblocked(plan, delete)
    here = {step.entry.key: step for step in plan.steps if step.state.standing == "right"}
    _quarantine_damaged(library, plan, reads_all=reads_all)
    entries = [step.entry for step in plan.steps]
    homes: dict[AdapterName, str] = {}
    brought = bring_locked(library, lock, entries, means, here=here, homes=homes)
    ensure_admissible(library, entries, means.policy)
    if means.test is not None:
        means.test(lock, entries)
    warnings = ensure_tested(library, plan.target.project, lock, entries, means.places)
    steps = tuple(_place_all(library, plan, homes))
    removed = tuple(_remove(plan, [*(plan.left if prune else ()), *(f for f in plan.foreign if f in delete)]))
    return SyncResult(steps=steps, brought=tuple(brought), removed=removed, warnings=warnings)


def ensure_unblocked(plan: SyncPlan, delete: Collection[Path] = ()) -> None:
    """Raise unless the plan can be carried out; `delete` are folders that may be deleted.

    Raises:
        Conflict: something else that sync did not create is where an adapter belongs.
    """
    steps = [step for step in plan.blocked if step.folder not in delete]
    if steps:
        lines = [f"  {ADAPTERS_FOLDER}/{step.folder.name}  {'; '.join(step.state.reasons)}" for step in steps]
        message = f"not created by sync and not what is locked; nothing was changed in `{ADAPTERS_FOLDER}/`"
        raise Conflict(
            "\n".join([message, *lines]),
            hint="move it away, or run `adapt sync --prune`, which asks before deleting it",
        )


def _quarantine_damaged(library: Library, plan: SyncPlan, *, reads_all: bool) -> None:
    """Quarantine damaged objects behind changed folders, so that they are fetched again."""
    for step in plan.steps:
        was_changed = step.state.standing == "replace" and step.state.reasons
        if was_changed or (reads_all and step.state.standing != "right"):
            for file in step.entry.files:
                path = library.store.blob_path(file.sha256)
                if path.exists() and not is_sound(path, file.sha256):
                    library.store.quarantine(path)


# ---------------------------------------------------------------- bringing
def bring_locked(
    library: Library,
    lock: Lock,
    entries: Sequence[Locked],
    means: BuildSources,
    *,
    here: Mapping[AdapterName, SyncStep] = MappingProxyType({}),
    homes: dict[AdapterName, str] | None = None,
) -> list[Brought]:
    """Bring missing `entries` into the library, and the inputs of merges that have to run.

    `here` has the folders of the project with the locked content, by key; they can restore a lost library. `homes` gets
    the folder in the library of each build that was there already, by key.

    Raises:
        AdapterHubError: the only failure, or the most serious of several, with the messages of all. Builds that
            arrived are kept.
    """
    admission = Admission(library)

    def every_place(entry: Locked) -> Iterator[Source]:
        step = here.get(entry.key)
        # the content of a project proves nothing in a namespace that belongs to a remote
        if step is not None and not admission.owners(namespace_of(entry)):
            yield PublishedDirectory(step.folder)
        yield from means.places(entry)

    missing = _missing(library, lock, entries, here, admission, {} if homes is None else homes)
    adapters = [entry for entry in missing if not isinstance(entry, LockedMerge)]
    merges = [entry for entry in missing if isinstance(entry, LockedMerge)]
    base = base_here(library, lock)
    size = sum(_missing_bytes(library, entry) for entry in adapters)
    with contextlib.ExitStack() as stack:
        away = [entry for entry in adapters if entry.key not in here and not has_objects(library, entry)]
        servers = [server_of(entry, means.places) for entry in away]
        stack.enter_context(looking_ahead(library, [exact_spec(entry) for entry in away], servers))
        progress = stack.enter_context(means.bar("sync", size)) if means.bar and size else None
        brought = bring_together(
            adapters,
            lambda entry, counted: bring(
                library, entry, every_place, base=base, policy=means.policy(entry), progress=counted
            ),
            progress,
        )
    for merge in merges:  # inputs before what is made of them
        if has_objects(library, merge) or merge.key in here:
            brought.append(bring(library, merge, every_place, base=base, policy=means.policy(merge), progress=None))
        else:
            brought.append(means.rebuild(merge))
    return brought


def _missing(
    library: Library,
    lock: Lock,
    entries: Iterable[Locked],
    here: Collection[AdapterName],
    admission: Admission,
    homes: dict[AdapterName, str],
) -> list[Locked]:
    """Return the entries that are not installed, inputs before their merges. Inputs count only if the merge has to run.

    A build that did not come from the owner of its namespace counts as missing: the owner may have it as well.
    """
    by_digest: dict[str, Locked] = {entry.digest: entry for entry in lock.entries.values()}
    found: dict[Digest, Locked] = {}

    def look(entry: Locked) -> None:
        if entry.digest in found:
            return
        folder = installed_folder(library, entry)
        if folder is not None and has_files(library, entry) and _is_ours(library, entry, admission):
            homes[entry.key] = folder
            return
        if isinstance(entry, LockedMerge) and entry.key not in here and not has_objects(library, entry):
            for leaf in entry.step.leaves():
                if (parent := by_digest.get(leaf.digest or "")) is not None:
                    look(parent)
        found[entry.digest] = entry

    for entry in entries:
        look(entry)
    return list(found.values())


def _is_ours(library: Library, entry: Locked, admission: Admission) -> bool:
    if not admission.owners(namespace_of(entry)):
        return True
    build = locked_build(library, entry)
    return build is not None and admission.is_ours(build)


def _missing_bytes(library: Library, entry: Locked) -> int:
    return sum(file.size_bytes for file in entry.files if not library.store.has_blob(file.sha256))


# ---------------------------------------------------------------- placing
def _place_all(
    library: Library, plan: SyncPlan, homes: Mapping[AdapterName, str]
) -> Iterator[tuple[SyncStep, FolderChange]]:
    """Create every folder that is not right. No fsync: the next sync recreates what a power cut loses."""
    target = plan.target
    before = dict(plan.ours)  # one sync of a project runs at a time
    after = before | {step.entry.key: step.state.placed for step in plan.steps if step.state.placed is not None}
    todo = [step for step in plan.steps if step.state.standing != "right"]
    done: dict[str, FolderChange] = {}
    if todo:
        adapters = target.make()
        # recorded first, so that the next sync recognizes what a killed one left
        making = {step.entry.key: step.state.placed or Placed(step.entry.digest) for step in todo}
        write_state(target.store, target.project, after | making)
        for step in todo:
            # `ensure_unblocked` checked that it may be deleted
            if step.state.standing == "foreign" and adapters.has(step.entry.key):
                take_away(adapters, step.entry.key)
            home = homes.get(step.entry.key) or installed_folder(library, step.entry)
            place(library, step.entry, adapters, home, replaces=_is_as_judged(adapters, step))
            done[step.entry.key] = "replaced" if step.state.standing == "replace" else "linked"
        for step in todo:  # last, because each new link to an object changes its ctime
            key = step.entry.key
            try:
                after[key] = Placed(step.entry.digest, adapters.facts(key).st_ino, stamps_in(adapters, step.entry))
            except OSError:  # deleted meanwhile; the next sync recreates it
                after.pop(key, None)
    if after != before:
        write_state(target.store, target.project, after)
    for step in plan.steps:
        yield step, done.get(step.entry.key, "kept")


def _is_as_judged(adapters: RealFolder, step: SyncStep) -> bool:
    """Return whether the folder to replace is still the one that was inspected."""
    if step.state.standing != "replace" or step.state.placed is None:
        return False
    with contextlib.suppress(FileNotFoundError):
        return adapters.facts(step.entry.key).st_ino == step.state.placed.inode
    return False


def _remove(plan: SyncPlan, folders: Sequence[Path]) -> Iterator[Path]:
    target = plan.target
    if not folders or target.adapters is None:
        return
    for folder in folders:
        take_away(target.adapters, folder.name)
        yield folder
    gone = {folder.name for folder in folders}
    kept = {key: one for key, one in read_state(target.store, target.project).items() if key not in gone}
    write_state(target.store, target.project, kept)
