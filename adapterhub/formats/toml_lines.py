"""Finds the lines of keys in a TOML text, and the lines where version control left a conflict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

_HEADER: Final = re.compile(r"\s*\[\[?\s*([^\[\]#]+?)\s*\]\]?\s*(#.*)?")
_KEY: Final = re.compile(r"""\s*([A-Za-z0-9_.-]+|"[^"\\]*"|'[^']*')\s*=""")
_MARKS: Final = ("<<<<<<<", "=======", ">>>>>>>")


def both_sides(text: str) -> str | None:
    """The problem of a text with both sides of a merge in version control, with its line; None if it has none."""
    if not any(mark in text for mark in _MARKS):
        return None
    number = next((number for number, line in enumerate(text.split("\n"), 1) if line.startswith(_MARKS)), None)
    return None if number is None else f"line {number}: holds both sides of a merge in version control"


def line_of(path: str, lines: Mapping[str, int]) -> int | None:
    """The line of a key, or of the nearest enclosing table."""
    around = re.split(r"[.\[]", path)
    held = (lines.get(".".join(around[:count])) for count in range(len(around), 0, -1))
    return next((line for line in held if line is not None), None)


def lines_of(text: str) -> dict[str, int]:
    """The first line of each key, by its path. For error messages only: multi-line texts can mislead it."""
    found: dict[str, int] = {}
    table = ""
    for number, line in enumerate(text.split("\n"), 1):
        header = _HEADER.fullmatch(line)
        key = None if header else _KEY.match(line)
        if header:
            table = re.sub(r"\s*\.\s*", ".", header[1].replace('"', "").replace("'", ""))
            found.setdefault(table, number)
        elif key:
            name = key[1].strip("\"'")
            found.setdefault(f"{table}.{name}" if table else name, number)
    return found
