"""The names of UNets, CLIP and XLabs' files. Transformers have a file each under `families/`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final

from adapterhub.formats.diffusion import bfl
from adapterhub.formats.diffusion.ldm import FIXED, RESNET
from adapterhub.formats.foreign.families import Target, Targets, thirds

_DOUBLE_BLOCKS: Final = 19
_SINGLE_BLOCKS: Final = 38


@cache
def xlabs_modules() -> Mapping[str, Targets]:
    """Return XLabs' names: one LoRA per stream of attention, `1` for the image and `2` for the text."""
    found: dict[str, Targets] = {}
    for n in range(_DOUBLE_BLOCKS):
        ours, theirs = f"transformer_blocks.{n}", f"double_blocks.{n}.processor"
        for number, stream in ((1, "img_attn"), (2, "txt_attn")):
            found[f"{theirs}.qkv_lora{number}"] = thirds(
                *(f"{ours}.{name}" for name in bfl.DOUBLE_FUSED[f"{stream}.qkv"])
            )
            found[f"{theirs}.proj_lora{number}"] = (Target(name=f"{ours}.{bfl.DOUBLE[f'{stream}.proj']}"),)
    for n in range(_SINGLE_BLOCKS):
        ours, theirs = f"single_transformer_blocks.{n}", f"single_blocks.{n}.processor"
        found[f"{theirs}.qkv_lora"] = thirds(*(f"{ours}.{name}" for name in bfl.SINGLE_FUSED[:3]))
        found[f"{theirs}.proj_lora"] = (Target(name=f"{ours}.{bfl.SINGLE['linear2']}"),)
    return MappingProxyType(found)


_LAYERS: Final = 32
_INSIDE: Final = (*(f"self_attn.{name}_proj" for name in ("q", "k", "v", "out")), "mlp.fc1", "mlp.fc2")


@cache
def clip_modules() -> frozenset[str]:
    """Every Linear of a CLIP text encoder of up to 32 layers."""
    layers = (f"text_model.encoder.layers.{n}.{name}" for n in range(_LAYERS) for name in _INSIDE)
    return frozenset((*layers, "text_projection"))


_PER_BLOCK: Final = 2
"""Residual layers of a block on the way down; one more on the way up."""

_ATTENTIONS: Final = tuple(f"attn{n}.{to}" for n in (1, 2) for to in ("to_q", "to_k", "to_v", "to_out.0"))
_TRANSFORMER: Final = (*_ATTENTIONS, "ff.net.0.proj", "ff.net.2")


@dataclass(frozen=True, slots=True, kw_only=True)
class UNet:
    """The structure of a family: transformer layers of each block, 0 for a block without attention.

    `shortcuts` are the blocks on the way down that change the number of channels. `context` is the width of the text.
    """

    key: str
    title: str
    down: tuple[int, ...]
    middle: int
    up: tuple[int, ...]
    shortcuts: frozenset[int]
    context: tuple[int, ...]
    has_label: bool = False

    @property
    def ldm(self) -> Mapping[str, str]:
        """The original name of each Linear and Conv2d, by the one in diffusers."""
        return _names(self)


SD1: Final = UNet(
    key="sd1",
    title="Stable Diffusion 1 or 2",
    down=(1, 1, 1, 0),
    middle=1,
    up=(0, 1, 1, 1),
    shortcuts=frozenset({1, 2}),
    context=(768, 1024),
)
SDXL: Final = UNet(
    key="sdxl",
    title="SDXL",
    down=(0, 2, 10),
    middle=10,
    up=(10, 2, 0),
    shortcuts=frozenset({1, 2}),
    context=(2048,),
    has_label=True,
)
UNETS: Final = (SD1, SDXL)


@cache
def _names(unet: UNet) -> Mapping[str, str]:
    return MappingProxyType(dict(_unet_names(unet)))


def _unet_names(unet: UNet) -> Iterator[tuple[str, str]]:
    left_out = ("conv_norm",) if unet.has_label else ("conv_norm", "add_embedding")
    yield from ((ours, theirs) for theirs, ours in FIXED.items() if not ours.startswith(left_out))
    last = len(unet.down) - 1
    for i, depth in enumerate(unet.down):
        for j in range(_PER_BLOCK):
            number = i * (_PER_BLOCK + 1) + j + 1
            has_shortcut = i in unet.shortcuts and j == 0
            yield from _resnet(f"down_blocks.{i}.resnets.{j}", f"input_blocks.{number}.0", has_shortcut=has_shortcut)
            yield from _attention(f"down_blocks.{i}.attentions.{j}", f"input_blocks.{number}.1", depth)
        if i < last:
            number = (i + 1) * (_PER_BLOCK + 1)
            yield f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{number}.0.op"
    yield from _resnet("mid_block.resnets.0", "middle_block.0", has_shortcut=False)
    yield from _attention("mid_block.attentions.0", "middle_block.1", unet.middle)
    yield from _resnet("mid_block.resnets.1", "middle_block.2", has_shortcut=False)
    for i, depth in enumerate(unet.up):
        for j in range(_PER_BLOCK + 1):
            number = i * (_PER_BLOCK + 1) + j
            yield from _resnet(f"up_blocks.{i}.resnets.{j}", f"output_blocks.{number}.0", has_shortcut=True)
            yield from _attention(f"up_blocks.{i}.attentions.{j}", f"output_blocks.{number}.1", depth)
        if i < last:
            number = i * (_PER_BLOCK + 1) + _PER_BLOCK
            yield f"up_blocks.{i}.upsamplers.0.conv", f"output_blocks.{number}.{2 if depth else 1}.conv"


def _resnet(ours: str, theirs: str, *, has_shortcut: bool) -> Iterator[tuple[str, str]]:
    left_out = ("norm",) if has_shortcut else ("norm", "conv_shortcut")
    yield from ((f"{ours}.{b}", f"{theirs}.{a}") for a, b in RESNET.items() if not b.startswith(left_out))


def _attention(ours: str, theirs: str, depth: int) -> Iterator[tuple[str, str]]:
    if not depth:
        return
    yield from ((f"{ours}.{name}", f"{theirs}.{name}") for name in ("proj_in", "proj_out"))
    for k in range(depth):
        for name in _TRANSFORMER:
            yield f"{ours}.transformer_blocks.{k}.{name}", f"{theirs}.transformer_blocks.{k}.{name}"
