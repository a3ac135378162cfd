"""Tensors that replace a part of the base: carried over whole where that is exact, refused by name otherwise.

An adapter may contain modules trained in full (`modules_to_save`), biases of the base (`bias`), rows of an embedding
(`trainable_token_indices`) and copies of the embeddings that it targets. None of these can be weighted. A merge carries
such a tensor over unchanged if only one adapter has it, or if all that have it agree.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from adapterhub.core.errors import shown
from adapterhub.formats.peft.config import AdapterConfig, saved_name
from adapterhub.formats.peft.layouts import NESTED, PEFT_PREFIX, ROWS, plain_name
from adapterhub.formats.safetensors.header import TensorSpec
from adapterhub.weights.lowrank.algebra import MATRIX_NDIM
from adapterhub.weights.lowrank.factors import WeightedAdapter

CarriedKind = Literal["module", "bias", "rows", "copy"]

_EMBEDDING: Final = re.compile(r"(.+\.)?([^.]*embed[^.]*|lm_head|wte|wpe|shared)")
"""Modules whose weights PEFT saves a copy of (`save_embedding_layers`), by the last part of their names."""

_REMARKS: Final[Mapping[CarriedKind, str]] = {
    "module": "{names} (modules_to_save) is carried over unchanged from `{label}`; its weight does not apply",
    "bias": "biases of the base ({names}) are carried over unchanged from `{label}`; its weight does not apply",
    "rows": "trained rows of {names} are carried over unchanged from `{label}`; its weight does not apply",
    "copy": "the copy of {names} is carried over unchanged from `{label}`; its weight does not apply",
}
_NAMES_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Carried:
    """One such tensor: its kind, its name in the base, its module, and its place in the file of `source`.

    `entry` names the module in `modules_to_save`. For `rows`, `name` is the name of PEFT's own layer, and `tokens`
    lists the rows.
    """

    what: CarriedKind
    name: str
    module: str
    entry: str
    source: WeightedAdapter
    spec: TensorSpec
    tokens: tuple[int, ...] = ()

    def name_in_file(self, depths: Mapping[str, int]) -> str:
        """The tensor's name in a file whose factors wrap each module in `depths` that many times.

        `q_proj.bias` of one adapter becomes `q_proj.base_layer.bias` beside another adapter that targets `q_proj`; PEFT
        silently ignores a name that it does not find.
        """
        if self.what in ("module", "rows"):
            return PEFT_PREFIX + self.name
        parts = self.name.split(".")
        wrapped = []
        for count, part in enumerate(parts, 1):
            wrapped += [part, *[NESTED] * depths.get(".".join(parts[:count]), 0)]
        return PEFT_PREFIX + ".".join(wrapped)


def recognised(source: WeightedAdapter, spec: TensorSpec) -> Carried | None:
    """What a tensor that is not a factor replaces in the base; None if the config does not announce it."""
    config = source.factors.config
    if not spec.name.startswith(PEFT_PREFIX):
        return None
    name = saved_name(spec.name).removeprefix(PEFT_PREFIX)
    saved = saved_module(spec.name, config)
    if saved is not None:
        entry, module = saved
        return Carried(what="module", name=name, module=module, entry=entry, source=source, spec=spec)
    if name.endswith(ROWS) and config.trainable_token_indices is not None:
        module = name.removesuffix(ROWS)
        tokens = config.trained_rows(module)
        if len(spec.shape) == MATRIX_NDIM and len(tokens) == spec.shape[0]:
            return Carried(what="rows", name=name, module=module, entry=module, source=source, spec=spec, tokens=tokens)
        return None
    plain = plain_name(name)
    module, _, leaf = plain.rpartition(".")
    if ".lora_" in name or leaf not in ("weight", "bias"):
        return None
    what: CarriedKind | None = None
    if leaf == "bias" and config.bias != "none":
        what = "bias"
    elif _EMBEDDING.fullmatch(module) or _is_embedding(source, module):
        what = "copy"
    return what and Carried(what=what, name=plain, module=module, entry=module, source=source, spec=spec)


def saved_module(name: str, config: AdapterConfig) -> tuple[str, str] | None:
    """The entry of `modules_to_save` that a tensor belongs to, and the full name of that module.

    PEFT compares the ends of names, even inside a part between dots.
    """
    parts = saved_name(name).removeprefix(PEFT_PREFIX).split(".")
    paths = [".".join(parts[:count]) for count in range(1, len(parts))]
    entries = config.saved_modules
    return next(((entry, path) for path in paths for entry in entries if path.endswith(entry)), None)


def carried(adapters: Sequence[WeightedAdapter], modules: Collection[str]) -> tuple[dict[str, Carried], list[str]]:
    """The tensors to carry over, by their name in the base, and the reasons against others.

    `modules` are the modules of the base that have factors.
    """
    tensors: dict[str, Carried] = {}
    reasons: list[str] = []
    for source in adapters:
        for spec in source.factors.others:
            one = recognised(source, spec)
            if one is None:
                continue
            first = tensors.setdefault(one.name, one)
            if not _is_same(first, one):
                reasons.append(
                    f"`{shown(one.name)}`{_of_what(one)} differs between `{shown(first.source.label)}` and "
                    f"`{shown(source.label)}`: two replacements of a part of the base cannot be added up"
                )
            elif one.what == "module":
                tensors[one.name] = one if first.what != "module" else first  # the config then names it
    return tensors, [*reasons, *_clashes(tensors, modules)]


def remarks(tensors: Mapping[str, Carried]) -> Iterator[str]:
    """One sentence for each adapter and kind of tensor that is carried over."""
    groups: dict[tuple[str, CarriedKind], dict[str, None]] = {}
    for one in tensors.values():
        groups.setdefault((one.source.label, one.what), {})[one.entry] = None
    for (label, what), entries in groups.items():
        names = [f"`{shown(entry)}`" for entry in sorted(entries)[:_NAMES_SHOWN]]
        rest = len(entries) - len(names)
        named = ", ".join([*names, *([f"and {rest} more"] if rest else [])])
        yield _REMARKS[what].format(names=named, label=shown(label))


def config_of(tensors: Mapping[str, Carried]) -> dict[str, object]:
    """The settings that make PEFT load the tensors that are carried over."""
    ones = list(tensors.values())
    biases = {one.source.factors.config.bias for one in ones if one.what == "bias"}
    rows = [one for one in ones if one.what == "rows"]
    tokens: object = {one.module: list(one.tokens) for one in rows} or None
    settings = {_frozen(one.source.factors.config.trainable_token_indices) for one in rows}
    if len(settings) == 1:  # as the author wrote it
        indices = rows[0].source.factors.config.trainable_token_indices
        tokens = {k: list(v) for k, v in indices.items()} if isinstance(indices, Mapping) else list(indices or ())
    return {
        "modules_to_save": sorted({one.entry for one in ones if one.what == "module"}) or None,
        "bias": "all" if "all" in biases else "lora_only" if biases else "none",
        "trainable_token_indices": tokens,
    }


def _clashes(tensors: Mapping[str, Carried], modules: Collection[str]) -> Iterator[str]:
    """The changes of two adapters to one module that exclude each other."""
    replaced: dict[str, Carried] = {}
    for one in tensors.values():
        if one.what == "module":
            replaced.setdefault(one.module, one)
    for module in modules if replaced else ():
        parts = module.split(".")
        for count in range(1, len(parts) + 1):
            whole = replaced.get(".".join(parts[:count]))
            if whole is not None:
                label = shown(whole.source.label)
                yield f"`{shown(module)}` has LoRA factors, but `{label}` replaces all of `{shown(whole.module)}`"
    for one in (one for one in tensors.values() if one.what == "rows"):
        label, other = shown(one.source.label), tensors.get(f"{one.module}.weight")
        if one.module in modules:
            yield f"`{shown(one.module)}` has LoRA factors, but `{label}` replaces rows of it"
        if other is not None:
            yield (
                f"`{shown(one.module)}` comes whole from `{shown(other.source.label)}`, and `{label}` replaces rows "
                "of it"
            )


def _is_embedding(source: WeightedAdapter, module: str) -> bool:
    factors = source.factors.modules.get(module)
    return factors is not None and factors.layout.kind == "embedding"


def _frozen(indices: tuple[int, ...] | Mapping[str, tuple[int, ...]] | None) -> object:
    return tuple(sorted(indices.items())) if isinstance(indices, Mapping) else indices


def _is_same(first: Carried, second: Carried) -> bool:
    if second is first:
        return True
    factors, others = first.source.factors, second.source.factors
    return first.tokens == second.tokens and factors.same_bytes(first.spec, others, second.spec)


def _of_what(one: Carried) -> str:
    return {"module": " of modules_to_save", "rows": " (trainable_token_indices)"}.get(one.what, "")
