"""A GGUF file as a copy of a model of transformers: where each tensor of the source is, and how its numbers changed.

Names are those of `formats.gguf.names`. `RULES` hold what `convert_hf_to_gguf.py` of llama.cpp does to tensors beyond
a new name: a pattern of the source's name, and how the source is made of tensors of the copy. Transposed, reordered,
joined and cut tensors are views (`moves`); numbers that it computed are `CHANGES`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np

from adapterhub.core.errors import CouldNotTell, Malformed, shown
from adapterhub.formats.base.quantised.ggml.weight import ggml_weight
from adapterhub.formats.base.quantised.moves import Layout, Unfit, View
from adapterhub.formats.base.quantised.weight import Gathered, Numbers, Places, Ranges, Reader, Weight
from adapterhub.formats.base.stacking import LEAVES
from adapterhub.formats.gguf.file import GgufModel
from adapterhub.formats.gguf.names import READ, TURNED, families_of, gguf_name

_FIRST_NUMBER: Final = re.compile(r"(?<![^.])\d{1,6}(?![^.])")
_OUTSIDE: Final = re.compile(
    r"(mlp|vit|vpm|siglip2|conformer|merger|resampler|sound_\w+|speech_embeddings)\..*"
    r"|.*(visual\.|vision\.|audio\.|talker\.|vision_|audio_|token2wav\.|code2wav\.|projector\.|pre_mm_projector_norm"
    r"|image_newline|patch_embed|patch_merge|embed_vision\.|model\.connector\.).*"
)
"""What llama.cpp keeps in a file of its own, the `mmproj` file (`TextModel.filter_tensors`)."""
_LEFT_OUT: Final = re.compile(
    r".*\.(attention\.bias|attention\.masked_bias|rotary_emb\.inv_freq|attn\.bias|attn\.masked_bias|rotary_pos_emb\.inv_freq)"
    r"|(.*\.)?(position_ids|pooler\.dense\.\w+)|cls\.\w+\..*|vocab_(transform|layer_norm|projector)\..*"
    r"|lm_head\.(bias|dense\.\w+|layer_norm\.\w+|decoder\.\w+)|(decoder|head)\.(weight|bias|dense\.\w+|norm\.\w+)"
    r"|.*\.act_fn\.(alpha_n|alpha_p|beta|eps)|(model\.)?mtp[._].*|.*\.num_batches_tracked"
)
"""What no GGUF file has: buffers, heads of the training of encoders, parameters that become metadata, extra layers."""
_TOKENS: Final = "token_embd.weight"
_HEADS: Final = re.compile(r"(model\.)?(lm_head|embed_out|output|language_model\.lm_head)\.weight")
_RENAMED: Final = (
    (r"^(bert|roberta|distilbert|transformer|model)\.", ""),
    (r"^(ernie|lfm)\.", "model."),
    (r"^(?!model\.)", "model."),
    (r"^(model|transformer)\.layers\.", "backbone.layers."),
    (r"^model\.(?=embeddings|norm_f)", "backbone."),
    (r"\.gamma$", ".weight"),
    (r"\.beta$", ".bias"),
    (r"e_score_correction_bias$", "e_score_correction.bias"),
    (r"\.expert_bias$", ".expert_bias.bias"),
    (r"\.dt_bias$", ".dt_proj.bias"),
    (r"\.dt_bias$", ".dt.bias"),
    (r"\.per_expert_scale$", ".down_proj.scale"),
    (r"\.moe\.", ".feed_forward."),
    (r"$", ".weight"),
)
"""Spellings of the same names: what the converter renames before it looks into its table."""
_LEAVES: Final = {**LEAVES, "gate": "gate", "down": "down", "up": "up"}

PLUS_ONE: Final = "plus one"
MINUS_EXP: Final = "minus exp"
_NORMS_PLUS_ONE: Final = frozenset(
    {"gemma", "gemma2", "gemma3", "gemma-embedding", "nemotron", "qwen3next", "qwen35", "qwen35moe", "minimax-m3"}
)
"""Architectures whose layers multiply by one more than the weight of a norm, which GGUF has added."""


class GgufWeights(NamedTuple):
    """The weights of a source that a GGUF file holds, by the source's names.

    `absent`: tensors of the source that no file of this kind holds. `unknown`: those for which no rule names a place.
    `spare`: tensors of the file that belong to none of the source, such as factors of rotary embeddings.
    """

    weights: Mapping[str, Weight]
    absent: tuple[str, ...]
    unknown: tuple[str, ...]
    spare: tuple[str, ...]


def gguf_weights(
    model: GgufModel, names: Iterable[str], shapes: Mapping[str, tuple[int, ...]] | None = None
) -> GgufWeights:
    """Return the weights of a source whose tensors are called `names`, as a GGUF file keeps them.

    `shapes`: those of the source where they are known; they tell the rows of a vocabulary that the file lacks or
    adds. Otherwise each weight has the shape that the file's tensors give.

    Raises:
        CouldNotTell: how files of this architecture are made is not known here, or a type of GGML is not.
        Malformed: a tensor does not have the sizes that the file's own metadata say.
    """
    architecture = model.architecture
    if architecture not in READ:
        raise CouldNotTell(
            f"the file is GGUF of `{shown(architecture, 60)}`, and what llama.cpp's converter does to such a model is"
            " not known here",
            hint="compare it with a file of the same architecture that you trust, or take the source itself",
        )
    listed = list(names)
    copy = _Copy(model, frozenset(listed))
    weights: dict[str, Weight] = {}
    absent, unknown = [], []
    for name in listed:
        layout = None if _is_outside(name) else copy.layout(name, (shapes or {}).get(name))
        if layout is not None:
            weights[name] = copy.weight(name, layout)
        elif _is_outside(name) or copy.is_left_out(name):
            absent.append(name)
        else:
            unknown.append(name)
    used = {part for weight in weights.values() for part in weight.parts}
    spare = tuple(part for part in model.tensors if part not in used)
    return GgufWeights(MappingProxyType(weights), tuple(absent), tuple(unknown), spare)


def source_names(model: GgufModel) -> tuple[str, ...]:
    """Return transformers' names of the tensors of a GGUF file: those of the family that explains most of it.

    () for an architecture of which no names are known. A tied head has none.

    Raises:
        Malformed: as `gguf_weights`.
    """
    found: tuple[str, ...] = ()
    most = 0
    copy = _Copy(model, frozenset())
    for family in families_of(model.architecture):
        names, used = [], set()
        for name in (name for pattern in family for name in copy.spelt_out(pattern)):
            layout = copy.layout(name, None)
            if layout is None or (_HEADS.fullmatch(_inner(name)) and layout.views[0].part == _TOKENS):
                continue
            names.append(name)
            used |= {view.part for view in layout.every_view}
        if len(used) > most:
            found, most = tuple(names), len(used)
    return found


def _is_outside(name: str) -> bool:
    return _OUTSIDE.fullmatch(name) is not None


# ---------------------------------------------------------------- weights
@dataclass(frozen=True, kw_only=True)
class Moved(Gathered):
    """A tensor whose numbers lie elsewhere in the copy, or were computed from the source."""

    layout: Layout
    inner: Mapping[str, Weight] = field(repr=False)

    def ranges(self, reader: Reader, at: Places) -> Ranges:
        """As the tensors of the copy say. What the copy left out may be anything: no ends, and NaN as value."""
        found = super().ranges(reader, at)
        return CHANGES[self.layout.change](found) if self.layout.change else found

    def steps(self, reader: Reader, at: Places) -> Numbers:
        """As the tensors of the copy say."""
        return Weight.steps(self, reader, at) if self.layout.change else super().steps(reader, at)

    def inside(self, at: Places) -> Iterator[tuple[Places | slice, Weight, Places]]:
        """Yield the tensors of the copy in which some of the places lie."""
        which, places = self.layout.places(at)
        for number, view in enumerate(self.layout.every_view):
            chosen = np.flatnonzero(which == number)
            if len(chosen) == len(at):
                yield slice(None), self.inner[view.part], places
            elif len(chosen):
                yield chosen, self.inner[view.part], places[chosen]


def _minus_one(found: Ranges) -> Ranges:
    """One less. The converter adds it in float32, or in float16 for a source in float16."""
    found = _perhaps_float16(found)
    return Ranges(found.low - 1, found.high - 1, found.value - 1)


def _log_of_minus(found: Ranges) -> Ranges:
    """Return the x of -exp(x). The function may be wrong by a unit in the last place of float32."""
    found = _perhaps_float16(found)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Ranges(np.log(-found.high) - 2.0**-22, np.log(-found.low) + 2.0**-22, np.log(-found.value))


def _perhaps_float16(found: Ranges) -> Ranges:
    """Wider where the number is one of float16: then it may have been computed in that."""
    with np.errstate(over="ignore", invalid="ignore"):
        half = found.value.astype(np.float16)
        doubt = np.where(half == found.value, np.abs(np.spacing(half)).astype(np.float64) / 2, 0.0)
        low, high = np.minimum(found.low, found.value - doubt), np.maximum(found.high, found.value + doubt)
    return Ranges(low, high, found.value)


CHANGES: Final[Mapping[str, Callable[[Ranges], Ranges]]] = MappingProxyType(
    {PLUS_ONE: _minus_one, MINUS_EXP: _log_of_minus}
)
"""The way back from what the converter computed."""


# ---------------------------------------------------------------- the copy
@dataclass(frozen=True)
class _Copy:
    """The tensors of a GGUF file, asked for those of a source."""

    model: GgufModel
    names: frozenset[str]

    def has(self, part: str) -> bool:
        return part in self.model.tensors

    def view(self, part: str) -> View:
        """Return a tensor of the file; a KeyError where there is none."""
        return View.of(part, self.model.tensors[part][1].shape)

    @cached_property
    def blocks(self) -> int:
        """The number of layers."""
        found = self.model.value("block_count")
        return found if type(found) is int else 0

    def number(self, key: str, layer: int) -> int:
        """Return a whole number of the metadata, of a layer where they differ.

        Raises:
            Unfit: there is none.
        """
        found = self.model.value(key)
        if isinstance(found, list) and 0 <= layer < len(found):
            found = found[layer]
        if type(found) is not int or found < 1:
            raise Unfit(f"needs `{self.model.architecture}.{key}`, which is {shown(found, 40)}")
        return found

    def heads(self, layer: int) -> tuple[int, int]:
        """Return the heads of queries, and of keys and values."""
        heads = self.number("attention.head_count", layer)
        try:
            return heads, self.number("attention.head_count_kv", layer)
        except Unfit:
            return heads, heads

    def spelt_out(self, pattern: str) -> Iterator[str]:
        """Yield the names of all layers and experts that a pattern of `families_of` stands for."""
        experts = self.model.value("expert_count")
        counts = [self.blocks, self.model.value("decoder_block_count")]
        layers = max((count for count in counts if type(count) is int), default=0)
        for layer in range(min(layers, len(self.model.tensors)) if "{bid}" in pattern else 1):
            name = pattern.replace("{bid}", str(layer))
            if "{eid}" not in name:
                yield name
            elif type(experts) is int:
                stack = next((spec for part, (_, spec) in self.model.tensors.items() if "_exps." in part), None)
                limit = stack.shape[0] if stack is not None else 0
                yield from (name.replace("{eid}", str(expert)) for expert in range(min(experts, limit)))

    def layout(self, name: str, shape: tuple[int, ...] | None) -> Layout | None:
        """Return the place of a tensor of the source; None if no rule names one."""
        for spelling in spellings(name):
            for rule in RULES:
                match = rule.pattern.fullmatch(spelling)
                if match is None or (rule.architectures and self.model.architecture not in rule.architectures):
                    continue
                try:
                    return _resized(rule.make(self, match), shape)
                except KeyError:  # the file keeps it in another way
                    continue
                except (Unfit, IndexError) as error:
                    reason = error if isinstance(error, Unfit) else "has too few dimensions"
                    raise Malformed(
                        f"the GGUF file does not fit its metadata: `{shown(name)}` {reason}",
                        hint="convert the model again with llama.cpp's `convert_hf_to_gguf.py`",
                    ) from None
        if _HEADS.fullmatch(_inner(name)) and self.has(_TOKENS):
            return _resized(_whole(self.view(_TOKENS)), shape)
        return None

    def is_left_out(self, name: str) -> bool:
        """Return whether no file of this architecture has the tensor."""
        inner = _inner(name)
        if any(_LEFT_OUT.fullmatch(spelling) for spelling in (inner, *_of_encoder(inner))):
            return True
        layer = _FIRST_NUMBER.search(inner)
        is_extra = layer is not None and bool(self.blocks) and int(layer[0]) >= self.blocks
        return is_extra or (self.model.architecture == "cohere2" and inner.endswith(".bias"))

    def weight(self, name: str, layout: Layout) -> Weight:
        """Return the weight that has this layout."""
        inner = {view.part: self.stored(view.part) for view in layout.every_view}
        first = next(iter(inner.values()))
        if not layout.change and layout.is_all_of(first.shape):
            return replace(first, name=name, shape=layout.shape)
        return Moved(
            name=name,
            shape=layout.shape,
            form="+".join(dict.fromkeys(weight.form for weight in inner.values())),
            parts=tuple(dict.fromkeys(part for weight in inner.values() for part in weight.parts)),
            is_rounded=all(weight.is_rounded for weight in inner.values()),
            layout=layout,
            inner=inner,
        )

    def stored(self, part: str) -> Weight:
        """Return a tensor of the file, unchanged."""
        spec = self.model.tensors[part][1]
        factor = f"{part.removesuffix('.weight')}.scale"
        has_factor = spec.dtype == "NVFP4" and self.has(factor)
        return ggml_weight(part, spec.dtype, spec.shape, part, factor=factor if has_factor else "")


def _resized(layout: Layout, shape: tuple[int, ...] | None) -> Layout:
    """Return a layout for a source that has more rows or fewer: llama.cpp pads vocabularies, or cuts them."""
    if (
        shape is None
        or shape == layout.shape
        or len(layout.every_view) > 1
        or shape[1:] != layout.shape[1:]
        or not shape
    ):
        return layout
    (view,) = layout.views
    if layout.skipped:
        return layout._replace(shape=shape, skipped=max(0, math.prod(shape) - math.prod(view.dims)))
    if shape[0] < layout.shape[0] and view.dims == layout.shape:
        view = view.cut(0, 0, shape[0])
    return layout._replace(shape=shape, views=(view,))


def _whole(view: View, shape: tuple[int, ...] | None = None) -> Layout:
    return Layout(view.dims if shape is None else shape, (view,))


def spellings(name: str) -> Iterator[str]:
    """Yield the names under which the converter may look for a tensor: its own first."""
    seen = [_inner(name)]
    yield seen[0]
    for pattern, replacement in _RENAMED:
        for known in tuple(seen):
            changed = re.sub(pattern, replacement, known, count=1)
            if changed != known and changed not in seen:
                seen.append(changed)
                yield changed


def _of_encoder(name: str) -> Iterator[str]:
    for prefix in ("bert.", "roberta.", "distilbert.", "model."):
        if name.startswith(prefix):
            yield name.removeprefix(prefix)


def _inner(name: str) -> str:
    """Return the name in the language model of a model that has other parts too."""
    for part in ("language_model.", "text_model.", "thinker."):
        name = name.replace(part, "")
    return name


# ---------------------------------------------------------------- rules
class PlaceRule(NamedTuple):
    """How a tensor of the source whose name fits `pattern` is made of tensors of the copy.

    `make` raises KeyError where the file lacks one of those, so that the next rule has its turn, and Unfit where sizes
    contradict each other. `architectures` are those that the rule is for; () for all.
    """

    pattern: re.Pattern[str]
    make: Callable[[_Copy, re.Match[str]], Layout]
    architectures: tuple[str, ...] = ()


def _layer(match: re.Match[str]) -> int:
    found = _FIRST_NUMBER.search(match[0])
    return int(found[0]) if found else 0


def _expert(copy: _Copy, match: re.Match[str]) -> Layout:
    """Return a layer of one expert: a member of the stack of all, or of gate and up together.

    An early layout has a separate tensor for it.
    """
    layer, expert, leaf = _layer(match), int(match["expert"]), _LEAVES[match["leaf"]]
    stack, both = f"blk.{layer}.ffn_{leaf}_exps.weight", f"blk.{layer}.ffn_gate_up_exps.weight"
    if copy.has(stack):
        return _whole(copy.view(stack).member(0, expert))
    if leaf != "down" and copy.has(both):
        half = copy.view(both).member(0, expert).split(0, 2, -1)
        return _whole(half.member(0, leaf == "up"))
    return _whole(copy.view(f"blk.{layer}.ffn_{leaf}.{expert}.weight"))


def _stacked(copy: _Copy, match: re.Match[str]) -> Layout:
    """Return the stack [experts, 2 * ff, hidden] of gate and up of all experts.

    Other architectures turn or weave it.
    """
    suffix = ".bias" if "bias" in match[0] else ".weight"
    front = f"blk.{_layer(match)}.ffn_"
    if copy.has(f"{front}gate_up_exps{suffix}"):
        return _whole(copy.view(f"{front}gate_up_exps{suffix}"))
    views = [copy.view(f"{front}{leaf}_exps{suffix}") for leaf in ("gate", "up")]
    experts, width = views[0].dims[0], views[0].dims[1] + views[1].dims[1]
    rest = views[0].dims[2:]
    if copy.model.architecture not in _TURNED_STACKS:
        return Layout.joined((experts, width, *rest), 1, *views)
    turned = [view.order(0, 2, 1) if rest else view for view in views]
    axis = len(turned[0].dims)
    if copy.model.architecture == "gpt-oss":  # gate and up take turns
        turned = [view.grown(axis) for view in turned]
    else:
        axis -= 1
    return Layout.joined((experts, *rest, width), axis, *turned)


def _down(copy: _Copy, match: re.Match[str]) -> Layout:
    suffix = ".bias" if "bias" in match[0] else ".weight"
    view = copy.view(f"blk.{_layer(match)}.ffn_down_exps{suffix}")
    is_turned = copy.model.architecture in _TURNED_STACKS and len(view.dims) > 2
    return _whole(view.order(0, 2, 1) if is_turned else view)


_TURNED_STACKS: Final = ("gpt-oss", "llama4", "qwen3vlmoe")


def _rows(first: str, second: str) -> Callable[[_Copy, re.Match[str]], Layout]:
    """Rows of one tensor and then those of another; `{}` stands for the layer."""

    def make(copy: _Copy, match: re.Match[str]) -> Layout:
        views = [copy.view(part.format(_layer(match))) for part in (first, second)]
        axis = len(views[0].dims) - len(views[0].dims[1:]) - 1 if len(views[0].dims) < 3 else 1
        dims = [sum(view.dims[axis] for view in views) if n == axis else d for n, d in enumerate(views[0].dims)]
        return Layout.joined(tuple(dims), axis, *views)

    return make


def _one(part: str) -> Callable[[_Copy, re.Match[str]], Layout]:
    """One tensor; `{}` stands for the layer."""
    return lambda copy, match: _whole(copy.view(part.format(_layer(match))))


def _member_of(part: str) -> Callable[[_Copy, re.Match[str]], Layout]:
    """One member of a stack; the first `{}` stands for the layer."""

    def make(copy: _Copy, match: re.Match[str]) -> Layout:
        return _whole(copy.view(part.format(_layer(match))).member(0, int(match["member"])))

    return make


def _turned_back(view: View, heads: int) -> View:
    """Return the two halves of each head one after the other, which GGUF has side by side (`LlamaModel.permute`)."""
    return view.split(0, heads, -1, 2).order(0, 2, 1)


def _query_key_value(copy: _Copy, match: re.Match[str]) -> Layout:
    """Rows that the source has head by head, or group by group: GGUF has all queries, all keys and all values."""
    part = f"blk.{_layer(match)}.attn_qkv.{match['suffix']}"
    view = copy.view(part)
    heads, groups = copy.heads(_layer(match))
    groups = heads if copy.model.architecture != "falcon" else groups
    rows = heads + 2 * groups
    size = view.dims[0] // rows
    whole = view.split(0, rows, size)
    queries = whole.cut(0, 0, heads).split(0, groups, -1)
    keys, values = whole.cut(0, heads, heads + groups).grown(1), whole.cut(0, heads + groups, rows).grown(1)
    return Layout.joined(view.dims, 1, queries, keys, values)


def _grouped(copy: _Copy, match: re.Match[str]) -> Layout:
    """InternLM2's `wqkv`: group by group some queries, a key and a value; queries and keys in GGUF's order of rows."""
    layer = _layer(match)
    heads, groups = copy.heads(layer)
    q, k, v = (copy.view(f"blk.{layer}.attn_{leaf}.weight") for leaf in "qkv")
    queries = _turned_back(q, heads).split(0, groups, -1)
    keys = _turned_back(k, groups).grown(1)
    values = v.split(0, groups, 1, 2, -1)
    rows = q.dims[0] + k.dims[0] + v.dims[0]
    return Layout.joined((rows, *q.dims[1:]), 1, queries, keys, values)


def _in_order(copy: _Copy, match: re.Match[str]) -> Layout:
    """Rows of queries, keys and values one after the other, cut into three; turned for some architectures."""
    layer = _layer(match)
    heads, groups = copy.heads(layer)
    views = [copy.view(f"blk.{layer}.attn_{leaf}.{match['suffix']}") for leaf in "qkv"]
    shape = (sum(view.dims[0] for view in views), *views[0].dims[1:])
    if copy.model.architecture not in TURNED:
        return Layout.joined(shape, 0, *views)
    size = views[0].dims[0] // heads
    views = [_turned_back(views[0], heads), _turned_back(views[1], groups), views[2].split(0, -1, 2, size // 2)]
    return Layout.joined(shape, 0, *views)


def _cut_out(copy: _Copy, match: re.Match[str]) -> Layout:
    """Return queries, keys or values of a tensor into which the converter joined them (`--fuse-qkv`)."""
    layer, leaf = _layer(match), match["leaf"]
    if copy.has(f"blk.{layer}.ssm_out.weight"):  # of linear attention
        raise KeyError
    view = copy.view(f"blk.{layer}.attn_qkv.{match['suffix']}")
    heads, groups = copy.heads(layer)
    size = view.dims[0] // (heads + 2 * groups)
    start = {"q": 0, "k": heads, "v": heads + groups}[leaf] * size
    number = heads if leaf == "q" else groups
    rows = view.cut(0, start, start + number * size)
    is_turned = leaf != "v" and copy.model.architecture in TURNED
    return _whole(_turned_back(rows, number) if is_turned else rows, rows.dims)


def _turned_rows(copy: _Copy, match: re.Match[str]) -> Layout:
    """Return a projection of queries or keys, whose rows GGUF has in another order."""
    part = gguf_name(copy.model.architecture, match[0]) or ""
    view = copy.view(part)
    heads = copy.heads(_layer(match))[match["leaf"] == "k"]
    return _whole(_turned_back(view, heads), view.dims)


def _rotated_rows(copy: _Copy, match: re.Match[str]) -> Layout:
    """GLM-4V's queries and keys: the rows of each head that are rotated are even ones first in GGUF, then odd ones."""
    if copy.model.value("rope.dimension_sections") is None:
        raise KeyError
    part = gguf_name(copy.model.architecture, match[0]) or ""
    view, layer = copy.view(part), _layer(match)
    rotated = copy.number("rope.dimension_count", layer)
    whole = view.split(0, copy.heads(layer)[match["leaf"] == "k"], -1)
    first = whole.cut(1, 0, rotated).split(1, 2, -1).order(0, 2, 1)
    if rotated == whole.dims[1]:
        return _whole(first, view.dims)
    return Layout.joined(view.dims, 1, first, whole.cut(1, rotated, whole.dims[1]).split(1, -1, 2))


def _latent(copy: _Copy, match: re.Match[str]) -> Layout:
    """DeepSeek's `kv_b_proj`: head by head the rows of keys, which GGUF has transposed, and those of values."""
    layer = _layer(match)
    keys = copy.view(f"blk.{layer}.attn_k_b.weight").order(0, 2, 1)
    values = copy.view(f"blk.{layer}.attn_v_b.weight")
    rows = keys.dims[0] * (keys.dims[1] + values.dims[1])
    return Layout.joined((rows, keys.dims[2]), 1, keys, values)


def _linear_heads(copy: _Copy, layer: int) -> tuple[int, int, int]:
    """Of linear attention: the heads of keys, those of values for each, and the size of a value."""
    keys, values = copy.number("ssm.group_count", layer), copy.number("ssm.time_step_rank", layer)
    return keys, values // keys, copy.number("ssm.inner_size", layer) // values


def _joined_inputs(copy: _Copy, match: re.Match[str]) -> Layout:
    """Qwen3-Next's `in_proj_qkvz`: of each head of keys a query, a key, values and gates."""
    layer = _layer(match)
    heads, each, size = _linear_heads(copy, layer)
    state = copy.number("ssm.state_size", layer)
    view, gate = copy.view(f"blk.{layer}.attn_qkv.weight"), copy.view(f"blk.{layer}.attn_gate.weight")
    keys = heads * state
    parts = [
        view.cut(0, 0, keys).split(0, heads, state),
        view.cut(0, keys, 2 * keys).split(0, heads, state),
        view.cut(0, 2 * keys, view.dims[0]).split(0, heads, each * size),
        gate.split(0, heads, each * size),
    ]
    return Layout.joined((view.dims[0] + gate.dims[0], view.dims[1]), 1, *parts)


def _tiled(copy: _Copy, match: re.Match[str]) -> Layout:
    """Heads of values that Qwen3.5 has key by key, and GGUF first of each key, second of each key, and so on."""
    layer = _layer(match)
    part = next(
        (p for p in (gguf_name(copy.model.architecture, s) for s in spellings(match[0])) if p and copy.has(p)), ""
    )
    view = _numbers(copy.view(part), part)
    shape = _source_shape(part, copy.view(part).dims)
    change = _change(copy.model.architecture, match[0])
    heads, each, size = _linear_heads(copy, layer)
    rows = view.dims[0]
    if match["leaf"] == "out_proj":
        return Layout(shape, (view.split(1, each, heads, size).order(0, 2, 1),), change=change)
    if match["leaf"] not in ("in_proj_qkv", "conv1d"):
        size = size if match["leaf"] == "in_proj_z" else 1
        return Layout(shape, (view.split(0, each, heads, size).order(1, 0),), change=change)
    before = rows - heads * each * size
    back = view.cut(0, before, rows).split(0, each, heads, size).order(1, 0)
    return Layout(shape, (back,), change=change, first=(view.cut(0, 0, before),) if before else ())


def _numbers(view: View, part: str) -> View:
    """Return a tensor whose source has one dimension, although GGUF has two, as one of one."""
    return View.of(part, _source_shape(part, view.dims)) if part.endswith((".ssm_a", ".ssm_d")) else view


def _source_shape(part: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape in the source: convolutions have a dimension of one there, Mamba-2's vectors are matrices."""
    if part.endswith((".ssm_conv1d.weight", ".shortconv.conv.weight")) and len(shape) == 2:
        return (shape[0], 1, shape[1])
    if part.endswith((".ssm_a", ".ssm_d")) and len(shape) == 2 and shape[1] == 1:
        return shape[:1]
    if part.endswith(".ssm_norm.weight") and len(shape) == 2:
        return (shape[0] * shape[1],)
    return shape


def _change(architecture: str, name: str) -> str:
    if name.endswith("A_log"):
        return MINUS_EXP
    is_norm = name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight")
    return PLUS_ONE if is_norm and architecture in _NORMS_PLUS_ONE else ""


def _named(copy: _Copy, match: re.Match[str]) -> Layout:
    """Return the tensor of that name."""
    part = gguf_name(copy.model.architecture, match[0]) or ""
    view = copy.view(part)
    shape = _source_shape(part, view.dims)
    return Layout(shape, (view,), change=_change(copy.model.architecture, match[0]))


def _transposed(copy: _Copy, match: re.Match[str]) -> Layout:
    return _whole(copy.view(gguf_name(copy.model.architecture, match[0]) or "").order(1, 0))


def _flat_experts(copy: _Copy, match: re.Match[str]) -> Layout:
    """DBRX's and Nomic's experts: one matrix, the rows of one expert after those of another."""
    leaf = {"w1": "gate", "v1": "up", "w2": "down"}[match["leaf"]]
    front = f"blk.{_layer(match)}.ffn_"
    leaf = "up" if leaf == "gate" and not copy.has(f"{front}gate_exps.weight") else leaf
    view = copy.view(f"{front}{leaf}_exps.weight")
    view = view.order(0, 2, 1) if leaf == "down" else view
    return _whole(view, (view.dims[0] * view.dims[1], view.dims[2]))


def _positions(copy: _Copy, match: re.Match[str]) -> Layout:
    """Embeddings of positions; RoBERTa's begin behind the number of the padding, and GGUF leaves out what is before."""
    view = copy.view("position_embd.weight")
    padding = copy.model.values.get("tokenizer.ggml.padding_token_id")
    if copy.model.values.get("tokenizer.ggml.model") == "bert" or type(padding) is not int or "token_type" in match[0]:
        return _whole(view)
    rows = padding + 1
    return Layout((view.dims[0] + rows, view.dims[1]), (view,), skipped=rows * view.dims[1])


def _rule(pattern: str, make: Callable[[_Copy, re.Match[str]], Layout], *architectures: str) -> PlaceRule:
    return PlaceRule(re.compile(pattern), make, architectures)


_ATTENTION: Final = r".*\.(?P<leaf>[qkv])_proj\.(?P<suffix>weight|bias)"
_LINEAR: Final = r".*linear_attn\.(?P<leaf>in_proj_qkv|in_proj_z|in_proj_[ab]|A_log|dt_bias|conv1d|out_proj)(\.weight)?"
RULES: Final = (
    _rule(r".*(?<![a-z_])experts\.(?P<expert>\d{1,6})\.(?P<leaf>w[123]|(gate|up|down)(_proj)?)\.weight", _expert),
    _rule(r".*(?<![a-z_])experts\.gate_up_proj(\.weight|_bias)?", _stacked),
    _rule(r".*(?<![a-z_])experts\.down_proj(\.weight|_bias)?", _down),
    _rule(r".*block_sparse_moe\.input_linear\.weight", _stacked),
    _rule(r".*block_sparse_moe\.output_linear\.weight", _down),
    _rule(r".*shared_mlp\.input_linear\.weight", _rows("blk.{}.ffn_gate_shexp.weight", "blk.{}.ffn_up_shexp.weight")),
    _rule(r".*shared_mlp\.input_linear\.weight", _rows("blk.{}.ffn_gate.weight", "blk.{}.ffn_up.weight")),
    _rule(r".*shared_mlp\.input_linear\.weight", _one("blk.{}.ffn_up_shexp.weight")),
    _rule(r".*shared_mlp\.output_linear\.weight", _one("blk.{}.ffn_down_shexp.weight")),
    _rule(r".*shared_mlp\.output_linear\.weight", _one("blk.{}.ffn_down.weight")),
    _rule(r".*experts\.mlp\.(?P<leaf>w1|v1|w2)", _flat_experts, "dbrx", "nomic-bert-moe"),
    _rule(_ATTENTION.replace("[qkv]", "[qk]"), _turned_rows, *TURNED),
    _rule(_ATTENTION.replace("[qkv]", "[qk]"), _rotated_rows, "glm4"),
    _rule(r".*\.(self_)?attention\.query_key_value\.(?P<suffix>weight|bias)", _query_key_value, "bloom", "gptneox"),
    _rule(r".*\.self_attention\.query_key_value\.(?P<suffix>weight|bias)", _query_key_value, "bloom", "falcon"),
    _rule(r".*\.attention\.wqkv\.weight", _grouped, "internlm2"),
    _rule(r".*\.(qkv_proj|W_pack)\.(?P<suffix>weight|bias)", _in_order, "ernie4_5", "ernie4_5-moe",
          "baichuan"),
    _rule(r".*\.up_gate_proj\.weight", _rows("blk.{}.ffn_gate.weight", "blk.{}.ffn_up.weight"), "ernie4_5"),
    _rule(r".*\.ffn\.proj_1\.weight", _rows("blk.{}.ffn_gate.weight", "blk.{}.ffn_up.weight"), "openelm"),
    _rule(r".*\.mlp\.gate_up_proj\.weight", _rows("blk.{}.ffn_gate.weight", "blk.{}.ffn_up.weight"), "refact"),
    _rule(r".*\.attn\.kv\.weight", _rows("blk.{}.attn_k.weight", "blk.{}.attn_v.weight"), "refact"),
    _rule(r".*\.attn\.q\.weight", _one("blk.{}.attn_q.weight"), "refact"),
    _rule(r".*\.kv_b_proj\.weight", _latent),
    _rule(r".*\.(c_attn|c_proj|c_fc)\.weight", _transposed, "gpt2"),
    _rule(r".*\.q_layernorm\.norms\.(?P<member>\d{1,6})\.weight", _member_of("blk.{}.attn_q_norm.weight"), "stablelm"),
    _rule(r".*\.k_layernorm\.norms\.(?P<member>\d{1,6})\.weight", _member_of("blk.{}.attn_k_norm.weight"), "stablelm"),
    _rule(r".*altup_projections\.(?P<member>\d)\.weight", _member_of("altup_proj.weight"), "gemma3n"),
    _rule(r".*altup_unembed_projections\.(?P<member>\d)\.weight", _member_of("altup_unembd_proj.weight"), "gemma3n"),
    _rule(r".*\.router\.scale", _one("blk.{}.ffn_gate_inp.scale"), "gemma4"),
    _rule(r".*\.per_expert_scale", _one("blk.{}.ffn_down_exps.scale"), "gemma4"),
    _rule(r".*linear_attn\.in_proj_qkvz\.weight", _joined_inputs, "qwen3next"),
    _rule(_LINEAR, _tiled, "qwen35", "qwen35moe"),
    _rule(r".*position_embeddings\.weight", _positions, "bert"),
    _rule(r".*", _named),
    _rule(_ATTENTION, _cut_out),
)  # fmt: skip
"""The first that fits and whose tensors the file has: what is special stands before what is named alike."""
