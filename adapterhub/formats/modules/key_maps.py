"""Module names that transformers 5 changed, so that adapters made under the other names find their modules.

A key map translates the names of some model types between transformers 4 and 5, in both directions and for whole names
only: `encoder.layer.3.attention.attention.query` is `layers.3.attention.q_proj` in a ViT. The other names of a
base are one more set of names in which an adapter is looked up. A set must hold all modules of the adapter, so no
adapter is ever mapped in part.

The table comes from the modules of the same models in transformers 4.57 and 5.24. Layers that were split or fused (the
gated feed-forward of DINOv2 giant, the experts of mixture models) have no other name, as they match no single module of
the other release.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from types import MappingProxyType
from typing import Final

from adapterhub.core.errors import shown

ANY: Final = "*"
"""Stands for one number in a place of a `Block`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A repeated part of a model: its place in both releases, and the names that changed inside it, old to new.

    A place may occur anywhere in a name, at a dot. Names that `inside` lacks stay the same inside the block.
    """

    old: str
    new: str
    inside: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyMap:
    """The names of some model types in transformers 4 and 5."""

    name: str
    model_types: tuple[str, ...]
    blocks: tuple[Block, ...]

    def new_name(self, old: str) -> str:
        """The name in transformers 5 of a module or tensor of transformers 4; unchanged where both agree."""
        for block in self.blocks:
            found = _renamed(old, block.old, block.new, block.inside)
            if found is not None:
                return found
        return old

    def old_name(self, new: str) -> str:
        """The inverse of `new_name`."""
        for block in self.blocks:
            found = _renamed(new, block.new, block.old, {there: here for here, there in block.inside.items()})
            if found is not None:
                return found
        return new


_ATTENTION: Final = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
_SELF_ATTENTION: Final = {
    "attention.self.query": "attention.q_proj",
    "attention.self.key": "attention.k_proj",
    "attention.self.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
_FEED_FORWARD: Final = {"intermediate.dense": "mlp.fc1", "output.dense": "mlp.fc2"}
_DETECTION: Final = {"self_attn.out_proj": "self_attn.o_proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"}

KEY_MAPS: Final[tuple[KeyMap, ...]] = (
    KeyMap(
        name="vit",
        model_types=(
            "vit",
            "deit",
            "ijepa",
            "vit_mae",
            "vit_msn",
            "vivit",
            "audio-spectrogram-transformer",
        ),
        blocks=(
            Block(old="encoder.layer.*", new="layers.*", inside=_ATTENTION | _FEED_FORWARD),
            Block(old="decoder_layers.*", new="decoder_layers.*", inside=_ATTENTION | _FEED_FORWARD),
        ),
    ),
    KeyMap(
        name="beit",
        model_types=("beit",),
        blocks=(
            Block(
                old="encoder.layer.*",
                new="layers.*",
                inside=_ATTENTION
                | _FEED_FORWARD
                | {"attention.attention.relative_position_bias": "relative_position_bias"},
            ),
        ),
    ),
    KeyMap(
        name="dinov2",
        model_types=("dinov2", "dinov2_with_registers"),
        blocks=(Block(old="encoder.layer.*", new="encoder.layer.*", inside=_ATTENTION),),
    ),
    KeyMap(
        name="swin",
        model_types=("swin",),
        blocks=(
            Block(
                old="layers.*.blocks.*",
                new="layers.*.blocks.*",
                inside=_SELF_ATTENTION | _FEED_FORWARD | {"attention.self": "attention.relative_position_bias"},
            ),
        ),
    ),
    KeyMap(
        name="segformer",
        model_types=("segformer",),
        blocks=(
            Block(
                old="encoder.block.*.*",
                new="stages.*.blocks.*",
                inside=_SELF_ATTENTION
                | {
                    "attention.self.sr": "attention.sequence_reduction.sequence_reduction",
                    "attention.self.layer_norm": "attention.sequence_reduction.layer_norm",
                    "layer_norm_1": "layernorm_before",
                    "layer_norm_2": "layernorm_after",
                    "mlp.dense1": "mlp.fc1",
                    "mlp.dense2": "mlp.fc2",
                },
            ),
            Block(old="encoder.patch_embeddings.*", new="stages.*.patch_embeddings", inside={}),
            Block(old="encoder.layer_norm.*", new="stages.*.layer_norm", inside={}),
            Block(old="decode_head.linear_c.*", new="decode_head.linear_projections.*", inside={}),
        ),
    ),
    KeyMap(
        name="dinov3_vit",
        model_types=("dinov3_vit",),
        blocks=(Block(old="layer.*", new="model.layer.*", inside={}),),
    ),
    KeyMap(
        name="vision tower",
        model_types=(
            "clip_vision_model",
            "chinese_clip_vision_model",
            "siglip_vision_model",
            "siglip2_vision_model",
            "mlcd_vision_model",
        ),
        blocks=tuple(
            Block(old=f"vision_model.{part}", new=part, inside={})
            for part in ("embeddings", "pre_layrnorm", "encoder.layers.*", "post_layernorm", "head")
        ),
    ),
    KeyMap(
        name="text tower",
        model_types=("clip_text_model",),
        blocks=tuple(
            Block(old=f"text_model.{part}", new=part, inside={})
            for part in ("embeddings", "encoder.layers.*", "final_layer_norm")
        ),
    ),
    KeyMap(
        name="audio language model",
        model_types=("qwen2_audio", "voxtral"),
        blocks=(
            Block(old="language_model.lm_head", new="lm_head", inside={}),
            Block(old="language_model.model", new="model.language_model", inside={}),
            Block(old="audio_tower", new="model.audio_tower", inside={}),
            Block(old="multi_modal_projector", new="model.multi_modal_projector", inside={}),
        ),
    ),
    KeyMap(
        name="rt_detr",
        model_types=("rt_detr", "rt_detr_v2"),
        blocks=(
            Block(old="decoder.layers.*", new="decoder.layers.*", inside=_DETECTION),
            Block(old="encoder.encoder.*.layers.*", new="encoder.aifi.*.layers.*", inside=_DETECTION),
        ),
    ),
    KeyMap(name="gpt_neox", model_types=("gpt_neox",), blocks=(Block(old="embed_out", new="lm_head", inside={}),)),
)
"""Every key map. A model type is in at most one."""

_BY_TYPE: Final[Mapping[str, KeyMap]] = MappingProxyType({kind: each for each in KEY_MAPS for kind in each.model_types})


@dataclass(frozen=True, slots=True, kw_only=True)
class OtherNames:
    """The names that another release of transformers has for the modules of a base.

    `here` maps each of them to the base's own name, for every module. `release` is the release with these names, `own`
    the one with the base's names.
    """

    key_maps: tuple[str, ...]
    release: str
    own: str
    here: Mapping[str, str]

    def note(self, modules: Iterable[str]) -> str:
        """How the names of `modules` were mapped, as a text after "its"; the first changed name is the example."""
        rule = " and ".join(self.key_maps)
        example = next((f": `{shown(m)}` is `{shown(self.here[m])}`" for m in modules if self.here.get(m, m) != m), "")
        return (
            f"module names are those of {self.release} and were mapped to those of {self.own}, which this base has"
            f" (key map {rule}{example})"
        )


def other_names(names: Collection[str], model_types: Mapping[str, str] | None = None) -> tuple[OtherNames, ...]:
    """The names that a base with the modules (or tensors) `names` has in other releases of transformers.

    `model_types` gives the model type of each part of the base by the name of the module that holds it ("" for the
    whole), so that only a part of that type is renamed; without it, every key map is tried on the whole base. Sets
    that change nothing, or that give two modules the same name, are left out.
    """
    if model_types is None:
        rules: list[Callable[[str], KeyMap | None]] = [partial(_whole_base, key_map) for key_map in KEY_MAPS]
    else:
        rules = [partial(_innermost, model_types)]
    made = [_other_names(names, map_of, to_old=to_old) for map_of in rules for to_old in (True, False)]
    return tuple(other for other in made if other is not None)


def names_with_all(modules: Collection[str], names: Collection[str], others: Iterable[OtherNames]) -> OtherNames | None:
    """The first of `others` that has all of `modules`; None when `names` has them all, or no set does."""
    if all(module in names for module in modules):
        return None
    return next((other for other in others if all(module in other.here for module in modules)), None)


def _other_names(names: Collection[str], map_of: Callable[[str], KeyMap | None], *, to_old: bool) -> OtherNames | None:
    here: dict[str, str] = {}
    used: dict[str, None] = {}
    for name in names:
        key_map = map_of(name)
        other = name if key_map is None else key_map.old_name(name) if to_old else key_map.new_name(name)
        if other in here:
            return None
        here[other] = name
        if key_map is not None and other != name:
            used[key_map.name] = None
    if not used:
        return None
    older, newer = "transformers 4", "transformers 5"
    return OtherNames(
        key_maps=tuple(used),
        release=older if to_old else newer,
        own=newer if to_old else older,
        here=MappingProxyType(here),
    )


def _whole_base(key_map: KeyMap, name: str) -> KeyMap:  # noqa: ARG001 - the same for every name
    return key_map


def _innermost(model_types: Mapping[str, str], name: str) -> KeyMap | None:
    """The key map of the innermost part that holds the module and is of a type that has one."""
    holder = name
    while True:
        found = _BY_TYPE.get(model_types.get(holder, ""))
        if found is not None or not holder:
            return found
        holder = holder.rpartition(".")[0]


def _renamed(name: str, place: str, other_place: str, inside: Mapping[str, str]) -> str | None:
    """The name with the block's other place and the other names inside it; None when it is not in such a block.

    Nor is it where it stands in the other place, which is longer: some models keep `text_model.` in both releases.
    """
    found, there = _pattern(place).search(name), _pattern(other_place).search(name)
    if found is None or (there is not None and there.end() == found.end() and there.start() < found.start()):
        return None
    numbers = iter(found.groups())
    moved = ".".join(next(numbers) if part == ANY else part for part in other_place.split("."))
    rest = name[found.end() :]
    return name[: found.start()] + moved + (f".{_renamed_inside(rest[1:], inside)}" if rest else "")


@cache
def _pattern(place: str) -> re.Pattern[str]:
    parts = [r"([0-9]{1,9})" if part == ANY else re.escape(part) for part in place.split(".")]
    return re.compile(rf"(?<![^.]){r'[.]'.join(parts)}(?![^.])")  # whole parts of the name only


def _renamed_inside(rest: str, inside: Mapping[str, str]) -> str:
    """`rest` with the longest beginning that `inside` has replaced by its other name."""
    beginnings = [start for start in inside if f"{rest}.".startswith(f"{start}.")]
    longest = max(beginnings, key=len, default=None)
    return rest if longest is None else inside[longest] + rest[len(longest) :]
