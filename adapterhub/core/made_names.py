"""Names made of the names of folders and repositories."""

from __future__ import annotations

import re
from typing import Final

_MOST_CHARACTERS: Final = 64


def made_name(text: str) -> str:
    """`text` in lower case, a dash for each run of characters that names forbid; "" where nothing is left."""
    name = re.sub(r"[^a-z0-9._]+", "-", text.lower())
    return re.sub(r"\.{2,}", ".", re.sub(r"-{2,}", "-", name)).strip("._-")[:_MOST_CHARACTERS].rstrip(".-")
