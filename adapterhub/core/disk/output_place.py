"""Where an output really goes: never out of a folder that somebody else prepared, never into a library's own folders.

Whoever clones a repository gets its links as files of their own. So a path that begins in a project or a checkout and
leads out of it through a link is refused, and the path behind the link can be named instead.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from adapterhub.core.disk.home import FOLDERS
from adapterhub.core.errors import NotAllowed, shown

_PREPARED: Final = ("adapters.toml", ".git")
"""What makes a folder one that may have come from somebody else: a project, a checkout."""

_OF_LIBRARIES: Final = frozenset(name.partition("/")[0] for name in FOLDERS)


def output_place(out: Path) -> Path:
    """The path of an output without the links above it; a link in its own place is followed inside the same project.

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
                    hint=f"if that is what you want, name the place itself: `{shown(str(real), 200)}`",
                )
    ensure_outside_library(real)
    return real if named.is_symlink() else Path(os.path.realpath(named.parent), named.name)


def ensure_outside_library(real: Path) -> None:
    """Whether the path without links is outside of every library's own folders, or where a running command stages.

    Raises:
        NotAllowed: a library keeps its own files there.
    """
    for root in real.parents:
        below = real.relative_to(root).parts
        if below[0] not in _OF_LIBRARIES or not is_library(root):
            continue
        if below[0] == "tmp" and below[1:] and (root / "intents" / below[1]).exists():
            return  # the folder of a writer, which it gives to what it runs
        raise NotAllowed(
            f"`{shown(str(real), 200)}` is in the library `{shown(str(root), 200)}`, which keeps its own files there. "
            "Nothing was written",
            hint="name a folder outside of it; `adapt add` and `adapt install` put adapters into a library",
        )


def is_library(folder: Path) -> bool:
    """Whether anything was ever written to a library there: the first thing it makes is a lock."""
    return (folder / "locks").is_dir() and any(
        (folder / name).exists() for name in ("blobs", "bases", "adapters", "intents", "index.db", "remotes.json")
    )
