"""The addresses of a library's builds.

A build without a namespace has the address `/-/NAME`, as no namespace begins with a dash.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

NO_NAMESPACE: Final = "-"
DIGITS: Final = 12
"""How much of a digest names a build in an address."""


def address_of(namespace: str | None, name: str, digest: str) -> str:
    """The address of a build's page."""
    return f"/{namespace or NO_NAMESPACE}/{quote(name)}?build={digest.removeprefix('sha256:')[:DIGITS]}"
