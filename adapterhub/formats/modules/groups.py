"""The modules of an adapter, in groups of equal kind, size, rank and scale."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

from adapterhub.core.errors import MalformedConfig
from adapterhub.formats.documented import Documented
from adapterhub.formats.modules.places import place_of, short_names
from adapterhub.formats.peft.config import AdapterConfig, owner
from adapterhub.formats.peft.keys import AdapterKeys, KeyPair, sort_keys
from adapterhub.formats.safetensors.file import TensorFile


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
    """The modules of an adapter with this config and header; no groups for methods other than LoRA."""
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
