"""A path that the user typed and where nothing is: the one error for it, with the nearest path that is there."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import Final

from adapterhub.core.disk.files import read_plain
from adapterhub.core.errors import AdapterNotFound, NotFound, shown

_MOST_LOOKED_AT: Final = 10_000
_FILES: Final = (".safetensors", ".gguf", ".json", ".jsonl", ".pub", ".txt", ".toml")


def read_typed(path: Path, limit_bytes: int, *, hint: str = "") -> bytes:
    """At most `limit_bytes + 1` bytes of a file that the user named, so that the caller can tell when it is too large.

    Raises:
        NotFound: there is no such file, or it is not a regular one that can be read.
    """
    ensure_there(path, NotFound, what="file", hint=hint)
    try:
        return read_plain(path, limit_bytes)
    except OSError as error:
        raise NotFound(f"cannot read `{shown(str(path), 200)}`: {error.strerror}", hint=hint) from None


def ensure_there(path: Path, kind: type[NotFound] = AdapterNotFound, *, what: str = "", hint: str = "") -> None:
    """Raise if nothing is at `path`, a file or folder; `hint` is for where nothing has a like name.

    Raises:
        NotFound: of the class `kind`; the hint offers the nearest path.
    """
    if os.path.lexists(path):
        return
    near = nearest(path)
    what = what or ("file" if path.suffix in _FILES else "folder")
    raise kind(
        f"no such {what}: `{shown(str(path), 200)}`", hint=f"did you mean `{shown(near, 200)}`?" if near else hint
    )


def nearest(path: Path) -> str:
    """The path that is there and differs least in the first part that is not; "" where no name is like it."""
    import difflib

    around, name = path.parent, path.name
    while not os.path.lexists(around):
        around, name = around.parent, around.name
    try:
        with os.scandir(around) as entries:
            names = [entry.name for entry in islice(entries, _MOST_LOOKED_AT)]
    except OSError:
        return ""
    found = difflib.get_close_matches(name, sorted(names), n=1)
    if not found:
        return ""
    rest = path.relative_to(around / name)
    whole = around / found[0] / rest
    near = whole if os.path.lexists(whole) else around / found[0]
    is_here = str(path) == path.name or not path.is_absolute()
    return f"./{near}" if is_here and not str(near).startswith((".", "/", "~")) else str(near)
