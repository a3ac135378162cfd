"""The addresses of a library's builds.

A build without a namespace has the address `/-/NAME`, as no namespace begins with a dash.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

_MOST_DIGITS: Final = 9
NO_NAMESPACE: Final = "-"
DIGITS: Final = 12
"""How much of a digest names a build in an address."""


def address_of(namespace: str | None, name: str, digest: str) -> str:
    """The address of a build's page."""
    return f"/{namespace or NO_NAMESPACE}/{quote(name)}?build={digest.removeprefix('sha256:')[:DIGITS]}"


def number_in(text: str) -> int | None:
    """The whole number that a field or an address gives; None for anything else, such as `²`."""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS else None
