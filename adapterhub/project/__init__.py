"""A project: `adapters.toml`, what it wants, and `adapters.lock`, what it got.

Nothing here asks a place: files become values, and two values are compared. The pages are
`docs/reference/project-file.md` and `docs/reference/lock-file.md`. The names come when they are asked for: `adapt list`
needs none but those of the files.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapterhub.project.names import LOCK_FILE, PROJECT_FILE

if TYPE_CHECKING:
    from adapterhub.project._reading import parse_project
    from adapterhub.project.lockfile import lock_text, parse_lock, previous_lock, read_lock, write_lock
    from adapterhub.project.staleness import lock_problems, locked_step, wanted_text
    from adapterhub.project.values import Lock, Project

__all__ = [
    "LOCK_FILE",
    "PROJECT_FILE",
    "Lock",
    "Project",
    "find_project",
    "lock_problems",
    "lock_text",
    "locked_step",
    "parse_lock",
    "parse_project",
    "previous_lock",
    "read_lock",
    "read_project",
    "wanted_text",
    "write_lock",
]

_MODULES: Final = {
    "parse_project": "_reading",
    **dict.fromkeys(["Lock", "Project"], "values"),
    **dict.fromkeys(["lock_text", "parse_lock", "previous_lock", "read_lock", "write_lock"], "lockfile"),
    **dict.fromkeys(["lock_problems", "locked_step", "wanted_text"], "staleness"),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401 - whatever has the name
    """The function of that name, from its module."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def find_project(start: Path) -> Path | None:
    """The nearest folder from `start` upwards that holds `adapters.toml`; None when none does."""
    here = start.absolute()
    return next((folder for folder in (here, *here.parents) if (folder / PROJECT_FILE).is_file()), None)


def read_project(folder: Path) -> Project:
    """The project in `folder`.

    Raises:
        NotFound: there is no `adapters.toml`.
        Malformed: it cannot be used; every problem with its place.
    """
    from adapterhub.project._reading import parse_project, project_bytes

    return parse_project(project_bytes(folder), folder, str(folder / PROJECT_FILE))
