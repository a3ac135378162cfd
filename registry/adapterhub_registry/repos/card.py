"""Reads the model card and the configuration of a repository, and derives the Hub's tags from them.

The files come from untrusted clients. An unreadable card counts as an empty card; `formats.cards` reads and checks it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from adapterhub.core.digests import strict_json
from adapterhub.core.errors import BlobNotFound
from adapterhub.core.hub_ids import is_hub_id
from adapterhub.formats.cards.metadata import BASE_TAG, UnreadableCard, read_metadata
from adapterhub_registry.database.trees.trees import Digests
from adapterhub_registry.storage.blobs import BlobStore

CARD, ADAPTER_CONFIG, CONFIG = "README.md", "adapter_config.json", "config.json"
MAX_CARD_BYTES = 1 << 20
MAX_CONFIG_BYTES = 1 << 20
MAX_TAGS = 500
MAX_TAG_CHARACTERS = 256


OPEN_MEMBERS = frozenset(
    {
        *("tags", "library_name", "pipeline_tag", "license", "license_name", "license_link", "datasets", "language"),
        *("base_model", "base_model_relation"),
        *(f"extra_gated_{what}" for what in ("prompt", "fields", "heading", "description", "button_content")),
    }
)
"""The members of a card that label a gated repository: most give its tags, and the last ones ask for access."""


def open_part(card: Mapping[str, Any]) -> dict[str, Any]:
    """What everyone who sees a gated repository may know of its card: the rest is a file behind the gate."""
    return {name: value for name, value in card.items() if name in OPEN_MEMBERS}


def read_card(blobs: BlobStore, files: Mapping[str, str]) -> dict[str, Any]:
    """The front matter at one commit (`files`: path to sha256); empty when it is unreadable."""
    raw = _small_file(blobs, files.get(CARD), MAX_CARD_BYTES)
    try:
        return dict(read_metadata(raw.decode("utf-8")).values) if raw else {}
    except (UnicodeDecodeError, UnreadableCard):
        return {}


def card_text(blobs: BlobStore, files: Mapping[str, str]) -> str:
    """The card at one commit as text; empty without a readable one."""
    return _small_file(blobs, files.get(CARD), MAX_CARD_BYTES).decode("utf-8", "replace").replace("\0", "")


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
    for tag in _strings(card.get("tags")):
        named = BASE_TAG.fullmatch(tag)
        if named is None or is_hub_id(named["base"]):
            yield tag
    yield from _strings(card.get("library_name"))
    yield from _strings(card.get("pipeline_tag"))
    yield from (f"license:{name}" for name in _strings(card.get("license")))
    yield from (f"dataset:{name}" for name in _strings(card.get("datasets")))
    yield from _strings(card.get("language"))
    bases = list(_strings(card.get("base_model")))
    peft = config.get("peft", {})
    if not bases and isinstance(peft.get("base_model_name_or_path"), str):
        bases = [peft["base_model_name_or_path"]]
    for base in filter(is_hub_id, bases):  # others cannot find a path on its author's machine
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
