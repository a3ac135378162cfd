"""Patterns of git: which paths a `.gitignore` names, and which ones a `.gitattributes` gives to LFS.

Each part of a path is matched by itself with `fnmatch`, whose time grows with the length of a pattern, never beyond.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

IGNORE_FILE: Final = ".gitignore"
MAX_IGNORE_BYTES: Final = 1 << 16
MAX_RULES: Final = 1000
_ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class _Rule:
    """One line: the patterns of the parts of a path (None for `**`), and its decision on a path that it fits."""

    parts: tuple[re.Pattern[str] | None, ...]
    ignores: bool
    folders_only: bool


class Ignored:
    """The rules of a `.gitignore` at the root of a repository."""

    def __init__(self, text: str) -> None:
        found = (_rule(line) for line in text[:MAX_IGNORE_BYTES].splitlines()[:MAX_RULES])
        self._rules = [rule for rule in found if rule is not None]
        self._known: dict[str, bool] = {}

    def has(self, path: str) -> bool:
        """Return whether the file is ignored. A rule cannot take back a file whose folder is ignored."""
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
    """Return the rule of a line; None for an empty line or a comment."""
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
    """Return a part of a pattern without backslashes, which `fnmatch` does not know."""
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


ATTRIBUTES_FILE: Final = ".gitattributes"
MAX_ATTRIBUTES_BYTES: Final = 1 << 16
LFS_WORDS: Final = "filter=lfs diff=lfs merge=lfs -text"
_SUFFIX = re.compile(r"[^/]*\.([A-Za-z0-9_]{1,32})")
_OF_SUFFIX = re.compile(r"\*\.([A-Za-z0-9_]+)")
_NO_RULE: Final = (-1, False)
_MEANT = re.compile(r'[ \t\n\r\v\f"*?\[\]\\]')


class Attributes:
    """The rules of a `.gitattributes` at the root of a repository, as far as they give files to LFS."""

    def __init__(self, text: str) -> None:
        self._of_suffix: dict[str, tuple[int, bool]] = {}  # those of `*.bin` and such: most, and found at once
        self._others: list[tuple[int, _Rule, bool]] = []
        for number, line in enumerate(text.splitlines()[:MAX_RULES]):
            pattern, by_lfs = _lfs_of(line)
            suffix, rule = _OF_SUFFIX.fullmatch(pattern), _rule(pattern)
            if suffix is not None:
                self._of_suffix[suffix[1]] = (number, by_lfs)
            elif rule is not None:
                self._others.append((number, rule, by_lfs))
        self.cost = len(self._others) + 1
        """How many patterns one path is compared with."""

    def gives_to_lfs(self, path: str) -> bool:
        """Return whether git passes the file to git-lfs; the last rule counts."""
        parts = path.split("/")
        _, dot, suffix = parts[-1].rpartition(".")
        found = [(number, by_lfs) for number, rule, by_lfs in self._others if _fits(rule.parts, parts)]
        return max([*found, self._of_suffix.get(suffix, _NO_RULE) if dot else _NO_RULE])[1]


def _lfs_of(line: str) -> tuple[str, bool]:
    """Return the pattern of a line and whether it gives files to LFS.

    An empty pattern for a line about other things.
    """
    pattern, *words = line.split() or [""]
    filters = [word for word in words if word.lstrip("-!").partition("=")[0] == "filter"]
    if not filters or pattern.startswith(("!", '"', "[attr]")) or pattern.endswith("/"):
        return "", False
    return pattern, filters[-1] == "filter=lfs"


def lines_for(paths: Iterable[str], regular: AbstractSet[str]) -> Iterator[str]:
    """Sorted lines that give files to LFS: one for each suffix that is not among the `regular` ones, or one a file."""
    suffixes = {suffix_of(path): None for path in paths}
    free = {suffix for suffix in suffixes if suffix and suffix not in regular}
    named = {f"/{_MEANT.sub('?', path)}" for path in paths if suffix_of(path) not in free}
    for pattern in (*sorted(f"*.{suffix}" for suffix in free), *sorted(named)):
        yield f"{pattern} {LFS_WORDS}\n"


def suffix_of(path: str) -> str:
    """Return the suffix of a file's name without the dot; empty without a plain one."""
    found = _SUFFIX.fullmatch(path.rpartition("/")[2])
    return "" if found is None else found[1]
