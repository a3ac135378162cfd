"""Parses untrusted TOML, after checks that bound the time of parsing."""

from __future__ import annotations

import sys
from typing import Any, Final

from adapterhub.core.errors import shown

MAX_DOTS: Final = 500
"""In one line. TOML parsers take a minute for a key of fifty thousand parts."""


def toml_of(raw: bytes) -> dict[str, Any]:
    """The parsed document.

    Raises:
        ValueError: not a TOML document; the text gives the reason.
    """
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # type: ignore[import-not-found,unused-ignore]  # of Python 3.10 only
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start}") from None
    dotted = next((number for number, line in enumerate(text.split("\n"), 1) if line.count(".") > MAX_DOTS), None)
    if dotted is not None:
        raise ValueError(f"line {dotted}: more than {MAX_DOTS} dots")
    try:
        return dict(tomllib.loads(text))
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:  # also TOMLDecodeError; a number with too many digits raises ValueError itself
        raise ValueError(f"not TOML: {shown(str(error), 200)}") from None
