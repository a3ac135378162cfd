"""The projects that use this library, and the objects that each needs: roots for `gc`.

    projects/<16 hex of the folder>.json   {"folder", "digests"}
    synced/<16 hex of the folder>.json     {"project", …}, the folders that `sync` made there
    history/<16 hex of the folder>.json    {"project", …}, the earlier entries of its lock, for `rollback`

A record lists the objects that the project needed when it was locked or synced last. The objects in its lock file count
too, so that a lock that came by `git pull` is safe before the next sync. A project whose folder is gone needs nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapterhub.core.digests import Digest, canonical_json, parse_digest
from adapterhub.core.disk.files import read_json, read_plain
from adapterhub.core.disk.home import LOCK_FILE
from adapterhub.core.disk.root import Root, absolute, place_key
from adapterhub.core.errors import Malformed, shown

_DIGEST: Final = re.compile(rb"sha256:[0-9a-f]{64}")
_LIMIT_BYTES: Final = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownProject:
    """A project and the digests of everything that it needs: manifests and files."""

    folder: Path
    digests: frozenset[Digest]


class KnownProjects:
    """The projects of the library under `root`. Cheap to make; files are read when needed."""

    def __init__(self, root: Path) -> None:
        self._root = Root(root)
        self._folder = root / "projects"

    def all(self, *, strict: bool = False) -> list[KnownProject]:
        """Every project whose folder exists, by folder. Unreadable records are passed over.

        Raises:
            Malformed: with `strict`, a record is damaged, so that its project may need anything.
        """
        found = [self.read(path, strict=strict) for path in self.paths()]
        return sorted((p for p in found if p is not None and p.folder.is_dir()), key=lambda p: p.folder)

    def remember(self, folder: Path, digests: Iterable[Digest]) -> None:
        """Record that the project in `folder` needs the objects `digests`; this replaces its earlier record.

        Raises:
            NotAllowed: the library cannot be written.
        """
        place = absolute(folder)
        value = {"folder": place, "digests": sorted(set(digests))}
        path = self._path(place)
        data = canonical_json(value)
        with contextlib.suppress(OSError):
            if path.read_bytes() == data:
                return
        self._root.write(path, data)

    def forget_gone(self) -> list[Path]:
        """Delete the records of projects whose folder is gone, and return those folders."""
        gone = []
        for path in self.paths():
            project = self._record(path)
            if project is not None and not project.folder.is_dir():
                gone.append(project.folder)
                with self._root.os_errors_as_refusals():
                    synced_path(self._root.root, project.folder).unlink(missing_ok=True)
                    history_path(self._root.root, project.folder).unlink(missing_ok=True)
                    path.unlink(missing_ok=True)
        return gone

    def _path(self, place: str) -> Path:
        return self._folder / f"{place_key(place)}.json"

    def paths(self) -> list[Path]:
        """Return the record of each project."""
        return sorted(self._folder.glob("[!.]*.json"))

    def read(self, path: Path, *, strict: bool) -> KnownProject | None:
        """Return the project in a record, with what its lock file names now; None if there is none.

        Raises:
            Malformed: with `strict`, the record is damaged.
        """
        project = self.read_at(path) if strict else self._record(path)
        if project is None:
            return None
        with contextlib.suppress(OSError):
            named = _DIGEST.findall(read_plain(project.folder / LOCK_FILE, _LIMIT_BYTES))
            now = frozenset(Digest(name.decode()) for name in named)
            return KnownProject(folder=project.folder, digests=project.digests | now)
        return project

    def _record(self, path: Path) -> KnownProject | None:
        try:
            return self.read_at(path)
        except Malformed:
            return None

    @staticmethod
    def read_at(path: Path) -> KnownProject | None:
        """Return the project in a record; None if there is none.

        Raises:
            Malformed: it is damaged.
        """
        try:
            value = read_json(path, _LIMIT_BYTES)
            folder, digests = value["folder"], value["digests"]
            return KnownProject(folder=Path(folder), digests=frozenset(parse_digest(d) for d in digests))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError) as error:
            raise Malformed(
                f"`{shown(str(path), 200)}`, the record of a project's builds, is damaged: {shown(str(error), 200)}",
                hint="delete it, then `adapt sync` in the project writes it again",
            ) from None


def synced_path(root: Path, project: Path) -> Path:
    """Return the record of what `sync` made in a project, the same for every link that leads to the project."""
    return root / "synced" / f"{place_key(os.path.realpath(project))}.json"


def history_path(root: Path, project: Path) -> Path:
    """Return the record of the project's earlier locks, the same for every link that leads to the project."""
    return root / "history" / f"{place_key(os.path.realpath(project))}.json"


def roots_of(projects: Iterable[KnownProject]) -> set[Digest]:
    """Everything that any of them needs."""
    return {digest for project in projects for digest in project.digests}


class ProjectRoots:
    """What all projects of the library under `root` need; asked again, it reads only the files that have changed."""

    def __init__(self, root: Path) -> None:
        self._projects = KnownProjects(root)
        self._read: dict[Path, tuple[object, KnownProject]] = {}

    def digests(self) -> Iterator[Digest]:
        """Yield the digests of everything that a project needs whose folder exists.

        Raises:
            Malformed: a record is damaged, so that its project may need anything.
        """
        for path in self._projects.paths():
            before = self._read.get(path)
            if before is None or before[0] != _stamp(path, before[1]):
                project = self._projects.read_at(path)
                if project is None:
                    continue
                stamp = _stamp(path, project)  # before the lock file is read
                before = stamp, self._projects.read(path, strict=True) or project
                self._read[path] = before
            if before[1].folder.is_dir():
                yield from before[1].digests


def _stamp(path: Path, project: KnownProject) -> object:
    """Return the inode, size and times of a project's record and of its lock file."""
    found: list[tuple[int, ...]] = []
    for each in (path, project.folder / LOCK_FILE):
        with contextlib.suppress(OSError):
            facts = each.stat()
            found.append((facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns))
    return found
