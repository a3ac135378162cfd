"""Records what `sync` created in `adapters/` of a project, with a stamp for each locked file: a check costs one stat.

    synced/<16 hex>.json   {"schema", "project", "folders": {key: {"digest", "inode", "files": {name: stamp}}}}

The record is in the library, by the project's path: a file in the project may come from a stranger, who could then
name folders to delete. A folder without a record is never deleted without asking.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from adapterhub.core.disk.files import read_plain
from adapterhub.core.disk.real_folder import RealFolder
from adapterhub.library.store.blobs import Store
from adapterhub.library.store.roots import synced_path

_LIMIT_BYTES: Final = 64 << 20
_SCHEMA: Final = "adapterhub-sync/2"

Stamp = tuple[int, int, int, int]
"""Size in bytes, times of change of the bytes and of the inode in nanoseconds, and number of a file.

A program can keep the size and restore the first time. Only the kernel sets the second time: on each write, on a change
of mode or times, and when the file gains or loses a hard link.
"""


@dataclass(frozen=True, slots=True)
class Placed:
    """A folder that sync created: the manifest's digest, the folder's inode, the stamps of its locked files.

    While it is being created it has no stamps, and the inode is that of the folder it replaces, else 0.
    """

    digest: str
    inode: int = 0
    files: dict[str, Stamp] = field(default_factory=dict, hash=False)


def read_state(store: Store, project: Path) -> dict[str, Placed]:
    """The folders that sync created in the project, by key; none if the record is missing or damaged."""
    try:
        # a record of ours: the checks of `read_json` take as long as the rest of a sync that has nothing to do
        value = json.loads(read_plain(synced_path(store.root, project), _LIMIT_BYTES))
        if value["schema"] != _SCHEMA:
            return {}
        return {str(key): _placed(item) for key, item in value["folders"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return {}


def _placed(item: Any) -> Placed:  # noqa: ANN401 - any JSON value; what it lacks raises
    files = {name: tuple(stamp) for name, stamp in item["files"].items()}  # a damaged one equals no stamp
    return Placed(str(item["digest"]), int(item["inode"]), files)


def write_state(store: Store, project: Path, placed: dict[str, Placed]) -> None:
    """Record the folders that sync created.

    Raises:
        NotAllowed, DiskFull: it cannot be written.
    """
    folders = {
        key: {"digest": one.digest, "inode": one.inode, "files": one.files} for key, one in sorted(placed.items())
    }
    value = {"schema": _SCHEMA, "project": os.path.realpath(project), "folders": folders}
    data = json.dumps(value, separators=(",", ":")).encode()
    store.write(synced_path(store.root, project), data, sync=False)


def stamp_of(folder: RealFolder, name: str) -> Stamp:
    """The stamp of a file in a folder; a link is not followed.

    Raises:
        OSError: there is none.
    """
    facts = os.stat(name, dir_fd=folder.handle, follow_symlinks=False)  # for thousands
    return facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns, facts.st_ino
