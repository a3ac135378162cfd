"""Pairs on stacked experts (`target_parameters`) as one pair for each layer of each expert, in the base's names.

Gate and up of an expert have one A and half of B each, the gate first, as transformers joins them. The bytes of A stay
where they are, those of B are moved.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from adapterhub.core.errors import UnsupportedAdapter, shown
from adapterhub.formats.base.stacking import TRANSPOSED
from adapterhub.formats.dialects.experts import LAYOUTS, ExpertPair, expert_pairs, unpacked
from adapterhub.formats.dialects.form import Form, Made
from adapterhub.formats.peft.pairs import PEFT_PREFIX, pair_up, plain_name
from adapterhub.formats.safetensors.header import TensorSpec

Shapes = Mapping[str, tuple[int, ...]]
_LAYERS: Final = (("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2"))
"""Gate, up and down of an expert: the names in most bases' files, and in those of Mixtral."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Split:
    """A pair on stacked experts, and the layers of one expert that it is for."""

    pair: ExpertPair
    holder: str
    leaves: tuple[str, ...]
    scale: float

    def tensors(self) -> Iterator[Made]:
        """Yield a and B of each layer of each expert."""
        one, parts = self.pair, len(self.leaves)
        size, out = one.a.size_bytes // one.experts, one.b.shape[0] // parts
        for expert in range(one.experts):
            start = one.a.start + expert * size
            a = TensorSpec(one.a.name, one.a.dtype, (one.rank, one.a.shape[1]), start, start + size)
            for part, leaf in enumerate(self.leaves):
                name = f"{PEFT_PREFIX}{self.holder}.{expert}.{leaf}"
                yield Made.of(a, f"{name}.lora_A.weight")
                yield Made(
                    name=f"{name}.lora_B.weight",
                    shape=(out, one.rank),
                    sources=(one.b,),
                    make=self._rows(expert, slice(part * out, (part + 1) * out)),
                )

    def _rows(self, expert: int, rows: slice) -> Callable[[Sequence[Any]], Any]:
        return lambda arrays: unpacked(arrays[0], self.pair, LAYOUTS[0])[expert, rows]


def single(form: Form, shapes: Shapes, model_type: str | None, here: Callable[[str], str] = str) -> Form:
    """Return the form with pairs on single experts; the form itself where it has none on stacked ones.

    `shapes` are those of the base's weights by module; `here` gives the base's name for a module of the adapter.

    Raises:
        UnsupportedAdapter: the base is unknown, or its files have no layers of single experts for a pair.
    """
    pairs = expert_pairs(form)
    if not pairs:
        return form
    reasons: list[str] = []
    factors = pair_up(form.weights.tensors, form.config, form.weights.path.parent).modules
    splits = []
    for pair in pairs:
        found = None if model_type is None or model_type in TRANSPOSED else _split(pair, shapes, here)
        if found is None:
            reasons.append(f"`{shown(pair.module)}`: the base has no layers of {pair.experts} single experts for it")
            continue
        splits.append(_Split(pair=pair, holder=found[0], leaves=found[1], scale=factors[pair.module].scale))
    if reasons:
        raise UnsupportedAdapter(
            "its pairs on stacked experts have no form on single ones",
            reasons[:20],
            hint="name its base with `--base`, if it has not been",
        )
    taken = {spec.name for pair in pairs for spec in (pair.a, pair.b)}
    kept = [Made.of(spec) for spec in form.weights.tensors if spec.name not in taken]
    made = [*kept, *(tensor for split in splits for tensor in split.tensors())]
    return form.remade(made, **_settings(form, made, splits))


def _split(pair: ExpertPair, shapes: Shapes, here: Callable[[str], str]) -> tuple[str, tuple[str, ...]] | None:
    """Return the base's module of experts, and the layers of an expert that have the shapes of the pair."""
    called = here(plain_name(pair.module))
    for holder in (called, re.sub(r"\.mlp\.experts$", ".block_sparse_moe.experts", called)):
        for gate, up, down in _LAYERS:
            first, last = (shapes.get(f"{holder}.{n}.{gate}") for n in (0, pair.experts - 1))
            if first is None or last is None or f"{holder}.{pair.experts}.{gate}" in shapes:
                continue
            out, width = first
            if (pair.b.shape[0], pair.a.shape[1]) == (2 * out, width):
                return holder, (gate, up)
            if (pair.b.shape[0], pair.a.shape[1]) == (width, out):
                return holder, (down,)
    return None


def _settings(form: Form, made: Sequence[Made], splits: Sequence[_Split]) -> dict[str, Any]:
    """Return the settings for the new pairs; patterns only where rank or alpha differ from those of the config."""
    config = form.config
    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    for split in splits:
        key = rf"{re.escape(split.holder)}\.\d+\.(?:{'|'.join(split.leaves)})"
        factor = split.pair.rank**0.5 if config.use_rslora else split.pair.rank
        if split.pair.rank != config.r:
            ranks[key] = split.pair.rank
        if split.scale * factor != config.lora_alpha:
            alphas[key] = split.scale * factor
    gone = {name for pair in splits for name in config.parameters_of(pair.pair.module)}
    return {
        "target_modules": sorted({one.name.rsplit(".", 3)[-3] for one in made if one.name.endswith(".lora_A.weight")}),
        "target_parameters": None,
        "rank_pattern": {**ranks, **_without(config.rank_pattern, gone)},
        "alpha_pattern": {**alphas, **_without(config.alpha_pattern, gone)},
        "peft_version": None,
        "lora_B_layout": None,
    }


def _without(pattern: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
    """Return the pattern without the names of parameters that are gone."""
    return {key: value for key, value in pattern.items() if re.sub(r"\\(.)", r"\1", key) not in names}
