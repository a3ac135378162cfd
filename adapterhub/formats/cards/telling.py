"""What a build says of itself in words: its description, else the author's card without the text of templates."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from adapterhub.formats.cards.metadata import split_block
from adapterhub.formats.manifest import Manifest
from adapterhub.formats.relevance import MAX_DESCRIPTION, MAX_PROMPT, MAX_PROMPTS

if TYPE_CHECKING:
    from adapterhub.formats.contract.contract import Contract

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
    """The first 300 characters of what the author wrote in a card: no metadata, code, tables, or text of a template.

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
    """What the manifest says the adapter is for, else what its card does; empty where neither does."""
    return manifest.description or own_words(manifest.card)


def examples_of(manifest: Manifest, contract: Contract | None) -> tuple[str, ...]:
    """Up to 16 examples of what one asks the adapter: those of its contract, then those of its manifest."""
    asked: list[str] = []
    for golden in contract.goldens if contract is not None else ():
        if isinstance(golden.asked, str):
            asked.append(golden.asked)
        elif golden.asked:
            asked.append(golden.asked[-1]["content"])
    flat = (" ".join(text[:MAX_PROMPT].split()) for text in (*asked, *manifest.examples))
    return tuple(dict.fromkeys(text for text in flat if text))[:MAX_PROMPTS]
