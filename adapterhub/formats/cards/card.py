"""The model card `README.md`: YAML front matter with the tags that a hub indexes, then text for people.

The card is generated from the manifest, whose field `card` holds the author's own card. So editing a card on a hub
never changes the adapter. `docs/reference/hub.md` lists the tags.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from adapterhub.core.digests import hex_of
from adapterhub.core.errors import shown
from adapterhub.core.hub_ids import is_hub_id
from adapterhub.formats.cards.metadata import (
    BASE_TAG,
    Metadata,
    Problem,
    UnreadableCard,
    check_metadata,
    read_metadata,
    split_block,
)
from adapterhub.formats.cards.usage import usage_of
from adapterhub.formats.licenses.hub_ids import hub_license
from adapterhub.formats.manifest import CARD_FILE, Manifest
from adapterhub.formats.prompts.form import PromptForm

if TYPE_CHECKING:
    from adapterhub.formats.contract.contract import Contract

CARD_LIMIT_BYTES = 256 << 10
_FACTS: Final = "\n## Adapter facts\n"
_LICENSE_ROW: Final = "| license | "


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """A card, and a note for each value of the author's card that it leaves out or writes in the Hub's words."""

    text: str
    notes: tuple[str, ...]


def tags_for(manifest: Manifest, base_hub_id: str = "") -> list[str]:
    """The searchable facts as Hub tags, so that `list_models(filter=[…])` finds the adapter by base, task and rank.

    `base_hub_id` is for a manifest that does not name its base.
    """
    tags = ["adapterhub", f"adapter-name:{manifest.name}"]
    base, fingerprint = manifest.base.hints.hub_id or base_hub_id, manifest.base.fingerprint
    if base:
        tags.append(f"base_model:adapter:{base}")
    if fingerprint:
        tags.append(f"base-sha256:{hex_of(fingerprint.weights)[:32]}")
    if manifest.task:
        tags.append(f"adapter-task:{manifest.task}")
    if manifest.rank:
        tags.append(f"lora-rank:{manifest.rank}")
    if "LORA" in manifest.method:
        tags.append("lora")
    return tags


def card_for(manifest: Manifest, *, base_hub_id: str = "", contract: Contract | None = None) -> str:
    """The text of `make_card` for a folder."""
    return make_card(manifest, base_hub_id=base_hub_id, contract=contract).text


def make_card(
    manifest: Manifest,
    *,
    base_hub_id: str = "",
    repo: str = "",
    endpoint: str = "",
    without: Collection[str] = (),
    contract: Contract | None = None,
) -> Card:
    """The whole card: the author's front matter with our keys and tags, the author's text, the facts.

    With `repo`, the repository that it is published to, the card shows how to use the adapter from there; `endpoint` is
    the URL of a server other than the Hugging Face Hub. Keys in `without` are left out of the author's metadata. The
    build's `contract` gives examples where the author has none.
    """
    import yaml

    notes: list[str] = []
    base = manifest.base.hints.hub_id or base_hub_id
    matter = _without_paths(_metadata(manifest.card, notes), notes)
    matter = {key: value for key, value in matter.items() if key not in without}
    own_tags = matter.get("tags") if isinstance(matter.get("tags"), list) else []
    tags = tags_for(manifest, base)
    matter |= {"library_name": "peft", "tags": [*(t for t in own_tags or [] if t not in tags), *tags]}
    if base:
        matter["base_model"] = base
    if manifest.prompt is not None:
        matter |= _inference(manifest.prompt, matter)
    if contract is not None and "widget" not in matter:
        from adapterhub.formats.cards.widget import widget_of

        if widget := widget_of(contract):
            matter["widget"] = widget
    if manifest.license:
        _state_license(matter, manifest.license, notes)
    front = yaml.safe_dump(matter, sort_keys=True, allow_unicode=True, default_flow_style=False)
    _, body = split_card(manifest.card)
    text = body.strip() or f"# {manifest.name}\n\n{manifest.description}".strip()
    usage = usage_of(manifest, base, repo, endpoint) if repo else ""
    return Card(text=f"---\n{front}---\n\n{text}\n{_FACTS}{_facts(manifest, base)}{usage}", notes=tuple(notes))


def _inference(form: PromptForm, matter: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the Hub's own inference that a form states; the author's go before them."""
    own = matter.get("inference")
    stated = own.get("parameters") if isinstance(own, dict) else None
    found = {"max_new_tokens": form.max_new_tokens, "stop": list(form.stop) or None}
    parameters = {key: value for key, value in found.items() if value is not None}
    if not parameters or (own is not None and not isinstance(own, dict)):
        return {}
    rest = own if isinstance(own, dict) else {}
    return {"inference": {**rest, "parameters": parameters | (stated if isinstance(stated, dict) else {})}}


def refusals_of(manifest: Manifest, card: Card) -> list[Problem]:
    """What a hub would refuse of the card, each with its line in the author's `README.md`."""
    try:
        values = read_metadata(card.text).values
    except UnreadableCard as error:
        return [Problem(key="", message=str(error), line=None)]
    errors, _ = check_metadata(Metadata(values=values, lines=_metadata(manifest.card).lines))
    return errors


_IDS: Final[Mapping[str, Callable[[str], str]]] = {
    "base_model": str,
    "datasets": str,
    "tags": lambda tag: named["base"] if (named := BASE_TAG.fullmatch(tag)) else "none",
}
"""The keys whose values hold Hub ids, and where in a value the id is."""


def _without_paths(metadata: Metadata, notes: list[str]) -> dict[str, Any]:
    """The author's metadata without paths on the author's machine: others cannot use them, and hubs refuse them."""
    matter = {key: value for key, value in metadata.values.items() if value is not None}
    for key, id_in in _IDS.items():
        value = matter.get(key)
        items = value if isinstance(value, list) else [value]
        kept = []
        for number, item in enumerate(items):
            if not isinstance(item, str) or is_hub_id(id_in(item)):
                kept.append(item)
                continue
            line = metadata.lines.get(f"{key}[{number}]", metadata.lines.get(key))
            notes.append(f"{CARD_FILE} line {line}: `{key}` names `{shown(item)}`, no Hub id; the card leaves it out")
        if len(kept) < len(items):
            matter |= {key: kept}
            if not kept:
                del matter[key]
    return matter


def _state_license(matter: dict[str, Any], stated: str, notes: list[str]) -> None:
    """Write a licence as hubs take it: their own identifier, else `other` with a `license_name`."""
    known = hub_license(stated)
    matter["license"] = known or "other"
    if known not in (None, "other"):
        matter.pop("license_name", None)  # of the author's card, for another licence
    if known is None:
        matter["license_name"] = stated
        notes.append(f"`{shown(stated)}` is no licence of the Hub's list; the card says `other`, with that as its name")


def _facts(manifest: Manifest, base: str) -> str:
    fingerprint, alpha = manifest.base.fingerprint, manifest.alpha
    rows: list[tuple[str, object]] = [
        ("adapter", f"{manifest.name} {manifest.version}"),
        ("license", manifest.license),
        ("base", base or manifest.base.label),
        ("base weights", fingerprint.weights if fingerprint else "unknown"),
        ("task", manifest.task),
        ("prompt form", manifest.prompt.label.replace("|", "\\|") if manifest.prompt else None),
        ("method", ", ".join(manifest.method)),
        ("rank", manifest.rank),
        # 8 whether it was read as 8 or 8.0: one manifest, one card
        ("alpha", int(alpha) if alpha is not None and alpha == int(alpha) else alpha),
        ("target modules", ", ".join(manifest.target_modules)),
        ("parameters", f"{manifest.parameters:,} ({manifest.dtype})"),
    ]
    rows += [("merged from", f"{p.spec} x {p.weight:g}") for p in manifest.parents]
    lines = [f"| {name} | {value} |" for name, value in rows if value not in (None, "")]
    return "\n".join(["", "| fact | value |", "| --- | --- |", *lines, ""])


# ---------------------------------------------------------------- read
def split_card(text: str) -> tuple[Mapping[str, Any], str]:
    """Front matter and body of a card, without our facts; unreadable front matter is dropped."""
    return _metadata(text).values, split_block(text)[1].partition(_FACTS)[0]


def license_in(text: str) -> str | None:
    """The licence that a card states: in our own facts, word for word, else in its front matter."""
    facts = split_block(text)[1].partition(_FACTS)[2]
    row = next((line for line in facts.splitlines() if line.startswith(_LICENSE_ROW)), "")
    stated = row.removeprefix(_LICENSE_ROW).removesuffix(" |") or split_card(text)[0].get("license")
    return stated if isinstance(stated, str) else None


def _metadata(text: str, notes: list[str] | None = None) -> Metadata:
    try:
        return read_metadata(text)
    except UnreadableCard as error:
        if notes is not None:
            notes.append(f"{CARD_FILE}: {error}; the card leaves it out")
        return Metadata(values={}, lines={})
