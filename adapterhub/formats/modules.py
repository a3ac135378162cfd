"""Names of modules: where an adapter of one program finds its place in a base of another."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from types import MappingProxyType
from typing import Annotated, Any, Final, NamedTuple

from adapterhub.core.errors import MalformedConfig, shown
from adapterhub.formats.documented import Documented
from adapterhub.formats.peft.config import AdapterConfig, owner
from adapterhub.formats.peft.keys import AdapterKeys, KeyPair, sort_keys
from adapterhub.formats.safetensors.file import TensorFile

_MAX_DROPPED: Final = 3
_SAMPLED: Final = 12
_JUDGED: Final = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class NameRule:
    """Turns an adapter's module name into the base's: removes `dropped` in front and puts `added` there."""

    dropped: str = ""
    added: str = ""

    def apply(self, name: str) -> str:
        """The base's name for an adapter's; a name without the dropped part stays unchanged."""
        if self.dropped and not name.startswith(self.dropped):
            return name
        return self.added + name[len(self.dropped) :]

    def undo(self, name: str) -> str:
        """The adapter's name for a base's."""
        if self.added and not name.startswith(self.added):
            return name
        return self.dropped + name[len(self.added) :]


def find_rule(modules: list[str], base: frozenset[str]) -> NameRule:
    """The rule that maps the most of `modules` to names in `base`."""
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


class BaseNames:
    """Maps module names of an adapter to the base and back: by `rule`, then by `other`, names of another release."""

    def __init__(self, rule: NameRule, other: OtherNames | None = None) -> None:
        self.rule, self.other = rule, other
        self._here = other.here if other else MappingProxyType({})
        self._there = {name: named for named, name in self._here.items()}

    def here(self, module: str) -> str:
        """The base's name for a module of the adapter."""
        name = self.rule.apply(module)
        return self._here.get(name, name)

    def there(self, module: str) -> str:
        """The adapter's name for a module of the base."""
        return self.rule.undo(self._there.get(module, module))

    def mapped(self, modules: Iterable[str]) -> str:
        """How a key map changed the names of `modules`, as a text after "its"; empty when none was needed."""
        return self.other.note(map(self.rule.apply, modules)) if self.other else ""

    def tensor(self, name: str) -> str:
        """The base's name for a tensor of the adapter."""
        module, _, last = name.rpartition(".")
        return f"{self.here(module)}.{last}"


def find_names(modules: list[str], base: frozenset[str]) -> BaseNames:
    """The rule for the base's own names, or the first one that finds all modules among the names of another release."""
    rule = find_rule(modules, base)
    if all(rule.apply(m) in base for m in modules):
        return BaseNames(rule)
    for other in other_names(base):
        renamed = find_rule(modules, frozenset(other.here))
        if all(renamed.apply(m) in other.here for m in modules):
            return BaseNames(renamed, other)
    return BaseNames(rule)


def _is_fair(rule: NameRule, modules: list[str]) -> bool:
    """Whether a rule renames only what holds the layers and never maps one layer to another.

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
