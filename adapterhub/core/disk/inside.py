"""Which files of a folder that a stranger may have prepared are its own, whatever links lie there: one rule for all.

A file may be a link inside its folder, or the link into the `blobs` of a Hugging Face cache
(`snapshots/<commit>/file -> ../../blobs/<id>`); any other way out leads to files of somebody else.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

from adapterhub.core.errors import shown

NO_LINK: Final = "replace the link with the file"


class LeadsOut(OSError):
    """A link leads out of its folder; `strerror` says where to."""

    strerror: str


def inside(folder: Path, name: str, *, within: Path | None = None) -> Path:
    """What the name in the folder leads to: itself, or the resolved target of a link.

    `within` is a folder around `folder` inside of which links may lead, too. A name with slashes passes no folder
    that is a link out.

    Raises:
        LeadsOut: a link leads out of the folder.
        OSError: nothing is there, or a link leads nowhere.
    """
    path = folder / name
    facts = path.lstat()
    if not stat.S_ISLNK(facts.st_mode) and os.sep not in name:
        return path
    try:
        target, home = path.resolve(strict=True), folder.resolve(strict=True)
    except RuntimeError as error:  # Python before 3.13 says so of a loop
        raise OSError(errno.ELOOP, str(error), str(path)) from None
    if target.is_relative_to(home) or (within is not None and target.is_relative_to(within.resolve())):
        return target
    # snapshots/<commit>[/subfolder…]/file; both sides are resolved, so the cache itself may lie behind a link
    cache = next((parent.parent for parent in home.parents if parent.name == "snapshots"), None)
    if cache is not None and target.parent == cache / "blobs":
        return target
    where = str(path.readlink()) if stat.S_ISLNK(facts.st_mode) else str(target)
    raise LeadsOut(errno.ELOOP, f"is a link out of its folder, to {shown(where)}", str(path))


def is_own(folder: Path, name: str) -> bool:
    """Whether the name leads to something in the folder, as `inside` decides."""
    try:
        inside(folder, name)
    except OSError:
        return False
    return True
