"""Phrases that make our prose read like a translation, each with what to write instead.

Of a page, code is left out: fenced blocks, inline code, targets of links and comments. Of the source, only comments and
texts count, which are docstrings and messages.
"""

from __future__ import annotations

import io
import re
import tokenize
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent.parent

NOT_YET: Final = ()
"""Pages that are still being rewritten, by the beginning of their path; empty when all are done."""


@dataclass(frozen=True)
class Phrase:
    """A pattern, a sentence that it finds, and what to write instead. A space stands for any white space."""

    pattern: str
    example: str
    instead: str


PHRASES: Final = (
    Phrase(r"(is|are|was|were|be|been|being) asked of", "is asked of a server", "name who asks: `install` asks the server"),
    Phrase(r"(is|are|was|were) (not asked|asked again)", "the server is not asked", "name who asks, or write: is looked up"),
    Phrase(r"(is|are|was|were|be|been|being) said", "the reason is said", "name who says it: `sync` reports the reason"),
    Phrase(r"(is|are|was|were|be|been|being) told", "a failure is told", "name who reports it: `push` reports a failure"),
    Phrase(r"what [^.:;|]+, [^.,:;|]+ tells?", "What it means, a test tells.", "turn it round: a test shows what it means"),
    Phrase(r"whoever|whomever|whatever it is", "whoever reads it", "anyone who …, or name the person"),
    Phrase(r"(?<!\")nobody", "nobody reads it", "no one, or name what nothing does: no process uses it"),
    Phrase(r"from elsewhere", "a build from elsewhere", "from another place, or name the place"),
    Phrase(r"(?<!soon\s)as (it|they) (is|are|was|were)(?! \w+(ed|en|ing)\b)", "it stays as it is", "unchanged"),
    Phrase(r"(for|of|to|by) who (may|has|have|is|are|can)", "for who may read it", "for anyone who …"),
    Phrase(r"for ever", "closed for ever", "permanently"),
    Phrase(r"anew", "chosen anew", "again"),
    Phrase(r"in the place of", "a link in the place of a file", "instead of, or: where a file should be"),
    Phrase(r"(take|takes|taken|taking|took) (\w+ ){1,3}along", "takes no token along", "keep, or drop: changing it drops the token"),
    Phrase(r"without a word", "left out without a word", "silently"),
    Phrase(r"(is|are) well(?! apart)", "the index is well", "is healthy, is intact"),
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """One place in a page."""

    page: str
    line: int
    found: str
    advice: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: `{self.found}`: {self.advice}"


def prose(text: str) -> str:
    """The text with all code blanked, so that every word keeps its line and column."""
    for pattern in (r"^```.*?^```$", r"<!--.*?-->", r"`(?:[^`\n]|\n(?!\n))+`", r"(?<=\])\([^)\n]*\)"):
        text = re.sub(pattern, lambda code: re.sub(r"[^\n]", "_", code[0]), text, flags=re.MULTILINE | re.DOTALL)
    return text


def pattern_of(phrase: Phrase) -> re.Pattern[str]:
    return re.compile(rf"\b(?:{phrase.pattern.replace(' ', chr(92) + 's+')})\b", re.IGNORECASE)


def may_hold_phrases(source: str) -> bool:
    """Whether a phrase stands anywhere, be it in code; looking is cheaper than telling code from texts."""
    return any(pattern_of(phrase).search(source) for phrase in PHRASES)


def phrases_in(page: str, text: str) -> list[Finding]:
    """Every phrase of the list in a page, in the order of the page."""
    words = prose(text)
    return sorted(
        (
            Finding(
                page, words.count("\n", 0, place.start()) + 1, " ".join(place[0].split()), f"write {phrase.instead}"
            )
            for phrase in PHRASES
            for place in pattern_of(phrase).finditer(words)
        ),
        key=lambda finding: finding.line,
    )


def pages() -> list[Path]:
    """The pages of the documentation that are held to the list."""
    every = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    return [page for page in every if not page.relative_to(ROOT).as_posix().startswith(NOT_YET)]


def texts(source: str) -> str:
    """Python source with all but its comments and texts blanked, so that every word keeps its line."""
    lines = source.split("\n")
    kept = [[" "] * len(line) for line in lines]
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT or tokenize.tok_name[token.type] in {"STRING", "FSTRING_MIDDLE"}:
            (first, start), (last, end) = token.start, token.end
            for number in range(first, last + 1):
                begin, stop = start if number == first else 0, end if number == last else len(lines[number - 1])
                kept[number - 1][begin:stop] = lines[number - 1][begin:stop]
    return "\n".join(map("".join, kept))


def sources() -> list[Path]:
    """The files of both packages."""
    return sorted(path for folder in ("adapterhub", "registry") for path in (ROOT / folder).rglob("*.py"))
