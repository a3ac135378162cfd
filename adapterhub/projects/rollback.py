"""Remembers what the lock held before, and plans a rollback to it."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adapterhub.core.disk.files import read_json
from adapterhub.core.disk.home import LOCK_FILE, PROJECT_FILE
from adapterhub.core.errors import Conflict, Malformed, NoCompatibleRelease, NotFound, StaleLock, shown
from adapterhub.core.ranks import RankRange
from adapterhub.core.specs import AdapterName, AdapterSpec
from adapterhub.distribution.choosing import candidates_of
from adapterhub.formats.release import Release
from adapterhub.library.store.roots import history_path
from adapterhub.projects.aliases import is_alias_key
from adapterhub.projects.builds import label_of, namespace_of
from adapterhub.projects.file import not_in_project, project_of, refusal, text_of_project, with_adapter
from adapterhub.projects.lock.lockfile import (
    lock_problems,
    lock_text,
    merge_problems,
    parse_lock,
    read_lock,
    wanted_text,
)
from adapterhub.projects.values import AdapterRequirement, Lock, Locked, LockedAdapter, LockedMerge, Project

if TYPE_CHECKING:
    from adapterhub.core.disk.root import Root
    from adapterhub.library.library import Library

_OPTION: Final = re.compile(r" (rank|remote)=([^ ]+)$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollback:
    """The project and the lock to write. `text` is the project file, `restored` the requirements that changed in it.

    In `lock`, merges that no earlier lock has for these inputs are unchanged; locking makes them again. `entries` are
    the earlier builds.
    """

    project: Project
    text: str
    lock: Lock
    before: Lock
    entries: tuple[Locked, ...]
    restored: tuple[AdapterRequirement, ...]


def plan_rollback(library: Library, project: Project, names: Sequence[str]) -> Rollback:
    """Go back, under each of `names`, to the build that the lock held before the present one.

    Raises:
        NotFound: the project has no such name, no lock, or nothing earlier under the name.
        StaleLock: the lock does not answer the project file.
        Conflict: the earlier build is of another base, of a remote that is gone, or a merge of other inputs.
        NoCompatibleRelease: the policy of the project refuses the earlier build.
    """
    lock = read_lock(project.folder)
    for name in names:
        _known(project, name)
    if problems := lock_problems(project, lock):
        hint = "`adapt lock` updates it; then roll back"
        raise StaleLock(str(project.folder / LOCK_FILE), problems, hint=hint)
    history = History(library.store, project.folder)
    text, before = text_of_project(project.folder), lock
    chosen: dict[AdapterName, Locked] = {}
    restored = []
    for name in dict.fromkeys(names):
        key = _known(project, name)
        now = lock.entries[key]
        old = replace(_earlier(history, now), group=now.group)
        chosen[key] = old
        if isinstance(old, LockedMerge):
            continue
        _ensure_fits(library, project, lock, now, old)
        wanted = next(one for one in project.adapters if one.key == key)
        if wanted_text(wanted) != old.wanted:
            wanted = _requirement(project, wanted, old)
            restored.append(wanted)
            text = with_adapter(text, wanted)
    project = project_of(text, project.folder)
    lock = _with(project, lock, chosen, history)
    return Rollback(
        project=project, text=text, lock=lock, before=before, entries=tuple(chosen.values()), restored=tuple(restored)
    )


def _known(project: Project, name: str) -> AdapterName:
    keys = [wanted.key for wanted in project.requirements]
    if name in keys and is_alias_key(name):
        raise Conflict(
            f"`{shown(name)}` is an alias of this project, which `{PROJECT_FILE}` sets. Nothing was changed",
            hint=f"`adapt alias set --save` moves it; `git log -p {PROJECT_FILE}` shows what it was",
        )
    if name not in keys:
        raise not_in_project(name, keys)
    return AdapterName(name)


def _earlier(history: History, now: Locked) -> Locked:
    """Return the last build under the same name that is not the present one."""
    old = next((one for one in reversed(history.earlier(now.key)) if one.digest != now.digest), None)
    if old is None:
        raise NotFound(
            f"`{now.key}` is locked as {label_of(now)}, and nothing earlier is known on this machine. "
            "Nothing was changed",
            hint=f"`git log -p {LOCK_FILE}` shows what others locked; restore that file, then run `adapt sync`; or "
            f"write the version you want in `{PROJECT_FILE}`",
        )
    if isinstance(old, LockedMerge) != isinstance(now, LockedMerge):
        raise Conflict(
            f"`{now.key}` was {'a merge' if isinstance(old, LockedMerge) else 'no merge'} before. Nothing was changed",
            hint=f"restore its entry in `{PROJECT_FILE}`, then run `adapt lock`",
        )
    return old


def _ensure_fits(library: Library, project: Project, lock: Lock, now: Locked, old: LockedAdapter) -> None:
    """Raise if the project has another base or a policy against the earlier build, or has lost its remote."""
    weights = lock.base.weights if lock.base else None
    if weights is not None and old.base not in (None, weights, now.base):
        raise Conflict(
            f"{label_of(old)}, which `{old.key}` was before, is for another base than the project has now. "
            "Nothing was changed",
            hint=f"restore `base` in `{PROJECT_FILE}` to go back to it",
        )
    if old.source.remote and all(one.name != old.source.remote for one in project.remotes):
        raise Conflict(
            f"{label_of(old)}, which `{old.key}` was before, came from the remote `{shown(old.source.remote)}`, which "
            "the project does not name any more. Nothing was changed",
            hint=f"name that remote in `{PROJECT_FILE}`, then run `adapt lock` and roll back",
        )
    if not library.store.has_manifest(old.digest):
        return
    manifest = library.store.read_manifest(old.digest)
    release = Release(manifest=manifest, namespace=namespace_of(old), origin=library.label)
    (candidate,) = candidates_of(library, [release], None, library.label)
    # what was locked earlier is older than what is locked now
    reason = refusal(replace(project.policy, exclude_newer=None), candidate, 0.0)
    if reason is not None:
        raise NoCompatibleRelease(
            f"`{old.key}` cannot go back to {label_of(old)}. Nothing was changed",
            [(old.version, reason)],
            hint=f"allow it under `[policy]` of `{PROJECT_FILE}`, then roll back",
        )


def _requirement(project: Project, wanted: AdapterRequirement, old: LockedAdapter) -> AdapterRequirement:
    """Return the requirement that a build was locked for, as `wanted_text` writes it."""
    text, options = old.wanted, {}
    while found := _OPTION.search(text):
        text, options[found[1]] = text[: found.start()], found[2]
    remote = options.get("remote")
    if remote is not None and all(one.name != remote for one in project.remotes):
        raise Conflict(
            f"`{old.key}` was `{shown(old.wanted)}` before, and the project has no remote `{shown(remote)}` any more. "
            "Nothing was changed",
            hint=f"name that remote in `{PROJECT_FILE}`, then run `adapt lock` and roll back",
        )
    ranks = RankRange.of(options.get("rank"))
    return replace(wanted, spec=AdapterSpec.parse(text), ranks=ranks, remote=remote)


def _with(project: Project, lock: Lock, chosen: dict[AdapterName, Locked], history: History) -> Lock:
    """Return the lock with the chosen builds.

    For each merge of changed inputs, the build that an earlier lock had of these.

    Raises:
        Conflict: a chosen merge is of other inputs than the project has then.
    """
    entries = {**lock.entries, **chosen}
    for merge in project.merges:
        now = entries[merge.key]
        if not isinstance(now, LockedMerge) or not merge_problems(merge, now, entries):
            continue
        if merge.key in chosen:
            moved = [
                str(leaf.spec) for leaf in merge.step.leaves() if leaf.spec in lock.entries and leaf.spec not in chosen
            ]
            raise Conflict(
                f"{label_of(now)}, which `{merge.key}` was before, is made of other inputs, by another recipe or with "
                "another description. Nothing was changed",
                hint="roll back what it is made of, and it follows: "
                + ", ".join(f"`adapt upgrade --undo {name}`" for name in dict.fromkeys(moved))
                + f"; or restore its recipe in `{PROJECT_FILE}`",
            )
        old = [replace(one, group=merge.group) for one in history.earlier(merge.key) if isinstance(one, LockedMerge)]
        entries[merge.key] = next((one for one in reversed(old) if not merge_problems(merge, one, entries)), now)
    return Lock.of((entries[wanted.key] for wanted in project.requirements), lock.base, lock.policy)


SCHEMA: Final = "adapterhub-history/1"
KEPT: Final = 20
_LIMIT_BYTES: Final = 64 << 20


class History:
    """What one project's lock held before, by name."""

    def __init__(self, root: Root, project: Path) -> None:
        self._root, self._project = root, project
        self._path = history_path(root.root, project)

    def earlier(self, key: str) -> list[Locked]:
        """Return the builds that were locked under a name, the newest last; those that cannot be read are left out."""
        found: list[Locked] = []
        for text in self._read().get(key, []):
            try:
                found += parse_lock(text).entries.values()
            except Malformed:
                continue
        return found

    def note(self, before: Lock | None, after: Lock, *, but: Collection[str] = ()) -> None:
        """Remember each build of `before` that `after` replaces or lacks; `but` are names that are rolled back."""
        old, new = before.entries if before else {}, after.entries
        gone = [entry for key, entry in old.items() if key not in but and _differs(entry, new.get(key))]
        if not gone:
            return
        entries = self._read()
        for entry in gone:
            entries[entry.key] = [*entries.get(entry.key, []), lock_text(Lock.of([entry]))][-KEPT:]
        self._write(entries)

    def forget(self, key: str, entry: Locked) -> None:
        """Drop `entry`, which was rolled back to, and everything after it."""
        entries = self._read()
        places = [at for at, text in enumerate(entries.get(key, [])) if f'\ndigest = "{entry.digest}"\n' in text]
        if places:
            entries[key] = entries[key][: places[-1]]
            self._write(entries)

    def _read(self) -> dict[str, list[str]]:
        try:
            value = read_json(self._path, _LIMIT_BYTES)
            if value["schema"] != SCHEMA:
                return {}
            return {str(key): [str(text) for text in texts] for key, texts in value["entries"].items()}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    def _write(self, entries: dict[str, list[str]]) -> None:
        value = {"schema": SCHEMA, "project": os.path.realpath(self._project), "entries": entries}
        self._root.write(self._path, json.dumps(value, separators=(",", ":")).encode(), sync=False)


def _differs(entry: Locked, other: Locked | None) -> bool:
    return other is None or other.digest != entry.digest
