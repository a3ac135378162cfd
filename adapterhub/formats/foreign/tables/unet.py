"""The UNets of Stable Diffusion: each module in the names of diffusers and in those of the original checkpoints.

The names are generated from the structure of each family, so a look-up finds whole names only: a downsampler that a
family does not have has no name here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import Final

from adapterhub.formats.diffusion.ldm import FIXED, RESNET

_LAYERS: Final = 2
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
    return MappingProxyType(dict(_generate(unet)))


def _generate(unet: UNet) -> Iterator[tuple[str, str]]:
    left_out = ("conv_norm",) if unet.has_label else ("conv_norm", "add_embedding")
    yield from ((ours, theirs) for theirs, ours in FIXED.items() if not ours.startswith(left_out))
    last = len(unet.down) - 1
    for i, depth in enumerate(unet.down):
        for j in range(_LAYERS):
            number = i * (_LAYERS + 1) + j + 1
            has_shortcut = i in unet.shortcuts and j == 0
            yield from _resnet(f"down_blocks.{i}.resnets.{j}", f"input_blocks.{number}.0", has_shortcut=has_shortcut)
            yield from _attention(f"down_blocks.{i}.attentions.{j}", f"input_blocks.{number}.1", depth)
        if i < last:
            number = (i + 1) * (_LAYERS + 1)
            yield f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{number}.0.op"
    yield from _resnet("mid_block.resnets.0", "middle_block.0", has_shortcut=False)
    yield from _attention("mid_block.attentions.0", "middle_block.1", unet.middle)
    yield from _resnet("mid_block.resnets.1", "middle_block.2", has_shortcut=False)
    for i, depth in enumerate(unet.up):
        for j in range(_LAYERS + 1):
            number = i * (_LAYERS + 1) + j
            yield from _resnet(f"up_blocks.{i}.resnets.{j}", f"output_blocks.{number}.0", has_shortcut=True)
            yield from _attention(f"up_blocks.{i}.attentions.{j}", f"output_blocks.{number}.1", depth)
        if i < last:
            number = i * (_LAYERS + 1) + _LAYERS
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
