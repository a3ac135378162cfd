r"""Module-name patterns of an adapter config, matched as PEFT 0.21 matches them, but within a time budget.

PEFT and vLLM pass these patterns to `re`, which has no timeout: one `((\w|\.)+)+!` hangs the process that loads the
adapter. So a pattern whose structure allows unbounded backtracking is refused, and the others run in `regex` under a
budget of CPU time. Plain names, which nearly all patterns are, need no regular expression engine.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Final

from adapterhub.core.errors import shown
from adapterhub.formats.peft.pattern_structure import Refused, check_structure

MAX_PATTERN_CHARACTERS = 1 << 16
BUDGET_S = 1.0
"""CPU seconds for all matching of one config; an honest one needs milliseconds."""

_SINGLE_MATCH_S = 0.25
_LITERAL: Final = re.compile(r"[\w.\-]+")
_WHOLE: Final = re.compile(r"\^(?:[\w\-]|\\[.\-])+")


class PatternTooSlow(Exception):
    """Matching took longer than the budget."""


class Budget:
    """CPU seconds left for the matching of one config. Matches are cached, so repeated calls cost nothing."""

    __slots__ = ("left_s",)

    def __init__(self, seconds: float = BUDGET_S) -> None:
        self.left_s = seconds

    def spend(self, since: float) -> None:
        """Account for the thread's CPU time from `since` (`time.thread_time`) until now.

        Raises:
            PatternTooSlow: the budget is used up.
        """
        self.left_s -= time.thread_time() - since
        if self.left_s < 0:
            raise PatternTooSlow


def is_literal(pattern: str) -> bool:
    """Whether `pattern` holds names and dots only. A dot still matches any character, as it does in PEFT."""
    return _LITERAL.fullmatch(pattern) is not None


def whole_name(pattern: str) -> str | None:
    r"""The one module that `pattern` matches, if it is a name after a `^` with each dot escaped, as in `^a\.to_q`."""
    return pattern[1:].replace("\\", "") if _WHOLE.fullmatch(pattern) else None


def is_name(pattern: str) -> bool:
    """Whether `pattern` is a name, plain or anchored, which needs no engine of regular expressions."""
    return is_literal(pattern) or whole_name(pattern) is not None


def pattern_problem(pattern: str) -> str:
    """Why `pattern` must not be run, as the end of a sentence; empty when it is safe and compiles."""
    if is_name(pattern):
        return ""
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        return f"is longer than {MAX_PATTERN_CHARACTERS} characters"
    try:
        check_structure(pattern)
    except Refused as refusal:
        return str(refusal)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        return f"is not a regular expression: {shown(str(error), 60)}"
    return ""


class _Matcher:
    """Finds something for a name, once for each name and within the budget of the config."""

    __slots__ = ("_budget", "_known")

    def __init__(self, budget: Budget) -> None:
        self._budget = budget
        self._known: dict[str, str | None] = {}

    def _cached(self, name: str) -> str | None:
        if name not in self._known:
            since = time.thread_time()
            self._known[name] = self._find(name)
            self._budget.spend(since)
        return self._known[name]

    def _find(self, name: str) -> str | None:
        raise NotImplementedError


class FullPattern(_Matcher):
    """One pattern that must match a whole module name (`target_modules` or `exclude_modules` as text)."""

    __slots__ = ("_compiled",)

    def __init__(self, pattern: str, budget: Budget) -> None:
        super().__init__(budget)
        self._compiled = _guarded(pattern)

    def matches(self, name: str) -> bool:
        """As `re.fullmatch`.

        Raises:
            PatternTooSlow: the config's budget is used up.
        """
        return self._cached(name) is not None

    def _find(self, name: str) -> str | None:
        return name if _run(self._compiled.fullmatch, name) else None


class KeyPatterns(_Matcher):
    r"""The keys of `rank_pattern` or `alpha_pattern`: the first one, in order, whose pattern ends a module's name.

    PEFT's rule: `re.match(rf"(.*\.)?({key})$", name)`. Plain names are found in a dictionary, by the end of the
    module's name that is as long as the key, with a dot wherever the key has one; `^whole\.names` in another.
    """

    __slots__ = ("_by_length", "_others", "_whole")

    def __init__(self, keys: Iterable[str], budget: Budget) -> None:
        super().__init__(budget)
        self._others: list[tuple[int, str, Any]] = []
        self._by_length: dict[int, dict[tuple[int, ...], dict[str, int]]] = {}
        self._whole: dict[str, tuple[int, str]] = {}
        for order, key in enumerate(keys):
            whole = whole_name(key)
            if whole is not None:
                self._whole.setdefault(whole, (order, key))
            elif is_literal(key):
                dots = tuple(i for i, c in enumerate(key) if c == ".")
                self._by_length.setdefault(len(key), {}).setdefault(dots, {}).setdefault(key, order)
            else:
                self._others.append((order, key, _guarded(rf"(.*\.)?({key})$")))

    def first(self, name: str) -> str | None:
        """The key that applies to module `name`, None when none does.

        Raises:
            PatternTooSlow: the config's budget is used up.
        """
        return self._cached(name)

    def _find(self, name: str) -> str | None:
        found = self._whole.get(name)
        starts = [0, *(i + 1 for i, c in enumerate(name) if c == ".")]
        for start in starts if self._by_length else ():
            end = name[start:]
            for dots, keys in self._by_length.get(len(end), {}).items():
                masked = end
                if any(end[i] != "." for i in dots):
                    masked = "".join("." if i in dots else c for i, c in enumerate(end))
                order = keys.get(masked)
                if order is not None and (found is None or order < found[0]):
                    found = (order, masked)
        for order, key, compiled in self._others:
            if found is not None and order > found[0]:
                break
            if _run(compiled.match, name):
                return key
        return found[1] if found else None


class AnyPattern(_Matcher):
    """Whether any of several wrapped patterns matches the beginning of a name, `{}` standing for the pattern."""

    __slots__ = ("_compiled",)

    def __init__(self, wrapped: str, patterns: Sequence[str], budget: Budget) -> None:
        super().__init__(budget)
        self._compiled = [_guarded(wrapped.replace("{}", pattern)) for pattern in patterns]

    def first_group(self, name: str) -> str | None:
        """Group `idx` of the first match, the empty string if there is no such group; None when nothing matches.

        Raises:
            PatternTooSlow: the config's budget is used up.
        """
        return self._cached(name)

    def _find(self, name: str) -> str | None:
        matches = (_run(compiled.match, name) for compiled in self._compiled)
        match = next((match for match in matches if match is not None), None)
        return None if match is None else str(match.groupdict().get("idx", ""))


def _guarded(pattern: str) -> Any:  # noqa: ANN401 - a `regex` pattern; the package has no types
    import regex  # plain names save this import of 30 ms

    return regex.compile(pattern, regex.VERSION0)


def _run(match: Any, name: str) -> Any:  # noqa: ANN401 - a bound method of a `regex` pattern, and its result
    try:
        return match(name, timeout=_SINGLE_MATCH_S)
    except TimeoutError:
        raise PatternTooSlow from None
