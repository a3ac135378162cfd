"""What is done to an adapter, its base, its prompts or its tokenizer before it is tested, by name.

A change of tensors gets the tensors of an adapter's file and returns others of the same names and shapes, so that the
config stays; None means that the change does not apply, such as the loss of a layer where there is one.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from adapterhub.formats.prompts.form import PromptForm

Tensors = dict[str, Any]
_LAYER: Final = re.compile(r"^(.*?\.(?:layer|layers|h|block))\.(\d+)\.")
_B: Final = ".lora_B.weight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One change. `group` says which target counts it: `sound`, `precision`, `must`, `tokenizer` or `other`.

    `base` changes the model in place. `weights` merges the adapter with the next ones of its family, one weight each,
    by `method`; with `replaces` the next adapter stands in its place. `reloads` takes the base from other files.
    """

    group: str = "other"
    tensors: Callable[[Tensors], Tensors | None] | None = None
    base: Callable[[Any], None] | None = None
    form: Callable[[PromptForm], PromptForm | None] | None = None
    tokenizer: Callable[[Any], Any] | None = None
    weights: tuple[float, ...] = ()
    method: str = "cat"
    replaces: bool = False
    reloads: bool = False


# ---------------------------------------------------------------- the adapter's tensors
def _scaled(factor: float) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {k: t * factor if k.endswith(_B) else t for k, t in tensors.items()}


def _layers(tensors: Tensors) -> list[str]:
    found = {match[0]: (match[1], int(match[2])) for key in tensors if (match := _LAYER.match(key))}
    return sorted(found, key=lambda prefix: found[prefix])


def _without(tensors: Tensors, layers: list[str]) -> Tensors | None:
    if not layers or len(layers) == len(_layers(tensors)):
        return None
    lost = tuple(layers)
    return {k: t * 0 if k.endswith(_B) and k.startswith(lost) else t for k, t in tensors.items()}


def _largest_lost(tensors: Tensors) -> Tensors | None:
    def size(layer: str) -> float:
        return sum(float(t.norm() * tensors[k.replace("lora_B", "lora_A")].norm())
                   for k, t in tensors.items() if k.endswith(_B) and k.startswith(layer))  # fmt: skip

    layers = _layers(tensors)
    return _without(tensors, [max(layers, key=size)]) if layers else None


def _at(layers: list[str], where: float) -> list[str]:
    return layers[round((len(layers) - 1) * where) :][:1]


def _lost_at(where: float) -> Callable[[Tensors], Tensors | None]:
    return lambda tensors: _without(tensors, _at(_layers(tensors), where))


def _negated_at(where: float) -> Callable[[Tensors], Tensors | None]:
    def negate(tensors: Tensors) -> Tensors | None:
        layers = tuple(_at(_layers(tensors), where))
        return {k: -t if k.endswith(_B) and k.startswith(layers) else t for k, t in tensors.items()} if layers else None

    return negate


def _kind_lost(tensors: Tensors) -> Tensors | None:
    """Without the modules of the kind that comes last in the alphabet, such as `v_proj`."""
    kinds = sorted({key.removesuffix(_B).rpartition(".")[2] for key in tensors if key.endswith(_B)})
    if len(kinds) < 2:
        return None
    return {k: t * 0 if k.endswith(f".{kinds[-1]}{_B}") else t for k, t in tensors.items()}


def _noise_of(share: float) -> Callable[[Tensors], Tensors]:
    """Noise on both factors that moves an update by such a share of its norm."""

    def add(tensors: Tensors) -> Tensors:
        import torch

        draw, found = torch.Generator().manual_seed(2), dict(tensors)
        for key in (key for key in tensors if ".lora_" in key):
            noise = torch.randn(tensors[key].shape, generator=draw)
            found[key] = tensors[key] + noise * (share / 2**0.5) * tensors[key].norm() / noise.norm()
        return found

    return add


def _part_lost(share: float, *, first: bool = False) -> Callable[[Tensors], Tensors | None]:
    def lose(tensors: Tensors) -> Tensors | None:
        layers = _layers(tensors)
        count = round(len(layers) * share)
        return _without(tensors, layers[:count] if first else layers[len(layers) - count :])

    return lose


def _swapped(tensors: Tensors) -> Tensors | None:
    layers = _layers(tensors)
    for one, other in zip(layers[len(layers) // 2 :], layers[len(layers) // 2 + 1 :], strict=False):
        to = {k: other + k.removeprefix(one) for k in tensors if k.startswith(one)}
        if to and all(v in tensors and tensors[v].shape == tensors[k].shape for k, v in to.items()):
            back = {v: k for k, v in to.items()}
            return {k: tensors[to.get(k) or back.get(k) or k] for k in tensors}
    return None


def _resized(part: float) -> Callable[[Tensors], Tensors | None]:
    """The best approximation of each update at a part of its rank (0: rank 1), padded with zeros."""

    def resize(tensors: Tensors) -> Tensors | None:
        import torch

        found = dict(tensors)
        for key in (key for key in tensors if key.endswith(_B)):
            other = key.replace("lora_B", "lora_A")
            a, b = tensors[other].float(), tensors[key].float()
            rank = max(1, int(a.shape[0] * part))
            left, values, right = torch.linalg.svd(b @ a, full_matrices=False)
            found[key], found[other] = torch.zeros_like(b), torch.zeros_like(a)
            found[key][:, :rank] = left[:, :rank] * values[:rank]
            found[other][:rank] = right[:rank]
        return found

    return resize


def _rounded(bits: int) -> Callable[[Tensors], Tensors]:
    """Each row of a factor as integers of so many bits and one scale; the head stays."""
    return lambda tensors: {k: _as_integers(t, bits) if ".lora_" in k else t for k, t in tensors.items()}


def _as_integers(tensor: Any, bits: int) -> Any:
    steps = 2 ** (bits - 1) - 1
    scale = (tensor.abs().amax(-1, keepdim=True) / steps).clamp_min(1e-12)
    return (tensor / scale).round() * scale


def _bfloat16(tensors: Tensors) -> Tensors:
    import torch

    return {k: t.to(torch.bfloat16).float() for k, t in tensors.items()}


def _float16(tensors: Tensors) -> Tensors:
    import torch

    return {k: t.to(torch.float16).float() for k, t in tensors.items()}


def _noisy(share: float) -> Callable[[Tensors], Tensors]:
    def add(tensors: Tensors) -> Tensors:
        import torch

        draw = torch.Generator().manual_seed(0)
        return {k: t + share * t.std() * torch.randn(t.shape, generator=draw) if ".lora_" in k else t
                for k, t in tensors.items()}  # fmt: skip

    return add


def _head(change: Callable[[Any], Any]) -> Callable[[Tensors], Tensors | None]:
    def changed(tensors: Tensors) -> Tensors | None:
        if not any("classifier" in key for key in tensors):
            return None
        return {k: change(t) if "classifier" in k else t for k, t in tensors.items()}

    return changed


# ---------------------------------------------------------------- the base, in place
def _base_noise(share: float) -> Callable[[Any], None]:
    def add(model: Any) -> None:
        import torch

        draw = torch.Generator().manual_seed(1)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data += share * parameter.std() * torch.randn(parameter.shape, generator=draw)

    return add


def _base_bfloat16(model: Any) -> None:
    import torch

    model.to(torch.bfloat16)


def _base_int8(model: Any) -> None:
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data.copy_(_as_integers(parameter.data, 8))


def _base_int4(model: Any) -> None:
    """Blocks of 32 numbers as integers of 4 bits and one scale."""
    for parameter in model.parameters():
        if parameter.dim() > 1 and parameter.numel() % 32 == 0:
            parameter.data.copy_(_as_integers(parameter.data.reshape(-1, 32), 4).reshape(parameter.shape))


# ---------------------------------------------------------------- the prompt and the tokenizer
def _chat(form: PromptForm) -> PromptForm | None:
    return None if form.form in ("chat", "text") else PromptForm(form="chat", max_new_tokens=form.max_new_tokens)


def _system(form: PromptForm) -> PromptForm | None:
    return (
        replace(form, system="You answer with great care.", chat_template_sha256=None) if form.form == "chat" else None
    )


def _trailing_space(form: PromptForm) -> PromptForm | None:
    return replace(form, template=f"{form.template} ") if form.template else None


def _no_frame(form: PromptForm) -> PromptForm | None:
    return None if form.form == "text" else PromptForm(form="raw", max_new_tokens=form.max_new_tokens)


def _no_special(form: PromptForm) -> PromptForm | None:
    return replace(form, add_special_tokens=False) if form.form == "text" else None


def _prefix(form: PromptForm) -> PromptForm | None:
    return PromptForm(form="template", template="query : {input}") if form.form == "text" else None


def _front_token(tokenizer: Any) -> Any:
    """The same tokenizer with one more token in front of each prompt."""
    from tokenizers import processors

    other = copy.deepcopy(tokenizer)
    token = other.cls_token or other.bos_token or other.eos_token
    own = (f"{other.cls_token} ", f" {other.sep_token}") if other.cls_token else ("", "")
    if not other.cls_token and other("a")["input_ids"][-1] == other.eos_token_id:
        own = ("", f" {other.eos_token}")
    texts = {one for one in (token, other.sep_token, other.eos_token) if one}
    special = [(one, other.convert_tokens_to_ids(one)) for one in sorted(texts)]
    single = f"{token} {own[0]}$A{own[1]}"
    other.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    return other


SOUND: Final = "as recorded"
ANOTHER: Final = "another adapter"
CHANGES: Final[Mapping[str, Change]] = {
    SOUND: Change(group="sound"),
    "no-op": Change(group="must", tensors=_scaled(0)),
    "sign flipped": Change(group="must", tensors=_scaled(-1)),
    ANOTHER: Change(group="must", replaces=True),
    "bf16 adapter": Change(group="precision", tensors=_bfloat16),
    "int8 adapter": Change(group="precision", tensors=_rounded(8)),
    "int4 adapter": Change(group="precision", tensors=_rounded(4)),
    "int3 adapter": Change(tensors=_rounded(3)),
    "int2 adapter": Change(tensors=_rounded(2)),
    "alpha / 2": Change(tensors=_scaled(0.5)),
    "alpha x 2": Change(tensors=_scaled(2)),
    "largest layer lost": Change(tensors=_largest_lost),
    "last quarter lost": Change(tensors=_part_lost(0.25)),
    "last half lost": Change(tensors=_part_lost(0.5)),
    "first half lost": Change(tensors=_part_lost(0.5, first=True)),
    "two layers swapped": Change(tensors=_swapped),
    "half the rank": Change(tensors=_resized(0.5)),
    "rank 1": Change(tensors=_resized(0)),
    "adapter + 20 % noise": Change(tensors=_noisy(0.2)),
    "adapter + 50 % noise": Change(tensors=_noisy(0.5)),
    "labels rolled": Change(tensors=_head(lambda t: t.roll(1, 0))),
    "head of zeros": Change(tensors=_head(lambda t: t * 0)),
    "bf16 base": Change(group="precision", base=_base_bfloat16),
    "int8 base": Change(group="precision", base=_base_int8),
    "re-sharded, renamed base": Change(group="precision", reloads=True),
    "base + 1 % noise": Change(base=_base_noise(0.01)),
    "base + 5 % noise": Change(base=_base_noise(0.05)),
    "base + 10 % noise": Change(base=_base_noise(0.1)),
    "base + 20 % noise": Change(base=_base_noise(0.2)),
    "chat form": Change(group="must", form=_chat),
    "a system text": Change(group="must", form=_system),
    "trailing space": Change(group="must", form=_trailing_space),
    "frame dropped": Change(group="must", form=_no_frame),
    "no special tokens": Change(group="must", form=_no_special),
    "a prefix": Change(group="must", form=_prefix),
    "one more front token": Change(group="tokenizer", tokenizer=_front_token),
    "merge of 2, 0.7 and 0.3": Change(weights=(0.7, 0.3)),
    "merge of 2, 1 and 1": Change(weights=(1, 1)),
    "merge of 4, 1 each": Change(weights=(1,) * 4),
    "merge of 4, 0.25 each": Change(weights=(0.25,) * 4),
    "merge of 4, ties_svd": Change(weights=(1,) * 4, method="ties_svd"),
}

# ---------------------------------------------------------------- what drift is measured on
DAMAGES: Final[Mapping[str, Change]] = {
    **{f"alpha x {factor:g}": Change(tensors=_scaled(factor)) for factor in (0.5, 0.8, 0.9, 1.1, 1.25, 2)},
    **{f"noise of {share} %": Change(tensors=_noise_of(share / 100)) for share in (5, 10, 20, 50)},
    "first layer lost": Change(tensors=_lost_at(0)),
    "middle layer lost": Change(tensors=_lost_at(0.5)),
    "last layer lost": Change(tensors=_lost_at(1)),
    "middle layer negated": Change(tensors=_negated_at(0.5)),
    "last layer negated": Change(tensors=_negated_at(1)),
    "one kind of module lost": Change(tensors=_kind_lost),
}
RESAVED: Final[Mapping[str, Change]] = {
    SOUND: Change(),
    "in bfloat16": Change(tensors=_bfloat16),
    "in float16": Change(tensors=_float16),
}
"""What does not damage an adapter."""

PRECISIONS: Final[Mapping[str, Change]] = {
    "float32": Change(),
    "bfloat16": Change(base=_base_bfloat16),
    "8 bits": Change(base=_base_int8),
    "4 bits": Change(base=_base_int4),
}
"""The base in which an adapter is asked; contracts are recorded in float32."""
