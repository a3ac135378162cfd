"""A base in memory, and the choices of adapters that answer on it: `adapt run` and the playground.

An `AdapterBank` holds the adapters beside the base: loading one takes milliseconds, and each row of a batch may use its
own. PEFT's layers (`attach`) compute the sums of adapters that a bank cannot, for one choice at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Protocol

from adapterhub.core.choices import Choice, label_of
from adapterhub.core.errors import AdapterHubError, Incompatible, MergeRefused, UsageProblem, shown
from adapterhub.formats.answers import UsedAdapter
from adapterhub.formats.prompts.form import RAW, PromptForm

if TYPE_CHECKING:
    from adapterhub.core.specs import BaseSpec
    from adapterhub.inference.bank import AdapterBank
    from adapterhub.inference.generation import Answer, IsOver, OnPiece, OnText, Question, Writing
    from adapterhub.inference.generation import Model as Adapted
    from adapterhub.inference.loader import AttachedAdapter
    from adapterhub.library.bases.records import BaseRecord
    from adapterhub.library.library import Library

Forms = Mapping[str, PromptForm | None]
"""The form that each adapter's build states, by the name that the user gave; None where it states none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Typed:
    """What the user said of the form. `chat` false is raw; a `template` or a `system` text implies its form."""

    chat: bool | None = None
    template: str | None = None
    system: str | None = None

    def ensure_clear(self) -> None:
        """Refuse what contradicts itself.

        Raises:
            UsageProblem: a template beside a chat or a raw prompt, a system text beside either, or a wrong template.
        """
        if self.template is not None and (self.chat is not None or self.system is not None):
            other = "--system" if self.system is not None else "--chat" if self.chat else "--raw"
            raise UsageProblem(f"`--template` and `{other}` exclude each other: each sets the prompt's form")
        if self.system is not None and self.chat is False:
            raise UsageProblem("`--system` needs a chat, and `--raw` (or `--no-chat`) forbids one")
        PromptForm.typed(None, template=self.template, system=self.system)

    @property
    def says_nothing(self) -> bool:
        """Whether the adapter's own form decides."""
        return self.chat is None and self.template is None and self.system is None

    def form(self, own: PromptForm | None) -> PromptForm:
        """Return the form for an adapter that states `own`; its own chat template stays in a chat."""
        if self.template is not None:
            return PromptForm(form="template", template=self.template)
        if self.chat is False:
            return RAW
        if self.chat or self.system is not None:
            chat = own if own is not None and own.form == "chat" else PromptForm(form="chat")
            return chat if self.system is None else replace(chat, system=self.system)
        return own or RAW


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """The form for one choice of adapters; `states` describes the forms of the builds if another one is used."""

    form: PromptForm
    states: str = ""


def wish_of(weights: Mapping[str, float], forms: Forms, typed: Typed) -> Wish:
    """Return the form for adapters that answer together: that of the heaviest, of those that state one.

    The first of two that weigh the same counts. Without an adapter, the base answers in the form of the first adapter
    of the command that states one, so that the two answers can be compared.
    """
    stating = {name: form for name in weights or forms if (form := forms.get(name)) is not None}
    by = max(stating, key=lambda name: abs(weights.get(name, 0.0)), default=None)
    own = stating[by] if by is not None else None
    form = typed.form(own)
    others = [name for name, one in stating.items() if one != form]
    if by is None or not others:
        return Wish(form=form)
    if not weights and typed.says_nothing:
        return Wish(form=form)
    words = ", ".join(f"`{shown(name, 100)}` states {stating[name].label}" for name in others)
    why = "" if not typed.says_nothing else f", as `{shown(by, 100)}` weighs most"
    return Wish(form=form, states=f"{why}; {words}")


RESIDENT: Final = 32
"""The number of adapters in memory at a time; those of one answer always fit."""

_FORMS_SAID: Final = 4
"""How many prompt forms one note lists."""


class Says(Protocol):
    """Receives notes and warnings."""

    def note(self, text: str) -> None:
        """Report something worth knowing."""

    def warn(self, text: str) -> None:
        """Report a warning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """How to load the base and compare it with the adapters' bases."""

    base: BaseSpec | None
    dtype: str
    load_in: str | None
    allow_base_mismatch: bool


_Key = tuple[tuple[str, float], ...]


def _key(choice: Choice) -> _Key:
    return tuple(choice.items())


class Model:
    """A base in memory with its tokenizer; `using` and `using_rows` choose which adapters answer.

    `choices` lists every choice that will be used.
    """

    def __init__(
        self, out: Says, library: Library, record: BaseRecord, loading: Loading, choices: Sequence[Choice]
    ) -> None:
        from adapterhub.core.specs import BaseSpec
        from adapterhub.inference.loader.text import load_base

        assert record.path is not None  # see `find_base`
        self.out = out
        self.library = library
        self.record = record
        self.loading = loading
        self._named = BaseSpec.parse(record.alias or str(record.path))
        self._warned: set[str] = set()
        self._together = max(RESIDENT, *(len(choice) for choice in choices))
        self._mixable: dict[_Key, bool] = {}
        self.forms: Forms = {}
        self.labels = self._meet(choices)
        out.note(f"loading base {record.label}" + (f" in {loading.load_in}" if loading.load_in else ""))
        self.base, self.tokenizer = load_base(
            record.path, dtype=loading.dtype, load_in=loading.load_in, labels=self.labels
        )

    def _meet(self, choices: Sequence[Choice]) -> int | None:
        """Return how many labels the choices tell apart, None for text; their prompt forms are known from then on."""
        from adapterhub.inference.classification import kinds_of

        adapters = [name for choice in choices for name in (choice or (None,))]
        kinds = kinds_of(self.library, adapters, self._named, allow_base_mismatch=self.loading.allow_base_mismatch)
        self.forms = {str(name): form for name, form in kinds.forms.items()}
        for note in kinds.notes:
            self.out.warn(note)
        return kinds.labels

    def takes(self, choices: Sequence[Choice]) -> bool:
        """Return True if the base in memory can also answer with these choices; the next questions then use them.

        Raises:
            UsageProblem: they need two models.
        """
        self._warned.clear()
        return self._meet(choices) == self.labels

    @cached_property
    def bank(self) -> AdapterBank:
        """The bank that holds the adapters."""
        from adapterhub.inference.bank import AdapterBank

        return AdapterBank(
            self.base,
            library=self.library,
            base=self._named,
            max_resident=self._together,
            allow_base_mismatch=self.loading.allow_base_mismatch,
        )

    @contextlib.contextmanager
    def using(self, choice: Choice) -> Iterator[tuple[Any, tuple[AttachedAdapter, ...]]]:
        """Yield the model with the adapters of `choice` and their facts; prints each warning once."""
        from adapterhub.inference.loader import attach

        if not choice:
            yield self.base, ()
            return
        known = self._load(choice)
        try:
            using = self.bank.use(dict(choice))
        except MergeRefused:  # PEFT's layers can compute some sums that a bank cannot, or explain why not
            with attach(
                self.base,
                list(choice),
                weights=list(choice.values()),
                library=self.library,
                base=self._named,
                allow_base_mismatch=self.loading.allow_base_mismatch,
            ) as attached:
                yield attached.model, attached.adapters
            return
        with using:
            yield self.base, known

    def answers(
        self,
        adapted: Adapted,
        questions: Sequence[Question],
        writing: Writing,
        *,
        on_text: OnText | None = None,
        on_piece: OnPiece | None = None,
        is_over: IsOver | None = None,
    ) -> list[Answer]:
        """Return the text of the model `adapted`, or the labels if its adapters are classifiers, which are whole."""
        from adapterhub.inference.classification import classify
        from adapterhub.inference.generation import write

        if self.labels is not None:
            return classify(adapted, self.tokenizer, questions, on_text=on_text)
        return write(adapted, self.tokenizer, questions, writing, on_text=on_text, on_piece=on_piece, is_over=is_over)

    @contextlib.contextmanager
    def using_rows(self, choices: Sequence[Choice]) -> Iterator[Any]:
        """Yield the model with one choice for each row of the next batch (see `batches`)."""
        if all(choice == choices[0] for choice in choices):
            with self.using(choices[0]) as (model, _):
                yield model
            return
        with self.bank.rows([dict(choice) or None for choice in choices]):
            yield self.base

    def _load(self, choice: Choice) -> tuple[AttachedAdapter, ...]:
        """Load the adapters of a choice and print their warnings."""
        loaded = []
        for name, weight in choice.items():
            self.bank.load(name, name)
            facts = replace(self.bank.facts(name), weight=weight)
            loaded.append(facts)
            warnings = list(facts.warnings)
            if facts.saved_modules and weight != 1:
                warnings.append("its weight does not apply to the modules it replaces whole")
            for warning in warnings:
                self._warn(f"`{shown(facts.label, 200)}` {warning}")
        return tuple(loaded)

    def _warn(self, warning: str) -> None:
        if warning not in self._warned:
            self._warned.add(warning)
            self.out.warn(warning)

    # ------------------------------------------------------------ batches
    def why_not(self, choice: Choice) -> str:
        """Return why these adapters cannot answer, in one line; empty if they can."""
        try:
            self._load(choice)
            if len(choice) > 1 or list(choice.values()) not in ([], [1.0]):
                with self.using(choice):
                    pass
            self.can_mix(choice)  # while they are in memory; `batches` needs the result
        except AdapterHubError as error:
            return "; ".join(line.strip() for line in error.message.splitlines())
        return ""

    def batches(self, choices: Sequence[Choice], lengths: Sequence[int], size: int) -> list[list[int]]:
        """Group the rows into batches of at most `size`, with rows of similar length together.

        Full batches of one choice come first, because they are fastest; the remaining rows share mixed batches.
        Adapters that cannot be chosen per row keep to themselves.
        """
        groups: dict[_Key, list[int]] = {}
        for at, choice in enumerate(choices):
            groups.setdefault(_key(choice), []).append(at)
        found, rest = [], []
        for group in groups.values():
            ordered = sorted(group, key=lambda at: lengths[at])
            full = len(ordered) if not self.can_mix(choices[group[0]]) else len(ordered) // size * size
            found += [ordered[start : start + size] for start in range(0, full, size)]
            rest += ordered[full:]
        batch: list[int] = []
        for at in sorted(rest, key=lambda at: lengths[at]):
            together = {name for number in (*batch, at) for name in choices[number]}
            if batch and (len(batch) == size or len(together) > self._together):
                found.append(batch)
                batch = []
            batch.append(at)
        return [*found, batch] if batch else found

    def can_mix(self, choice: Choice) -> bool:
        """Return whether these adapters can answer only some rows of a batch."""
        if not choice or self.labels is not None:
            return not choice
        if _key(choice) not in self._mixable:
            try:
                with self.bank.rows([dict(choice)]):
                    self._mixable[_key(choice)] = True
            except Incompatible:
                self._mixable[_key(choice)] = False
        return self._mixable[_key(choice)]

    # ------------------------------------------------------------ the base
    @contextlib.contextmanager
    def proved(self, *, wanted: bool) -> Iterator[dict[str, Any]]:
        """Yield a document; if `wanted`, it gets the digests of the base before and after the block."""
        from adapterhub.inference.loader import base_digest

        proof: dict[str, Any] = {}
        before = base_digest(self.base) if wanted else None
        yield proof
        if before is None:
            return
        proof |= {"base_digest": before, "base_unchanged": base_digest(self.base) == before}

    # ------------------------------------------------------------ prompt forms
    def questions(
        self, asked: Sequence[tuple[Choice, str, Typed]], *, max_new_tokens: int | None, compares: bool = False
    ) -> list[Question]:
        """Return the prompts of each choice in its prompt form; reports once which forms are used.

        `max_new_tokens` of the user goes before that of a form. If it `compares`, the plain base answers in the form of
        the first adapter that states one.
        """
        from adapterhub.formats.prompts.form import has_other_template
        from adapterhub.inference.generation import Question

        made: list[Question] = []
        said: dict[str, None] = {}
        for choice, text, typed in asked:
            wish = wish_of(choice, self.forms if choice or compares else {}, typed)
            form = wish.form
            made.append(Question(text=text, form=form, max_new_tokens=max_new_tokens or form.max_new_tokens))
            if form.form != "raw" or wish.states or any(self.forms.get(name) for name in choice):
                said[f"{form.label} for `{shown(label_of(choice), 100)}`{wish.states}"] = None
            if has_other_template(form, self.tokenizer):
                self._warn(f"`{shown(label_of(choice), 200)}` wants another chat template than this base has")
        self._note_forms(list(said), is_free=all(typed.says_nothing for _, _, typed in asked))
        return made

    def _note_forms(self, said: Sequence[str], *, is_free: bool) -> None:
        """Say which forms are used; without any, that the base has a chat template that is not used."""
        from adapterhub.formats.prompts.form import base_template

        if said:
            more = f"; and {len(said) - _FORMS_SAID} more" if len(said) > _FORMS_SAID else ""
            self.out.note(f"prompt form: {'; '.join(said[:_FORMS_SAID])}{more}")
        elif is_free and self.labels is None and base_template(self.tokenizer) is not None:
            self.out.note("the prompt is used unchanged; pass --chat to use this base's chat template")


def used_of(adapters: Sequence[AttachedAdapter]) -> tuple[UsedAdapter, ...]:
    """Return the adapters of an answer, as its document has them."""
    return tuple(UsedAdapter(adapter=one.label, weight=one.weight, base=one.verdict) for one in adapters)


def drawing_of(writing: Writing) -> dict[str, Any]:
    """Return the settings that make a sampled answer repeatable; empty for a greedy one."""
    if not writing.temperature:
        return {}
    return {"temperature": writing.temperature, "top_p": writing.top_p, "seed": writing.seed}
