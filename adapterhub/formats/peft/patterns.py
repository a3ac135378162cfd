r"""Module-name patterns of an adapter config, matched as PEFT 0.21 matches them, but within a time budget.

PEFT and vLLM pass these patterns to `re`, which has no timeout: one `((\w|\.)+)+!` hangs the process that loads the
adapter. So a pattern whose structure allows unbounded backtracking is refused, and the others run in `regex` under a
budget of CPU time. Plain names, which nearly all patterns are, need no regular expression engine.
"""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Iterable, Sequence
from typing import Any, Final

from adapterhub.core.errors import shown

_MAX_GROUP_DEPTH = 40
_MANY = 16  # `x{0,17}` and above is treated as if it had no upper bound
# Unbounded repeats in a row without a fixed character between them: `.*\w*name` is quadratic, which is affordable for
# names of 512 characters; cubic is not. Smaller repeats and options multiply too, by at most 16 and 2 each.
_MAX_IN_ROW = 2.0
_SHORT_REPEAT, _OPTION = 0.5, 0.1
_MAX_REPEATS = 8.0  # on one way through the whole pattern, fixed characters between or not
# Options, short repeats and choices that can begin alike double the ways to match the same text, fixed characters
# between or not; this many doublings are quick, and no honest pattern needs more.
_MAX_DOUBLINGS = 12.0
_FIXED: Final = re.compile(r"(?:[\w\-](?![*+?{]))*")
_PLACES: Final = frozenset("AbBZ")  # escapes that stand for a place between characters
_QUANTIFIER: Final = re.compile(r"\{(\d*)(,?)(\d*)\}")
_FLAGS: Final = re.compile(r"\?[aimsu]+(?:-[ims]+)?(?=[:)])|\?-[ims]+(?=:)")


class RefusedPattern(Exception):
    """The end of a sentence with the reason."""


def check_structure(pattern: str) -> None:
    """Raise `RefusedPattern` unless a match takes a bounded number of steps, and the parentheses are balanced."""
    _Structure(pattern).check()


class _Shape:
    """The costs of a part of a pattern.

    `run` counts the unbounded repeats at its end with no fixed character after them, `total` those on the costliest
    way from the pattern's beginning to its end. `doublings` is the logarithm of how many ways there are to match one
    text with it, `consumes` whether each of them takes a character.
    """

    __slots__ = ("branches", "consumes", "doublings", "literal", "quantified", "run", "total")

    def __init__(self, run: float, total: float) -> None:
        self.run, self.total = run, total
        self.literal = False  # every way through it passes a fixed character
        self.quantified = False  # it holds a quantifier other than {n}
        self.branches = 1
        self.doublings = 0.0
        self.consumes = False


def _alike(beginnings: Iterable[str]) -> int:
    """Count the most branches of a choice that one text can match, judged by their first fixed characters."""
    holding: list[str] = []  # each a beginning of the next
    most = 1
    for beginning in sorted(text.casefold() for text in beginnings):  # whatever the flags
        while holding and not beginning.startswith(holding[-1]):
            holding.pop()
        holding.append(beginning)
        most = max(most, len(holding))
    return most


class _Structure:
    """Walks a pattern once. A repeated group must not vary in length; repeats in a row are counted."""

    def __init__(self, pattern: str) -> None:
        self.pattern, self.at = pattern, 0

    def check(self) -> None:
        self.alternatives(run=0, total=0, depth=0)
        if self.at < len(self.pattern):
            raise RefusedPattern("is not a regular expression: unbalanced parenthesis")

    def peek(self, count: int = 1) -> str:
        return self.pattern[self.at : self.at + count]

    def alternatives(self, run: float, total: float, depth: int) -> _Shape:
        """Everything up to the closing parenthesis (not consumed) or the end."""
        if depth > _MAX_GROUP_DEPTH:
            raise RefusedPattern(f"nests groups deeper than {_MAX_GROUP_DEPTH}")
        begins = [self.at]
        whole = self.sequence(run, total, depth)
        while self.peek() == "|":
            self.at += 1
            begins.append(self.at)
            branch = self.sequence(run, total, depth)
            whole.doublings = max(whole.doublings, branch.doublings)
            whole.consumes = whole.consumes and branch.consumes
            whole.run = max(whole.run, branch.run)
            whole.total = max(whole.total, branch.total)
            whole.literal = whole.literal and branch.literal
            whole.quantified = whole.quantified or branch.quantified
            whole.branches += 1
        whole.doublings += math.log2(_alike(_FIXED.match(self.pattern, at)[0] for at in begins))  # type: ignore[index]
        return whole

    def sequence(self, run: float, total: float, depth: int) -> _Shape:
        shape = _Shape(run, total)
        while self.at < len(self.pattern) and self.peek() not in ("|", ")"):
            item = self.item(shape, depth)
            low, high = self.quantifier()
            self.judge(item, high)
            cost = 0.0 if low == high else 1.0 if high > _MANY else _SHORT_REPEAT if high > 1 else _OPTION
            shape.quantified = shape.quantified or item.quantified or cost > 0
            shape.total = item.total + cost
            shape.consumes = shape.consumes or (item.consumes and low > 0)
            shape.doublings += item.doublings * max(high, 1) + (math.log2(high - low + 1) if high <= _MANY else 0)
            if cost:
                shape.run = max(shape.run, item.run) + cost
            else:
                shape.run = item.run
                shape.literal = shape.literal or item.literal
            if shape.run > _MAX_IN_ROW or shape.total > _MAX_REPEATS:
                raise RefusedPattern("has too many repeats, which can take forever to match")
            if shape.doublings > _MAX_DOUBLINGS:
                raise RefusedPattern("has too many choices that can begin alike, which can take forever to match")
        return shape

    @staticmethod
    def judge(item: _Shape, high: int) -> None:
        if high > 1 and item.quantified:
            raise RefusedPattern(
                "nested repetition such as `(a+)+` is not allowed, because matching it can take exponential time"
            )
        if high > _MANY and item.branches > 1:
            raise RefusedPattern("repeats a choice without bound, which can take forever to match")
        if high > _MANY and not item.consumes:
            raise RefusedPattern("repeats what can be empty without bound, which takes memory without bound")

    def item(self, before: _Shape, depth: int) -> _Shape:
        character = self.peek()
        self.at += 1
        shape = _Shape(before.run, before.total)
        shape.consumes = character not in "^$"
        if character == "(":
            return self.group(before, depth)
        if character == "[":
            self.character_class()
        elif character == "\\":
            escaped = self.peek()
            self.at += 1
            shape.consumes = escaped not in _PLACES
            if escaped.isdigit() and escaped != "0":
                raise RefusedPattern("refers back to a group, which is not supported")
            if not escaped.isalnum():  # \. and the like stand for themselves
                shape.run, shape.literal = 0, True
        elif character in "*+?":
            raise RefusedPattern("is not a regular expression: nothing to repeat")
        elif character not in ".^$":
            shape.run, shape.literal = 0, True
        return shape

    def group(self, before: _Shape, depth: int) -> _Shape:
        looks_around = False
        if self.peek() == "?":
            if self.peek(2) in ("?=", "?!") or self.peek(3) in ("?<=", "?<!"):
                looks_around = True
                self.at += 2 if self.peek(2) in ("?=", "?!") else 3
            elif self.peek(2) in ("?:", "?>"):
                self.at += 2
            elif self.peek(3) == "?P<":
                self.at = self.index_of(">") + 1
            elif flags := _FLAGS.match(self.pattern, self.at):
                self.at = flags.end()
                if self.peek() == ":":
                    self.at += 1
            else:
                raise RefusedPattern(f"uses `({shown(self.peek(3))}`, which is not supported")
        inner = self.alternatives(0 if looks_around else before.run, before.total, depth + 1)
        if self.peek() != ")":
            raise RefusedPattern("is not a regular expression: a group is not closed")
        self.at += 1
        if not looks_around:
            return inner
        outer = _Shape(before.run, inner.total)  # consumes nothing: what stood before it touches what follows
        outer.quantified, outer.branches, outer.doublings = inner.quantified, inner.branches, inner.doublings
        return outer

    def index_of(self, character: str) -> int:
        found = self.pattern.find(character, self.at)
        if found < 0:
            raise RefusedPattern("is not a regular expression: a group's name is not closed")
        return found

    def character_class(self) -> None:
        if self.peek() == "^":
            self.at += 1
        if self.peek() == "]":
            self.at += 1
        while self.at < len(self.pattern) and self.peek() != "]":
            if self.peek(2) in ("[:", "[=", "[."):
                raise RefusedPattern("uses a POSIX character class, which `re` does not know")
            self.at += 2 if self.peek() == "\\" else 1
        if self.at >= len(self.pattern):
            raise RefusedPattern("is not a regular expression: a character class is not closed")
        self.at += 1

    def quantifier(self) -> tuple[int, int]:
        """Return the least and greatest number of repeats at this point; (1, 1) without a quantifier."""
        endless = 1 << 30
        found = self.peek()
        low, high = 1, 1
        if found and found in "*+?":
            self.at += 1
            low, high = {"*": (0, endless), "+": (1, endless), "?": (0, 1)}[found]
        elif found == "{":
            match = _QUANTIFIER.match(self.pattern, self.at)
            # A brace that is no quantifier is a plain character to `re`, and fuzzy matching to `regex`.
            if match is None or match[0] in ("{}", "{,}") or max(len(match[1]), len(match[3])) > 9:
                raise RefusedPattern("has a brace that is not a repeat count; write it as `\\{`")
            self.at = match.end()
            low = int(match[1] or 0)
            high = (int(match[3]) if match[3] else endless) if match[2] else low
        else:
            return 1, 1
        if self.peek() and self.peek() in "?+":  # lazy or possessive
            self.at += 1
        if self.peek() and self.peek() in "*+?{":
            raise RefusedPattern("repeats a repeat")
        return low, high


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
    """Return whether `pattern` holds names and dots only. A dot still matches any character, as it does in PEFT."""
    return _LITERAL.fullmatch(pattern) is not None


def whole_name(pattern: str) -> str | None:
    r"""Return the one module that `pattern` matches, if it is a name after `^` with each dot escaped: `^a\.to_q`."""
    return pattern[1:].replace("\\", "") if _WHOLE.fullmatch(pattern) else None


def is_name(pattern: str) -> bool:
    """Return whether `pattern` is a name, plain or anchored, which needs no engine of regular expressions."""
    return is_literal(pattern) or whole_name(pattern) is not None


def pattern_problem(pattern: str) -> str:
    """Return why `pattern` must not be run, as the end of a sentence; empty when it is safe and compiles."""
    if is_name(pattern):
        return ""
    if len(pattern) > MAX_PATTERN_CHARACTERS:
        return f"is longer than {MAX_PATTERN_CHARACTERS} characters"
    try:
        check_structure(pattern)
    except RefusedPattern as refusal:
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
        """Return the key that applies to module `name`, None when none does.

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


def _guarded(pattern: str) -> Any:
    import regex  # plain names save this import of 30 ms

    return regex.compile(pattern, regex.VERSION0)


def _run(match: Any, name: str) -> Any:
    try:
        return match(name, timeout=_SINGLE_MATCH_S)
    except TimeoutError:
        raise PatternTooSlow from None
