"""The modules of an adapter by rank and alpha, as JSON and as text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapterhub.formats.modules.groups import Modules


def modules_document(modules: Modules) -> dict[str, Any]:
    """The groups of modules, and the tensors that replace whole weights."""
    return {"groups": [group.to_json() for group in modules.groups], "whole": list(modules.whole)}


def group_fields(document: dict[str, Any]) -> list[tuple[str, object]]:
    """The groups of modules as lines of text."""
    from adapterhub.formats.modules.groups import ModuleGroup

    pairs: list[tuple[str, object]] = [("modules", ModuleGroup(**group)) for group in document["groups"]]
    return pairs + [("whole tensor", name) for name in document["whole"]]
