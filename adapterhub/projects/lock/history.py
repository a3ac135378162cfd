"""Remembers what the lock of a project held before, so that `adapt rollback` can go back.

    history/<16 hex of the folder>.json   {"schema", "project", "entries": {key: [lock file with this entry alone]}}

The record is in the library, as those of `sync` are, and holds the last 20 builds of each name, the newest last.
Another machine has its own; version control has what all of them agreed on.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adapterhub.core.disk.files import read_json
from adapterhub.core.errors import Malformed
from adapterhub.library.store.roots import history_path
from adapterhub.projects.lock.lockfile import lock_text, parse_lock
from adapterhub.projects.values import Lock, Locked, LockedAdapter, LockedMerge, Policy

if TYPE_CHECKING:
    from adapterhub.core.disk.root import Root

SCHEMA: Final = "adapterhub-history/1"
KEPT: Final = 20
_LIMIT_BYTES: Final = 64 << 20


class History:
    """What one project's lock held before, by name."""

    def __init__(self, root: Root, project: Path) -> None:
        self._root, self._project = root, project
        self._path = history_path(root.root, project)

    def earlier(self, key: str) -> list[Locked]:
        """The builds that were locked under a name, the newest last; those that cannot be read are left out."""
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
            entries[entry.key] = [*entries.get(entry.key, []), _text(entry)][-KEPT:]
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


def _text(entry: Locked) -> str:
    """A lock file with this entry alone."""
    adapters = (entry,) if isinstance(entry, LockedAdapter) else ()
    merges = (entry,) if isinstance(entry, LockedMerge) else ()
    return lock_text(Lock(base=None, policy=Policy(), adapters=adapters, merges=merges))
