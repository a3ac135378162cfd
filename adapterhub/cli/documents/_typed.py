"""The TypedDict that pydantic takes on every supported Python, and types that many documents have."""

from __future__ import annotations

import sys
from typing import Annotated

if sys.version_info >= (3, 12):  # pydantic refuses the TypedDict of older ones
    from typing import NotRequired, TypedDict
else:
    from typing_extensions import NotRequired, TypedDict

from adapterhub.formats.base.fingerprint import BaseVerdict

__all__ = ["Digest", "NotRequired", "Path", "Size", "TypedDict", "Verdict"]

Digest = Annotated[str, "`sha256:` and 64 hex digits"]
Path = Annotated[str, "a path on this machine"]
Size = Annotated[int, "bytes"]
_VERDICTS = [f"`{verdict.name}`" for verdict in BaseVerdict]
Verdict = Annotated[str, f"{', '.join(_VERDICTS[:-1])} or {_VERDICTS[-1]}"]
