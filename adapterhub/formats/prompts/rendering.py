"""What a question becomes in a `PromptForm`: the text of the prompt, and its tokens.

A tokenizer is any object with the methods of transformers' `PreTrainedTokenizerBase`; nothing here imports it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from adapterhub.core.digests import Digest, canonical_json, digest_of
from adapterhub.core.errors import UsageProblem, shown
from adapterhub.formats.prompts.form import Asked, PromptForm, Turn, template_digest

Tokenizer = Any
"""A transformers tokenizer."""


def base_template(tokenizer: Tokenizer) -> str | None:
    """The base's chat template; None if it has none."""
    held = getattr(tokenizer, "chat_template", None)
    if isinstance(held, dict):
        held = held.get("default")
    return held if isinstance(held, str) and held else None


def base_template_digest(tokenizer: Tokenizer) -> Digest | None:
    """The digest of the base's chat template, to compare with a form's `chat_template_sha256`."""
    held = base_template(tokenizer)
    return None if held is None else template_digest(held)


def _is_base_s(digest: Digest | None, tokenizer: Tokenizer) -> bool:
    """Whether `digest` is that of the base's template, or of all of them where it has several, as in its hints."""
    if digest is None:
        return False
    held = getattr(tokenizer, "chat_template", None)
    named = [{"name": name, "template": text} for name, text in held.items()] if isinstance(held, dict) else []
    return digest == base_template_digest(tokenizer) or (bool(named) and digest == digest_of(canonical_json(named)))


def has_other_template(form: PromptForm, tokenizer: Tokenizer) -> bool:
    """Whether the form states the digest of a template that neither it nor the base holds: its prompts differ then."""
    if form.form != "chat" or form.chat_template is not None or form.chat_template_sha256 is None:
        return False
    return not _is_base_s(form.chat_template_sha256, tokenizer)


def prompt_texts(form: PromptForm, questions: Sequence[Asked], tokenizer: Tokenizer = None) -> list[str]:
    """The text of each prompt. Only the form `chat` needs the base's `tokenizer`: its template and special tokens.

    All prompts of a call share one child process where the adapter brings a chat template.

    Raises:
        UsageProblem: a question does not suit the form, the base has no chat template, or the template refuses it.
        ChatTemplateRefused: the adapter's own chat template is broken, forbidden, or passes a limit.
    """
    if form.form != "chat":
        return [form.frame(_text(form, asked)) for asked in questions]
    chats = [_chat(form, asked) for asked in questions]
    if form.chat_template is not None and not _is_base_s(form.chat_template_sha256, tokenizer):
        from adapterhub.formats.prompts.chat import render_chats

        special = getattr(tokenizer, "special_tokens_map", None) or {}
        variables = {name: str(token) for name, token in special.items() if isinstance(token, str)}
        return render_chats(form.chat_template, chats, generation_prompt=form.generation_prompt, variables=variables)
    return [_base_chat(form, chat, tokenizer) for chat in chats]


def prompt_tokens(form: PromptForm, questions: Sequence[Asked], tokenizer: Tokenizer) -> list[list[int]]:
    """The token ids of each prompt.

    Raises:
        UsageProblem, ChatTemplateRefused: as `prompt_texts`.
    """
    options = {"add_special_tokens": form.has_special_tokens}
    if form.pair:
        pairs = [_pair(asked) for asked in questions]
        return [list(tokenizer(first, second, **options)["input_ids"]) for first, second in pairs]
    return [list(tokenizer(text, **options)["input_ids"]) for text in prompt_texts(form, questions, tokenizer)]


def _text(form: PromptForm, asked: Asked) -> str:
    if isinstance(asked, str):
        return asked
    if form.pair:
        return "\t".join(_pair(asked))
    raise UsageProblem(f"the prompt form `{form.form}` takes one text, not a conversation")


def _pair(asked: Asked) -> tuple[str, str]:
    """The two texts of a pair; one text is split at its one tab."""
    parts = asked.split("\t") if isinstance(asked, str) else asked
    if len(parts) != 2 or not all(isinstance(part, str) for part in parts):  # noqa: PLR2004 - a pair
        raise UsageProblem("this adapter takes pairs of texts", hint="put one tab between the two")
    return str(parts[0]), str(parts[1])


def _chat(form: PromptForm, asked: Asked) -> list[Turn]:
    if not isinstance(asked, str) and not all(isinstance(turn, dict) for turn in asked):
        raise UsageProblem("the prompt form `chat` takes a text or a conversation, not a pair of texts")
    return form.turns(asked)  # type: ignore[arg-type]  # no pair


def _base_chat(form: PromptForm, chat: list[Turn], tokenizer: Tokenizer) -> str:
    if base_template(tokenizer) is None:
        raise UsageProblem("this base has no chat template", hint="omit `--chat` and the system text")
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=form.generation_prompt))
    except TemplateError as error:  # templates refuse unknown roles
        raise UsageProblem(f"the chat template of this base refuses the prompt: {shown(str(error), 200)}") from None
