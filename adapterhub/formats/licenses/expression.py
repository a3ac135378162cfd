"""SPDX licence expressions: read, and boiled down to the choice that asks least.

`packaging` knows the identifiers and the grammar; the tree is ours, because terms of both sides of `AND` hold, while
one side of `OR` may be chosen. Source: SPDX specification 2.3, annex D.
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
    """One way to meet an expression: every identifier that applies then, `WITH` exceptions included."""

    identifiers: frozenset[str]

    @property
    def terms(self) -> frozenset[Term]:
        """What all of them ask together."""
        return frozenset(t for one in self.identifiers for t in terms_of(one.partition(" WITH ")[0].removesuffix("+")))

    @property
    def cost(self) -> tuple[int, int, tuple[str, ...]]:
        """Sort key: the choice that asks least comes first; what nobody knows weighs more than all but a ban."""
        return sum(_WEIGHTS[t] for t in self.terms), len(self.identifiers), tuple(sorted(self.identifiers))


@dataclass(frozen=True, slots=True, kw_only=True)
class Expression:
    """A licence expression in its one spelling, and the ways to meet it."""

    text: str
    choices: tuple[Choice, ...]

    @property
    def best(self) -> Choice:
        """The choice that asks least."""
        return min(self.choices, key=lambda choice: choice.cost)

    @classmethod
    def parse(cls, text: str) -> Expression | None:
        """The expression that a card or manifest states; None where it states none or nobody can read it.

        The names that hubs have for licences that are not on SPDX's list count as well (`llama3.1`, `gemma`).
        """
        text = text.strip()
        if text.lower() in NOTHING_SAID or len(text) > MAX_CHARACTERS or not text.isascii() or not text.isprintable():
            return None
        tokens = _TOKEN.findall(text)
        if _depth(tokens) > MAX_DEPTH:  # the grammar is checked by Python's own parser, which minds
            return None
        is_name = not _WORDS & {token.lower() for token in tokens}
        named = spdx_name(text) if is_name else " ".join(t if t.lower() in _WORDS else spdx_name(t) for t in tokens)
        normal = _normal(text) or _normal(named)
        if normal is None:
            return None
        choices = _Reader(_TOKEN.findall(normal)).any_of()
        return cls(text=normal, choices=tuple(choices))


def _normal(text: str) -> str | None:
    """An expression in its one spelling; None where it is none."""
    from packaging.licenses import InvalidLicenseExpression, canonicalize_license_expression

    try:
        return str(canonicalize_license_expression(text))
    except (InvalidLicenseExpression, ValueError, MemoryError, RecursionError):
        return None


def joined(expressions: Iterable[Expression]) -> Expression | None:
    """All of them together; None for none. Equal ones are said once."""
    distinct = {expression.text: expression for expression in expressions}
    if not distinct:
        return None
    parts = [f"({text})" if " OR " in text and len(distinct) > 1 else text for text in distinct]
    choices = [Choice(identifiers=frozenset())]
    for expression in distinct.values():
        choices = _both(choices, expression.choices)
    return Expression(text=" AND ".join(parts), choices=tuple(choices))


def _both(some: Iterable[Choice], others: Iterable[Choice]) -> list[Choice]:
    """Every choice of the one with every choice of the other; only the best few are kept, so that none explode."""
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
