"""Reads the facts about the adapter in a commit from its files, and derives tags from them.

An unreadable file is never an error here; it leaves its facts unknown. A registry only lists adapters, and `adapt
verify` refuses odd ones.

Of the model card it derives the Hub's tags. An unreadable card counts as an empty card; `formats.cards` reads and
checks it.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from adapterhub.core.digests import canonical_json, digest_of, hex_of, strict_json
from adapterhub.core.errors import AdapterHubError, BlobNotFound
from adapterhub.core.specs import is_hub_id
from adapterhub.formats.cards.card import description_of, examples_of, own_words, tags_for
from adapterhub.formats.cards.metadata import BASE_TAG, UnreadableCard, read_metadata
from adapterhub.formats.contract.contract import Contract
from adapterhub.formats.contract.reader import MAX_BYTES, claims_contract, parse_contract
from adapterhub.formats.manifest import (
    CONFIG_FILE,
    CONTRACT_FILE,
    LIMIT_BYTES,
    MANIFEST_FILE,
    MEDIA_TYPES,
    WEIGHTS_FILE,
    Manifest,
)
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.peft.fields import base_is_path
from adapterhub.formats.safetensors.file import TensorFile, parse_header
from adapterhub.formats.safetensors.header import ADAPTER_LIMITS
from adapterhub_registry.access.rights import TAG
from adapterhub_registry.database.trees import FileDigests
from adapterhub_registry.storage.blobs import BlobReader

CONFIG_LIMIT_BYTES: Final = 1 << 20
MAX_TAG_CHARACTERS: Final = 200
MAX_TEXT_CHARACTERS: Final = 4000
_LENGTH_BYTES: Final = 8
_KNOWN_BYTES: Final = 256 << 10
"""Larger configs and headers are parsed each time."""
_ALPHA_MAX: Final = 1e30
MAX_RANK: Final = 1 << 20  # larger numbers in a config make no sense and exceed the integers of some databases


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterFacts:
    """One adapter in the index; None and empty mean unknown. Digests are 64 hex digits.

    The fields are columns of the table `adapters`, except `tags`. `digest` is the digest of the manifest or, without
    one, of the list of the adapter's files. `base_sha256`, `base_tensors` and `base_files` come from the base's
    fingerprint.
    """

    digest: str
    weights_sha256: str | None = None
    name: str | None = None
    version: str | None = None
    task: str | None = None
    description: str = ""
    base_model: str | None = None
    base_sha256: str | None = None
    base_tensors: str | None = None
    base_files: str | None = None
    peft_type: str | None = None
    methods: tuple[str, ...] = ()
    rank: int | None = None
    alpha: float | None = None
    target_modules: tuple[str, ...] = ()
    dtype: str = ""
    parameters: int | None = None
    examples: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()


def facts_of(files: Mapping[str, str], blobs: BlobReader) -> AdapterFacts | None:
    """Return the adapter in a commit, if any; reads at most one config, manifest, card and tensor header."""
    if CONFIG_FILE not in files:
        return None
    mine = [[path, files[path]] for path in sorted(MEDIA_TYPES) if path in files]
    found = AdapterFacts(digest=hex_of(digest_of(canonical_json(mine))), weights_sha256=files.get(WEIGHTS_FILE))
    raw, size = _read(blobs, files[CONFIG_FILE], CONFIG_LIMIT_BYTES)
    if size <= CONFIG_LIMIT_BYTES:
        found = _with_config(found, raw)
    raw_header = _raw_header(files, blobs)
    if raw_header is not None:
        found = _with_header(found, *raw_header)
    manifest = manifest_of(files, blobs)
    if manifest is not None:
        return _with_manifest(found, manifest, _contract(files, blobs))
    card, text = read_card(blobs, files), own_words(card_text(blobs, files))
    task = next((t[len("adapter-task:") :] for t in _texts(card.get("tags")) if t.startswith("adapter-task:")), None)
    if task is None and isinstance(card.get("pipeline_tag"), str):
        task = card["pipeline_tag"]
    return replace(found, task=_bounded(task) or None, description=text)


def _read(blobs: BlobReader, sha256: str, at_most: int) -> tuple[bytes, int]:
    """Return the first bytes of a blob and its whole size."""
    size = blobs.size(sha256)
    return b"".join(blobs.open(sha256, 0, min(at_most, size))), size


def _with_config(found: AdapterFacts, raw: bytes) -> AdapterFacts:
    try:
        config = (_known_config if len(raw) <= _KNOWN_BYTES else _config)(raw)
    except AdapterHubError:
        return _with_odd_config(found, raw)
    ranks = [r for r in (config.r, *config.rank_pattern.values()) if r is not None and 0 < r <= MAX_RANK]
    alphas = [a for a in (config.lora_alpha, *config.alpha_pattern.values()) if a is not None and abs(a) <= _ALPHA_MAX]
    targets = config.target_modules
    return replace(
        found,
        base_model=None if config.base_is_path else _bounded(config.base_model_name_or_path) or None,
        peft_type=config.peft_type,
        methods=config.methods(),
        rank=max(ranks, default=None),
        alpha=float(max(alphas)) if alphas else None,
        target_modules=tuple(sorted(targets)) if isinstance(targets, tuple) else (targets,) if targets else (),
    )


def _config(raw: bytes) -> AdapterConfig:
    return AdapterConfig.parse(raw, CONFIG_FILE)


_known_config = lru_cache(maxsize=64)(_config)


def _with_odd_config(found: AdapterFacts, raw: bytes) -> AdapterFacts:
    """Return the readable keys of a config that `AdapterConfig` refuses."""
    try:
        value = strict_json(raw, limit_bytes=CONFIG_LIMIT_BYTES)
    except ValueError:
        return found
    if not isinstance(value, dict):
        return found
    base, kind, rank = value.get("base_model_name_or_path"), value.get("peft_type"), value.get("r")
    return replace(
        found,
        base_model=_bounded(base) or None if isinstance(base, str) and not base_is_path(base) else None,
        peft_type=_bounded(kind).upper() or None if isinstance(kind, str) else None,
        rank=_rank(rank),
    )


def header_of(files: Mapping[str, str], blobs: BlobReader) -> TensorFile | None:
    """Return the header of the weights, if it is readable."""
    raw = _raw_header(files, blobs)
    return None if raw is None else _parsed_header(*raw)


def _raw_header(files: Mapping[str, str], blobs: BlobReader) -> tuple[bytes, int] | None:
    """Return the bytes of the header of the weights, and the size of the weights.

    None without a header of a bounded size.
    """
    sha256 = files.get(WEIGHTS_FILE)
    if sha256 is None:
        return None
    raw, size = _read(blobs, sha256, _LENGTH_BYTES)
    length = int.from_bytes(raw, "little")
    if len(raw) < _LENGTH_BYTES or length > min(ADAPTER_LIMITS.header_bytes, size):
        return None
    return _read(blobs, sha256, _LENGTH_BYTES + length)[0], size


def _parsed_header(raw: bytes, size: int) -> TensorFile | None:
    try:
        return parse_header(io.BytesIO(raw), path=Path(WEIGHTS_FILE), size_bytes=size)
    except AdapterHubError:
        return None


def _with_header(found: AdapterFacts, raw: bytes, size: int) -> AdapterFacts:
    """Add the facts of the tensors; the rank of LoRA pairs overrides the config's."""
    facts = (_known_tensors if len(raw) <= _KNOWN_BYTES else _tensors)(raw, size)
    if facts is None:
        return found
    rank, dtype, parameters = facts
    return replace(found, rank=found.rank if rank is None else rank, dtype=dtype, parameters=parameters)


def _tensors(raw: bytes, size: int) -> tuple[int | None, str, int] | None:
    """Return the rank of the LoRA pairs, the most frequent dtype and the number of values.

    None for an unreadable header.
    """
    header = _parsed_header(raw, size)
    if header is None:
        return None
    ranks = [
        spec.shape[0]
        for spec in header.tensors
        if spec.shape and (".lora_A." in spec.name or "lora_embedding_A" in spec.name)
    ]
    sizes: Counter[str] = Counter()
    for spec in header.tensors:
        sizes[spec.dtype] += spec.elements
    return min(max(ranks), MAX_RANK) if ranks else None, sizes.most_common(1)[0][0], sizes.total()


_known_tensors = lru_cache(maxsize=64)(_tensors)
"""The versions of an adapter, and adapters of one kind, have the same header."""


def manifest_of(files: Mapping[str, str], blobs: BlobReader) -> Manifest | None:
    """Return the manifest, if it is readable and describes the files next to it."""
    if MANIFEST_FILE not in files:
        return None
    raw, size = _read(blobs, files[MANIFEST_FILE], LIMIT_BYTES)
    if size > LIMIT_BYTES:
        return None
    # ValueError: strings or numbers without a canonical form, hence without a digest
    with contextlib.suppress(AdapterHubError, ValueError):
        manifest = Manifest.parse(raw)
        is_of_these = all(files.get(entry.path) == hex_of(entry.sha256) for entry in manifest.files)
        if is_of_these and manifest.digest:
            return manifest
    return None


def _contract(files: Mapping[str, str], blobs: BlobReader) -> Contract | None:
    """Return the contract, if it is sound."""
    if CONTRACT_FILE not in files:
        return None
    raw, size = _read(blobs, files[CONTRACT_FILE], MAX_BYTES)
    with contextlib.suppress(AdapterHubError, ValueError):
        return parse_contract(raw) if size <= MAX_BYTES and claims_contract(raw) else None
    return None


def _with_manifest(found: AdapterFacts, manifest: Manifest, contract: Contract | None) -> AdapterFacts:
    fingerprint = manifest.base.fingerprint
    if fingerprint is not None:
        found = replace(
            found,
            base_sha256=hex_of(fingerprint.weights),
            base_tensors=hex_of(fingerprint.tensors),
            base_files=hex_of(fingerprint.files) if fingerprint.files else None,
        )
    return replace(
        found,
        digest=hex_of(manifest.digest),
        name=str(manifest.name),
        version=manifest.version,
        task=_bounded(manifest.task) or None,
        description=description_of(manifest)[:MAX_TEXT_CHARACTERS].replace("\0", ""),
        examples=tuple(text.replace("\0", "") for text in examples_of(manifest, contract)),
        base_model=_bounded(manifest.base.hints.hub_id) or found.base_model,
        methods=manifest.method or found.methods,
        rank=found.rank or _rank(manifest.rank),
        alpha=found.alpha if manifest.alpha is None else manifest.alpha,
        target_modules=manifest.target_modules or found.target_modules,
        tags=tuple(tags_for(manifest)),
    )


def tags_of_adapter(adapter: AdapterFacts) -> list[str]:
    """Return the tags by which a hub finds an adapter: those of its manifest, or derived from a plain PEFT folder.

    They include the base's full digest besides the short form that fits public hubs.
    """
    tags = list(adapter.tags)
    if not tags:
        tags += ["lora"] if adapter.peft_type == "LORA" else []
        tags += [f"adapter-task:{adapter.task}"] if adapter.task else []
    tags += [f"lora-rank:{adapter.rank}"] if adapter.rank else []
    tags += [f"base-sha256:{adapter.base_sha256}"] if adapter.base_sha256 else []
    tags += (
        [f"base_model:{adapter.base_model}", f"base_model:adapter:{adapter.base_model}"] if adapter.base_model else []
    )
    return [tag for tag in dict.fromkeys(tags) if len(tag) <= MAX_TAG_CHARACTERS and tag.isprintable()]


def without_contradictions(card_tags: Iterable[str], adapter_tags: Iterable[str]) -> list[str]:
    """Return the tags of a card, without those about base, rank or task where the adapter's files have their own.

    A card never gives a name: clients find by it the repositories that may release the name.
    """
    known = (TAG, *(kind for kind in _FACTS if any(tag.startswith(kind) for tag in adapter_tags)))
    return [tag for tag in card_tags if not tag.startswith(known)]


_FACTS = ("base-sha256:", "lora-rank:", "adapter-task:")


def _rank(value: object) -> int | None:
    return value if type(value) is int and 0 < value <= MAX_RANK else None


def _texts(value: object) -> list[str]:
    """Return the strings in a value of a card: one, or a list of them."""
    items = value if isinstance(value, list) else [value]
    return [item.strip() for item in items if isinstance(item, str) and item.strip()]


def _bounded(text: str | None) -> str:
    """Return `text` if it is printable and short enough for the value of a tag, or an empty string."""
    return text if text and text.isprintable() and len(text) <= MAX_TAG_CHARACTERS else ""


CARD, ADAPTER_CONFIG, CONFIG = "README.md", "adapter_config.json", "config.json"
MAX_CARD_BYTES = 1 << 20
MAX_CONFIG_BYTES = 1 << 20
MAX_TAGS = 500
MAX_CARD_TAG_CHARACTERS = 256


OPEN_MEMBERS = frozenset(
    {
        *("tags", "library_name", "pipeline_tag", "license", "license_name", "license_link", "datasets", "language"),
        *("base_model", "base_model_relation"),
        *(f"extra_gated_{what}" for what in ("prompt", "fields", "heading", "description", "button_content")),
    }
)
"""The members of a card that label a gated repository: most give its tags, and the last ones ask for access."""


def open_part(card: Mapping[str, Any]) -> dict[str, Any]:
    """Return the card's facts for everyone who sees a gated repository: the rest is a file behind the gate."""
    return {name: value for name, value in card.items() if name in OPEN_MEMBERS}


def read_card(blobs: BlobReader, files: Mapping[str, str]) -> dict[str, Any]:
    """Return the front matter at one commit (`files`: path to sha256); empty when it is unreadable."""
    raw = _small_file(blobs, files.get(CARD), MAX_CARD_BYTES)
    try:
        return dict(read_metadata(raw.decode("utf-8")).values) if raw else {}
    except (UnicodeDecodeError, UnreadableCard):
        return {}


def card_text(blobs: BlobReader, files: Mapping[str, str]) -> str:
    """Return the card at one commit as text; empty without a readable one."""
    return _small_file(blobs, files.get(CARD), MAX_CARD_BYTES).decode("utf-8", "replace").replace("\0", "")


def read_config(blobs: BlobReader, files: Mapping[str, str]) -> dict[str, Any]:
    """Return the facts of `config.json` and `adapter_config.json` that model info shows."""
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


def tags_of(card: Mapping[str, Any], config: Mapping[str, Any], files: FileDigests) -> list[str]:
    """Return the tags that the Hub derives, sorted: library, format, base, license, datasets, and those of the card."""
    found = {
        tag for tag in _tags_of(card, config, files) if tag.isprintable() and 0 < len(tag) <= MAX_CARD_TAG_CHARACTERS
    }
    return sorted(found)[:MAX_TAGS]


def _tags_of(card: Mapping[str, Any], config: Mapping[str, Any], files: FileDigests) -> Iterator[str]:
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


def _small_file(blobs: BlobReader, sha256: str | None, limit_bytes: int) -> bytes:
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
