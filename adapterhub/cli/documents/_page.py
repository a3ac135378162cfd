"""The reference page of the documents, out of their types."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

from adapterhub.cli.documents._shape import fields_of, item_of, text_of

_VARIANTS = {
    "dry-run": "with `--dry-run`",
    "recipe": "with `--recipe`",
    "repair": "with `--repair`",
    "folder": "into a folder",
    "methods": "with `--methods`",
    "tune": "with `--tune`",
    "server": "on a server",
    "compare": "with `--compare`",
    "batch": "with `--batch`",
    "save": "with `--save`",
    "check": "with `--check`",
    "format": "with `--format`",
    "project": "in a project",
    "library": "outside of a project",
    "holders": "with `--holders`",
    "list": "with `--list`",
    "revoke": "with `--revoke`",
}


def page_of(chapters: Mapping[str, Mapping[str, Any]]) -> str:
    """Every document with its fields, then the parts that they are made of.

    Raises:
        ValueError: two types by one name, or a document of a kind without a sentence.
    """
    parts: dict[str, Any] = {}
    sections = [section for title, chapter in chapters.items() for section in _chapter(title, chapter, parts)]
    shown = {item_of(kind).__name__ for chapter in chapters.values() for kind in chapter.values() if item_of(kind)}
    sections.insert(0, _index(chapters))
    sections.append("## Parts")
    for name in sorted(parts.keys() - shown):
        sections += [f"### {name}", *_table(parts[name], parts)]
    return "\n\n".join(sections)


def _chapter(title: str, chapter: Mapping[str, Any], parts: dict[str, Any]) -> Iterator[str]:
    yield f"## {title}"
    told: dict[str, list[str]] = {}
    kinds = {}
    for name, kind in chapter.items():
        item, text = item_of(kind), text_of(kind)
        title = item.__name__ if item else text.capitalize()
        told.setdefault(title, []).append(_command(name) + (" as a list" if text.startswith("list of") else ""))
        kinds[title] = item
    for title, commands in told.items():
        item = kinds[title]
        yield f"### {title}"
        yield f"{_sentence(item) if item else ''} Printed by {', '.join(commands)}.".strip()
        if item:
            yield from _table(item, parts)[1:]


def _index(chapters: Mapping[str, Mapping[str, Any]]) -> str:
    """Which command prints what, in the order of the alphabet."""
    kinds = {name: kind for chapter in chapters.values() for name, kind in chapter.items()}
    rows = ["| command | document |", "| --- | --- |"]
    for name, kind in sorted(kinds.items()):
        item, text = item_of(kind), text_of(kind)
        linked = text.replace(item.__name__, f"[{item.__name__}](#{item.__name__.lower()})") if item else text
        rows.append(f"| {_command(name)} | {linked} |")
    return "\n".join(rows)


def _command(name: str) -> str:
    words, _, variant = name.partition(".")
    if words == "error":
        return "every command that refuses, on stderr"
    if variant and variant not in _VARIANTS:
        raise ValueError(f"{name}: `{variant}` has no sentence in {__name__}")
    return f"`adapt {words.replace('-', ' ')}`" + (f" {_VARIANTS[variant]}" if variant else "")


def _table(kind: Any, parts: dict[str, Any]) -> list[str]:  # noqa: ANN401 - a TypedDict
    """Its sentence and its fields; types inside go to `parts`."""
    rows = ["| field | type | meaning |", "| --- | --- | --- |"]
    _keep(kind, parts)
    for field in fields_of(kind):
        inner = item_of(field.kind)
        text = text_of(field.kind)
        if inner is not None:
            _collect(inner, parts)
            text = text.replace(inner.__name__, f"[{inner.__name__}](#{inner.__name__.lower()})")
        may = "" if field.is_required else "; may be missing"
        rows.append(f"| `{field.name}` | {text}{may} | {field.text.replace('|', chr(92) + '|')} |")
    return [_sentence(kind), "\n".join(rows)]


def _collect(kind: Any, parts: dict[str, Any]) -> None:  # noqa: ANN401 - a TypedDict
    if kind.__name__ in parts:
        _keep(kind, parts)
        return
    _keep(kind, parts)
    for field in fields_of(kind):
        if (inner := item_of(field.kind)) is not None:
            _collect(inner, parts)


def _keep(kind: Any, parts: dict[str, Any]) -> None:  # noqa: ANN401 - a TypedDict
    if parts.setdefault(kind.__name__, kind) is not kind:
        raise ValueError(f"two types are called {kind.__name__}")


def _sentence(kind: Any) -> str:  # noqa: ANN401 - a TypedDict
    return " ".join((inspect.getdoc(kind) or "").split())
