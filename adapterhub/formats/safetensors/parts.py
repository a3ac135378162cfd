"""Adapters that a trainer saved in several files, which neither PEFT nor this package reads as one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from adapterhub.core.errors import shown

_PART: Final = re.compile(r"adapter_model-\d{1,6}-of-(?P<count>\d{1,6})\.safetensors", re.ASCII)
_JOIN: Final = (
    'python -c "import glob; from safetensors.torch import load_file, save_file; save_file({k: t for f in '
    "glob.glob('adapter_model-*-of-*.safetensors') for k, t in load_file(f).items()}, 'adapter_model.safetensors', "
    "metadata={'format': 'pt'})\""
)


def parts_problem(names: Iterable[str]) -> tuple[str, str] | None:
    """Return the fault of a folder of these files if they are parts of one adapter, and a hint; otherwise None."""
    found = {name: match for name in names if (match := _PART.fullmatch(name))}
    if not found:
        return None
    count = max(int(match["count"]) for match in found.values())
    few = ", ".join(f"`{shown(name)}`" for name in sorted(found)[:3])
    if len(found) < count:
        return f"holds {len(found)} of {count} parts of PEFT weights ({few})", "fetch the other parts"
    return f"holds PEFT weights in {len(found)} parts ({few})", f"join them in that folder, then try again: {_JOIN}"
