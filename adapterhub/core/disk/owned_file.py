"""Reading of files that decide what is trusted: only the user or root may be able to write them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from adapterhub.core.disk.files import read_plain
from adapterhub.core.disk.real_folder import OTHERS_MAY_WRITE
from adapterhub.core.errors import NotAllowed, shown


def read_owned(path: Path, says: str, *, limit_bytes: int) -> bytes:
    """At most `limit_bytes + 1` bytes of `path`. `says` completes the sentence "`path` …" in refusals.

    Its folder is checked too: anyone who may write there can put another file in its place.

    Raises:
        NotAllowed: others may write the file or its folder, or own one of them.
        OSError: it cannot be read.
    """
    raw = read_plain(path, limit_bytes)
    real = Path(os.path.realpath(path))
    for place in dict.fromkeys([real, path.parent, real.parent]):
        facts = place.stat()
        which = f"`{shown(str(place), 200)}`" if place == real else f"its folder `{shown(str(place), 200)}`"
        said = f"`{shown(str(path), 200)}` {says}, and "
        if facts.st_uid not in (0, os.geteuid()):
            hint = f"look at what it holds, then `sudo chown {os.geteuid()} {place}`"
            raise NotAllowed(f"{said}{which} belongs to another user", hint=hint)
        if stat.S_IMODE(facts.st_mode) & OTHERS_MAY_WRITE:
            hint = f"look at what it holds, then `chmod go-w {place}`"
            raise NotAllowed(f"{said}others may write {which if place != real else 'it'}", hint=hint)
    return raw
