"""The requests that prompt an adapter of a server: engines apply no prompt form, so each client has to.

vLLM and llama.cpp render chats with the template of the base, for every adapter. A prompt is never rewritten on its
way: a server that changes some requests answers none of them predictably.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from adapterhub.core.errors import shown

if TYPE_CHECKING:
    from adapterhub.core.digests import Digest
    from adapterhub.formats.prompts.form import PromptForm

COMPLETIONS: Final = "/v1/completions"
CHAT: Final = "/v1/chat/completions"
_QUESTION: Final = "The parties agree that"


@dataclass(frozen=True, slots=True, kw_only=True)
class Calling:
    """The route for an adapter's requests, and in `how` what to send there. `warning` names what else goes wrong."""

    route: str
    how: str
    warning: str = ""
    form: PromptForm | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON value."""
        return {"route": self.route, "how": self.how, "prompt_form": None if self.form is None else self.form.to_json()}

    def example(self, model: str) -> str:
        """Return the body of a request, as JSON."""
        form, body = self.form, {"model": model, "max_tokens": 32}
        if form is not None and form.max_new_tokens is not None:
            body["max_tokens"] = form.max_new_tokens
        asked: dict[str, Any] = {"prompt": _QUESTION if form is None else form.frame(_QUESTION)}
        if form is not None and form.form == "chat":  # its own template is not rendered for an example
            asked = {"messages": form.turns(_QUESTION)} if self.route == CHAT else {"prompt": "…"}
        stop = {"stop": list(form.stop)} if form is not None and form.stop else {}
        return json.dumps({**body, **asked, **stop}, ensure_ascii=False)


def calling_from(value: dict[str, Any]) -> Calling:
    """Return the reverse of `to_json`, without the warning."""
    from adapterhub.formats.prompts.form import PromptForm

    held = value["prompt_form"]
    return Calling(route=value["route"], how=value["how"], form=None if held is None else PromptForm.from_json(held))


def calling_of(form: PromptForm | None, base_template: Digest | None) -> Calling:
    """Describe how to prompt an adapter that states `form` on a base whose chat template has that digest."""
    if form is None:
        return Calling(route=COMPLETIONS, how="its build states no prompt form")
    before, after = form.parts
    if form.form in ("raw", "text"):
        return Calling(route=COMPLETIONS, how="send the text unchanged", form=form)
    if form.template is not None:
        how = f"send the whole prompt, `{shown(before, 100)}` + text + `{shown(after, 100)}`"
        return Calling(route=COMPLETIONS, how=how, form=form)
    system = f", with the system text `{shown(form.system, 100)}`" if form.system is not None else ""
    wanted = form.chat_template_sha256
    if wanted is None or wanted == base_template:
        return Calling(route=CHAT, how=f"send messages{system}", form=form)
    warning = f"it wants another chat template than the base's, which the engine applies to every chat at {CHAT}"
    if form.chat_template is None:
        return Calling(route=CHAT, how=f"send messages{system}", warning=warning, form=form)
    how = f"send the whole prompt, rendered with its own chat template{system}"
    return Calling(route=COMPLETIONS, how=how, warning=warning, form=form)
