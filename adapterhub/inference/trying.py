"""Tries adapters on a base: the loss of each on examples of the wanted answers. Nothing is merged or written."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from adapterhub.core.errors import CouldNotTell
from adapterhub.formats.prompts.form import RAW, PromptForm, prompt_tokens
from adapterhub.inference.tuning import Encoded, Example, Losses, encode, ensure_causal

if TYPE_CHECKING:
    from adapterhub.core.specs import BaseSpec
    from adapterhub.inference.bank import AdapterBank
    from adapterhub.library.library import Library
    from adapterhub.library.store.catalog import AdapterLike

Span = tuple[int, int]
"""The examples of one measurement: the first, and the one after the last."""

RESIDENT: Final = 8
"""Adapters that stay in memory between two measurements."""


class MeasuredTrial(NamedTuple):
    """Mean cross entropy in nats a token, over so many tokens of answers."""

    loss: float
    tokens: int


def mean_of(parts: Sequence[MeasuredTrial]) -> float:
    """Return the loss over all tokens of several measurements."""
    return math.fsum(part.loss * part.tokens for part in parts) / sum(part.tokens for part in parts)


class Bench:
    """A base in memory on which adapters are measured one after another, in an `AdapterBank`.

    `load` or the first measurement loads the base from `folder`. `base` names it for the adapters.
    """

    def __init__(self, library: Library, folder: Path, base: BaseSpec, examples: Sequence[Example]) -> None:
        self._library, self._folder, self._base = library, folder, base
        self._examples = tuple(examples)
        self._held: dict[tuple[PromptForm, Span], tuple[Losses, int]] = {}
        self._bank: AdapterBank | None = None

    def close(self) -> None:
        """Take everything off the base."""
        if self._bank is not None:
            self._bank.close()

    def measure(self, adapter: AdapterLike | None, key: str, form: PromptForm, span: Span) -> MeasuredTrial:
        """Return the loss of the answers of some examples with an adapter, or with the plain base for None.

        `key` names the adapter in the bank. The prompts take `form`; `raw` leaves the text of the examples unchanged.

        Raises:
            CouldNotTell: the loss is not a finite number.
            Malformed: the base cannot use some of the examples.
            UsageProblem, ChatTemplateRefused: the base cannot use this prompt form.
            BaseMismatch, UnsupportedAdapter, RefusedAdapter, DigestMismatch: as `AdapterBank.load`.
        """
        bank = self.load()
        losses, tokens = self._encoded(form, span)
        if adapter is None:
            found = losses.mean(self._model)
        else:
            if key not in bank.names:
                bank.load(adapter, key)
            with bank.use(key):
                found = losses.mean(self._model)
        if not math.isfinite(found):
            raise CouldNotTell(
                "the loss on the examples is not a finite number",
                hint="`adapt verify` finds numbers that are not finite",
            )
        return MeasuredTrial(found, tokens)

    def load(self) -> AdapterBank:
        """Return the bank on the base, which is loaded once.

        Raises:
            Incompatible: transformers cannot load the base.
            UsageProblem: it has an encoder.
        """
        if self._bank is None:
            from adapterhub.inference.bank import AdapterBank
            from adapterhub.inference.loader.text import load_base

            self._model, self._tokenizer = load_base(self._folder)
            ensure_causal(self._model, "adapters can be tried")
            self._bank = AdapterBank(self._model, library=self._library, base=self._base, max_resident=RESIDENT)
        return self._bank

    def _encoded(self, form: PromptForm, span: Span) -> tuple[Losses, int]:
        if (form, span) not in self._held:
            chosen = self._examples[slice(*span)]
            asked: Sequence[Example | Encoded] = chosen if form == RAW else [self._framed(one, form) for one in chosen]
            encoded = encode(self._tokenizer, self._model, asked)
            self._held[form, span] = Losses(encoded, self._model), sum(one.targets for one in encoded)
        return self._held[form, span]

    def _framed(self, example: Example, form: PromptForm) -> Encoded:
        """Return the example in a form: its prompt as the form makes it, then the answer and the end mark."""
        assert isinstance(example.prompt, str)  # see `forms_of`
        [prompt] = prompt_tokens(form, [example.prompt], self._tokenizer)
        answer = list(self._tokenizer(example.completion, add_special_tokens=False)["input_ids"])
        end = self._tokenizer.eos_token_id
        if end is not None and answer[-1:] != [end]:
            answer.append(end)
        return Encoded(tokens=(*prompt, *answer), first=len(prompt))


def forms_of(own: PromptForm | None, examples: Sequence[Example]) -> tuple[PromptForm, ...]:
    """Return the forms in which to try an adapter: raw, and its own if it states another and prompts are plain text."""
    is_plain = all(isinstance(example.prompt, str) for example in examples)
    return (RAW, own) if own is not None and is_plain and own.form in ("template", "chat") else (RAW,)
