"""Which names and addresses lead to this machine."""

from __future__ import annotations

import re
from typing import Final

_OCTET: Final = "(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])"
_LOOPBACK: Final = re.compile(rf"localhost|127(?:\.{_OCTET}){{3}}|::1", re.IGNORECASE)


def is_loopback(host: str | None) -> bool:
    """Return whether only this machine is reached at `host`, a name or an address without brackets; not at None."""
    return _LOOPBACK.fullmatch(host or "") is not None
