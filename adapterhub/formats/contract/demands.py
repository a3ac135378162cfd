"""What an author demands of an answer's text. Plain comparisons: no code, and no patterns that could take forever."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from adapterhub.core.digests import Json, canonical_json, strict_json
from adapterhub.core.errors import shown

MAX_CHOICES: Final = 256
"""Entries of a list of texts, an `enum`, or the `properties` of one object."""

SCHEMA_KEYS: Final = ("type", "required", "properties", "items", "enum", "const", "minimum", "maximum")
TYPES: Final[Mapping[str, type | tuple[type, ...]]] = {
    "object": dict, "array": list, "string": str, "boolean": bool, "null": type(None), "integer": int,
    "number": (int, float),
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """Conditions on one answer; those that are None or empty demand nothing.

    `json` is True for any JSON text, or a schema of `SCHEMA_KEYS`. `label` is the label that a classifier must give.
    """

    equals: str | None = None
    contains: tuple[str, ...] = ()
    not_contains: tuple[str, ...] = ()
    starts_with: str | None = None
    one_of: tuple[str, ...] = ()
    max_chars: int | None = None
    json: Json = None
    label: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The keys that demand something."""
        values = {name: getattr(self, name) for name in KEYS}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
            if value is not None and value != ()
        }

    def problem(self, text: str, label: str | None = None) -> str:
        """Why an answer does not meet the demand, in a few words; empty if it does."""
        for check in (_text_problem, _json_problem):
            if found := check(self, text):
                return found
        if self.label is not None and label != self.label:
            return f"the label is `{shown(label or 'none')}`, not `{shown(self.label)}`"
        return ""


KEYS: Final = ("equals", "contains", "not_contains", "starts_with", "one_of", "max_chars", "json", "label")


def _text_problem(demand: Demand, text: str) -> str:
    if demand.equals is not None and text != demand.equals:
        return f"is not `{shown(demand.equals)}`"
    if missing := next((part for part in demand.contains if part not in text), None):
        return f"does not contain `{shown(missing)}`"
    if found := next((part for part in demand.not_contains if part in text), None):
        return f"contains `{shown(found)}`"
    if demand.starts_with is not None and not text.startswith(demand.starts_with):
        return f"does not start with `{shown(demand.starts_with)}`"
    if demand.one_of and text not in demand.one_of:
        return f"is none of the {len(demand.one_of)} allowed answers"
    if demand.max_chars is not None and len(text) > demand.max_chars:
        return f"has {len(text)} characters, at most {demand.max_chars} are allowed"
    return ""


def _json_problem(demand: Demand, text: str) -> str:
    if demand.json is None:
        return ""
    try:
        value = strict_json(text.strip().encode("utf-8", "surrogatepass"))
    except ValueError as error:
        return f"is not JSON: {shown(str(error))}"
    return "" if demand.json is True else _mismatch(demand.json, value, "it")


def _mismatch(schema: Mapping[str, Any], value: Json, place: str) -> str:
    """The first place where `value` does not fit the schema; both are shallow."""
    return _value_mismatch(schema, value, place) or _inner_mismatch(schema, value, place)


def _value_mismatch(schema: Mapping[str, Any], value: Json, place: str) -> str:
    kind = schema.get("type")
    if kind is not None and not _is_kind(value, kind):
        return f"{place} is not of type {kind}"
    if "const" in schema and not _equal(schema["const"], value):
        return f"{place} is not the constant of the schema"
    if "enum" in schema and not any(_equal(one, value) for one in schema["enum"]):
        return f"{place} is not one of the values of the schema"
    if isinstance(value, int | float) and not isinstance(value, bool):
        if "minimum" in schema and value < schema["minimum"]:
            return f"{place} is below {schema['minimum']}"
        if "maximum" in schema and value > schema["maximum"]:
            return f"{place} is above {schema['maximum']}"
    return ""


def _inner_mismatch(schema: Mapping[str, Any], value: Json, place: str) -> str:
    if isinstance(value, dict):
        if (lost := next((key for key in schema.get("required", ()) if key not in value), None)) is not None:
            return f"{place} has no `{shown(lost)}`"
        for key, inner in schema.get("properties", {}).items():
            if key in value and (found := _mismatch(inner, value[key], f"`{shown(key)}`")):
                return found
    if isinstance(value, list) and "items" in schema:
        return next(filter(None, (_mismatch(schema["items"], one, f"an item of {place}") for one in value)), "")
    return ""


def _is_kind(value: Json, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    return isinstance(value, TYPES[kind]) or (kind == "integer" and isinstance(value, float) and value.is_integer())


def _equal(one: Json, other: Json) -> bool:
    """Equality as JSON has it: True is not 1."""
    try:
        return canonical_json(one) == canonical_json(other)
    except ValueError:  # a number that JSON's doubles cannot hold
        return False


def schema_problems(schema: Json, place: str) -> Sequence[str]:
    """What is wrong with a schema of a `json` demand, each with its place."""
    if schema is True:
        return []
    if not isinstance(schema, dict):
        return [f"{place}: expected true or an object"]
    problems = [f"{place}.{shown(key)}: no such key; there are {', '.join(SCHEMA_KEYS)}"
                for key in schema if key not in SCHEMA_KEYS][:3]  # fmt: skip
    if "type" in schema and not (isinstance(schema["type"], str) and schema["type"] in TYPES):
        problems.append(f"{place}.type: expected one of {', '.join(TYPES)}")
    required = schema.get("required", [])
    if not isinstance(required, list) or len(required) > MAX_CHOICES or any(type(one) is not str for one in required):
        problems.append(f"{place}.required: expected a list of at most {MAX_CHOICES} texts")
    enum = schema.get("enum", [None])
    if not isinstance(enum, list) or not 0 < len(enum) <= MAX_CHOICES:
        problems.append(f"{place}.enum: expected a list of 1 to {MAX_CHOICES} values")
    for bound in ("minimum", "maximum"):
        if bound in schema and type(schema[bound]) not in (int, float):
            problems.append(f"{place}.{bound}: expected a number")
    inner = schema.get("properties", {})
    if not isinstance(inner, dict) or len(inner) > MAX_CHOICES:
        problems.append(f"{place}.properties: expected an object of at most {MAX_CHOICES} keys")
    else:
        for key, one in inner.items():
            problems += schema_problems(one, f"{place}.properties.{shown(key)}") if one is not True else [
                f"{place}.properties.{shown(key)}: expected an object"]  # fmt: skip
    if "items" in schema:
        problems += schema_problems(schema["items"], f"{place}.items") if schema["items"] is not True else [
            f"{place}.items: expected an object"]  # fmt: skip
    return problems
