"""What settings of any method say before PEFT builds layers from them: whether the files tell all, and at what cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

from adapterhub.core.errors import shown
from adapterhub.core.limits import limits

_HARMLESS: Final = ("seed", "key", "alpha", "total_step", "tinit", "tfinal", "deltaT")
"""How settings end that cost nothing, whatever their size: factors, seeds, and steps of the training."""


def undetermined(settings: Mapping[str, Any]) -> str:
    """Return why the numbers of an adapter would depend on more than its files."""
    if settings.get("sample_at_inference"):
        return "it draws random numbers at each call (sample_at_inference)"
    if settings.get("save_precomputed_indices") is False:
        return "its file lacks the places of its values (save_precomputed_indices), which depend on how the base rounds"
    return ""


def excess(settings: Mapping[str, Any], shapes: Iterable[tuple[int, ...]]) -> str:
    """Return the setting that asks for more room or work than the file's own tensors, of these shapes, explain."""
    every = list(shapes)
    most = max([limits().rank, *(size for shape in every for size in shape)])
    largest = {"depth": len(every)}
    for key, value in settings.items():
        inner = value.values() if isinstance(value, dict) else (value,)
        if not key.endswith(_HARMLESS) and any(_is_above(one, largest.get(key, most)) for one in inner):
            return f"its `{shown(key, 40)}` is {shown(value, 60)}, far above the sizes of its tensors"
    return ""


def _is_above(value: object, most: int) -> bool:
    return isinstance(value, int) and value > most
