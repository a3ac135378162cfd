"""Where an output is written: never out of a folder that a stranger prepared, never into a library's own folders.

A cloned repository brings its author's links along. So a path that begins in a project or a checkout and leads out of
it through a link is refused; the user can name the target of the link instead.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from adapterhub.core.disk.home import FOLDERS
from adapterhub.core.errors import NotAllowed, shown

_PREPARED: Final = ("adapters.toml", ".git")
"""A folder that holds one of these (a project, a checkout) may come from a stranger."""

_OF_LIBRARIES: Final = frozenset(name.partition("/")[0] for name in FOLDERS)


def output_place(out: Path) -> Path:
    """The path of an output with the links above it resolved; a link at the path is followed inside the same project.

    Raises:
        NotAllowed: a link leads out of the project or checkout in which the path begins, or it ends in a library.
    """
    named = Path(os.path.abspath(out))  # noqa: PTH100 - the links are what is looked at
    real = Path(os.path.realpath(named))
    for folder in named.parents:
        if any(os.path.lexists(folder / name) for name in _PREPARED):
            inside = Path(os.path.realpath(folder))
            if not real.is_relative_to(inside):
                raise NotAllowed(
                    f"`{shown(str(out), 200)}` leads out of `{shown(str(folder), 200)}` through a link. "
                    "Nothing was written",
                    hint=f"to write there, name the path itself: `{shown(str(real), 200)}`",
                )
    ensure_outside_library(real)
    return real if named.is_symlink() else Path(os.path.realpath(named.parent), named.name)


def ensure_outside_library(real: Path) -> None:
    """Raise if a resolved path is in the folders of a library, other than the staging folder of a running command.

    Raises:
        NotAllowed: a library keeps its own files there.
    """
    for root in real.parents:
        below = real.relative_to(root).parts
        if below[0] not in _OF_LIBRARIES or not is_library(root):
            continue
        if below[0] == "tmp" and below[1:] and (root / "intents" / below[1]).exists():
            return  # the staging folder of a command, which passes it to a child
        raise NotAllowed(
            f"`{shown(str(real), 200)}` is in the library `{shown(str(root), 200)}`, which keeps its own files there. "
            "Nothing was written",
            hint="name a folder outside of it; `adapt add` and `adapt install` put adapters into a library",
        )


def is_library(folder: Path) -> bool:
    """Whether `folder` is the root of a library that was written to at least once."""
    return (folder / "locks").is_dir() and any(
        (folder / name).exists() for name in ("blobs", "bases", "adapters", "intents", "index.db", "remotes.json")
    )
