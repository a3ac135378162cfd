"""The model card `README.md`: YAML front matter with the tags that a hub indexes, then text for people.

The card is generated from the manifest, whose field `card` holds the author's own card. So editing a card on a hub
never changes the adapter. `docs/reference/hub.md` lists the tags.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapterhub.core.digests import hex_of
from adapterhub.core.errors import AdapterHubError, shown
from adapterhub.core.specs import is_hub_id
from adapterhub.formats.cards.metadata import (
    BASE_TAG,
    CardProblem,
    Metadata,
    UnreadableCard,
    check_metadata,
    read_metadata,
    split_block,
)
from adapterhub.formats.licenses import hub_license
from adapterhub.formats.manifest import CARD_FILE, CONTRACT_FILE, Manifest
from adapterhub.formats.prompts.form import PromptForm
from adapterhub.formats.relevance import MAX_DESCRIPTION, MAX_PROMPT, MAX_PROMPTS

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
    """Return the searchable facts as Hub tags: `list_models(filter=[…])` then finds the adapter by base, task and rank.

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


def make_card(
    manifest: Manifest,
    *,
    base_hub_id: str = "",
    repo: str = "",
    endpoint: str = "",
    without: Collection[str] = (),
    contract: Contract | None = None,
) -> Card:
    """Return the whole card: the author's front matter with our keys and tags, the author's text, the facts.

    With `repo`, the repository that it is published to, the card shows how to use the adapter from there; `endpoint` is
    the URL of a server other than the Hugging Face Hub. Keys in `without` are left out of the author's metadata. The
    build's `contract` gives examples where the author has none.
    """
    import yaml

    notes: list[str] = []
    base = manifest.base.hints.hub_id or base_hub_id
    matter = _without_paths(_metadata(manifest.card, notes), notes)
    for key in without:
        matter.pop(key, None)
    own_tags = matter.get("tags") if isinstance(matter.get("tags"), list) else []
    tags = tags_for(manifest, base)
    matter |= {"library_name": "peft", "tags": [*(t for t in own_tags or [] if t not in tags), *tags]}
    if base:
        matter["base_model"] = base
    if manifest.prompt is not None:
        matter |= _inference(manifest.prompt, matter)
    if contract is not None and "widget" not in matter and (widget := widget_of(contract)):
        matter["widget"] = widget
    if manifest.license:
        _state_license(matter, manifest.license, notes)
    front = yaml.safe_dump(matter, sort_keys=True, allow_unicode=True, default_flow_style=False)
    body = split_block(manifest.card)[1].partition(_FACTS)[0]
    text = body.strip() or f"# {manifest.name}\n\n{manifest.description}".strip()
    usage = usage_of(manifest, base, repo, endpoint) if repo else ""
    return Card(text=f"---\n{front}---\n\n{text}\n{_FACTS}{_facts(manifest, base)}{usage}", notes=tuple(notes))


def _inference(form: PromptForm, matter: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the Hub's own inference that a form states; the author's go before them."""
    own = matter.get("inference")
    stated = own.get("parameters") if isinstance(own, dict) else None
    found = {"max_new_tokens": form.max_new_tokens, "stop": list(form.stop) or None}
    parameters = {key: value for key, value in found.items() if value is not None}
    if not parameters or (own is not None and not isinstance(own, dict)):
        return {}
    rest = own if isinstance(own, dict) else {}
    return {"inference": {**rest, "parameters": parameters | (stated if isinstance(stated, dict) else {})}}


def refusals_of(manifest: Manifest, card: Card) -> list[CardProblem]:
    """Return the faults that a hub would refuse in the card, each with its line in the author's `README.md`."""
    try:
        values = read_metadata(card.text).values
    except UnreadableCard as error:
        return [CardProblem(key="", message=str(error), line=None)]
    errors, _ = check_metadata(Metadata(values=values, lines=_metadata(manifest.card).lines))
    return errors


_IDS: Final[Mapping[str, Callable[[str], str]]] = {
    "base_model": str,
    "datasets": str,
    "tags": lambda tag: named["base"] if (named := BASE_TAG.fullmatch(tag)) else "none",
}
"""The keys whose values hold Hub ids, and where in a value the id is."""


def _without_paths(metadata: Metadata, notes: list[str]) -> dict[str, Any]:
    """Return the author's metadata without local paths: others cannot use them, and hubs refuse them."""
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
    """Write a licence in the form that hubs accept: their own identifier, or `other` with a `license_name`."""
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
    """Return the licence that a card states: in our own facts, word for word, or in its front matter."""
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


_RANKS: Final = (8, 16, 32, 64, 128, 256, 512)
"""The values of `--max-lora-rank` that vLLM takes."""


def usage_of(manifest: Manifest, base: str, repo: str, endpoint: str) -> str:
    """Return the section for the repository `repo`; `endpoint` is the URL of a server other than the Hugging Face Hub.

    Its lines take this version: a card outlives it.
    """
    remote = f" --remote {endpoint}" if endpoint else ""
    variable = f"HF_ENDPOINT={endpoint} " if endpoint else ""
    model, tag = base or "path/to/base", f"v{manifest.version}"
    parts = [
        "## How to use it",
        "With [adapt](https://pypi.org/project/adapterhub/), which checks every byte and the base:",
        _fenced(
            "sh", f"adapt install {repo}=={manifest.version}{remote}", f'adapt run {manifest.name} --base {model} "…"'
        ),
        *_asking(manifest.prompt),
        "With PEFT" + (f", after `export HF_ENDPOINT={endpoint}`:" if endpoint else ":"),
        _fenced(
            "python",
            "from peft import PeftModel",
            "from transformers import AutoModelForCausalLM  # or the class of another task",
            "",
            f'base = AutoModelForCausalLM.from_pretrained("{model}")',
            f'model = PeftModel.from_pretrained(base, "{repo}", revision="{tag}")',
        ),
    ]
    rank = vllm_rank(manifest.rank)
    if "LORA" in manifest.method and rank is not None:
        name = manifest.name
        download = f"{variable}hf download {repo} --revision {tag} --local-dir {name}"
        serve = f"vllm serve {model} --enable-lora --max-lora-rank {rank} --lora-modules {name}=./{name}"
        parts += ["With vLLM, which takes no revision:", _fenced("sh", download, serve)]
    return "\n" + "\n\n".join(parts) + "\n"


def vllm_rank(rank: int | None) -> int | None:
    """Return the least `--max-lora-rank` of vLLM for an adapter of this rank; None if it has none."""
    return next((known for known in _RANKS if known >= (rank or _RANKS[-1] + 1)), None)


def _asking(form: PromptForm | None) -> list[str]:
    """Return how to make a prompt of a question where `adapt run`, which does it by itself, does not run."""
    if form is None:
        return []
    said = ["`adapt run` asks it in the form that it was trained with."]
    if form.template is not None:
        before, after = form.parts
        said += [
            "Other programs take the whole prompt:",
            _fenced("python", f"prompt = {before!r} + question + {after!r}"),
        ]
    elif form.form == "chat":
        whose = (
            "its own chat template, which `adapterhub.json` holds" if form.chat_template else "the base's chat template"
        )
        system = f" and the system text `{shown(form.system, 400)}`" if form.system is not None else ""
        said.append(f"Elsewhere, ask it in a chat, with {whose}{system}.")
    elif form.form == "raw":
        said.append("Elsewhere, give it your text unchanged, without a chat template.")
    return said


def _fenced(language: str, *lines: str) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


_READ_CHARACTERS: Final = 32_000
_LEFT_OUT: Final = re.compile(r"<!--.*?(?:-->|\Z)|```.*?(?:```|\Z)|~~~.*?(?:~~~|\Z)", re.DOTALL)
_LINK: Final = re.compile(r"!?\[([^][\n]{0,300})\]\([^()\n]{0,300}\)")
_FIGURE: Final = re.compile(r"[-*] [^:\n]{1,60}: [-+.,%e\d]+")
_MARK: Final = re.compile(r"<[^>\n]{1,200}>|[*`_#>|]+|https?://\S+")
_HEADING: Final = re.compile(r"#{1,6}\s+(.*?)\s*#*$")
_FIELD: Final = re.compile(r"[-*]?\s*\*\*[^*\n]{1,60}\*\*:?\s*.{0,300}$")
_OF_TEMPLATES: Final = (
    "[more information needed]",
    "more information needed",
    "users (both direct and downstream) should be made aware",
    "use the code below to get started",
    "carbon emissions can be estimated using",
    "this modelcard aims to be a base template",
    "this model card has been automatically generated",
    "this model card has been generated automatically",
    "this is the model card of a",
    "this model is a fine-tuned version of",
    "it has been trained using",
    "this model was trained with",
    "it achieves the following results on",
    "should probably proofread and complete it",
)
_LAST_HEADINGS: Final = (
    "adapter facts",
    "bias, risks",
    "citation",
    "environmental impact",
    "evaluation",
    "framework versions",
    "how to get started",
    "quick start",
    "technical specifications",
    "training",
    "usage",
)
"""Headings of sections that say nothing of what an adapter is for; the text before them does."""


def own_words(card: str) -> str:
    """Return the first 300 characters of the author's text in a card: no metadata, code, tables, or template text.

    Empty for the card that PEFT, TRL or transformers write beside an adapter, until its author fills it in.
    """
    _, body, _ = split_block(card[:_READ_CHARACTERS])
    kept: list[str] = []
    for line in _LEFT_OUT.sub(" ", body).splitlines():
        text = line.strip()
        heading = _HEADING.match(text)
        if heading is not None:
            if heading[1].lower().startswith(_LAST_HEADINGS):
                break
            continue
        said = _LINK.sub(lambda link: "" if link[0].startswith("!") else link[1], text)
        if (
            not said
            or said.startswith("|")
            or _FIELD.fullmatch(text)
            or _FIGURE.fullmatch(text)
            or said.lower().startswith(_OF_TEMPLATES)
        ):
            continue
        kept.append(" ".join(_MARK.sub(" ", said).split()))
    return " ".join(filter(None, kept))[:MAX_DESCRIPTION].strip()


def description_of(manifest: Manifest) -> str:
    """Return the purpose in the manifest, or else in the card; empty if neither has one."""
    return manifest.description or own_words(manifest.card)


def examples_of(manifest: Manifest, contract: Contract | None) -> tuple[str, ...]:
    """Return up to 16 example prompts of the adapter: those of its contract, then those of its manifest."""
    asked: list[str] = []
    for golden in contract.goldens if contract is not None else ():
        if isinstance(golden.asked, str):
            asked.append(golden.asked)
        elif golden.asked:
            asked.append(golden.asked[-1]["content"])
    flat = (" ".join(text[:MAX_PROMPT].split()) for text in (*asked, *manifest.examples))
    return tuple(dict.fromkeys(text for text in flat if text))[:MAX_PROMPTS]


_SHOWN: Final = 2
_MOST_CHARACTERS: Final = 2000
"""A longer example is left out: a hub shows all of it."""


def widget_of(contract: Contract) -> list[dict[str, Any]]:
    """Return the first two goldens as entries of the card's `widget`; empty for digests, and where no text is written.

    A hub sends `text` unchanged, so the prompt's frame is in it; it puts `messages` into the base's chat template.
    """
    from adapterhub.formats.contract.contract import WRITERS

    if contract.visibility != "public" or contract.kind not in WRITERS:
        return []
    form, found = contract.prompt, []
    for golden in contract.distinct:
        if golden.asked is None or len(str(golden.asked)) + len(golden.answer) > _MOST_CHARACTERS:
            continue
        if form.form == "chat":
            asked: dict[str, Any] = {"messages": [dict(turn) for turn in form.turns(golden.asked)]}
        elif isinstance(golden.asked, str):
            asked = {"text": form.frame(golden.asked)}
        else:
            continue
        found.append({**asked, "output": {"text": golden.answer}})
    return found[:_SHOWN]


def contract_shown(folder: Path) -> Contract | None:
    """Return the contract in a folder, for its card; None without a sound one, which other checks refuse."""
    if not os.path.lexists(folder / CONTRACT_FILE):  # as most are: the reader is not imported
        return None
    from adapterhub.formats.contract.reader import contract_in

    with contextlib.suppress(AdapterHubError):
        return contract_in(folder)
    return None
