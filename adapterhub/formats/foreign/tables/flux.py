"""Flux: the modules of Black Forest Labs' checkpoints, and where diffusers has their rows.

diffusers splits what the original fuses: `qkv` is `to_q`, `to_k` and `to_v`, so the B of a LoRA on it is cut by rows
and its A belongs to each part. `norm_out.linear` has the two halves of its rows in the other order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final

from adapterhub.formats.diffusion import bfl
from adapterhub.formats.foreign.reading import Rows

_DOUBLE_BLOCKS: Final = 19
_SINGLE_BLOCKS: Final = 38
_HALVES: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A module of diffusers that has rows of an original one. `rows(out, width)` are they; None: all, in order."""

    name: str
    rows: Callable[[int, int], Rows | None] = lambda _out, _width: None


def _thirds(part: int) -> Callable[[int, int], Rows | None]:
    def rows(out: int, _width: int) -> Rows | None:
        return ((part * out // 3, (part + 1) * out // 3),) if out % 3 == 0 else ()

    return rows


def _of_linear1(part: int) -> Callable[[int, int], Rows | None]:
    """`linear1` has the rows of q, k and v, as many each as it has inputs, then those of the feed-forward."""

    def rows(out: int, width: int) -> Rows | None:
        if out <= 3 * width:
            return ()
        return ((part * width, (part + 1) * width if part < 3 else out),)  # noqa: PLR2004 - q, k, v, then the rest

    return rows


def _swapped(out: int, _width: int) -> Rows | None:
    half = out // _HALVES
    return ((half, out), (0, half)) if out % _HALVES == 0 else ()


@cache
def flux_modules() -> Mapping[str, tuple[Target, ...]]:
    """Each module of the original checkpoint of FLUX.1, and what diffusers has for it."""
    return MappingProxyType(dict(_generate()))


def _generate() -> Iterator[tuple[str, tuple[Target, ...]]]:
    yield from ((theirs, (Target(name=ours),)) for theirs, ours in bfl.FIXED.items())
    yield from ((theirs, (Target(name=ours, rows=_swapped),)) for theirs, ours in bfl.SWAPPED.items())
    for n in range(_DOUBLE_BLOCKS):
        ours, theirs = f"transformer_blocks.{n}", f"double_blocks.{n}"
        yield from ((f"{theirs}.{a}", (Target(name=f"{ours}.{b}"),)) for a, b in bfl.DOUBLE.items())
        yield from ((f"{theirs}.{fused}", _split(ours, names)) for fused, names in bfl.DOUBLE_FUSED.items())
    for n in range(_SINGLE_BLOCKS):
        ours, theirs = f"single_transformer_blocks.{n}", f"single_blocks.{n}"
        targets = (Target(name=f"{ours}.{name}", rows=_of_linear1(part)) for part, name in enumerate(bfl.SINGLE_FUSED))
        yield f"{theirs}.linear1", tuple(targets)
        yield from ((f"{theirs}.{a}", (Target(name=f"{ours}.{b}"),)) for a, b in bfl.SINGLE.items())


def _split(block: str, names: tuple[str, ...]) -> tuple[Target, ...]:
    return tuple(Target(name=f"{block}.{name}", rows=_thirds(part)) for part, name in enumerate(names))


@cache
def xlabs_modules() -> Mapping[str, tuple[Target, ...]]:
    """XLabs' names: one LoRA a stream of attention, `1` for the image and `2` for the text."""
    found: dict[str, tuple[Target, ...]] = {}
    for n in range(_DOUBLE_BLOCKS):
        ours, theirs = f"transformer_blocks.{n}", f"double_blocks.{n}.processor"
        for number, stream in ((1, "img_attn"), (2, "txt_attn")):
            found[f"{theirs}.qkv_lora{number}"] = _split(ours, bfl.DOUBLE_FUSED[f"{stream}.qkv"])
            found[f"{theirs}.proj_lora{number}"] = (Target(name=f"{ours}.{bfl.DOUBLE[f'{stream}.proj']}"),)
    for n in range(_SINGLE_BLOCKS):
        ours, theirs = f"single_transformer_blocks.{n}", f"single_blocks.{n}.processor"
        found[f"{theirs}.qkv_lora"] = _split(ours, bfl.SINGLE_FUSED[:3])
        found[f"{theirs}.proj_lora"] = (Target(name=f"{ours}.{bfl.SINGLE['linear2']}"),)
    return MappingProxyType(found)
