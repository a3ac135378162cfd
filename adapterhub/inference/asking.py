"""Which prompt form a question takes: what the user typed, else the form that the adapter's build states, else raw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from adapterhub.core.errors import UsageProblem, shown
from adapterhub.formats.prompts.form import RAW, PromptForm

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
            raise UsageProblem(f"`--template` and `{other}` exclude each other: each says what the prompt becomes")
        if self.system is not None and self.chat is False:
            raise UsageProblem("`--system` needs a chat, and `--raw` (or `--no-chat`) forbids one")
        PromptForm.typed(None, template=self.template, system=self.system)

    @property
    def says_nothing(self) -> bool:
        """Whether the adapter's own form decides."""
        return self.chat is None and self.template is None and self.system is None

    def form(self, own: PromptForm | None) -> PromptForm:
        """The form for an adapter that states `own`; its own chat template stays in a chat."""
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
    """The form for one choice of adapters; `states` says what the builds state where that is not what is used."""

    form: PromptForm
    states: str = ""


def wish_of(weights: Mapping[str, float], forms: Forms, typed: Typed) -> Wish:
    """The form for adapters that answer together: that of the heaviest, of those that state one.

    The first of two that weigh the same counts. Without an adapter, the base is asked as the first adapter of the
    command that states a form, so that the two answers can be compared.
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
