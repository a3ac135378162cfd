"""Computes the changes of a commit: which files its operations set and remove in a tree."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

from adapterhub_registry.database.trees.nodes import changed_digest, key_of, keys_below
from adapterhub_registry.database.trees.trees import Tree
from adapterhub_registry.errors import Refusal, bad_request
from adapterhub_registry.names import MAX_FOLDERS
from adapterhub_registry.storage.blobs import StoredBlob


@dataclass(frozen=True, slots=True, kw_only=True)
class Put:
    """Set a file to a stored blob."""

    path: str
    blob: StoredBlob
    lfs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Delete:
    """Remove a file."""

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeleteFolder:
    """Remove all files below a folder."""

    path: str


Operation = Put | Delete | DeleteFolder
Changes = dict[str, Put | None]
"""The new content of each changed path, sorted by `key_of`; None removes the file."""


def changes_of(tree: Tree, operations: Sequence[Operation]) -> Changes:
    """The changes that operations make, applied in order; empty when the tree has all of them.

    Raises:
        Refusal: 404 for removing a file or folder that does not exist.
    """
    named = sorted({step.path for step in operations if not isinstance(step, DeleteFolder)}, key=key_of)
    before = {path: entry.sha256 for path in named if (entry := tree.find(path)) is not None}
    changes = _Changed(tree, before)
    for step in operations:
        if isinstance(step, Put):
            changes.put(step)
        elif isinstance(step, DeleteFolder):
            changes.delete_folder(step.path)
        else:
            changes.delete(step.path)
    return changes.sorted()


class _Changed:
    """The changes so far. `before` has the sha256 of all files that the operations name, and of others."""

    def __init__(self, tree: Tree, before: dict[str, str]) -> None:
        self._tree, self._before = tree, before
        self._keys: list[str] = []  # of the files that `put` set
        self._emptied: set[str] = set()  # folders whose files in the tree were read
        self.found: Changes = {}

    def put(self, step: Put) -> None:
        """Set a file."""
        path, now = step.path, self._before.get(step.path)
        if path in self.found:
            put = self.found[path]
            now = put.blob.sha256 if put is not None else None
        if now != step.blob.sha256:
            self._forget(path)
            self.found[path] = step
            insort(self._keys, key_of(path))

    def delete(self, path: str) -> None:
        """Remove a file; where there is a folder of this name, all files below it."""
        if (self.found[path] if path in self.found else self._before.get(path)) is None:
            self.delete_folder(path)
            return
        self._forget(path)
        if path in self._before:
            self.found[path] = None

    def delete_folder(self, folder: str) -> None:
        """Remove all files below a folder."""
        start, end = keys_below(folder)
        gone = [
            key.replace("\0", "/") for key in self._keys[bisect_left(self._keys, start) : bisect_left(self._keys, end)]
        ]
        if not any(parent in self._emptied for parent in [folder, *parents_of(folder)]):
            for entry in self._tree.walk(folder):
                if entry.path not in self.found:
                    self._before[entry.path] = entry.sha256
                    gone.append(entry.path)
            self._emptied.add(folder)
        if not gone:
            raise _missing(folder)
        for path in gone:
            self.delete(path)

    def sorted(self) -> Changes:
        """The changes, without files that have their old content again."""
        found = ((path, self.found[path]) for path in sorted(self.found, key=key_of))
        return {path: put for path, put in found if put is None or put.blob.sha256 != self._before.get(path)}

    def _forget(self, path: str) -> None:
        if self.found.pop(path, None) is not None:
            del self._keys[bisect_left(self._keys, key_of(path))]


def check_tree(tree: Tree, changes: Changes, max_files: int) -> None:
    """Raise when the changed tree is too large or too deep, or has a path that is both file and folder.

    Raises:
        Refusal: 400 or 413.
    """
    new = [path for path, put in changes.items() if put is not None and tree.find(path) is None]
    gone = [path for path, put in changes.items() if put is None]
    count = tree.totals().files + len(new) - len(gone)
    if count > max_files:
        raise Refusal(413, "TooLarge", f"a repository holds at most {max_files} files; this commit would make {count}")
    gone_keys = [key_of(path) for path in gone]
    last = ""
    for path in new:
        if path.count("/") > MAX_FOLDERS:
            raise bad_request(
                f"expected a path of at most {MAX_FOLDERS} folders; nothing was committed because of `{path}`"
            )
        if last and path.startswith(f"{last}/"):  # in sorted order, what is below a new path follows it directly
            raise _file_and_folder(last)
        last = path
        _check_kind(tree, path, changes, gone_keys)


def _check_kind(tree: Tree, path: str, changes: Changes, gone_keys: list[str]) -> None:
    """Raise when a new file's path is a folder, or one of its folders is a file."""
    parents = parents_of(path)
    # when a folder exists, so do all folders above it
    at = bisect_left(range(len(parents)), True, key=lambda at: tree.first_below(parents[at]) is not None)
    folder = parents[at] if at < len(parents) else None
    if folder is not None and changes.get(folder, tree.find(folder)) is not None:
        raise _file_and_folder(folder)
    start, end = keys_below(path)
    gone = bisect_left(gone_keys, end) - bisect_left(gone_keys, start)
    if tree.first_below(path) is not None and tree.totals(path).files > gone:
        raise _file_and_folder(path)


def parents_of(path: str) -> list[str]:
    """The folders above a path, innermost first."""
    parents = []
    while "/" in path:
        path = path.rpartition("/")[0]
        parents.append(path)
    return parents


def digest_after(tree: Tree, changes: Changes) -> int:
    """The digest of all files of `tree` after the changes."""
    digest = tree.totals().digest
    for path, put in changes.items():
        before, after = tree.find(path), put.blob.sha256 if put is not None else None
        digest = changed_digest(digest, path, before.sha256 if before is not None else None, after)
    return digest


def id_of_changes(changes: Changes) -> str:
    """A sha256 over the changes; with the parent, it determines the content of a commit."""
    hasher = hashlib.sha256()
    for path, put in changes.items():
        hasher.update(json.dumps([path, put and put.blob.sha256]).encode())
    return hasher.hexdigest()


def _missing(path: str) -> Refusal:
    return Refusal(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")


def _file_and_folder(path: str) -> Refusal:
    return bad_request(f"`{path}` cannot be both a file and a folder")
