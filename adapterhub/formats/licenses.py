"""Licences: SPDX expressions and their terms."""

from __future__ import annotations

import enum
import itertools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final


class Term(enum.Enum):
    """A condition on use or distribution. The value is the wording in findings."""

    NONCOMMERCIAL = "forbids commercial use"
    NO_DERIVATIVES = "forbids sharing changed versions"
    SHARE_ALIKE = "requires the same licence for whatever is made from it"
    CONDITIONS = "sets its own conditions on use, names or scale"
    UNKNOWN = "is not known here"


PERMISSIVE: Final[frozenset[Term]] = frozenset()

_RULES: Final[tuple[tuple[str, frozenset[Term]], ...]] = (
    # Creative Commons and data licences
    (r"CC0-1\.0|CC-PDDC|PDDL-1\.0|CC-BY-\d.*|ODC-By-1\.0|CDLA-Permissive-.*|etalab-2\.0", PERMISSIVE),
    (r"CC-BY-SA-\d.*|ODbL-1\.0|CDLA-Sharing-.*", frozenset({Term.SHARE_ALIKE})),
    (r"CC-BY-NC-SA-\d.*", frozenset({Term.NONCOMMERCIAL, Term.SHARE_ALIKE})),
    (r"CC-BY-NC-ND-\d.*", frozenset({Term.NONCOMMERCIAL, Term.NO_DERIVATIVES})),
    (r"CC-BY-NC-\d.*", frozenset({Term.NONCOMMERCIAL})),
    (r"CC-BY-ND-\d.*", frozenset({Term.NO_DERIVATIVES})),
    (r"PolyForm-Noncommercial-.*|LicenseRef-NonCommercial", frozenset({Term.NONCOMMERCIAL})),
    # software licences
    (r"MIT|MIT-0|Apache-.*|BSD-.*|0BSD|ISC|Zlib|BSL-1\.0|NCSA|PostgreSQL|Unlicense|WTFPL|Python-2\.0.*", PERMISSIVE),
    (r"AFL-3\.0|ECL-2\.0|Artistic-2\.0|UPL-1\.0|MulanPSL-.*|BlueOak-1\.0\.0|MS-PL|OFL-1\.1.*", PERMISSIVE),
    (r"[AL]?GPL-.*|GFDL-.*|MPL-.*|EPL-.*|EUPL-.*|OSL-.*|CECILL-.*|CDDL-.*|MS-RL", frozenset({Term.SHARE_ALIKE})),
    # licences of models
    (r"C-UDA-1\.0|LicenseRef-(Llama|Gemma|OpenRAIL|CustomModel).*", frozenset({Term.CONDITIONS})),
)
"""Patterns over whole SPDX identifiers, with the terms of those licences. The first match counts."""

CANNOT_JOIN: Final[tuple[tuple[str, Term], ...]] = (
    (r"A?GPL-.*", Term.NONCOMMERCIAL),
    (r"A?GPL-.*", Term.CONDITIONS),
    (r"A?GPL-.*|CC-BY-SA-.*", Term.NO_DERIVATIVES),
    (r"CC-BY-SA-.*", Term.NONCOMMERCIAL),
)
"""Pairs that cannot be joined: a licence that forbids further restrictions, and a restriction in another part."""

_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "bsd": "BSD-3-Clause",
        "cc": "LicenseRef-CreativeCommons",
        "gfdl": "GFDL-1.3-or-later",
        "gpl": "GPL-2.0-or-later",
        "lgpl": "LGPL-2.1-or-later",
        "odbl": "ODbL-1.0",
        "odc-by": "ODC-By-1.0",
        "pddl": "PDDL-1.0",
        "gemma": "LicenseRef-Gemma",
        "openrail": "LicenseRef-OpenRAIL",
        "openrail++": "LicenseRef-OpenRAIL",
        "apple-amlr": "LicenseRef-NonCommercial",
        "h-research": "LicenseRef-NonCommercial",
        "intel-research": "LicenseRef-NonCommercial",
        "deepfloyd-if-license": "LicenseRef-NonCommercial",
        "mnpl": "LicenseRef-NonCommercial",
        "mrl": "LicenseRef-NonCommercial",
        "c-uda": "C-UDA-1.0",
        "falcon-llm-license": "LicenseRef-CustomModel-Falcon",
        "nvidia-open-model-license": "LicenseRef-CustomModel-NVIDIA",
        "grok2-community": "LicenseRef-CustomModel-Grok2",
        "deepseek": "LicenseRef-CustomModel-DeepSeek",
        "qwen": "LicenseRef-CustomModel-Qwen",
        "tongyi-qianwen": "LicenseRef-CustomModel-Qwen",
    }
)
"""Names on hub cards, in lower case, and their SPDX names; licences outside SPDX's list get a `LicenseRef-` name."""

_FAMILIES: Final = (
    (re.compile(r"llama[ -]?(\d(?:\.\d)?)?(?:[ -].*)?"), "LicenseRef-Llama"),
    (re.compile(r"(?:creativeml|bigscience|bigcode).*rail.*"), "LicenseRef-OpenRAIL"),
    (re.compile(r".*(?:non-?commercial|research).*"), "LicenseRef-NonCommercial"),
)
NOTHING_SAID: Final = frozenset({"", "other", "unknown", "none", "unlicensed", "proprietary"})
"""Values on cards that state no licence."""


def spdx_name(token: str) -> str:
    """Return the SPDX name for a hub's name of a licence; other text unchanged."""
    low = token.lower()
    if low in _NAMES:
        return _NAMES[low]
    for pattern, name in _FAMILIES:
        if found := pattern.fullmatch(low):
            return f"{name}-{found[1]}" if found.groups() and found[1] else name
    return token


def terms_of(identifier: str) -> frozenset[Term]:
    """Return the terms of a licence, by its SPDX identifier (without an exception); UNKNOWN when no rule matches."""
    return next((terms for pattern, terms in _RULES if re.fullmatch(pattern, identifier)), frozenset({Term.UNKNOWN}))


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
class LicenseChoice:
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
    choices: tuple[LicenseChoice, ...]

    @property
    def best(self) -> LicenseChoice:
        """The least restrictive choice."""
        return min(self.choices, key=lambda choice: choice.cost)

    @classmethod
    def parse(cls, text: str) -> Expression | None:
        """Return the expression that a card or manifest states; None if it states none or is not an expression.

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
    """Return an expression in normal form; None when the text is not one."""
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
    choices = [LicenseChoice(identifiers=frozenset())]
    for expression in distinct.values():
        choices = _both(choices, expression.choices)
    return Expression(text=" AND ".join(parts), choices=tuple(choices))


def _both(some: Iterable[LicenseChoice], others: Iterable[LicenseChoice]) -> list[LicenseChoice]:
    """Each choice of one with each of the other; only the best are kept, which bounds their number."""
    sets = {a.identifiers | b.identifiers for a, b in itertools.product(some, others)}
    return sorted((LicenseChoice(identifiers=one) for one in sets), key=lambda choice: choice.cost)[:MAX_CHOICES]


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

    def any_of(self) -> list[LicenseChoice]:
        choices = self._all_of()
        while self._take("OR"):
            choices = [*choices, *self._all_of()]
        return sorted(set(choices), key=lambda choice: choice.cost)[:MAX_CHOICES]

    def _all_of(self) -> list[LicenseChoice]:
        choices = self._one()
        while self._take("AND"):
            choices = _both(choices, self._one())
        return choices

    def _one(self) -> list[LicenseChoice]:
        token = self._tokens.pop(0)
        if token == "(":  # noqa: S105 - a parenthesis
            inner = self.any_of()
            self._tokens.pop(0)
            return inner
        if self._take("WITH"):
            token = f"{token} WITH {self._tokens.pop(0)}"
        return [LicenseChoice(identifiers=frozenset({token}))]

    def _take(self, word: str) -> bool:
        if self._tokens[:1] != [word]:
            return False
        self._tokens.pop(0)
        return True


HUB_LICENSES: Final = tuple(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
    openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
    other
    """.split()  # noqa: SIM905 - as long as a list, and easier to compare with the source
)


def hub_license(stated: str) -> str | None:
    """Return the Hub's identifier of a licence; None if a card needs `other` with a `license_name`.

    An SPDX identifier finds its lower-case twin (`Apache-2.0`), and a GNU licence the version that it names
    (`GPL-3.0-or-later`). Expressions have no identifier.
    """
    low = stated.strip().lower()
    low = low.removesuffix("-only").removesuffix("-or-later").removesuffix("+") if "gpl-" in low else low
    return low if low in HUB_LICENSES else _twins().get(low) if low not in NOTHING_SAID else None


@cache
def _twins() -> dict[str, str]:
    """Return the identifiers by the lower-case SPDX names that they stand for."""
    return {spdx_name(one).lower(): one for one in reversed(HUB_LICENSES) if not spdx_name(one).startswith("License")}
