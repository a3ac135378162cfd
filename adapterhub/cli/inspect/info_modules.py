"""Parts of what `adapt info` shows, as lines: the base verdict, the prompt form, the modules by rank and alpha."""

from __future__ import annotations

from typing import Any


def verdict_fields(document: dict[str, Any]) -> list[tuple[str, object]]:
    """The base that the adapter's base was compared with, the verdict, and each difference."""
    asked = f", `{document['base_asked']}`" if document["base_asked"] else ""
    differs = [("base differs", text) for text in document["base_differences"]]
    return [("base verdict", f"{document['base_verdict']}{asked}"), *differs]


def prompt_label(document: dict[str, Any]) -> str | None:
    """The prompt form in a few words; None if the adapter states none."""
    from adapterhub.formats.prompts.form import PromptForm

    held = document.get("behaviour", {}).get("prompt")
    return None if held is None else PromptForm.from_json(held, "behaviour.prompt", knows_all=False).label


def group_fields(document: dict[str, Any]) -> list[tuple[str, object]]:
    """The groups of modules as lines of text."""
    from adapterhub.formats.modules.groups import ModuleGroup

    pairs: list[tuple[str, object]] = [("modules", ModuleGroup(**group)) for group in document["groups"]]
    return pairs + [("whole tensor", name) for name in document["whole"]]
