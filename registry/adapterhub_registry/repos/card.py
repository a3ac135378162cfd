"""Reads the model card and the configuration of a repository, and derives the Hub's tags from them.

The files come from untrusted clients. An unreadable card counts as an empty card; `parse_card` raises the reason.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from adapterhub.core.digests import strict_json
from adapterhub.core.errors import BlobNotFound
from adapterhub_registry.database.trees.trees import Digests
from adapterhub_registry.storage.blobs import BlobStore

CARD, ADAPTER_CONFIG, CONFIG = "README.md", "adapter_config.json", "config.json"
MAX_CARD_BYTES = 1 << 20
MAX_FRONT_MATTER_CHARACTERS = 1 << 16
MAX_CONFIG_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_TAGS = 500
MAX_TAG_CHARACTERS = 256

_FRONT_MATTER = re.compile(r"\A﻿?---[ \t]*\r?\n(.*?)(?:^|\r?\n)---[ \t]*(?:\r?\n|\Z)", re.DOTALL | re.MULTILINE)


class UnreadableCard(Exception):
    """The front matter is unusable; the text says why."""


def parse_card(text: str) -> dict[str, Any]:
    """The front matter of a README as JSON values; empty without front matter.

    Raises:
        UnreadableCard: it is not YAML, not a mapping, too large, or has values that JSON lacks.
    """
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C version, where available
    found = _FRONT_MATTER.match(text)
    if found is None:
        return {}
    source = found.group(1)
    if len(source) > MAX_FRONT_MATTER_CHARACTERS:
        raise UnreadableCard(f"metadata has more than {MAX_FRONT_MATTER_CHARACTERS} characters")
    try:
        _check_events(yaml.parse(source, Loader=loader))
        value = yaml.load(source, Loader=loader)  # noqa: S506 - a safe loader, by either name
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise UnreadableCard("metadata must be a mapping of names to values")
        plain = json.dumps(value, default=str, allow_nan=False, ensure_ascii=False)
        plain.encode("utf-8")
        card: dict[str, Any] = json.loads(plain)
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        where = f" in line {place.line + 1}" if place is not None else ""
        raise UnreadableCard(f"metadata is not YAML{where}: {getattr(error, 'problem', None) or 'syntax'}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise UnreadableCard(f"metadata has a value that JSON lacks: {error}") from None
    return card


def _check_events(events: Iterable[Any]) -> None:
    """Raise for short YAML that is expensive to read: aliases, which repeat values, and deep nesting."""
    import yaml

    depth = 0
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise UnreadableCard("metadata uses YAML aliases, which the registry does not read")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise UnreadableCard(f"metadata is nested deeper than {MAX_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


def problems_of(card: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """The `(errors, warnings)` about the fields that this server reads."""
    errors: list[str] = []
    warnings: list[str] = []
    single = ("license", "pipeline_tag", "library_name")
    errors += [f'"{name}" must be a string' for name in single if not isinstance(card.get(name, ""), str)]
    for name in ("tags", "datasets", "base_model", "language"):
        value = card.get(name)
        items = value if isinstance(value, list) else [value]
        if value is not None and not all(isinstance(item, str) for item in items):
            errors.append(f'"{name}" must be a string or a list of strings')
    if not card:
        warnings.append("empty or missing yaml metadata in repo card")
    return errors, warnings


def read_card(blobs: BlobStore, files: Mapping[str, str]) -> dict[str, Any]:
    """The front matter at one commit (`files`: path to sha256); empty when it is unreadable."""
    raw = _small_file(blobs, files.get(CARD), MAX_CARD_BYTES)
    try:
        return parse_card(raw.decode("utf-8")) if raw else {}
    except (UnicodeDecodeError, UnreadableCard):
        return {}


def read_config(blobs: BlobStore, files: Mapping[str, str]) -> dict[str, Any]:
    """The facts of `config.json` and `adapter_config.json` that model info shows."""
    shown: dict[str, Any] = {}
    model = _json_object(_small_file(blobs, files.get(CONFIG), MAX_CONFIG_BYTES))
    names = model.get("architectures")
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        shown["architectures"] = names
    if isinstance(model.get("model_type"), str):
        shown["model_type"] = model["model_type"]
    adapter = _json_object(_small_file(blobs, files.get(ADAPTER_CONFIG), MAX_CONFIG_BYTES))
    wanted = ("base_model_name_or_path", "task_type", "peft_type")
    peft = {name: adapter[name] for name in wanted if isinstance(adapter.get(name), str)}
    if peft:
        shown["peft"] = peft
    return shown


def tags_of(card: Mapping[str, Any], config: Mapping[str, Any], files: Digests) -> list[str]:
    """The tags that the Hub derives, sorted: library, format, base, license, datasets, and those of the card."""
    found = {tag for tag in _tags_of(card, config, files) if tag.isprintable() and 0 < len(tag) <= MAX_TAG_CHARACTERS}
    return sorted(found)[:MAX_TAGS]


def _tags_of(card: Mapping[str, Any], config: Mapping[str, Any], files: Digests) -> Iterator[str]:
    is_adapter = ADAPTER_CONFIG in files
    if is_adapter:
        yield "peft"
    if files.totals.safetensors:
        yield "safetensors"
    yield from _strings(card.get("tags"))
    yield from _strings(card.get("library_name"))
    yield from _strings(card.get("pipeline_tag"))
    yield from (f"license:{name}" for name in _strings(card.get("license")))
    yield from (f"dataset:{name}" for name in _strings(card.get("datasets")))
    yield from _strings(card.get("language"))
    bases = list(_strings(card.get("base_model")))
    peft = config.get("peft", {})
    if not bases and isinstance(peft.get("base_model_name_or_path"), str):
        bases = [peft["base_model_name_or_path"]]
    for base in bases:
        yield f"base_model:{base}"
        if is_adapter:
            yield f"base_model:adapter:{base}"


def _strings(value: object) -> Iterator[str]:
    for item in value if isinstance(value, list) else [value]:
        if isinstance(item, str):
            yield item


def _small_file(blobs: BlobStore, sha256: str | None, limit_bytes: int) -> bytes:
    try:
        if sha256 is None or blobs.size(sha256) > limit_bytes:
            return b""
        return b"".join(blobs.open(sha256))
    except BlobNotFound:
        return b""


def _json_object(raw: bytes) -> dict[str, Any]:
    try:
        value = strict_json(raw, limit_bytes=MAX_CONFIG_BYTES) if raw else {}
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
