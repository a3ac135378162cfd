"""What a GGUF adapter records of the prompt form, and the notes about the rest."""

from __future__ import annotations

from adapterhub.core.errors import shown
from adapterhub.formats.prompts.form import PromptForm


def prompt_prefix(form: PromptForm | None) -> str:
    """Return the text before the question, which the file holds; empty for none."""
    return "" if form is None else form.parts[0]


def prompt_notes(form: PromptForm | None) -> list[str]:
    """Explain how to prompt an adapter in llama.cpp, which shows the prefix and applies nothing."""
    if form is None:
        return []
    before, after = form.parts
    notes = []
    if form.template is not None:
        what = "holds the text before the question" if before else "cannot hold the text after the question"
        rest = f"; after it comes `{shown(after, 100)}`" if after else ""
        notes.append(f"the file {what}, and llama.cpp applies none{rest}: send the whole prompt to /v1/completions")
    if form.chat_template is not None:
        notes.append("the file has no chat template: give llama-server the adapter's own with `--chat-template-file`")
    return notes
