"""From a checked PEFT folder to its manifest: facts of the files, and the author's description."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from adapterhub.core.errors import CouldNotTell, DigestMismatch, Malformed, UsageProblem, shown
from adapterhub.core.specs import AdapterName
from adapterhub.formats.base.fingerprint import BaseHints
from adapterhub.formats.manifest import CARD_FILE, BaseRef, FileEntry, Manifest, Parent
from adapterhub.library.bases.records import BaseRecord

if TYPE_CHECKING:
    from adapterhub.formats.peft.config import AdapterConfig
    from adapterhub.formats.prompts.form import PromptForm
    from adapterhub.trust.verify import Subject


def _empty() -> Mapping[str, Any]:
    return MappingProxyType({})


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """The author's description of an adapter; everything else comes from its files.

    `examples` are prompts that show what the adapter is for. `base` is the reference to its base where no base record
    exists. `dialect` names that of the files where they can be read in several ways.
    """

    name: AdapterName
    version: str
    base: BaseRef | None = None
    task: str | None = None
    description: str = ""
    license: str | None = None
    prompt: PromptForm | None = None
    examples: tuple[str, ...] = ()
    parents: tuple[Parent, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=_empty)
    metrics: Mapping[str, Any] = field(default_factory=_empty)
    annotations: Mapping[str, Any] = field(default_factory=_empty)
    dialect: str = ""


_MOST_CHARACTERS: Final = {"task": 200, "description": 10_000, "license": 1_000}


def check_description(about: Description) -> None:
    """Refuse what no manifest should hold, before anything is read or stored.

    Raises:
        UsageProblem: a text is not a string, or too long, or the prompt form or the examples are of another type.
    """
    from adapterhub.formats.prompts.form import PromptForm

    for name, most in _MOST_CHARACTERS.items():
        value = getattr(about, name)
        if value is not None and not isinstance(value, str):
            raise UsageProblem(f"{name} is {shown(value)}, expected text. Nothing was stored")
        if value is not None and len(value) > most:
            raise UsageProblem(
                f"{name} has {len(value):,} characters, expected at most {most:,}. Nothing was stored",
                hint="the folder's README.md has room for a long text",
            )
    if not isinstance(about.prompt, PromptForm | None):
        raise UsageProblem(f"prompt is {shown(about.prompt)}, expected a `PromptForm`. Nothing was stored")
    checked_examples(about.examples)


def base_declared(config: AdapterConfig, description: Description, base: BaseRecord | None) -> BaseRef:
    """Return the base for the manifest: `base`, or that of the description, or the one that the config names."""
    if base is not None:
        return BaseRef(fingerprint=base.fingerprint, hints=base.hints)
    if description.base is not None:
        return description.base
    named = None if config.base_is_path else config.base_model_name_or_path
    return BaseRef(hints=BaseHints(hub_id=named))


def describe(
    subject: Subject, entries: Sequence[FileEntry], description: Description, base: BaseRecord | None
) -> Manifest:
    """Return the manifest of the adapter in `subject`, whose files are `entries`."""
    from adapterhub.formats.cards.card import license_in

    config, facts = subject.config, subject.facts
    card = _card(subject)
    made = Manifest(
        name=description.name,
        version=description.version,
        base=base_declared(config, description, base),
        method=config.methods(),
        files=tuple(entries),
        task=description.task,
        description=description.description,
        license=description.license or license_in(card),
        rank=facts.rank,
        alpha=facts.alpha,
        target_modules=facts.target_modules,
        dtype=facts.dtype,
        parameters=facts.parameters,
        parents=description.parents,
        recipe=description.recipe,
        metrics=description.metrics,
        annotations={**description.annotations, **_dialect_of(subject)},
        card=card,
    )
    made = made.with_examples(checked_examples(description.examples))
    return made.with_prompt(description.prompt or _prompt_of_contract(subject))


def _dialect_of(subject: Subject) -> dict[str, str]:
    """Return the dialect in which the files are read from now on, where more than one reads such files."""
    inner = subject.inner
    return {"dialect": inner.dialect} if inner is not None and inner.pairs and not inner.unclear else {}


def checked_examples(examples: Sequence[str]) -> tuple[str, ...]:
    """Return the example prompts as a manifest holds them: each once, without blanks at its ends.

    Raises:
        UsageProblem: they are not texts, there are more than 16, one has more than 500 characters, or one is empty.
    """
    from adapterhub.formats.relevance import MAX_PROMPT, MAX_PROMPTS

    if isinstance(examples, str) or not all(isinstance(text, str) for text in examples):
        raise UsageProblem(f"examples are {shown(examples)}, expected a list of texts. Nothing was stored")
    kept = tuple(dict.fromkeys(text.strip() for text in examples))
    if len(kept) > MAX_PROMPTS:
        raise UsageProblem(f"{len(kept)} example prompts, and a build holds at most {MAX_PROMPTS}. Nothing was stored")
    for number, text in enumerate(kept, 1):
        if not 0 < len(text) <= MAX_PROMPT:
            raise UsageProblem(
                f"example prompt {number} has {len(text):,} characters; expected 1 to {MAX_PROMPT}. Nothing was stored"
            )
    return kept


def _prompt_of_contract(subject: Subject) -> PromptForm | None:
    """Return the form in which a contract asks; None without one.

    Another check reports the faults of a broken one.
    """
    from adapterhub.trust.verify.checks.contract import contract_of

    with contextlib.suppress(Malformed, DigestMismatch, CouldNotTell, OSError):
        contract = contract_of(subject)
        return contract.prompt if contract is not None else None
    return None


def _card(subject: Subject) -> str:
    """Return the author's own card, if it is readable text of bounded size."""
    from adapterhub.formats.cards.card import CARD_LIMIT_BYTES

    entry = subject.listing.taken.get(CARD_FILE)
    if entry is None or entry.size_bytes > CARD_LIMIT_BYTES:
        return ""
    with entry.open() as stream:
        text = stream.read(CARD_LIMIT_BYTES).decode("utf-8", errors="replace")
    return "".join(c for c in text if c.isprintable() or c in "\n\t")
