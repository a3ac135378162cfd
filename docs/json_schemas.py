"""The documents of `--json` as JSON Schemas, which pydantic makes of `adapterhub.cli.documents`, and as a page."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Annotated, Any, Final, get_args, get_origin, get_type_hints

import click
from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema
from typing_extensions import is_typeddict  # that of typing knows only its own before 3.12

from adapterhub.cli import BELOW_HELP, cli

Schema = dict[str, Any]

VARIANTS: Final = {
    "alike": "with one adapter",
    "batch": "with `--batch`",
    "check": "with `--check`",
    "compare": "with `--compare`",
    "cyclonedx": "with `--format cyclonedx`",
    "diff": "with `--diff`",
    "engine": "with `--engine`",
    "sync": "of an engine that follows a file, with `--sync`",
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
    "path": "with `--path`",
    "project": "in a project",
    "record": "with `--record`",
    "recipe": "with `--recipe`",
    "repair": "with `--repair`",
    "results": "with `--results`",
    "router": "of a router",
    "revoke": "with `--revoke`",
    "save": "with `--save`",
    "server": "on a server",
    "several": "with several folders",
    "skill": "with `--skill`",
    "try": "with `--try`",
    "tune": "with `--tune`",
    "user": "with `--user`",
    "team": "with `--team`",
    "invite": "with `--invite`",
    "about": "with `--about`",
    "withdraw": "with `--withdraw`",
    "remove": "with `--remove`",
    "users": "with `--users`",
    "undo": "with `--undo`",
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
    """Return the outermost text of `Annotated` in a type."""
    texts = [part for part in get_args(hint)[1:] if isinstance(part, str)] if get_origin(hint) is Annotated else []
    if texts:
        return texts[-1]
    return next((text for part in get_args(hint) if (text := _description(part))), "")


# ---------------------------------------------------------------- page
def page_of(chapters: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the document of each command; the schema has the fields, with their types and meanings.

    Raises:
        ValueError: two types have the same name, or a variant has no sentence.
    """
    schemas = schemas_of(chapters)
    rows: dict[str, list[str]] = {}
    for name, schema in sorted(schemas["properties"].items()):
        words, _, variant = name.partition(".")
        if variant and variant not in VARIANTS:
            raise ValueError(f"{name}: `{variant}` has no sentence in {__name__}")
        command = "any command that refuses, on stderr" if words == "error" else f"`adapt {_typed(words)}`"
        text = f"{VARIANTS[variant]} {_text(schema)}" if variant else _text(schema)
        documents = rows.setdefault(command, [])
        if text not in documents:
            documents.append(text)
    table = [f"| {command} | {'; '.join(documents)} |" for command, documents in rows.items()]
    return "\n".join(["| command | document |", "| --- | --- |", *table])


def _text(schema: Schema) -> str:
    """Return a type in words: `list of Finding`, `text or null`."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "anyOf" in schema:
        return " or ".join(map(_text, schema["anyOf"]))
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_text(schema['items'])}"
    if kind == "object" and isinstance(inner := schema["additionalProperties"], dict):
        return f"object of {_text(inner)}"
    return _WORDS.get(kind, kind)


def _typed(words: str) -> str:
    """Return the words of a command as they are typed: `cache show` for `cache-show`."""
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
