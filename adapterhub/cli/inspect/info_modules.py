"""The modules of an adapter by rank and alpha, as lines."""

from __future__ import annotations

from typing import Any


def group_fields(document: dict[str, Any]) -> list[tuple[str, object]]:
    """The groups of modules as lines of text."""
    from adapterhub.formats.modules.groups import ModuleGroup

    pairs: list[tuple[str, object]] = [("modules", ModuleGroup(**group)) for group in document["groups"]]
    return pairs + [("whole tensor", name) for name in document["whole"]]
