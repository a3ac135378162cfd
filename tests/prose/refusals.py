"""Counts the places that refuse something, and how many of them name what was expected or what to type next.

A place is a call of one of our error classes, or of a function of the registry that makes an HTTP refusal. It helps if
it passes `hint=`, if its class or helper always has a hint, or if its text names what was expected or the next step. A
place whose text is a value that another one made is not counted. `python -m tests.prose --refusals` lists those that
do not help.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

from tests.prose.phrases import ROOT, sources

_STEP: Final = (
    "add|ask|avoid|begin|build|change|check|choose|clear|close|commit|convert|copy|create|declare|delete|drop|edit|export|find|fix|"
    "fetch|free|get|give|install|keep|leave|list|load|lock|look|lower|make|measure|merge|move|name|open|pass|pin|pull|push|put|raise|read|"
    "record|register|remove|rename|repeat|replace|restart|run|say|search|see|send|set|shorten|sign|split|start|stop|take|try|type|"
    "update|upgrade|upload|use|wait|write"
)
HELPERS: Final = "adapterhub_registry/errors.py"
ALWAYS: Final = ("usual_hint = ", "hint=hint or ", 'hint = f"`', "expected {expected}", "self.choices = ")
"""What the body of a class holds whose errors always name what was expected or what to type."""
EXPECTS: Final = re.compile(
    r"\bexpected\b|\bmust (?:be|have|hold|name|begin|end|stand|come|not)\b|\bmay only\b"
    r"|\bat (?:most|least)\b|\bexclude each other\b|\b(?:is|are) only (?:for|with|after)\b|\bdid you mean\b"
    r"|\bneeds?\b|\b(?:holds?|takes?|stores?|publishes|accepts?|compares?|allowed) only\b|\bonly (?:a|an|the|for|with)\b|; there (?:are|is) X"
    rf"|(?:[;:,.] |, (?:so|and|or) |^)(?:first |please )?(?:{_STEP})\b(?! (?:is|are|was|failed))"
    r"|\bas in `"
    r"|`(?:adapt|hf|pip|git) [^`]*`"
)


@dataclass(frozen=True)
class Place:
    """A place that refuses: the file and line, the class or function, the text, and whether it helps."""

    where: str
    name: str
    text: str
    helps: bool


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


def _text(node: ast.expr, known: Mapping[str, str]) -> str:
    """Return the literal text of an expression, `X` for what is filled in; of a choice, both texts.

    `known` has the texts of the module's own constants.
    """
    match node:
        case ast.Constant(value=str(value)):
            return value
        case ast.JoinedStr(values=parts):
            return "".join(_text(part, known) or "X" for part in parts)
        case ast.FormattedValue(value=ast.Name(id=name)) | ast.Name(id=name):
            return known.get(name, "")
        case ast.BinOp(left=left, right=right):
            return _text(left, known) + _text(right, known)
        case ast.IfExp(body=body, orelse=other):
            return f"{_text(body, known)} {_text(other, known)}"
        case ast.Call(func=func, args=[first, *_]) if _name(func) == "problem_list":
            return _text(first, known)
    return ""


def _words(call: ast.Call, known: Mapping[str, str]) -> str:
    nodes = (*call.args, *(one.value for one in call.keywords))
    return " ".join(filter(None, (_text(node, known) for node in nodes)))


def _constants(tree: ast.Module) -> dict[str, str]:
    """Return the texts that a module gives names."""
    found: dict[str, str] = {}
    for line in tree.body:
        if isinstance(line, ast.Assign | ast.AnnAssign) and line.value is not None:
            for target in line.targets if isinstance(line, ast.Assign) else [line.target]:
                if text := _text(line.value, {}):
                    found[_name(target)] = text
    return found


@cache
def _trees() -> tuple[tuple[str, ast.Module], ...]:
    return tuple((path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))) for path in sources())


@cache
def refusing() -> dict[str, bool]:
    """Return our error classes and the functions that make a refusal, each with whether it helps by itself."""
    kinds = {"AdapterHubError": False, "HttpRefusal": False}
    classes = [node for _, tree in _trees() for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]
    while True:
        new = [
            (one, base) for one in classes for base in map(_name, one.bases) if base in kinds and one.name not in kinds
        ]
        if not new:
            break
        for one, base in new:
            source = ast.unparse(one)
            kinds[one.name] = kinds[base] or any(text in source for text in ALWAYS)
    for place, tree in _trees():
        for node in tree.body if place.endswith(HELPERS) else ():
            if isinstance(node, ast.FunctionDef) and node.returns is not None and _name(node.returns) == "HttpRefusal":
                known = _constants(tree)
                texts = [
                    _text(one, known) for line in node.body[1:] for one in ast.walk(line) if isinstance(one, ast.expr)
                ]
                kinds[node.name] = any(map(EXPECTS.search, texts))
    return kinds


@cache
def places() -> tuple[Place, ...]:
    """Return every place of both packages that refuses with words of its own."""
    kinds, found = refusing(), list[Place]()
    for path, tree in _trees():
        known = _constants(tree)
        for node in ast.walk(tree) if not path.endswith(HELPERS) else ():
            if (
                isinstance(node, ast.Call)
                and (name := _name(node.func)) in kinds
                and (words := _words(node, known)).strip(" X")
            ):
                helps = kinds[name] or any(one.arg == "hint" for one in node.keywords) or bool(EXPECTS.search(words))
                found.append(Place(f"{path}:{node.lineno}", name, words, helps))
    return tuple(found)


def report() -> str:
    """Return a line for each package and one for the registry's refusals: places, those that help, and the share."""
    groups: dict[str, list[bool]] = {}
    for one in places():
        http = one.name == "HttpRefusal" or one.name[0].islower()
        groups.setdefault("HTTP refusals" if http else one.where.partition("/")[0], []).append(one.helps)
    groups["all"] = [one.helps for one in places()]
    lines = [
        f"{name:24}{len(helps):10}{sum(helps):10}{sum(helps) / len(helps):10.0%}" for name, helps in groups.items()
    ]
    return "\n".join([f"{'refusals':24}{'places':>10}{'help':>10}{'share':>10}", *lines]) + "\n"


def unhelpful() -> str:
    """Return a line for each place that does not help."""
    return "".join(f"{one.where}: {one.name}: {one.text}\n" for one in places() if not one.helps)
