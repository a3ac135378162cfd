"""A path that the user typed and where nothing is: the one error for it, with the nearest path that is there."""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adapterhub.core.errors import AdapterNotFound, shown

if TYPE_CHECKING:
    from adapterhub.core.errors import NotFound

_MOST_LOOKED_AT: Final = 10_000
_FILES: Final = (".safetensors", ".gguf", ".json", ".jsonl", ".pub", ".txt", ".toml")


def ensure_there(path: Path, kind: type[NotFound] = AdapterNotFound, *, hint: str = "") -> None:
    """Raise if nothing is at `path`; `hint` is for where nothing has a like name.

    Raises:
        NotFound: of the class `kind`; the hint offers the nearest path.
    """
    if os.path.lexists(path):
        return
    near = nearest(path)
    what = "file" if path.suffix in _FILES else "folder"
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
