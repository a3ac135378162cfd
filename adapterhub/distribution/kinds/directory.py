"""A directory of published builds, a library, or one PEFT folder: a path, relative to the file that names it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adapterhub.core.arguments import path_of
from adapterhub.core.errors import AdapterNotFound, UsageProblem
from adapterhub.distribution.kind import Kind, RemoteAccess
from adapterhub.library.store.origins import is_url

if TYPE_CHECKING:
    from adapterhub.library.transfer import Source


class DirectoryKind(Kind):
    """See the module."""

    name = "directory"
    address_key = "path"
    is_server = False

    def parse_address(self, text: str) -> str:
        """Return the path as it is written."""
        if not text or not text.isprintable():
            raise UsageProblem("expected the path of a directory, relative to this file")
        return text

    def open(self, address: str, access: RemoteAccess) -> Source:
        """Return the directory."""
        from adapterhub.library.directory import open_source

        place = access.folder / path_of(address)
        if not place.is_dir():
            raise AdapterNotFound(
                f"the project looks for adapters in `{address}`, but `{place}` is not a folder",
                hint="`[remotes]` of the project file names it",
            )
        return open_source(place)

    def claims(self, place: str) -> bool:
        """Return whether it is a path."""
        return not is_url(place)

    def problems(self, address: str, pin: Mapping[str, str]) -> list[str]:  # noqa: ARG002 - the protocol
        """Nothing: a folder may have any name."""
        return []

    def is_at(self, address: str, place: str, folder: Path) -> bool:
        """Return whether both are one folder, links resolved."""
        there = folder / path_of(address)
        return self.claims(place) and os.path.realpath(there) == os.path.realpath(place)

    def address_of(self, place: str, folder: Path) -> str:
        """Return the path from the project to a folder inside it."""
        here, project = os.path.realpath(place), os.path.realpath(folder)
        return "./" + Path(here).relative_to(project).as_posix() if here.startswith(project + os.sep) else ""


KIND: Final = DirectoryKind()
