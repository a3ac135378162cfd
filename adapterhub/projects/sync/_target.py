"""`adapters/` of a project, held open during a sync: a real folder of the project, or none yet."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from adapterhub.core.disk import real_folder
from adapterhub.core.disk.home import ADAPTERS_FOLDER
from adapterhub.core.disk.new_folder import not_written
from adapterhub.core.disk.real_folder import RealFolder
from adapterhub.core.errors import NotAllowed, shown
from adapterhub.library.store.blobs import Store

_NOTE_FOR_GIT: Final = b"*\n"


class Target:
    """Where a sync writes, and the store that records what it created."""

    def __init__(self, store: Store, project: Path, inside: RealFolder, adapters: RealFolder | None) -> None:
        self.store = store
        self.project = project
        self.adapters = adapters
        self._inside = inside

    @property
    def path(self) -> Path:
        """The folder's path, for messages."""
        return self.project / ADAPTERS_FOLDER

    def make(self) -> RealFolder:
        """The folder, created with a `.gitignore` if it is missing: the lock can recreate its content.

        Raises:
            NotAllowed, DiskFull: it cannot be created, or something else appeared there.
        """
        if self.adapters is None:
            try:
                self.adapters = self._inside.make(ADAPTERS_FOLDER)
                self.adapters.write_new(".gitignore", _NOTE_FOR_GIT)
            except OSError as error:
                raise not_written(error, self.path) from error
        return self.adapters


@contextlib.contextmanager
def opened(store: Store, project: Path) -> Iterator[Target]:
    """The project's `adapters/`.

    Raises:
        NotAllowed: it is a link, a file or a mount point, or it belongs to another user.
        NotFound: the project does not exist.
    """
    path = project / ADAPTERS_FOLDER
    with contextlib.ExitStack() as stack:
        try:
            inside = stack.enter_context(RealFolder.open(project))
            found = _found(inside)
        except OSError as error:
            raise _refused(path, f"cannot be opened: {error.strerror}") from error
        target = Target(store, project, inside, found)
        stack.callback(lambda: target.adapters.close() if target.adapters else None)
        if found is not None:
            _check_owner(found, inside)
        yield target


def _found(inside: RealFolder) -> RealFolder | None:
    try:
        return inside.inside(ADAPTERS_FOLDER)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno != errno.ENOTDIR:
            raise
        is_link = stat.S_ISLNK(inside.facts(ADAPTERS_FOLDER).st_mode)
        raise _refused(inside.path / ADAPTERS_FOLDER, "is a link" if is_link else "is not a folder") from None


def _check_owner(adapters: RealFolder, inside: RealFolder) -> None:
    if real_folder.mount_of(adapters.handle) != real_folder.mount_of(inside.handle):
        raise _refused(adapters.path, "is a mount point")
    # accept the owner of the project: root in a container often works in another user's checkout
    if os.fstat(adapters.handle).st_uid not in (os.geteuid(), os.fstat(inside.handle).st_uid):
        raise _refused(adapters.path, "belongs to another user")


def _refused(path: Path, why: str) -> NotAllowed:
    return NotAllowed(
        f"`{shown(str(path), 200)}` {why}; sync writes only in a real folder of the project. Nothing was changed",
        hint="move it away; `adapt sync` creates the folder",
    )
