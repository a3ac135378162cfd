"""`adapters/` of a project made to match its lock: what is right stays, the rest is brought, linked, put in its place.

Everything that is locked is brought into the library first; only then is a folder touched. Each folder changes in one
step, so that whatever stops a sync leaves every folder old or new.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

from adapterhub.core.digests import Digest, Progress
from adapterhub.core.disk.files import is_sound
from adapterhub.core.disk.home import ADAPTERS_FOLDER
from adapterhub.core.disk.real_folder import RealFolder
from adapterhub.core.disk.root import alone_in
from adapterhub.core.errors import AdapterHubError, Conflict, DigestMismatch, NotFound, shown
from adapterhub.core.specs import AdapterName
from adapterhub.library.admission.installed import Admission
from adapterhub.library.bases.records import BaseRecord
from adapterhub.library.directory import PublishedDirectory
from adapterhub.library.library import Library
from adapterhub.library.transfer import Source
from adapterhub.projects.builds import ensure_admissible, has_objects, is_installed, locked_build, namespace_of
from adapterhub.projects.sync._bringing import Brought, Places, PolicyFor, bring
from adapterhub.projects.sync._folders import (
    FolderState,
    clear_leftovers,
    folders_in,
    is_ours,
    place,
    stamps_of,
    state_of,
    take_away,
)
from adapterhub.projects.sync._state import Placed, read_state, write_state
from adapterhub.projects.sync._target import Target, opened
from adapterhub.projects.values import Lock, Locked, LockedMerge

__all__ = [
    "AT_ONCE",
    "Bar",
    "Brought",
    "BuildSources",
    "Places",
    "PolicyFor",
    "Rebuild",
    "SyncPlan",
    "SyncResult",
    "SyncStep",
    "Target",
    "bring",
    "bring_locked",
    "ensure_unblocked",
    "opened",
    "plan_sync",
    "run_sync",
    "syncing",
    "wanted_entries",
]

AT_ONCE: Final = 8
"""Builds that are fetched at the same time."""

Bar = Callable[[str, int], AbstractContextManager[Progress]]
"""Shows that so many bytes are on their way."""

Rebuild = Callable[[LockedMerge], Brought]
"""Makes a locked merge, whose inputs are in the library, out of its recipe."""

FolderChange = Literal["kept", "linked", "replaced"]


def _no_policy(_entry: Locked) -> None:
    """No policy for this build alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildSources:
    """How a locked build that is not in the library gets there."""

    places: Places
    rebuild: Rebuild
    policy: PolicyFor = _no_policy
    bar: Bar | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncStep:
    """One locked adapter and how its folder stands."""

    entry: Locked
    folder: Path
    state: FolderState


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncPlan:
    """What a sync would do. `left` are folders of ours that the lock does not ask for, `foreign` those of others."""

    target: Target
    steps: tuple[SyncStep, ...]
    left: tuple[Path, ...]
    foreign: tuple[Path, ...]

    @property
    def blocked(self) -> tuple[SyncStep, ...]:
        """Locked adapters in whose place lies something that sync did not make."""
        return tuple(step for step in self.steps if step.state.standing == "foreign")


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncResult:
    """What was done: with each locked adapter, where a missing one came from, and what was removed."""

    steps: tuple[tuple[SyncStep, FolderChange], ...]
    brought: tuple[Brought, ...]
    removed: tuple[Path, ...]


def wanted_entries(lock: Lock, groups: Collection[str] | None = ()) -> list[Locked]:
    """What to put into `adapters/`: what is in no group, and in one of `groups`; None for all groups."""
    return [e for e in lock.entries.values() if e.group is None or groups is None or e.group in groups]


@contextlib.contextmanager
def syncing(library: Library, project: Path) -> Iterator[Target]:
    """The project's `adapters/`, for one sync at a time; what a killed one left is put right.

    Raises:
        StoreLocked: another sync of the project did not end.
        NotAllowed: `adapters/` is a link, another user's, or a mount of something else.
    """
    with alone_in(project, library.store, "sync"), opened(library.store, project) as target:
        if target.adapters is not None:
            clear_leftovers(target.adapters)
        yield target


def plan_sync(target: Target, entries: Iterable[Locked], *, reads_all: bool = False) -> SyncPlan:
    """Compare `adapters/` of the project with what is locked; with `reads_all`, every byte of it."""
    adapters, ours = target.adapters, read_state(target.store, target.project)
    steps = [
        SyncStep(
            entry=entry,
            folder=target.path / entry.key,
            state=state_of(adapters, entry, ours.get(entry.key), reads_all=reads_all),
        )
        for entry in entries
    ]
    others = folders_in(adapters, but={step.entry.key for step in steps}) if adapters else []
    left = [name for name in others if adapters and name in ours and is_ours(adapters, name, ours[name])]
    return SyncPlan(
        target=target,
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
    """Carry a plan out. `prune` removes what sync made and the lock does not ask for any more.

    `reads_all` hashes the objects that are linked now, too; one that is damaged is fetched anew.
    `delete` are folders that sync did not make and may take away: those in the place of an adapter, and `foreign` ones.

    Raises:
        Conflict: something that sync did not make lies in the place of an adapter; nothing was changed.
        DigestMismatch, AdapterNotFound, RemoteUnreachable: a build cannot be had; no folder changed.
        SignatureRefused, NamespaceBound: a build may not be used; no folder changed.
    """
    ensure_unblocked(plan, delete)
    here = {step.entry.key: step.folder for step in plan.steps if step.state.standing == "right"}
    _refuse_damaged_objects(library, plan, reads_all=reads_all)
    entries = [step.entry for step in plan.steps]
    brought = bring_locked(library, lock, entries, means, here=here)
    ensure_admissible(library, entries, means.policy)
    steps = tuple(_place_all(library, plan))
    removed = tuple(_remove(plan, [*(plan.left if prune else ()), *(f for f in plan.foreign if f in delete)]))
    return SyncResult(steps=steps, brought=tuple(brought), removed=removed)


def ensure_unblocked(plan: SyncPlan, delete: Collection[Path] = ()) -> None:
    """Whether the plan can be carried out, when `delete` may be taken away.

    Raises:
        Conflict: something else that sync did not make lies in the place of an adapter.
    """
    steps = [step for step in plan.blocked if step.folder not in delete]
    if steps:
        lines = [f"  {ADAPTERS_FOLDER}/{step.folder.name}  {'; '.join(step.state.reasons)}" for step in steps]
        message = f"not made by sync, and not what is locked; nothing was changed in `{ADAPTERS_FOLDER}/`"
        raise Conflict("\n".join([message, *lines]), hint="move it away, or `adapt sync --prune` asks to delete it")


def _refuse_damaged_objects(library: Library, plan: SyncPlan, *, reads_all: bool) -> None:
    """Put damaged objects into quarantine where a folder that shares them is not as it was: they are fetched anew."""
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
    here: Mapping[AdapterName, Path] = MappingProxyType({}),
) -> list[Brought]:
    """Bring `entries` into the library where they are not, with the inputs of merges that have to be made.

    `here` are folders of the project, by key, that hold what is locked: a library that was lost is filled from them.

    Raises:
        AdapterHubError: the one failure, or the gravest of several with the words of all; what came is kept.
    """
    admission = Admission(library)

    def every_place(entry: Locked) -> Iterator[Source]:
        folder = here.get(entry.key)
        # what lies in a project is the project's word, which counts for nothing in a namespace of a remote
        if folder is not None and not admission.owners(namespace_of(entry)):
            yield PublishedDirectory(folder)
        yield from means.places(entry)

    missing = _missing(library, lock, entries, here, admission)
    adapters = [entry for entry in missing if not isinstance(entry, LockedMerge)]
    merges = [entry for entry in missing if isinstance(entry, LockedMerge)]
    base = _base_of(library, lock)
    size = sum(_missing_bytes(library, entry) for entry in adapters)
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(means.bar("sync", size)) if means.bar and size else None
        brought = _bring_together(
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
    library: Library, lock: Lock, entries: Iterable[Locked], here: Mapping[AdapterName, Path], admission: Admission
) -> list[Locked]:
    """What is not installed, inputs of merges before the merges. An input is needed only where a merge is made anew.

    A build that came from elsewhere than its namespace belongs counts as missing: the owner may have it, too.
    """
    by_digest: dict[str, Locked] = {entry.digest: entry for entry in lock.entries.values()}
    found: dict[Digest, Locked] = {}

    def look(entry: Locked) -> None:
        if entry.digest in found or (is_installed(library, entry) and _is_ours(library, entry, admission)):
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


def _base_of(library: Library, lock: Lock) -> BaseRecord | None:
    """The registered base that the lock is for, whatever it is called here."""
    weights = lock.base.weights if lock.base else None
    return next((r for r in library.bases.list() if r.fingerprint.weights == weights), None) if weights else None


def _bring_together(
    entries: Sequence[Locked], one: Callable[[Locked, Progress], Brought], progress: Progress | None
) -> list[Brought]:
    """Bring several at once, one bar for all; an interruption ends every one of them."""
    stopped = False

    def counted(done: int) -> None:
        if stopped:
            raise KeyboardInterrupt
        if progress is not None:
            progress(done)

    failures: list[AdapterHubError] = []
    brought = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = [pool.submit(one, entry, counted) for entry in entries]
        try:
            for future in futures:
                try:
                    brought.append(future.result())
                except AdapterHubError as error:
                    failures.append(error)
        except BaseException:
            stopped = True
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    if failures:
        raise _all_of(failures)
    return brought


def _all_of(failures: Sequence[AdapterHubError]) -> AdapterHubError:
    """One failure that tells of all: other content before what is missing before what is out of reach."""
    order = {DigestMismatch: 0, NotFound: 1}
    ranked = sorted(failures, key=lambda e: min((n for kind, n in order.items() if isinstance(e, kind)), default=2))
    first = ranked[0]
    if len(ranked) > 1:
        first.message = "\n".join([first.message, *(f"also: {shown(e.message, 1000)}" for e in ranked[1:])])
    return first


# ---------------------------------------------------------------- placing
def _place_all(library: Library, plan: SyncPlan) -> Iterator[tuple[SyncStep, FolderChange]]:
    """Make every folder that is not right. No fsync: what a power cut takes away, the next sync makes again."""
    target = plan.target
    before = read_state(target.store, target.project)
    after = before | {step.entry.key: step.state.placed for step in plan.steps if step.state.placed is not None}
    todo = [step for step in plan.steps if step.state.standing != "right"]
    done: dict[str, FolderChange] = {}
    if todo:
        adapters = target.make()
        # said before it is done, so that a sync which is killed leaves nothing that the next one takes for another's
        making = {step.entry.key: step.state.placed or Placed(step.entry.digest) for step in todo}
        write_state(target.store, target.project, after | making)
        for step in todo:
            if step.state.standing == "foreign" and adapters.has(step.entry.key):  # it was asked for
                take_away(adapters, step.entry.key)
            place(library, step.entry, adapters, replaces=_is_as_judged(adapters, step))
            done[step.entry.key] = "replaced" if step.state.standing == "replace" else "linked"
        for step in todo:  # after all, since each further link of an object changes the time of its inode
            try:
                with adapters.inside(step.entry.key) as folder:
                    inode = os.fstat(folder.handle).st_ino
                    after[step.entry.key] = Placed(step.entry.digest, inode, stamps_of(folder))
            except OSError:  # somebody took it away again; the next sync looks
                after.pop(step.entry.key, None)
    if after != before:
        write_state(target.store, target.project, after)
    for step in plan.steps:
        yield step, done.get(step.entry.key, "kept")


def _is_as_judged(adapters: RealFolder, step: SyncStep) -> bool:
    """Whether the folder to replace is still the one that was looked at; where another came, a rename is refused."""
    with contextlib.suppress(FileNotFoundError):
        inode = adapters.facts(step.entry.key).st_ino
        return step.state.standing == "replace" and step.state.placed is not None and inode == step.state.placed.inode
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
