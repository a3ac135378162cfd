"""Finds an adapter's prompt form in its folder, for `add`. Takes only a certain one; a note reports any other.

| in the folder | is |
| --- | --- |
| `adapterhub.json` with a form | taken |
| a behaviour contract (`evals.jsonl`) | taken: it was recorded in its form |
| a Modelfile with a TEMPLATE of one `{{ .Prompt }}`, or a SYSTEM text | taken: Ollama always obeys it |
| a chat template other than the base's | said: trainers write one beside every adapter; `--prompt chat` takes it |
| a GGUF file with a prompt prefix | said: nothing applies it, and it lacks the text after the question |
| a card whose widget shows a conversation | said |
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from adapterhub.core.digests import Digest, canonical_json, digest_of, strict_json
from adapterhub.core.errors import AdapterHubError, UsageProblem, shown
from adapterhub.formats.base.fingerprint import CONFIG_LIMIT_BYTES
from adapterhub.formats.cards.card import CARD_LIMIT_BYTES, own_words, split_card
from adapterhub.formats.contract.reader import MAX_BYTES, claims_contract
from adapterhub.formats.manifest import CARD_FILE, CONTRACT_FILE
from adapterhub.formats.prompts.form import MAX_CHAT_TEMPLATE_BYTES, PromptForm, template_digest, template_of
from adapterhub.formats.prompts.modelfile import LIMIT_BYTES, LOOKED_AT_BYTES, form_in_modelfile, prompt_prefix
from adapterhub.trust.verify import manifest_in
from adapterhub.trust.verify.subject import Entry, take

if TYPE_CHECKING:
    from adapterhub.formats.base.fingerprint import BaseHints

_JINJA: Final = "chat_template.jinja"
_TOKENIZER: Final = "tokenizer_config.json"
_MODELFILE: Final = "Modelfile"
_MOST_GGUFS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptChoice:
    """The form that a build gets, None for none, and one sentence about it for the user, which may be empty."""

    form: PromptForm | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundTemplate:
    """A chat template in a folder. `digest` is that of the base's hints: over all templates where there are several."""

    text: str
    digest: Digest


def choose_form(folder: Path, asked: PromptForm | None, base: BaseHints | None) -> PromptChoice:
    """Return the prompt form of the adapter in `folder`; `asked` is what the user typed, `base` the hints of its base.

    Raises:
        UsageProblem: `asked` is a chat, and the folder's chat template is too long to keep.
        MalformedManifest: the folder's own `adapterhub.json` cannot be read.
    """
    if not folder.is_dir():
        return PromptChoice(form=asked)
    known = base.chat_template_sha256 if base is not None else None
    template = template_in(folder)
    is_other = template is not None and known not in (template.digest, template_digest(template.text))
    if asked is not None:
        return _completed(asked, template if is_other else None, known)
    manifest = manifest_in(folder)
    if manifest is not None and manifest.prompt is not None:
        return PromptChoice(form=manifest.prompt, note=_taken(manifest.prompt, "adapterhub.json"))
    if claims_contract(_read(folder, CONTRACT_FILE, MAX_BYTES) or b""):
        return PromptChoice()  # it says itself how it asks
    hints: list[str] = []
    if (written := _read(folder, _MODELFILE, LIMIT_BYTES)) is not None:
        try:
            form = form_in_modelfile(written.decode(errors="replace"))
        except AdapterHubError as error:
            hints.append(error.message.splitlines()[-1].strip())
        else:
            if form is not None:
                return PromptChoice(form=form, note=_taken(form, _MODELFILE))
    if is_other:
        whose = "other than its base's" if known is not None else "which may not be its base's"
        hints.append(f"its folder holds a chat template, {whose}: `--prompt chat` keeps it")
    hints += _lesser_hints(folder)
    return PromptChoice(note=f"no prompt form is recorded: {'; '.join(hints)}" if hints else "")


def says_nothing(folder: Path) -> bool:
    """Return True if the folder has neither a contract nor a card that describes the adapter."""
    card = _read(folder, CARD_FILE, CARD_LIMIT_BYTES) or b""
    return not (
        own_words(card.decode(errors="replace")) or claims_contract(_read(folder, CONTRACT_FILE, MAX_BYTES) or b"")
    )


def template_in(folder: Path) -> FoundTemplate | None:
    """Return the chat template beside an adapter or a model, if it can be read; of several, the default one."""
    jinja = _read(folder, _JINJA, CONFIG_LIMIT_BYTES)
    if jinja is not None:
        return FoundTemplate(text=jinja.decode(errors="replace"), digest=digest_of(jinja))
    config = _read(folder, _TOKENIZER, CONFIG_LIMIT_BYTES)
    try:
        value = strict_json(config, limit_bytes=CONFIG_LIMIT_BYTES, finite=False) if config is not None else None
        held = value.get("chat_template") if isinstance(value, dict) else None
        if isinstance(held, str) and held:
            return FoundTemplate(text=held, digest=template_digest(held))
        named = {item["name"]: item["template"] for item in held} if isinstance(held, list) else {}
        text = named.get("default")
        return FoundTemplate(text=text, digest=digest_of(canonical_json(held))) if isinstance(text, str) else None
    except (ValueError, TypeError, KeyError):
        return None


def with_template(form: PromptForm, template: FoundTemplate) -> PromptForm:
    """`form`, a chat, with a chat template of its own.

    Raises:
        UsageProblem: the template is longer than a build holds.
    """
    size = len(template.text.encode("utf-8", "surrogatepass"))
    if size > MAX_CHAT_TEMPLATE_BYTES:
        raise UsageProblem(
            f"its chat template has {size:,} bytes, and a build holds at most {MAX_CHAT_TEMPLATE_BYTES:,}."
            " Nothing was stored",
            hint="shorten it, or take it out of the folder to use the base's",
        )
    own = replace(form, chat_template=template.text, chat_template_sha256=template_digest(template.text))
    return PromptForm.from_json(own.to_json())


def _completed(asked: PromptForm, template: FoundTemplate | None, known: Digest | None) -> PromptChoice:
    """Return the user's input, with the chat template that belongs to it."""
    if asked.form != "chat" or asked.chat_template_sha256 is not None:
        return PromptChoice(form=asked)
    if template is None:
        return PromptChoice(form=replace(asked, chat_template_sha256=known))
    return PromptChoice(form=with_template(asked, template), note="the build keeps the chat template of its folder")


def _taken(form: PromptForm, source: str) -> str:
    return f"took the prompt form from `{source}`: {form.label}; `--prompt` names another"


def _lesser_hints(folder: Path) -> list[str]:
    hints = []
    prefix = _gguf_prefix(folder)
    if prefix is not None:
        name, text = prefix
        hints.append(
            f"`{shown(name)}` begins prompts with `{shown(text, 60)}`: `--template TEXT` records the whole frame"
        )
    card = _read(folder, CARD_FILE, CARD_LIMIT_BYTES)
    widget = split_card(card.decode(errors="replace"))[0].get("widget") if card is not None else None
    if isinstance(widget, list) and any(isinstance(one, dict) and "messages" in one for one in widget):
        hints.append("its card shows a conversation: `--prompt chat` records that form")
    return hints


def _gguf_prefix(folder: Path) -> tuple[str, str] | None:
    """Return the first GGUF file with a prompt prefix, and the prefix as a template's text."""
    for path in sorted(folder.glob("*.gguf"))[:_MOST_GGUFS]:
        head = _read(folder, path.name, LOOKED_AT_BYTES, whole=False)
        text = prompt_prefix(head) if head is not None else None
        if text:
            return path.name, template_of(text)
    return None


def _read(folder: Path, name: str, limit_bytes: int, *, whole: bool = True) -> bytes | None:
    """Return the bytes of a plain file of the folder, or the first ones.

    None if it is absent, a link out, or too long.
    """
    entry = take(folder, name)
    if not isinstance(entry, Entry) or (whole and entry.size_bytes > limit_bytes):
        return None
    try:
        with entry.open() as stream:
            raw = stream.read(limit_bytes)
    except OSError:
        return None
    return raw
