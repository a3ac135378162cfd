"""Patterns of grammar that read like a translation, counted in every text that a user or a developer reads.

`python -m tests.prose --report` prints the table. A pattern counts sentences, not words: code is blanked first.
"""

from __future__ import annotations

import ast
import random
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import click

from tests.prose.phrases import ROOT, prose, sources


@dataclass(frozen=True)
class Habit:
    """A pattern on one sentence, a sentence that it finds, and what to write instead."""

    name: str
    pattern: str
    example: str
    instead: str


_WH: Final = "how|what|why|which|who|whose|whether|where|so|nothing|it"
_THING: Final = (
    "page|file|table|code|manifest|config|contract|number|card|lock|record|line|header|verdict|report|X|it|README|server|recipe|"
    "note|name|hint|message|metric|check"
)
HABITS: Final = (
    Habit("who as a subject", r"(?:^|[.;:] |, (?:and|but|or) )Who(?:ever)? (?!is |are |needs|made|uses|has to)[a-z]+s?\b[^?]*$", "Who runs servers can also deny a build.", "Anyone who …, or name the person"),
    Habit("what as a subject", r"^What (?!you|to\b|is\b|are\b|it is\b|next|\w+ does\b|\w+ is\b|do\b|does\b)[^?]*?\b(?:is|are|has|comes?|goes|stays?|counts?|moves?|gets?|passes|needs|takes?)\b[^?]*$", "What passed moves on.", "a noun: versions that pass move on"),
    Habit("what as an object", r"\b(?:refuses?|takes?|keeps?|sends?|leaves?|lists?|makes?|removes?|fetch(?:es)?|reads?|tests?|sells?|holds?|prints?|of|for|to|from|than|with) what (?:is|was|are|it|they|others?|cannot|can|has|had|came|comes|does|did|passe[sd]|the|a|an)\b", "It keeps what is there.", "a noun: it keeps the files"),
    Habit("Where = if", r"(?:^|[.;:] )Where (?!you\b|to\b|the examples|it (?:writes|looks)|files|things|sync|output)[a-z]", "Where a role may, it adds an extension.", "If …"),
    Habit("None where = if", r"(?:\bNone|\"\"|\b[Ee]mpty|\bFalse|\bTrue|\bnull|\b[Rr]aises?) where\b(?! to\b)", "The name; None where it has none.", "if"),
    Habit("ask = prompt", r"\b(?:asks?|asked|asking) (?:the|each|every|an?|its|this|another|one|X|it|them|what|on|in|as)\b(?! (?:server|registry|user|author|operator|tenant|place|question|Hub|remote|colleague|person|library|engine|issuer|system)s?\b)", "It asks the adapter first.", "tests, prompts, queries"),
    Habit("a thing says", rf"\b(?:{_THING}) (?:says|tells)\b", "The page says so.", "contains, lists, states, shows"),
    Habit("says + clause", rf"\b(?:says?|tells?|said|told) (?:{_WH})\b", "It says what is wrong.", "names the fault, reports, prints"),
    Habit(", too", r", too\b(?! (?:many|much|few|large|long|small|short|late|old|big|high|low|deep)\b)", "It does this, too.", "also"),
    Habit("alone = only", r"\b(?!it|you|let|left|stands?|on its own)\w+s? alone\b", "The text alone counts.", "only"),
    Habit("else = otherwise", r"[,;] else (?!if|where)", "One of these, else none.", "otherwise, or"),
    Habit("along", r"\b(?:come|comes|came|go|goes|went|bring|brings|brought|take|takes|send|sends|carry|carries|copy|copies) (?:\w+ ){0,3}along\b", "The token comes along.", "is included"),
    Habit("be had", r"\b(?:to|can|could|cannot|must not) be had\b", "It cannot be had.", "is not available"),
    Habit("hear of", r"\b(?:hears?|heard|tells?|told|warns?) of\b", "It hears of changes.", "learns about, reports"),
    Habit("otherwise = differently", r"\b(?:answers?|answered|looks?|behaves?|described?|written|means?|does|do|said|reads?|works?|it) otherwise\b", "It answers otherwise.", "differently"),
    Habit("is no X", r"(?<!there )(?<!There )\b(?:is|are|was|were|becomes?|be) no (?!longer|more\b|less\b|other\b|need\b)[a-z]+", "This is no folder.", "is not a …"),
    Habit("is none", r"(?<!there )(?<!There )\b(?:is|are|was) none\b", "The list is none.", "is not one, is missing"),
    Habit("one a = per", r"\b(?:one|two|three|\d+(?:[.,]\d+)*|seconds?|ms|bytes|row|requests?|object|line|LoRA|way|word|times?|entry|file|version) an? (?:module|token|row|line|adapter|build|repository|parent|day|tensor|process|method|key|record|side|stream|page|name|sequence|sentence|seed)\b", "It takes 3 ms a module.", "per"),
)  # fmt: skip
"""From the list of words.md: the ones of which no sentence shall be left."""

NOT_YET: Final[tuple[str, ...]] = ()
"""Kinds of text that still show some of them: `python -m tests.prose --report` counts how many."""

_CODE_END: Final = re.compile(r"\s+")


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a page or a docstring; headings and table cells count as sentences."""
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*|#>]|\d+\.) )", prose(text)):
        for cell in re.split(r"\s\|\s|^\s*\||\|\s*$", block.strip().lstrip("-*#>0123456789. ")):
            for sentence in re.split(r"(?<=[.!?:])\s+(?=[A-Z_*\[])", _CODE_END.sub(" ", cell).strip()):
                if sentence:
                    yield sentence


@dataclass(frozen=True)
class Text:
    """A sentence, the kind of its text and the place of that."""

    kind: str
    place: str
    sentence: str


GENERATED: Final = ("cli.md", "json.md", "python.md", "findings.md", "registry-api.md", "exit-codes.md")


def _pages() -> Iterator[tuple[str, Path]]:
    yield "README", ROOT / "README.md"
    yield "CHANGELOG", ROOT / "CHANGELOG.md"
    yield from (("CONTRIBUTING", ROOT / name) for name in ("CONTRIBUTING.md", "SECURITY.md"))
    for page in sorted((ROOT / "docs").rglob("*.md")):
        folder = page.parent.name
        kind = folder if folder in ("tutorial", "how-to", "explanation", "reference") else "docs"
        if page.name not in GENERATED:  # their texts are counted at their sources
            yield kind, page


def _text(node: ast.expr | None) -> str:
    """The text of a literal, with `X` where a value is filled in; "" for anything else."""
    match node:
        case ast.Constant(value=str(value)):
            return value
        case ast.JoinedStr(values=parts):
            return "".join(part.value if isinstance(part, ast.Constant) else "X" for part in parts)
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _text(left) + _text(right)
    return ""


def _of_source(path: Path) -> Iterator[Text]:
    place = path.relative_to(ROOT).as_posix()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module):
            found = [("docstrings", ast.get_docstring(node) or "", getattr(node, "lineno", 1))]
        elif isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
            found = [("errors", _text(node.exc.args[0]), node.lineno)]
        elif isinstance(node, ast.keyword) and node.arg == "hint":
            found = [("hints", _text(node.value), node.value.lineno)]
        else:
            continue
        yield from (Text(k, f"{place}:{line}", sentence) for k, text, line in found for sentence in sentences(text))


def _of_commands(command: click.Command, path: str) -> Iterator[Text]:
    for text in [command.help, *(getattr(p, "help", None) for p in command.params)]:
        yield from (Text("help", path, sentence) for sentence in sentences((text or "").replace("\b", "")))
    if isinstance(command, click.Group):
        with click.Context(command) as context:
            for name in command.list_commands(context):
                if (inner := command.get_command(context, name)) is not None:
                    yield from _of_commands(inner, f"{path} {name}")


@cache
def texts() -> tuple[Text, ...]:
    """Return every sentence that users and developers read."""
    from adapterhub.cli import cli

    found = [
        Text(kind, page.relative_to(ROOT).as_posix(), sentence)
        for kind, page in _pages()
        for sentence in sentences(page.read_text(encoding="utf-8"))
    ]
    found += [text for path in sources() for text in _of_source(path)]
    found += _of_commands(cli, "adapt")
    for template in sorted((ROOT / "adapterhub" / "pages" / "templates").glob("*.html")):
        plain = re.sub(r"\{[%#].*?[%#]\}|<[^>]*>", "\n\n", re.sub(r"\{\{.*?\}\}", "X", template.read_text("utf-8")))
        found += [Text("pages", template.name, sentence) for sentence in sentences(plain)]
    return tuple(found)


def sample(seed: str, size: int = 50) -> Iterator[Text]:
    """Yield so many random sentences of five words or more of each kind; equal seeds draw equal ones from equal texts."""
    drawn = random.Random(seed)
    for kind in dict.fromkeys(text.kind for text in texts()):
        long = [text for text in texts() if text.kind == kind and len(text.sentence.split()) >= 5]
        yield from drawn.sample(long, min(size, len(long)))


def habits_in(sentence: str) -> list[Habit]:
    """Return the habits that a sentence shows."""
    return [habit for habit in HABITS if re.search(habit.pattern, sentence)]


def report() -> str:
    """Return the table: a line per habit, a column per kind of text, and the sums."""
    kinds, found = [*dict.fromkeys(text.kind for text in texts())], counts()
    rows = [(habit.name, [found[kind, habit.name] for kind in kinds]) for habit in HABITS]
    rows.append(("sum", [sum(column) for column in zip(*(row for _, row in rows), strict=True)]))
    rows.append(("sentences", [sum(text.kind == kind for text in texts()) for kind in kinds]))
    head = f"{'':24}" + "".join(f"{kind[:9]:>10}" for kind in kinds)
    return "\n".join([head, *(f"{name:24}" + "".join(f"{n:10}" for n in numbers) for name, numbers in rows)]) + "\n"


def counts() -> Counter[tuple[str, str]]:
    """Count the sentences by the kind of their text and the name of a habit."""
    return Counter((text.kind, habit.name) for text in texts() for habit in habits_in(text.sentence))
