"""Names and counts of a base, shown beside its fingerprint. They help people but prove nothing.

So reading them never fails: an absent or damaged file leaves its hints unknown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar

from adapterhub.core.digests import Digest, Json, canonical_json, digest_of, parse_digest
from adapterhub.core.disk.files import digest_of_file, read_json, read_plain
from adapterhub.core.errors import shown
from adapterhub.core.hub_ids import is_hub_id
from adapterhub.formats.documents import object_at

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseHints:
    """Names and counts to show beside a fingerprint; they prove nothing. None: unknown."""

    hub_id: str | None = None
    commit: str | None = None
    model_type: str | None = None
    dtype: str | None = None
    parameters: int | None = None
    hidden_size: int | None = None
    layers: int | None = None
    tokenizer_sha256: Digest | None = None
    chat_template_sha256: Digest | None = None

    def to_json(self) -> dict[str, Any]:
        """The known hints as a JSON value."""
        return {key: value for key in _HINT_KINDS if (value := getattr(self, key)) is not None}

    @classmethod
    def from_json(cls, value: Json, path: str = "hints") -> BaseHints:
        """Read the known keys strictly; other keys are ignored.

        Raises:
            ValueError: with the path of the first wrong value.
        """
        value = object_at(value, path)
        known: dict[str, Any] = {}
        for key, kind in _HINT_KINDS.items():
            item = value.get(key)
            if item is None:
                continue
            if type(item) is not kind:
                raise ValueError(f"{path}.{key}: expected {'text' if kind is str else 'integer'}, got {shown(item)}")
            known[key] = digest_at(item, f"{path}.{key}") if key.endswith("_sha256") else item
            if key == "hub_id" and not is_hub_id(str(item)):
                raise ValueError(f"{path}.hub_id: expected a Hub id such as org/model, got {shown(item)}")
        return cls(**known)


_HINT_KINDS: Final[Mapping[str, type]] = MappingProxyType(
    {f.name: int if f.name in ("parameters", "hidden_size", "layers") else str for f in fields(BaseHints)}
)
CONFIG_LIMIT_BYTES: Final = 64 << 20  # tokenizer_config.json of large vocabularies runs to megabytes
_SNAPSHOT: Final = re.compile(r"models--(?P<org>[^/]+?)--(?P<name>[^/]+)/snapshots/(?P<commit>[0-9a-f]{40})")
_HIDDEN_SIZE_KEYS: Final = ("hidden_size", "n_embd", "d_model", "dim")
_LAYERS_KEYS: Final = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_VOCABULARIES: Final = (
    ("tokenizer.json",),
    ("tokenizer.model",),
    ("spiece.model",),
    ("vocab.json", "merges.txt"),
    ("vocab.txt",),
)


def read_hints(folder: Path) -> BaseHints:
    """Hints from the files beside the weights: config, tokenizer, chat template, and the path in a Hub cache.

    `parameters` stays unknown, as it takes reading the weights.
    """
    config = _object(folder / "config.json")
    text = config.get("text_config")
    inner = text if isinstance(text, dict) else {}  # multimodal models keep those of the language model here
    dtype = _first(str, config, inner, keys=("dtype", "torch_dtype"))
    place = _SNAPSHOT.search(folder.absolute().as_posix()) or _SNAPSHOT.search(folder.resolve().as_posix())
    named = f"{place['org']}/{place['name']}" if place else ""
    return BaseHints(
        hub_id=named if is_hub_id(named) else None,
        commit=place["commit"] if place else None,
        model_type=_first(str, config, keys=("model_type", "_class_name")),  # the second is of diffusers
        dtype=dtype.removeprefix("torch.") if dtype else None,
        hidden_size=_first(int, config, inner, keys=_HIDDEN_SIZE_KEYS),
        layers=_first(int, config, inner, keys=_LAYERS_KEYS),
        tokenizer_sha256=_tokenizer_digest(folder),
        chat_template_sha256=_chat_template_digest(folder),
    )


def _object(path: Path) -> Mapping[str, Any]:
    try:
        value = read_json(path, CONFIG_LIMIT_BYTES)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _first(kind: type[_T], *holders: Mapping[str, Any], keys: tuple[str, ...]) -> _T | None:
    values = (holder.get(key) for holder in holders for key in keys)
    return next((value for value in values if type(value) is kind), None)


def _tokenizer_digest(folder: Path) -> Digest | None:
    """Digest of the tokenizer's file; for several files, the digest over their names and digests."""
    for names in _VOCABULARIES:
        try:
            digests = [digest_of_file(folder / name)[0] for name in names]
        except OSError:
            continue
        return (
            digests[0]
            if len(names) == 1
            else digest_of(canonical_json([list(pair) for pair in zip(names, digests, strict=True)]))
        )
    return None


def _chat_template_digest(folder: Path) -> Digest | None:
    """Digest of the template's text, in whichever file; for several named templates, of their canonical JSON."""
    try:
        raw = read_plain(folder / "chat_template.jinja", CONFIG_LIMIT_BYTES)
        return digest_of(raw) if len(raw) <= CONFIG_LIMIT_BYTES else None
    except OSError:
        template = _object(folder / "tokenizer_config.json").get("chat_template")
    if isinstance(template, str):
        return digest_of(template.encode("utf-8", "surrogatepass"))
    return digest_of(canonical_json(template)) if isinstance(template, list) and template else None


def digest_at(value: object, path: str) -> Digest:
    """The digest that `value` spells; a ValueError names `path`."""
    try:
        return parse_digest(value)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
