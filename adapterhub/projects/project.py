"""A project: `adapters.toml`, what it wants, and `adapters.lock`, what it got.

Nothing here asks a place: files become values, and two values are compared. The pages are
`docs/reference/files.md` and `docs/reference/files.md`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from adapterhub.core.disk.home import PROJECT_FILE

if TYPE_CHECKING:
    from adapterhub.projects.values import Project


def find_project(start: Path) -> Path | None:
    """Return the nearest folder from `start` upwards that holds `adapters.toml`; None when none does."""
    here = start.absolute()
    return next((folder for folder in (here, *here.parents) if (folder / PROJECT_FILE).is_file()), None)


def read_project(folder: Path) -> Project:
    """Return the project in `folder`.

    Raises:
        NotFound: there is no `adapters.toml`.
        Malformed: it cannot be used; every problem with its place.
    """
    from adapterhub.projects.file import parse_project, project_bytes

    return parse_project(project_bytes(folder), folder, str(folder / PROJECT_FILE))
