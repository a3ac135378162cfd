"""The UNet of Stable Diffusion 1, 2 and XL: from the names of its checkpoints (ldm, sgm) to those of diffusers.

Sources: `convert_ldm_unet_checkpoint` of diffusers 0.42 and the module names of Stability's generative-models.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

FIXED: Final = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
}
RESNET: Final = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_MIDDLE: Final = {"0": "mid_block.resnets.0", "1": "mid_block.attentions.0", "2": "mid_block.resnets.1"}
_MOST_LAYERS: Final = 16  # in a level; those of Stable Diffusion have 2 and a downsampler
_BLOCK: Final = re.compile(r"(input|output)_blocks\.([0-9]{1,4})\.([0-9])\.(.+)")
_MIDDLE_BLOCK: Final = re.compile(r"middle_block\.([012])\.(.+)")


class LdmUNet:
    """The names of one UNet: the blocks of each level are counted from `modules`, its modules in ldm's spelling."""

    def __init__(self, modules: Iterable[str]) -> None:
        found = set(modules)
        downs = sorted(
            int(m[2]) for name in found if (m := _BLOCK.fullmatch(name)) and m[1] == "input" and m[4] == "op"
        )
        inputs = max((int(m[2]) for name in found if (m := _BLOCK.fullmatch(name)) and m[1] == "input"), default=0)
        self._per_level = downs[0] if downs else max(inputs, 1) + 1  # resnets of a level, and its downsampler
        self._levels = len(downs) + 1 if self._per_level <= _MOST_LAYERS else 0

    def renamed(self, module: str) -> str | None:
        """Return the name in diffusers of a module such as `input_blocks.4.1.proj_in`.

        None for one that no UNet has.
        """
        if module in FIXED:
            return FIXED[module]
        middle = _MIDDLE_BLOCK.fullmatch(module)
        if middle is not None:
            return self._inside(_MIDDLE[middle[1]], middle[2], is_resnet=middle[1] != "1")
        block = _BLOCK.fullmatch(module)
        if block is None:
            return None
        number, place, rest = int(block[2]), int(block[3]), block[4]
        return self._input(number, place, rest) if block[1] == "input" else self._output(number, place, rest)

    def _input(self, number: int, place: int, rest: str) -> str | None:
        level, layer = divmod(number - 1, self._per_level)
        if not number or level >= self._levels:
            return None
        if layer == self._per_level - 1:
            is_last = level == self._levels - 1
            return None if is_last or (place, rest) != (0, "op") else f"down_blocks.{level}.downsamplers.0.conv"
        return self._layer(f"down_blocks.{level}", layer, place, rest)

    def _output(self, number: int, place: int, rest: str) -> str | None:
        level, layer = divmod(number, self._per_level)
        if level >= self._levels:
            return None
        if place and rest == "conv":
            is_last = level == self._levels - 1
            return None if is_last or layer != self._per_level - 1 else f"up_blocks.{level}.upsamplers.0.conv"
        return self._layer(f"up_blocks.{level}", layer, place, rest)

    def _layer(self, block: str, layer: int, place: int, rest: str) -> str | None:
        kinds = {0: "resnets", 1: "attentions"}
        return self._inside(f"{block}.{kinds[place]}.{layer}", rest, is_resnet=not place) if place in kinds else None

    def _inside(self, block: str, rest: str, *, is_resnet: bool) -> str | None:
        if not is_resnet:
            return f"{block}.{rest}"
        return f"{block}.{RESNET[rest]}" if rest in RESNET else None
