"""Reading the types: whether a value is of one, and which fields one has."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints, is_typeddict

from adapterhub.cli.documents._parts import NotRequired

_WORDS = {str: "text", int: "integer", float: "number", bool: "true or false", type(None): "null", Any: "anything"}


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a document. `kind` is its type without what was said about it."""

    name: str
    kind: Any
    is_required: bool
    text: str


def fields_of(document: Any) -> list[Field]:  # noqa: ANN401 - a TypedDict
    """The fields of a TypedDict, those of the ones it builds on first."""
    return [_field(name, hint) for name, hint in get_type_hints(document, include_extras=True).items()]


def _field(name: str, hint: Any) -> Field:  # noqa: ANN401 - as above
    is_required, text = True, ""
    while get_origin(hint) in (NotRequired, Annotated):
        if get_origin(hint) is NotRequired:
            is_required, hint = False, get_args(hint)[0]
        else:
            hint, *said = get_args(hint)
            text = text or next((word for word in reversed(said) if isinstance(word, str)), "")
    return Field(name, hint, is_required, text or _said_of(hint))


def _said_of(hint: Any) -> str:  # noqa: ANN401 - as above
    """What an alias inside a union says, such as that of `Digest | None`."""
    for part in get_args(hint) if _is_union(hint) else ():
        if get_origin(part) is Annotated:
            return str(get_args(part)[1])
    return ""


def _is_union(hint: Any) -> bool:  # noqa: ANN401 - as above
    return get_origin(hint) in (Union, types.UnionType)


def bare(hint: Any) -> Any:  # noqa: ANN401 - as above
    """The type without what was said about it."""
    while get_origin(hint) in (NotRequired, Annotated):
        hint = get_args(hint)[0]
    return hint


def item_of(hint: Any) -> Any:  # noqa: ANN401 - as above
    """The TypedDict inside lists, unions and objects, if there is one."""
    hint = bare(hint)
    if is_typeddict(hint):
        return hint
    return next((found for part in get_args(hint) if (found := item_of(part)) is not None), None)


def text_of(hint: Any) -> str:  # noqa: ANN401 - as above
    """The type in words: `list of Finding`, `text or null`."""
    hint = bare(hint)
    if is_typeddict(hint):
        return str(hint.__name__)
    if _is_union(hint):
        return " or ".join(text_of(part) for part in get_args(hint))
    if get_origin(hint) is list:
        return f"list of {text_of(get_args(hint)[0])}"
    if get_origin(hint) is dict:
        inner = text_of(get_args(hint)[1])
        return "object" if inner == "anything" else f"object of {inner}"
    return _WORDS[hint]


def problems(value: Any, hint: Any, place: str = "document") -> Iterator[str]:  # noqa: ANN401 - any JSON value
    """Where a value is not what its type says: missing, unknown and wrong fields, each with its place."""
    hint = bare(hint)
    if hint is Any:
        return
    if is_typeddict(hint):
        yield from _problems_of_fields(value, hint, place)
    elif _is_union(hint):
        every = [list(problems(value, part, place)) for part in get_args(hint)]
        if all(every):
            yield min(every, key=len)[0] if value is not None else f"{place}: null, expected {text_of(hint)}"
    elif get_origin(hint) is list and isinstance(value, list):
        for at, item in enumerate(value):
            yield from problems(item, get_args(hint)[0], f"{place}[{at}]")
    elif get_origin(hint) is dict and isinstance(value, dict):
        for key, item in value.items():
            yield from problems(item, get_args(hint)[1], f"{place}.{key}")
    elif not _is_plain(value, hint):
        yield f"{place}: {type(value).__name__}, expected {text_of(hint)}"


def _is_plain(value: Any, hint: Any) -> bool:  # noqa: ANN401 - as above
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint


def _problems_of_fields(value: Any, hint: Any, place: str) -> Iterator[str]:  # noqa: ANN401 - as above
    if not isinstance(value, dict):
        yield f"{place}: {type(value).__name__}, expected {hint.__name__}"
        return
    fields = {field.name: field for field in fields_of(hint)}
    yield from (f"{place}.{name}: not in {hint.__name__}" for name in value.keys() - fields.keys())
    for name, field in fields.items():
        if name in value:
            yield from problems(value[name], field.kind, f"{place}.{name}")
        elif field.is_required:
            yield f"{place}.{name}: missing"
