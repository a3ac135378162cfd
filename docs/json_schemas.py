"""The documents of `--json` as JSON Schemas, which pydantic makes of `adapterhub.cli.documents`, and as a page."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, get_args, get_origin, get_type_hints

import click
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from typing_extensions import is_typeddict  # that of typing knows only its own before 3.12

from adapterhub.cli import BELOW_HELP, cli

Schema = dict[str, Any]

VARIANTS: Final = {
    "batch": "with `--batch`",
    "check": "with `--check`",
    "compare": "with `--compare`",
    "diff": "with `--diff`",
    "engine": "with `--engine`",
    "dry-run": "with `--dry-run`",
    "all": "with `--all`",
    "files": "of several files",
    "folder": "into a folder",
    "groups": "without an adapter",
    "format": "with `--format`",
    "holders": "with `--holders`",
    "invert": "with `--invert`",
    "image": "with `--image`",
    "library": "outside of a project",
    "list": "with `--list`",
    "methods": "with `--methods`",
    "project": "in a project",
    "recipe": "with `--recipe`",
    "repair": "with `--repair`",
    "results": "with `--results`",
    "router": "of a router",
    "revoke": "with `--revoke`",
    "save": "with `--save`",
    "server": "on a server",
    "setup": "with `--setup`",
    "several": "with several folders",
    "try": "with `--try`",
    "tune": "with `--tune`",
}
_WORDS: Final = {"string": "text", "boolean": "true or false"}


class _WithoutTitles(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:  # noqa: ARG002 - pydantic's signature
        return False


def schemas_of(chapters: Mapping[str, Mapping[str, Any]]) -> Schema:
    """One schema: each document under `properties`, the types that they share under `$defs`, all described.

    Raises:
        ValueError: two types have the same name.
    """
    kinds = {name: kind for chapter in chapters.values() for name, kind in chapter.items()}
    inputs = [(name, "validation", TypeAdapter(kind)) for name, kind in kinds.items()]
    documents, shared = TypeAdapter.json_schemas(inputs, schema_generator=_WithoutTitles)
    types: dict[str, Any] = {}
    for kind in kinds.values():
        _collect(kind, types)
    for name, schema in shared["$defs"].items():
        schema["description"] = " ".join((inspect.getdoc(types[name]) or "").split())
        for field, hint in get_type_hints(types[name], include_extras=True).items():
            if text := _description(hint):
                schema["properties"][field]["description"] = text
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "The documents that `adapt` prints with --json, by command",
        "properties": {name: documents[name, "validation"] for name in kinds},
        "$defs": dict(sorted(shared["$defs"].items())),
    }


def _collect(hint: Any, types: dict[str, Any]) -> None:
    """Put the TypedDicts inside of a type into `types`, by name."""
    if is_typeddict(hint):
        if types.setdefault(hint.__name__, hint) is not hint:
            raise ValueError(f"two types are called {hint.__name__}")
        inner = [part for part in get_type_hints(hint).values() if part not in types.values()]
    else:
        inner = list(get_args(hint))
    for part in inner:
        if part not in types.values():
            _collect(part, types)


def _description(hint: Any) -> str:
    """The outermost text of `Annotated` in a type."""
    texts = [part for part in get_args(hint)[1:] if isinstance(part, str)] if get_origin(hint) is Annotated else []
    if texts:
        return texts[-1]
    return next((text for part in get_args(hint) if (text := _description(part))), "")


# ---------------------------------------------------------------- page
def page_of(chapters: Mapping[str, Mapping[str, Any]]) -> str:
    """Every document with its fields, then the parts that they share.

    Raises:
        ValueError: two types have the same name, or a variant has no sentence.
    """
    schemas = schemas_of(chapters)
    documents, types = schemas["properties"], schemas["$defs"]
    sections = [_index(documents)]
    for title, names in chapters.items():
        sections += [f"## {title}", *_chapter({name: documents[name] for name in names}, types)]
    sections.append("## Parts")
    for name in sorted(types.keys() - {_type_in(schema) for schema in documents.values()}):
        sections += [f"### {name}", types[name]["description"], _table(types[name])]
    return "\n\n".join(sections)


def _chapter(documents: Mapping[str, Schema], types: Mapping[str, Schema]) -> Iterator[str]:
    printed_by: dict[str, list[str]] = {}
    for name, schema in documents.items():
        title = _type_in(schema) or _text(schema).capitalize()
        printed_by.setdefault(title, []).append(_command(name) + (" as a list" if "items" in schema else ""))
    for title, commands in printed_by.items():
        kind = types.get(title)
        yield f"### {title}"
        yield f"{kind['description'] if kind else ''} Printed by {', '.join(commands)}.".strip()
        if kind:
            yield _table(kind)


def _index(documents: Mapping[str, Schema]) -> str:
    """The document of each command, in alphabetical order."""
    rows = [f"| {_command(name)} | {_linked(schema)} |" for name, schema in sorted(documents.items())]
    return "\n".join(["| command | document |", "| --- | --- |", *rows])


def _command(name: str) -> str:
    words, _, variant = name.partition(".")
    if words == "error":
        return "every command that refuses, on stderr"
    if variant and variant not in VARIANTS:
        raise ValueError(f"{name}: `{variant}` has no sentence in {__name__}")
    return f"`adapt {_typed(words)}`" + (f" {VARIANTS[variant]}" if variant else "")


def _table(kind: Schema) -> str:
    rows = ["| field | type | meaning |", "| --- | --- | --- |"]
    for name, field in kind["properties"].items():
        may = "" if name in kind.get("required", ()) else "; may be missing"
        rows.append(
            f"| `{name}` | {_linked(field)}{may} | {field.get('description', '').replace('|', chr(92) + '|')} |"
        )
    return "\n".join(rows)


def _linked(schema: Schema) -> str:
    name, text = _type_in(schema), _text(schema)
    return text.replace(name, f"[{name}](#{name.lower()})") if name else text


def _type_in(schema: Schema) -> str:
    """The name of the type inside of lists, unions and objects; empty if there is none."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    inner = [*schema.get("anyOf", ()), schema.get("items"), schema.get("additionalProperties")]
    return next((name for part in inner if isinstance(part, dict) and (name := _type_in(part))), "")


def _text(schema: Schema) -> str:
    """A type in words: `list of Finding`, `text or null`."""
    if "$ref" in schema:
        return _type_in(schema)
    if "anyOf" in schema:
        return " or ".join(map(_text, schema["anyOf"]))
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_text(schema['items'])}"
    if kind == "object" and isinstance(inner := schema["additionalProperties"], dict):
        return f"object of {_text(inner)}"
    return _WORDS.get(kind, kind)


def _typed(words: str) -> str:
    """The words of a command as they are typed: `base export-record` for `base-export-record`."""
    if words in BELOW_HELP:
        return "help completion" if words == "completion" else "help CODE"
    typed, left = list[str](), words.split("-")
    group: click.Command | None = cli
    while left and isinstance(group, click.Group):
        names = group.list_commands(click.Context(group))
        most = next((n for n in range(len(left), 0, -1) if "-".join(left[:n]) in names), len(left))
        typed.append("-".join(left[:most]))
        left, group = left[most:], group.get_command(click.Context(group), typed[-1])
    return " ".join(typed + left)
