"""The model card `README.md`: YAML front matter with the tags that a hub indexes, then text for people.

The card is generated from the manifest, whose field `card` holds the author's own card. So editing a card on a hub
never changes the adapter. `docs/reference/hub.md` lists the tags.
"""

from __future__ import annotations

import json
from typing import Any

from adapterhub.core.digests import hex_of
from adapterhub.formats.manifest import Manifest

CARD_LIMIT_BYTES = 256 << 10
_FENCE = "---"
_FRONT_MATTER_CHARACTERS = 1 << 16
_FRONT_MATTER_DEPTH = 32


def tags_for(manifest: Manifest) -> list[str]:
    """The searchable facts as Hub tags, so that `list_models(filter=[…])` finds the adapter by base, task and rank."""
    tags = ["adapterhub", f"adapter-name:{manifest.name}"]
    hints, fingerprint = manifest.base.hints, manifest.base.fingerprint
    if hints.hub_id:
        tags.append(f"base_model:adapter:{hints.hub_id}")
    if fingerprint:
        tags.append(f"base-sha256:{hex_of(fingerprint.weights)[:32]}")
    if manifest.task:
        tags.append(f"adapter-task:{manifest.task}")
    if manifest.rank:
        tags.append(f"lora-rank:{manifest.rank}")
    if "LORA" in manifest.method:
        tags.append("lora")
    return tags


def card_for(manifest: Manifest) -> str:
    """The whole card: the author's front matter with our keys and tags, the facts, then the author's text."""
    import yaml

    matter, body = split_card(manifest.card)
    own_tags = matter.get("tags") if isinstance(matter.get("tags"), list) else []
    tags = tags_for(manifest)
    matter |= {"library_name": "peft", "tags": [*(t for t in own_tags or [] if t not in tags), *tags]}
    if manifest.base.hints.hub_id:
        matter["base_model"] = manifest.base.hints.hub_id
    if manifest.license:
        matter["license"] = manifest.license
    front = yaml.safe_dump(matter, sort_keys=True, allow_unicode=True, default_flow_style=False)
    text = body.strip() or f"# {manifest.name}\n\n{manifest.description}".strip()
    return f"{_FENCE}\n{front}{_FENCE}\n\n{text}\n\n{_facts(manifest)}"


def _facts(manifest: Manifest) -> str:
    fingerprint, alpha = manifest.base.fingerprint, manifest.alpha
    rows: list[tuple[str, object]] = [
        ("adapter", f"{manifest.name} {manifest.version}"),
        ("base", manifest.base.label),
        ("base weights", fingerprint.weights if fingerprint else "unknown"),
        ("task", manifest.task),
        ("method", ", ".join(manifest.method)),
        ("rank", manifest.rank),
        # 8 whether it was read as 8 or 8.0: one manifest, one card
        ("alpha", int(alpha) if alpha is not None and alpha == int(alpha) else alpha),
        ("target modules", ", ".join(manifest.target_modules)),
        ("parameters", f"{manifest.parameters:,} ({manifest.dtype})"),
    ]
    rows += [("merged from", f"{p.spec} x {p.weight:g}") for p in manifest.parents]
    lines = [f"| {name} | {value} |" for name, value in rows if value not in (None, "")]
    return "\n".join(["## Adapter facts", "", "| fact | value |", "| --- | --- |", *lines, ""])


def split_card(text: str) -> tuple[dict[str, Any], str]:
    """Front matter and body of a card. Front matter that is not a plain YAML mapping of bounded size is dropped."""
    lines = text.replace("\r\n", "\n").split("\n")
    if lines[0].strip() != _FENCE or _FENCE not in (line.rstrip() for line in lines[1:]):
        return {}, text
    end = next(i for i, line in enumerate(lines) if i and line.rstrip() == _FENCE)
    body = "\n".join(lines[end + 1 :])
    return _plain(_front_matter("\n".join(lines[1:end]))), _without_facts(body)


def _front_matter(text: str) -> dict[Any, Any]:
    """The front matter of an untrusted card; empty when reading it is unsafe.

    Nested aliases let a few hundred characters of YAML expand to gigabytes.
    """
    import yaml

    loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C, where it was built
    if len(text) > _FRONT_MATTER_CHARACTERS:
        return {}
    try:
        depth = 0
        for event in yaml.parse(text, Loader=loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if isinstance(event, yaml.AliasEvent) or depth > _FRONT_MATTER_DEPTH:
                return {}
        matter = yaml.load(text, Loader=loader)  # noqa: S506 - a safe loader, by either name
    except (yaml.YAMLError, ValueError, RecursionError):  # ValueError: an impossible date in the front matter
        return {}
    return matter if isinstance(matter, dict) else {}


def _without_facts(body: str) -> str:
    """The body without a generated facts table, so that a card that is read back does not grow."""
    return body.partition("\n## Adapter facts\n")[0]


def _plain(matter: dict[Any, Any]) -> dict[str, Any]:
    """The keys and values that YAML writes back unchanged."""
    return {key: value for key, value in matter.items() if isinstance(key, str) and _is_plain(value)}


def _is_plain(value: object) -> bool:
    """Whether it is text, a list or an object of JSON, or a number that can be printed (5,000 digits cannot)."""
    if not isinstance(value, str | int | float | list | dict):
        return False
    try:
        json.dumps(value, default=str).encode()
    except (ValueError, TypeError):
        return False
    return True
