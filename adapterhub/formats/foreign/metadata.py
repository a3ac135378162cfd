"""The header of a foreign file, as hints: words that trigger it, how it was trained, which model it names.

A header may say anything, so nothing here decides anything. Paths, names of folders, captions and models of the
author's machine are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from adapterhub.core.digests import strict_json
from adapterhub.formats.foreign.reading import HEADER
from adapterhub.formats.licenses.expression import Expression

_MOST_TRIGGERS: Final = 10
_MOST_CHARACTERS: Final = 500
_JSON_BYTES: Final = 1 << 20
_HALF: Final = 2
_TRAINING: Final = MappingProxyType(
    {
        "ss_network_module": "module",
        "ss_network_dim": "rank",
        "ss_network_alpha": "alpha",
        "ss_steps": "steps",
        "ss_num_epochs": "epochs",
        "ss_learning_rate": "learning_rate",
        "ss_unet_lr": "unet_learning_rate",
        "ss_text_encoder_lr": "text_encoder_learning_rate",
        "ss_optimizer": "optimizer",
        "ss_resolution": "resolution",
        "ss_clip_skip": "clip_skip",
        "ss_seed": "seed",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trigger:
    """A word that the adapter may have been trained on. `kind`: `stated` by the author, or `guessed` from captions."""

    text: str
    kind: str
    source: str

    def to_json(self) -> dict[str, str]:
        """The value in a manifest."""
        return {"text": self.text, "from": self.source, "kind": self.kind}


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What a header says, cleaned for showing: one printable line each."""

    title: str = ""
    description: str = ""
    license: str | None = None
    architecture: str = ""
    base_sha256: str = ""
    stated_hash: str = ""
    triggers: tuple[Trigger, ...] = ()
    training: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))

    def annotations(self) -> dict[str, Any]:
        """Its part of a manifest's `annotations`, without empty fields."""
        found: dict[str, Any] = {
            "title": self.title,
            "architecture": self.architecture,
            "base_sha256": self.base_sha256,
            "training": dict(self.training),
            "triggers": [trigger.to_json() for trigger in self.triggers],
        }
        return {key: item for key, item in found.items() if item}


def read_metadata(metadata: Mapping[str, str]) -> Header:
    """The hints of a header; what is malformed is left out."""
    said = {key: _clean(value) for key, value in metadata.items() if key != HEADER and len(value) <= _JSON_BYTES}
    return Header(
        title=said.get("modelspec.title", ""),
        description=said.get("modelspec.description", ""),
        license=_license(said.get("modelspec.license", "")),
        architecture=said.get("modelspec.architecture") or said.get("ss_base_model_version", ""),
        base_sha256=_hex(metadata.get("ss_new_sd_model_hash", "")),
        stated_hash=_hex(metadata.get("sshs_model_hash", "") or metadata.get("modelspec.hash_sha256", "")),
        triggers=tuple(_triggers(metadata)),
        training={name: said[key] for key, name in _TRAINING.items() if said.get(key) not in (None, "", "None")},
    )


def _clean(text: str) -> str:
    """One printable line: no control characters, no marks that turn the direction of text."""
    return "".join(c if c.isprintable() else " " for c in text[:_MOST_CHARACTERS]).strip()


def _license(text: str) -> str | None:
    return text if text and Expression.parse(text) is not None else None


def _hex(text: str) -> str:
    text = text.strip().lower().removeprefix("0x").removeprefix("sha256:")
    return text if len(text) == 64 and set(text) <= set("0123456789abcdef") else ""  # noqa: PLR2004 - of sha256


def _triggers(metadata: Mapping[str, str]) -> Iterator[Trigger]:
    seen: set[str] = set()
    for text, kind, source in _words(metadata):
        word = _clean(text)
        if word and word.casefold() not in seen and len(seen) < _MOST_TRIGGERS:
            seen.add(word.casefold())
            yield Trigger(text=word, kind=kind, source=source)


def _words(metadata: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    for key in ("modelspec.trigger_phrase", "ss_trigger_words", "trigger_phrase"):
        yield from ((word, "stated", key) for word in metadata.get(key, "").split(","))
    for dataset in _json(metadata, "ss_datasets", list):
        subsets = dataset.get("subsets") if isinstance(dataset, dict) else None
        for subset in subsets if isinstance(subsets, list) else ():
            tokens = subset.get("class_tokens") if isinstance(subset, dict) else None
            if isinstance(tokens, str):
                yield tokens, "guessed", "ss_datasets"
    counts: Counter[str] = Counter()
    for tags in _json(metadata, "ss_tag_frequency", dict).values():
        known = {tag: count for tag, count in tags.items() if type(count) is int} if isinstance(tags, dict) else {}
        most = max(known.values(), default=0)  # no more images than the commonest tag is known
        counts.update({tag.strip(): count for tag, count in known.items() if count * _HALF > most})
    for tag, _ in counts.most_common(_MOST_TRIGGERS):
        yield tag, "guessed", "ss_tag_frequency"


def _json(metadata: Mapping[str, str], key: str, kind: type) -> Any:  # noqa: ANN401 - any JSON of that kind
    text = metadata.get(key, "")
    if not text:
        return kind()
    try:
        value = strict_json(text.encode(), limit_bytes=_JSON_BYTES)
    except ValueError:
        return kind()
    return value if isinstance(value, kind) else kind()
