"""The place of a module in its model, by its name: the layer, and the kind of module in that layer.

Names are those of `named_modules()`: `model.layers.12.self_attn.q_proj` is `q_proj` of layer 12. The first number is
the layer; further numbers (experts, blocks inside a stage) belong to the kind, as `*`.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

ANY = "*"
"""Stands for a number in a kind."""

_MOST_DIGITS = 9


class Place(NamedTuple):
    """`kind` is the module's name with `*` for every number; `layer` is the first number, or None."""

    kind: str
    layer: int | None


@lru_cache(maxsize=8192)
def place_of(module: str) -> Place:
    """Layer and kind of a module."""
    parts = module.split(".")
    numbers = [int(part) for part in parts if _is_number(part)]
    kind = ".".join(ANY if _is_number(part) else part for part in parts)
    return Place(kind, numbers[0] if numbers else None)


def in_order(module: str) -> tuple[tuple[int, str], ...]:
    """A key that sorts modules as they stand in the model: layer 2 before layer 10."""
    return tuple((int(part), "") if _is_number(part) else (-1, part) for part in module.split("."))


def short_names(kinds: Iterable[str]) -> dict[str, str]:
    """For each kind its shortest ending, at a dot, that no other kind has: `q_proj` in most models."""
    every = list(dict.fromkeys(kinds))
    endings: dict[str, set[str]] = {}
    for kind in every:
        for end in _ends(kind):
            endings.setdefault(end, set()).add(kind)
    return {kind: next((end for end in _ends(kind) if len(endings[end]) == 1), kind) for kind in every}


def _is_number(part: str) -> bool:
    return part.isdecimal() and len(part) <= _MOST_DIGITS


def _ends(kind: str) -> list[str]:
    """The endings of a kind, shortest first. Endings of numbers only are left out, unless that is the whole kind."""
    parts = kind.split(".")
    ends = [parts[i:] for i in range(len(parts) - 1, -1, -1)]
    return [".".join(end) for end in ends if any(part != ANY for part in end) or len(end) == len(parts)]
