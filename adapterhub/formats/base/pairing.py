"""Which tensors of two models are the same, by their names, and which layers only one of them has."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Final

from adapterhub.core.errors import shown

_PARTS: Final = 6  # a pipeline has at most as many models


def paired(declared: Collection[str], loaded: Collection[str]) -> dict[str, str]:
    """Return the name in `loaded` for each name in `declared`.

    One side may have an extra first part, as with a head.
    """
    candidates = [{name: name for name in declared if name in loaded}]
    candidates += [{n: part + n for n in declared if part + n in loaded} for part in _first_parts(loaded)]
    candidates += [{part + n: n for n in loaded if part + n in declared} for part in _first_parts(declared)]
    return max(candidates, key=len)


def _first_parts(names: Iterable[str]) -> list[str]:
    return [part for part, _ in Counter(name.partition(".")[0] + "." for name in names).most_common(_PARTS)]


def lone_layers(names: Iterable[str], matched: Iterable[str], where: str) -> tuple[str, ...]:
    """Return a sentence if only one side has some of the numbered layers of a part that both have.

    A part that is missing from one side altogether, as the vision tower is from a text model, does not count. If no
    layer is on both sides, each is such a layer.
    """
    matched = set(matched)
    layers = {layer for name in matched if (layer := _layer_of(name))}
    parts = {layer.rpartition(".")[0] for layer in layers}
    lone = {
        layer
        for name in names
        if name not in matched
        and (layer := _layer_of(name))
        and layer not in layers
        and (layer.rpartition(".")[0] in parts or not parts)
    }
    if not lone:
        return ()
    example = min(lone, key=lambda layer: (len(layer), layer))
    return (f"{len(lone)} layers are in {where} only, such as `{shown(example)}`",)


def _layer_of(name: str) -> str:
    """Return the name up to its first number (`model.layers.3`); "" if it has none."""
    parts = name.split(".")
    return next((".".join(parts[: at + 1]) for at, part in enumerate(parts) if part.isdecimal()), "")


def absent_parts(names: Collection[str], matched: Iterable[str]) -> frozenset[str]:
    """Those of `names` that belong to a part with layers which the other side lacks altogether.

    Of `model.visual.blocks.0.norm1.weight` the part is `model.visual`, unless tensors of it are `matched`.
    """
    stacks = {layer.rpartition(".")[0] for name in names if (layer := _layer_of(name))}
    parts = stacks | {stack.rpartition(".")[0] for stack in stacks}
    known = set(matched)
    lacking = tuple(f"{part}." for part in parts if part and not any(name.startswith(f"{part}.") for name in known))
    return frozenset(name for name in names if lacking and name.startswith(lacking))
