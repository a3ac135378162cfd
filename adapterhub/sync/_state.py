"""What `sync` made in `adapters/` and how its files looked then, so that looking again costs a stat for each.

    adapters/.adapterhub-sync.json   {"schema", "folders": {key: {"digest", "files": {name: [size, mtime_ns, inode]}}}}

A cache and a note of what is ours: a folder that is not in it is somebody else's, and is never deleted unasked.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from adapterhub.digests import read_json
from adapterhub.new_folder import not_written
from adapterhub.store import write_durably

STATE_FILE: Final = ".adapterhub-sync.json"
_LIMIT_BYTES: Final = 64 << 20
_SCHEMA: Final = "adapterhub-sync/1"

Stamp = tuple[int, int, int]
"""Size in bytes, time of change in nanoseconds and number of a file: one that was written to differs."""


@dataclass(frozen=True, slots=True)
class Placed:
    """A folder that sync made: the manifest's digest and the stamps of its files, none while it is in the making."""

    digest: str
    files: dict[str, Stamp] = field(default_factory=dict)


def read_state(adapters: Path) -> dict[str, Placed]:
    """What is ours in the folder `adapters`, by key; nothing when the note is missing or damaged."""
    try:
        value = read_json(adapters / STATE_FILE, _LIMIT_BYTES)
        if value["schema"] != _SCHEMA:
            return {}
        return {str(key): _placed(item) for key, item in value["folders"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _placed(item: Any) -> Placed:  # noqa: ANN401 - any JSON value; what it lacks raises
    files = {str(name): (int(s[0]), int(s[1]), int(s[2])) for name, s in item["files"].items()}
    return Placed(digest=str(item["digest"]), files=files)


def write_state(adapters: Path, placed: dict[str, Placed]) -> None:
    """Note what is ours.

    Raises:
        NotAllowed, DiskFull: it cannot be written.
    """
    folders = {key: {"digest": one.digest, "files": one.files} for key, one in sorted(placed.items())}
    data = json.dumps({"schema": _SCHEMA, "folders": folders}, separators=(",", ":")).encode()
    try:
        write_durably(adapters / STATE_FILE, data, sync=False)
    except OSError as error:
        raise not_written(error, adapters / STATE_FILE) from error


def stamp_of(path: str | Path) -> Stamp:
    """The stamp of a file; links are not followed.

    Raises:
        OSError: there is none.
    """
    facts = os.lstat(path)
    return facts.st_size, facts.st_mtime_ns, facts.st_ino
