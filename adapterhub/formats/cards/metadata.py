"""The metadata of a model card, which is the YAML at the top of `README.md`, read and checked as the Hub does.

The Hub refuses a commit whose `README.md` does not pass this check, and answers in the words below.
Sources: https://github.com/huggingface/hub-docs/blob/main/modelcard.md, and the answers of `/api/validate-yaml`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final

from adapterhub.core.errors import shown
from adapterhub.core.specs import is_hub_id
from adapterhub.formats.licenses import HUB_LICENSES

MAX_CHARACTERS: Final = 1 << 16
MAX_DEPTH: Final = 32
_BLOCK: Final = re.compile(
    r"\A\ufeff?\s*?^[ \t]*---[ \t]*\r?\n(.*?)(?:^|\r?\n)---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE
)
_SPECIAL_LANGUAGES: Final = frozenset({"code", "multilingual"})
_LANGUAGE: Final = re.compile(r"[a-z]{2,3}")
BASE_TAG: Final = re.compile(r"base_model:(?:(?:adapter|finetune|merge|quantized):)?(?P<base>.*)", re.DOTALL)
"""A tag that names a base, as the Hub derives it and PEFT writes it."""


class UnreadableCard(Exception):
    """The metadata is unusable; the text names the fault and its line of the card."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Metadata:
    """The metadata as JSON values, and the line of the card for each key, such as `model-index[0].results`."""

    values: Mapping[str, Any]
    lines: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class CardProblem:
    """One wrong value: its key, the Hub's sentence about it, and its line in the card (None when unknown)."""

    key: str
    message: str
    line: int | None

    @property
    def text(self) -> str:
        """The sentence with its line."""
        return f"{self.message} (line {self.line})" if self.line else self.message


# ---------------------------------------------------------------- read
def split_block(text: str) -> tuple[str | None, str, int]:
    """Split a card into metadata (None without any), the text after them, and the line where the metadata begin."""
    found = _BLOCK.match(text)
    if found is None:
        return None, text, 0
    return found.group(1), text[found.end() :], text.count("\n", 0, found.start(1)) + 1


def read_metadata(text: str) -> Metadata:
    """Return the metadata of a card; empty without a block.

    Raises:
        UnreadableCard: it is not YAML, not a mapping, too large, or has values that JSON lacks.
    """
    source, _, first = split_block(text)
    return Metadata(values={}, lines={}) if source is None else read_yaml(source, first)


def read_yaml(source: str, first: int = 1, *, most_characters: int = MAX_CHARACTERS) -> Metadata:
    """Return the mapping of a YAML text whose first line is line `first` of its file; empty for an empty text.

    Raises:
        UnreadableCard: it is not YAML, not a mapping, too large, or has values that JSON lacks.
    """
    import yaml

    if len(source) > most_characters:
        raise UnreadableCard(f"metadata has more than {most_characters} characters")
    try:
        _check_events(yaml.parse(source, Loader=_loader()), first)
        node = yaml.compose(source, Loader=_loader())
        lines = dict(_lines(node, "", first))
        value = yaml.load(source, Loader=_loader())  # noqa: S506 - a safe loader
        if value is None:
            return Metadata(values={}, lines={})
        if not isinstance(value, dict):
            raise UnreadableCard("metadata must be a mapping of names to values")
        plain = json.dumps(value, default=str, allow_nan=False, ensure_ascii=False)
        plain.encode("utf-8")
        values: dict[str, Any] = json.loads(plain)
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f" in line {place.line + first}" if place is not None else ""
        raise UnreadableCard(f"metadata is not YAML{where}: {getattr(error, 'problem', None) or 'syntax'}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise UnreadableCard(f"metadata has a value that JSON lacks: {error}") from None
    return Metadata(values=values, lines=lines)


@cache
def _loader() -> Any:
    """PyYAML's safe loader, in C where available, with the Hub's booleans: `no` is Norwegian, not false."""
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    boolean = "tag:yaml.org,2002:bool"

    class Loader(base):  # type: ignore[misc]  # of a module that is imported late
        yaml_implicit_resolvers: Mapping[str, Any] = {
            first: [pair for pair in pairs if pair[0] != boolean]
            for first, pairs in base.yaml_implicit_resolvers.items()
        }

    Loader.add_implicit_resolver(boolean, re.compile(r"(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))
    return Loader


def _check_events(events: Iterable[Any], first: int) -> None:
    """Raise for short YAML that is expensive to read: aliases, which repeat values, and deep nesting."""
    import yaml

    depth = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            where = event.start_mark.line + first  # type: ignore[union-attr]  # a parser sets every mark
            raise UnreadableCard(f"metadata uses YAML aliases in line {where}, which the check does not read")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise UnreadableCard(f"metadata is nested deeper than {MAX_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def _lines(node: Any, path: str, first: int) -> Iterator[tuple[str, int]]:
    """Yield the line of each key and list item below a node.

    Raises:
        UnreadableCard: a mapping has a key twice.
    """
    import yaml

    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + first
            if name in seen:
                raise UnreadableCard(f"metadata has the key `{shown(name)}` twice, the second time in line {line}")
            seen.add(name)
            below = f"{path}.{name}" if path else name
            yield below, line
            yield from _lines(value, below, first)
    elif isinstance(node, yaml.SequenceNode):
        for number, value in enumerate(node.value):
            yield f"{path}[{number}]", value.start_mark.line + first
            yield from _lines(value, f"{path}[{number}]", first)


# ---------------------------------------------------------------- check
def check_metadata(metadata: Metadata) -> tuple[list[CardProblem], list[CardProblem]]:
    """Return the `(errors, warnings)` of a card's metadata.

    Absent keys and `null` are right; unknown keys are ignored.
    """
    values = {key: value for key, value in metadata.values.items() if value is not None}
    found = [problem for check in _CHECKS for problem in check(values)]
    errors = [CardProblem(key=key, message=text, line=_line(metadata, key)) for key, text in found]
    warnings = []
    for key, tag in _texts(values, "tags"):
        named = BASE_TAG.fullmatch(tag)
        if named is not None and not is_hub_id(named["base"]):
            text = f'"{key}" with value "{shown(tag)}" names no model id'
            warnings.append(CardProblem(key=key, message=text, line=_line(metadata, key)))
    if not values:
        warnings.append(CardProblem(key="", message="empty or missing yaml metadata in repo card", line=None))
    return errors, warnings


def _line(metadata: Metadata, key: str) -> int | None:
    """Return the line of a key, or that of the nearest key above it."""
    while key and key not in metadata.lines:
        key = key[: max(key.rfind("."), key.rfind("["), 0)]
    return metadata.lines.get(key)


def _texts(values: Mapping[str, Any], name: str) -> Iterator[tuple[str, str]]:
    """Each text of a value that is one text or a list of them, by its key."""
    value = values.get(name)
    items = [(f"{name}[{i}]", item) for i, item in enumerate(value)] if isinstance(value, list) else [(name, value)]
    yield from ((key, item) for key, item in items if isinstance(item, str))


def _kinds(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("pipeline_tag", "library_name", "license_name", "license_link", "base_model_relation"):
        if name in values and not isinstance(values[name], str):
            yield name, f'"{name}" must be a string'
    for name in ("license", "tags", "datasets", "base_model", "language"):
        value = values.get(name, "")
        if not isinstance(value, str | list):
            yield name, f'"{name}" must be a string or a list of strings'
        elif isinstance(value, list):
            for number, item in enumerate(value):
                if not isinstance(item, str):
                    yield f"{name}[{number}]", f'"{name}[{number}]" must be a string or a list of strings'


def _license(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, item in _texts(values, "license"):
        if item not in HUB_LICENSES:
            yield key, f'"{key}" must be one of [{", ".join(HUB_LICENSES)}], not "{shown(item)}"'


def _ids(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, item in _texts(values, "base_model"):
        if not is_hub_id(item):
            yield key, f'"{key}" with value "{shown(item)}" is not valid. Use a model id from https://hf.co/models.'
    for key, item in _texts(values, "datasets"):
        if not is_hub_id(item):
            use = "If possible, use a dataset id from https://hf.co/datasets."
            yield key, f'"{key}" with value "{shown(item)}" is not valid. {use}'


def _language(values: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, item in _texts(values, "language"):
        if item != item.lower():
            yield key, f'"{key}" must only contain lowercase characters'
        elif item not in _SPECIAL_LANGUAGES and not _LANGUAGE.fullmatch(item):
            expected = 'It must be an ISO 639-1, 639-2 or 639-3 code, or a special value like "code", "multilingual".'
            yield key, f'"{key}" with value "{shown(item)}" is not valid. {expected}'


class _Evaluations:
    """Checks `model-index`, the results of evaluations, against `modelcard.md`; `found` has the problems."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.found: list[tuple[str, str]] = []
        for key, model in self._objects(values.get("model-index", []), "model-index"):
            self._fields(model, key, required=("name", "results"), texts=("name",))
            for place, result in self._objects(model.get("results", []), f"{key}.results"):
                self._result(result, place)

    def _result(self, result: Mapping[str, Any], key: str) -> None:
        self._fields(result, key, required=("task", "dataset", "metrics"))
        for name, required, texts in _PARTS:
            if result.get(name) is not None:
                self._fields(result[name], f"{key}.{name}", required=required, texts=texts)
        for place, metric in self._objects(result.get("metrics", []), f"{key}.metrics"):
            self._fields(metric, place, required=("type", "value"), texts=("type", "name", "config", "verifyToken"))

    def _objects(self, value: object, key: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
        """Yield the objects of a list, each with its place."""
        if not isinstance(value, list | type(None)):
            self.found.append((key, f'"{key}" must be an array'))
            return
        for number, item in enumerate(value or ()):
            if isinstance(item, dict):
                yield f"{key}[{number}]", item
            else:
                self.found.append((f"{key}[{number}]", f'"{key}[{number}]" must be of type object'))

    def _fields(self, value: object, key: str, *, required: Sequence[str], texts: Sequence[str] = ()) -> None:
        if not isinstance(value, dict):
            self.found.append((key, f'"{key}" must be of type object'))
            return
        for name in required:
            if value.get(name) is None:
                self.found.append((f"{key}.{name}", f'"{key}.{name}" is required'))
        for name in texts:
            if not isinstance(value.get(name), str | type(None)):
                self.found.append((f"{key}.{name}", f'"{key}.{name}" must be a string'))


_PARTS: Final = (
    ("task", ("type",), ("type", "name")),
    ("dataset", ("type", "name"), ("type", "name", "config", "split", "revision")),
    ("source", ("url",), ("name", "url")),
)
"""The objects in a result, with the fields that they need and those that are text."""

_CHECKS: Final = (_kinds, _license, _ids, _language, lambda values: _Evaluations(values).found)
