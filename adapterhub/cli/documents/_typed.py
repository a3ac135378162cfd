"""The TypedDict that pydantic takes on every supported Python, and types that many documents have."""

from __future__ import annotations

import sys
from typing import Annotated

if sys.version_info >= (3, 12):  # pydantic refuses the TypedDict of older ones
    from typing import NotRequired, TypedDict
else:
    from typing_extensions import NotRequired, TypedDict

__all__ = ["Digest", "NotRequired", "Path", "Size", "TypedDict", "Verdict"]

Digest = Annotated[str, "`sha256:` and 64 hex digits"]
Path = Annotated[str, "a path on this machine"]
Size = Annotated[int, "bytes"]
Verdict = Annotated[
    str,
    "`SAME_WEIGHTS`, `SAME_WEIGHTS_OTHER_PRECISION`, `SAME_WEIGHTS_RESIZED_VOCABULARY`, `SAME_FAMILY`, `SAME_SHAPES`,"
    " `DIFFERENT` or `UNKNOWN`",
]
