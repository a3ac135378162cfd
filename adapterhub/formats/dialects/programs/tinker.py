"""Tinker's raw files and vLLM's shared experts: `experts.w1`, `w2` and `w3` [experts, r, in] and [experts, out, r].

One side may be shared by all experts and then has 1 in front. `w1` is the gate, `w2` the way down, `w3` the way up;
`unembed_tokens` is the head. So reads tinker-cookbook of 2026-08 (`weights/_adapter.py`, `_merge_utils.py`), and so
does vLLM 0.32 with `--enable-moe-shared-loras` (`lora/lora_weights.py`, `pack_moe_stacked`). The scale is PEFT's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from adapterhub.core.errors import UnsupportedAdapter, shown
from adapterhub.formats.dialects.form import Form, Made, numpy_for
from adapterhub.formats.dialects.programs._stacks import refuse, spread, stacks_in
from adapterhub.formats.peft.keys import PREFIX, KeyPair, sort_keys

TITLE: Final = "Tinker"
_LAYERS: Final = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
_HEAD: Final = ".unembed_tokens."
_OTHER: Final = {
    r"\.mixer\.": ("Nemotron", "whose `w1` is no gate"),
    r"\.in_proj_[qkv]\.": ("Qwen3.5", "whose q, k and v of linear attention are one layer"),
}
"""Bases where the same names mean something else."""


def recognise(form: Form) -> bool:
    """Return whether the file has its names."""
    return bool(stacks_in(form, _LAYERS)) or trains_head(form)


def trains_head(form: Form) -> bool:
    """Return whether the file has a pair for the head."""
    return any(_HEAD in spec.name for spec in form.weights.tensors)


def read(form: Form) -> Form:
    """One pair for each expert, and the head under its own name.

    Raises:
        MalformedTensorFile: its base has layers that Tinker names in other ways, or factors do not fit.
    """
    for pattern, (family, why) in _OTHER.items():
        if any(re.search(pattern, spec.name) for spec in form.weights.tensors):
            refuse(
                f"is Tinker's raw file for {family}, {why}",
                "convert it with tinker_cookbook's `weights.build_lora_adapter`, which knows the base",
            )
    return spread(form, stacks_in(form, _LAYERS).values(), _LAYERS, unembed_tokens="lm_head")


# ---------------------------------------------------------------- out
_EXPERT: Final = re.compile(r"(?P<holder>.+\.experts)\.(?P<expert>\d+)\.(?P<leaf>\w+)", re.ASCII)
_STACKS: Final = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3", "w1": "w1", "w2": "w2", "w3": "w3"}


def write(form: Form, weights: Mapping[str, tuple[int, ...]]) -> Form:
    """Return the form with one pair per layer for all experts, from pairs on single experts, and Tinker's head.

    `weights` has the shapes of the base's weights by module, which tell the number of experts.

    Raises:
        UnsupportedAdapter: Tinker's config or layout cannot express a part; names each.
    """
    keys = sort_keys(form.weights, form.config)
    more = [*keys.saved, *keys.biases, *keys.tokens, *keys.copies, *((spec.name, spec) for spec in keys.others)]
    reasons = [f"`{shown(name)}` is no factor of a LoRA" for name, _ in more]
    reasons += [f"`{shown(p.module)}` is more than B·A" for p in keys.pairs if p.magnitude or p.bias or not p.whole]
    reasons += [f"`{shown(p.module)}` is an embedding" for p in keys.pairs if p.kind == "embedding"]
    config = form.config
    own = {"rank_pattern": config.rank_pattern, "alpha_pattern": config.alpha_pattern, "use_rslora": config.use_rslora}
    reasons += [
        f"`{name}`: Tinker's config has one rank and one alpha for all modules" for name, set_ in own.items() if set_
    ]
    stacks: dict[tuple[str, str], dict[int, KeyPair]] = {}
    called: dict[tuple[str, str], str] = {}
    for pair in keys.pairs:
        match = _EXPERT.fullmatch(pair.module)
        if match is not None and match["leaf"] in _STACKS:
            stacks.setdefault((match["holder"], _STACKS[match["leaf"]]), {})[int(match["expert"])] = pair
            called[match["holder"], _STACKS[match["leaf"]]] = match["leaf"]
    for (holder, leaf), experts in stacks.items():
        shapes = {tuple((spec.shape, spec.dtype) for spec in pair.whole or ()) for pair in experts.values()}
        known = [f"{holder}.{number}.{called[holder, leaf]}" in weights for number in (len(experts) - 1, len(experts))]
        if len(shapes) > 1 or sorted(experts) != list(range(len(experts))) or known != [True, False]:
            reasons.append(f"`{shown(holder)}.{leaf}`: its experts are not all there, or of several shapes")
    if reasons:
        raise UnsupportedAdapter("it has no form in Tinker's files; nothing was written", reasons[:20])
    made = [tensor for key, experts in stacks.items() for tensor in _stacked(*key, experts)]
    taken = {spec.name for experts in stacks.values() for pair in experts.values() for spec in pair.whole or ()}
    kept = (spec for spec in form.weights.tensors if spec.name not in taken)
    made += [Made.of(spec, spec.name.replace(f"{PREFIX}lm_head.", f"{PREFIX}model{_HEAD}")) for spec in kept]
    return form.remade(made, target_modules="all-linear", target_parameters=None)


def _stacked(holder: str, leaf: str, experts: dict[int, KeyPair]) -> list[Made]:
    pairs = [pair.whole for _, pair in sorted(experts.items()) if pair.whole]
    stack: Callable[[Sequence[Any]], Any] = lambda arrays: numpy_for("").stack(arrays)  # noqa: E731 - numpy comes late
    return [
        Made(
            name=f"{PREFIX}{holder}.{leaf}.lora_{side}.weight",
            shape=(len(pairs), *pairs[0][at].shape),
            sources=tuple(pair[at] for pair in pairs),
            make=stack,
        )
        for at, side in enumerate("AB")
    ]
