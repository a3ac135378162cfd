"""An adapter on its base, checked, with a function that answers: what tests of an adapter hold on to."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapterhub.api.opened import BaseLike, base_of
from adapterhub.core.extras import extra_named

if TYPE_CHECKING:
    from adapterhub.formats.contract.contract import Contract
    from adapterhub.formats.prompts.form import PromptForm
    from adapterhub.library.library import Library


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Adapted:
    """An adapter that is loaded and checked. Call it with a question: it answers greedily, asked in its prompt form.

    `model` is the base in memory with the adapter on it, `base` the base's name. `contract` is None without one.
    """

    name: str
    version: str
    folder: Path
    base: str
    base_verdict: str
    form: PromptForm
    contract: Contract | None
    model: Any
    tokenizer: Any

    def __call__(self, question: str, *, max_new_tokens: int | None = None) -> str:
        """The answer to one question, without special tokens and stop texts."""
        return self.answers([question], max_new_tokens=max_new_tokens)[0]

    def answers(self, questions: Sequence[str], *, max_new_tokens: int | None = None) -> list[str]:
        """The answers to several questions, which share a pass.

        Raises:
            UsageProblem: a question does not suit the prompt form, or is too long for the base.
        """
        from adapterhub.inference.generation import Question, Writing, write

        limit = max_new_tokens or self.form.max_new_tokens
        asked = [Question(text=text, form=self.form, max_new_tokens=limit) for text in questions]
        return [answer.text for answer in write(self.model, self.tokenizer, asked, Writing())]

    def __repr__(self) -> str:
        return f"<{self.name} {self.version} on {self.base}, asked as {self.form.label}>"


@contextlib.contextmanager
def adapted(library: Library, adapter: str, *, on: BaseLike | None = None, dtype: str = "auto") -> Iterator[Adapted]:
    """Put an adapter, a spec or a folder, on its base; all its files are checked as `attach` does.

    Raises:
        AdapterNotFound, NotFound: there is no such adapter.
        BaseNotFound: the base is not on this machine.
        BaseMismatch, RefusedAdapter, DigestMismatch: the adapter does not fit the base, or is damaged.
        Incompatible: it is an encoder's, which writes no text.
    """
    from adapterhub.api.steps.contracts.subjects import Models, base_for, model_of, subject_of
    from adapterhub.core.errors import Incompatible
    from adapterhub.formats.prompts.form import RAW

    with extra_named("testing an adapter"):
        subject = subject_of(library, adapter)
        if (kind := subject.kind()) is not None:
            raise Incompatible(f"`{subject.label}` writes no text: its contract is of the kind `{kind}`")
        record, contract = base_for(library, subject, base_of(on)), subject.contract()
        own = contract.prompt if contract else subject.manifest.prompt if subject.manifest else None
        with model_of(library, subject, record, Models(library.bases), dtype=dtype, load_in=None, kind=None) as (
            model,
            tokenizer,
            verdict,
        ):
            yield Adapted(
                name=subject.name,
                version=subject.version,
                folder=subject.folder,
                base=record.label,
                base_verdict=verdict,
                form=own or RAW,
                contract=contract,
                model=model,
                tokenizer=tokenizer,
            )
