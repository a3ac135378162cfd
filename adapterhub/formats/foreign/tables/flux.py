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

from adapterhub.formats.foreign.reading import Rows

DOUBLE: Final = 19
SINGLE: Final = 38
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


_PLAIN: Final = {
    "img_in": "x_embedder",
    "txt_in": "context_embedder",
    "final_layer.linear": "proj_out",
    **{
        f"{one}.{side}": f"time_text_embed.{other}.linear_{number}"
        for one, other in (
            ("time_in", "timestep_embedder"),
            ("vector_in", "text_embedder"),
            ("guidance_in", "guidance_embedder"),
        )
        for number, side in ((1, "in_layer"), (2, "out_layer"))
    },
}
_DOUBLE_PLAIN: Final = {
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
}
_FUSED: Final = {
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
}
_QKV: Final = ("attn.to_q", "attn.to_k", "attn.to_v")


@cache
def flux_modules() -> Mapping[str, tuple[Target, ...]]:
    """Each module of the original checkpoint of FLUX.1, and what diffusers has for it."""
    return MappingProxyType(dict(_generate()))


def _generate() -> Iterator[tuple[str, tuple[Target, ...]]]:
    yield from ((theirs, (Target(name=ours),)) for theirs, ours in _PLAIN.items())
    yield "final_layer.adaLN_modulation.1", (Target(name="norm_out.linear", rows=_swapped),)
    for n in range(DOUBLE):
        ours, theirs = f"transformer_blocks.{n}", f"double_blocks.{n}"
        yield from ((f"{theirs}.{a}", (Target(name=f"{ours}.{b}"),)) for a, b in _DOUBLE_PLAIN.items())
        for fused, names in _FUSED.items():
            yield f"{theirs}.{fused}", _split(ours, names)
    for n in range(SINGLE):
        ours, theirs = f"single_transformer_blocks.{n}", f"single_blocks.{n}"
        parts = (*_QKV, "proj_mlp")
        targets = (Target(name=f"{ours}.{name}", rows=_of_linear1(part)) for part, name in enumerate(parts))
        yield f"{theirs}.linear1", tuple(targets)
        yield f"{theirs}.linear2", (Target(name=f"{ours}.proj_out"),)
        yield f"{theirs}.modulation.lin", (Target(name=f"{ours}.norm.linear"),)


def _split(block: str, names: tuple[str, ...]) -> tuple[Target, ...]:
    return tuple(Target(name=f"{block}.{name}", rows=_thirds(part)) for part, name in enumerate(names))


@cache
def xlabs_modules() -> Mapping[str, tuple[Target, ...]]:
    """XLabs' names: one LoRA a stream of attention, `1` for the image and `2` for the text."""
    found: dict[str, tuple[Target, ...]] = {}
    for n in range(DOUBLE):
        ours, theirs = f"transformer_blocks.{n}", f"double_blocks.{n}.processor"
        for stream, names in ((1, _FUSED["img_attn.qkv"]), (2, _FUSED["txt_attn.qkv"])):
            found[f"{theirs}.qkv_lora{stream}"] = _split(ours, names)
        found[f"{theirs}.proj_lora1"] = (Target(name=f"{ours}.attn.to_out.0"),)
        found[f"{theirs}.proj_lora2"] = (Target(name=f"{ours}.attn.to_add_out"),)
    for n in range(SINGLE):
        ours, theirs = f"single_transformer_blocks.{n}", f"single_blocks.{n}.processor"
        found[f"{theirs}.qkv_lora"] = _split(ours, _QKV)
        found[f"{theirs}.proj_lora"] = (Target(name=f"{ours}.proj_out"),)
    return MappingProxyType(found)
