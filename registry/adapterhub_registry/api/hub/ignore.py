"""Which files `.gitignore` names, by git's rules (gitignore(5)). No pattern takes more time than its length allows."""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from typing import Final

IGNORE_FILE: Final = ".gitignore"
MAX_IGNORE_BYTES: Final = 1 << 16
_MAX_RULES: Final = 1000
_ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class _Rule:
    """One line: the patterns of the parts of a path (None for `**`), and what it says of a path that it fits."""

    parts: tuple[re.Pattern[str] | None, ...]
    ignores: bool
    folders_only: bool


class Ignored:
    """The rules of a `.gitignore` at the root of a repository."""

    def __init__(self, text: str) -> None:
        found = (_rule(line) for line in text[:MAX_IGNORE_BYTES].splitlines()[:_MAX_RULES])
        self._rules = [rule for rule in found if rule is not None]
        self._known: dict[str, bool] = {}

    def has(self, path: str) -> bool:
        """Whether the file is ignored. A rule cannot take back a file whose folder is ignored."""
        return self._has(path, is_folder=False)

    def _has(self, path: str, *, is_folder: bool) -> bool:
        key = f"{path}/" if is_folder else path
        if key not in self._known:
            folder = path.rpartition("/")[0]
            below = bool(folder) and self._has(folder, is_folder=True)
            self._known[key] = below or self._says(path, is_folder=is_folder)
        return self._known[key]

    def _says(self, path: str, *, is_folder: bool) -> bool:
        parts = path.split("/")
        for rule in reversed(self._rules):
            if (is_folder or not rule.folders_only) and _fits(rule.parts, parts):
                return rule.ignores
        return False


def _rule(line: str) -> _Rule | None:
    """The rule of a line; None for an empty line or a comment."""
    line = re.sub(r"(?<!\\)\s+$", "", line)
    if not line or line.startswith("#"):
        return None
    takes_back, folders_only = line.startswith("!"), line.endswith("/")
    text = line.removeprefix("!").rstrip("/")
    if not text:
        return None
    parts = text.removeprefix("/").split("/")
    if "/" not in text:
        parts = ["**", *parts]  # a name alone fits in every folder
    patterns = [None if part == "**" else re.compile(fnmatch.translate(_plain(part))) for part in parts]
    return _Rule(tuple(patterns), ignores=not takes_back, folders_only=folders_only)


def _plain(part: str) -> str:
    """A part of a pattern without backslashes, which `fnmatch` does not know."""
    return _ESCAPED.sub(lambda found: f"[{found[1]}]" if found[1] in "*?[" else found[1], part)


def _fits(patterns: tuple[re.Pattern[str] | None, ...], parts: list[str]) -> bool:
    """Whether the patterns fit all parts; `**` stands for any number of folders, at the end for one part or more."""
    reached = {0}  # numbers of parts that the patterns so far may have used
    for at, pattern in enumerate(patterns):
        if pattern is None:
            last = at == len(patterns) - 1
            reached = set(range(min(reached) + (1 if last else 0), len(parts) + 1)) if reached else reached
        else:
            reached = {n + 1 for n in reached if n < len(parts) and pattern.match(parts[n])}
        if not reached:
            return False
    return len(parts) in reached
