"""Names of modules: how those of two adapters compare, and how people read them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Final, NamedTuple

from adapterhub.core.errors import MalformedConfig
from adapterhub.formats.documented import Documented
from adapterhub.formats.naming.finding import NameRule
from adapterhub.formats.peft.config import AdapterConfig, owner
from adapterhub.formats.peft.keys import AdapterKeys, KeyPair, sort_keys
from adapterhub.formats.safetensors.file import TensorFile

_MAX_DROPPED: Final = 3
_SAMPLED: Final = 12
_JUDGED: Final = 64


def find_rule(modules: list[str], base: frozenset[str]) -> NameRule:
    """Return the rule that maps the most of `modules` to names in `base`."""
    best, most = NameRule(), sum(m in base for m in modules)
    if most == len(modules):
        return best
    step = max(1, len(modules) // _SAMPLED)
    candidates: Counter[tuple[str, str]] = Counter()
    for module in modules[::step][:_SAMPLED]:
        parts = module.split(".")
        for drop in range(min(_MAX_DROPPED, len(parts) - 1) + 1):
            head, rest = ".".join([*parts[:drop], ""]) if drop else "", ".".join(parts[drop:])
            if rest in base:
                candidates[head, ""] += 1
            candidates.update((head, name[: -len(rest)]) for name in base if name.endswith(f".{rest}"))
    likely = [candidate for candidate, _ in candidates.most_common(_JUDGED)]
    changes_least = sorted(likely, key=lambda c: (c[0].count(".") + c[1].count("."), c))
    for dropped, added in changes_least:
        rule = NameRule(dropped=dropped, added=added)
        if not _is_fair(rule, modules):
            continue
        found = len({name for m in modules if (name := rule.apply(m)) in base})
        if found > most:
            best, most = rule, found
    return best


def _is_fair(rule: NameRule, modules: list[str]) -> bool:
    """Return whether a rule renames only what holds the layers and never maps one layer to another.

    A number may be dropped only if it is not a layer: it stands before every module, and more numbers follow. A rule is
    unfair when a module with another name already has the target name's prefix.
    """
    if _is_numbered(rule.added):
        return False
    if rule.added and any(m.startswith(rule.added) and not m.startswith(rule.dropped) for m in modules):
        return False
    behind = [m[len(rule.dropped) :] for m in modules if m.startswith(rule.dropped)]
    return not _is_numbered(rule.dropped) or (len(behind) == len(modules) and any(map(_is_numbered, behind)))


def _is_numbered(name: str) -> bool:
    return any(part.isdigit() for part in name.split("."))


_INDEX = "*"
"""Stands for a number in a kind."""

_MOST_DIGITS = 9


class ModulePlace(NamedTuple):
    """`kind` is the module's name with `*` for every number; `layer` is the first number, or None."""

    kind: str
    layer: int | None


@lru_cache(maxsize=8192)
def place_of(module: str) -> ModulePlace:
    """Layer and kind of a module."""
    parts = module.split(".")
    numbers = [int(part) for part in parts if _is_number(part)]
    kind = ".".join(_INDEX if _is_number(part) else part for part in parts)
    return ModulePlace(kind, numbers[0] if numbers else None)


def in_order(module: str) -> tuple[tuple[int, str], ...]:
    """Return a key that sorts modules as they stand in the model: layer 2 before layer 10."""
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
    """Return the endings of a kind, shortest first.

    Endings of numbers only are left out, unless that is the whole kind.
    """
    parts = kind.split(".")
    ends = [parts[i:] for i in range(len(parts) - 1, -1, -1)]
    return [".".join(end) for end in ends if any(part != _INDEX for part in end) or len(end) == len(parts)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleGroup(Documented):
    """Modules of several layers with the same name, shape, rank and scale.

    There are `modules` modules named `name` in `layers` (`0-31`; "" outside of layers).

    `out` and `width` are the outputs and inputs of the update. `alpha` and `scale` are None when matching the config's
    patterns takes too long.
    """

    name: str
    modules: int
    layers: Annotated[str, "such as `0-31`; empty if the layers have no numbers"]
    rank: int
    alpha: float | None
    scale: float | None
    out: int
    width: Annotated[int, "input width"]

    def __str__(self) -> str:
        layers = f", layers {self.layers}" if self.layers else ""
        alpha = f", alpha {self.alpha:g}, scale {self.scale:g}" if self.alpha is not None else ""
        return f"{self.name}  {self.modules} of {self.out} x {self.width}, rank {self.rank}{alpha}{layers}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Modules:
    """The groups of an adapter, and the tensors that it ships whole (heads, biases, embeddings)."""

    groups: tuple[ModuleGroup, ...]
    whole: tuple[str, ...]


def modules_of(config: AdapterConfig, weights: TensorFile) -> Modules:
    """Return the modules of an adapter with this config and header; no groups for methods other than LoRA."""
    keys = sort_keys(weights, config)
    found: dict[tuple[Any, ...], list[KeyPair]] = {}
    for pair in keys.pairs:
        if pair.whole:
            a, b = pair.whole
            kind, setting = place_of(pair.module).kind, _setting(config, pair)
            found.setdefault((kind, pair.rank, *setting, b.shape[0], a.shape[1]), []).append(pair)
    names = short_names(kind for kind, *_ in found)
    groups = [
        ModuleGroup(
            name=names[kind],
            modules=len(pairs),
            layers=ranges(layer for pair in pairs if (layer := place_of(pair.module).layer) is not None),
            rank=rank,
            alpha=alpha,
            scale=scale,
            out=out,
            width=width,
        )
        for (kind, rank, alpha, scale, out, width), pairs in found.items()
    ]
    return Modules(groups=tuple(groups), whole=_whole(keys))


def ranges(numbers: Iterable[int]) -> str:
    """`0-3, 7` for 0, 1, 2, 3 and 7."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and parts[-1][1] == number - 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)


def _setting(config: AdapterConfig, pair: KeyPair) -> tuple[float | None, float | None]:
    with suppress(MalformedConfig):
        return config.alpha_of(owner(pair.module)), config.scaling_of(owner(pair.module))
    return None, None


def _whole(keys: AdapterKeys) -> tuple[str, ...]:
    named = (*keys.saved, *keys.biases, *keys.tokens, *keys.copies)
    return tuple(name for name, _ in named)
