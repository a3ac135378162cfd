"""SPDX licence expressions, and the least restrictive way to satisfy each.

`packaging` knows the identifiers and the grammar. The tree is built here, because the terms of both sides of `AND`
apply, while `OR` lets the user choose a side. Source: SPDX specification 2.3, annex D.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from adapterhub.formats.licenses.rules import NOTHING_SAID, Term, spdx_name, terms_of

MAX_CHARACTERS: Final = 512
MAX_DEPTH: Final = 16
MAX_CHOICES: Final = 64
_TOKEN: Final = re.compile(r"[()]|[^\s()]+")
_WORDS: Final = frozenset({"and", "or", "with", "(", ")"})
_WEIGHTS: Final = {
    Term.CONDITIONS: 1,
    Term.SHARE_ALIKE: 2,
    Term.UNKNOWN: 3,
    Term.NO_DERIVATIVES: 4,
    Term.NONCOMMERCIAL: 5,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One way to satisfy an expression: the identifiers that apply then, `WITH` exceptions included."""

    identifiers: frozenset[str]

    @property
    def terms(self) -> frozenset[Term]:
        """The terms of all its identifiers."""
        return frozenset(t for one in self.identifiers for t in terms_of(one.partition(" WITH ")[0].removesuffix("+")))

    @property
    def cost(self) -> tuple[int, int, tuple[str, ...]]:
        """Sort key: the least restrictive choice comes first. An unknown licence outweighs all but a prohibition."""
        return sum(_WEIGHTS[t] for t in self.terms), len(self.identifiers), tuple(sorted(self.identifiers))


@dataclass(frozen=True, slots=True, kw_only=True)
class Expression:
    """A licence expression in normal form, and the ways to satisfy it."""

    text: str
    choices: tuple[Choice, ...]

    @property
    def best(self) -> Choice:
        """The least restrictive choice."""
        return min(self.choices, key=lambda choice: choice.cost)

    @classmethod
    def parse(cls, text: str) -> Expression | None:
        """The expression that a card or manifest states; None if it states none or is not an expression.

        Hub names of licences outside SPDX's list count as well (`llama3.1`, `gemma`).
        """
        text = text.strip()
        if text.lower() in NOTHING_SAID or len(text) > MAX_CHARACTERS or not text.isascii() or not text.isprintable():
            return None
        tokens = _TOKEN.findall(text)
        if _depth(tokens) > MAX_DEPTH:  # `packaging` uses Python's own parser, which fails on deep nesting
            return None
        is_name = not _WORDS & {token.lower() for token in tokens}
        named = spdx_name(text) if is_name else " ".join(t if t.lower() in _WORDS else spdx_name(t) for t in tokens)
        normal = _normal(text) or _normal(named)
        if normal is None:
            return None
        choices = _Reader(_TOKEN.findall(normal)).any_of()
        return cls(text=normal, choices=tuple(choices))


def _normal(text: str) -> str | None:
    """An expression in normal form; None when the text is not one."""
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    try:
        return str(canonicalize_license_expression(text))
    except (InvalidLicenseExpression, ValueError, MemoryError, RecursionError):
        return None


def joined(expressions: Iterable[Expression]) -> Expression | None:
    """All expressions joined by `AND`, without duplicates; None for none."""
    distinct = {expression.text: expression for expression in expressions}
    if not distinct:
        return None
    parts = [f"({text})" if " OR " in text and len(distinct) > 1 else text for text in distinct]
    choices = [Choice(identifiers=frozenset())]
    for expression in distinct.values():
        choices = _both(choices, expression.choices)
    return Expression(text=" AND ".join(parts), choices=tuple(choices))


def _both(some: Iterable[Choice], others: Iterable[Choice]) -> list[Choice]:
    """Each choice of one with each of the other; only the best are kept, which bounds their number."""
    sets = {a.identifiers | b.identifiers for a, b in itertools.product(some, others)}
    return sorted((Choice(identifiers=one) for one in sets), key=lambda choice: choice.cost)[:MAX_CHOICES]


def _depth(tokens: Iterable[str]) -> int:
    depth = deepest = 0
    for token in tokens:
        depth += (token == "(") - (token == ")")  # noqa: S105 - a parenthesis
        deepest = max(deepest, depth)
    return deepest


class _Reader:
    """Recursive descent over the tokens of a normal expression: `OR` binds least, then `AND`, then `WITH`."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens

    def any_of(self) -> list[Choice]:
        choices = self._all_of()
        while self._take("OR"):
            choices = [*choices, *self._all_of()]
        return sorted(set(choices), key=lambda choice: choice.cost)[:MAX_CHOICES]

    def _all_of(self) -> list[Choice]:
        choices = self._one()
        while self._take("AND"):
            choices = _both(choices, self._one())
        return choices

    def _one(self) -> list[Choice]:
        token = self._tokens.pop(0)
        if token == "(":  # noqa: S105 - a parenthesis
            inner = self.any_of()
            self._tokens.pop(0)
            return inner
        if self._take("WITH"):
            token = f"{token} WITH {self._tokens.pop(0)}"
        return [Choice(identifiers=frozenset({token}))]

    def _take(self, word: str) -> bool:
        if self._tokens[:1] != [word]:
            return False
        self._tokens.pop(0)
        return True
