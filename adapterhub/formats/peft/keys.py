"""Sorts the tensor names that PEFT writes by what they are."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from adapterhub.formats.base.fingerprint import is_embedding
from adapterhub.formats.peft.config import AdapterConfig, saved_name
from adapterhub.formats.safetensors.file import TensorFile
from adapterhub.formats.safetensors.header import TensorSpec

PREFIX: Final = "base_model.model."
"""The prefix that PEFT adds to the name of a module of the base."""

_PROMPTS_PREFIX: Final = "base_model."
"""The same for methods that wrap no module, such as prompt tuning."""

_UPDATE: Final = ".lora_"
# PEFT writes neither `.weight` after a magnitude nor `.default` (the adapter's name in memory), but other writers do.
_SLOTS: Final[Mapping[str, str]] = {
    "A.weight": "a",
    "B.weight": "b",
    "B.bias": "bias",
    "embedding_A": "ea",
    "embedding_B": "eb",
    "magnitude_vector": "magnitude",
    "magnitude_vector.weight": "magnitude",
}
"""What follows `.lora_` in the names of the tensors of a pair."""

_TOKENS: Final = re.compile(r"(?P<module>.+?)(?:\.token_adapter)?\.trainable_tokens_delta")


class KeyPair(NamedTuple):
    """The tensors of one module's update. `kind` `embedding`: `lora_embedding_A`/`_B`; otherwise `lora_A`/`lora_B`.

    Linear: A [r, in], B [out, r]. Convolution: A [r, in, *kernel], B [out, r, 1, …]. Embedding: A [r, entries],
    B [width, r]. `magnitude` (DoRA) and `bias` (of B) have `out` numbers. `whole`: A and B when both are there and
    have the dimensions of matrices.
    """

    module: str
    kind: str
    a: TensorSpec | None = None
    b: TensorSpec | None = None
    magnitude: TensorSpec | None = None
    bias: TensorSpec | None = None
    whole: tuple[TensorSpec, TensorSpec] | None = None

    @property
    def rank(self) -> int:
        """First dimension of A; 0 when there is no usable A."""
        return self.a.shape[0] if self.a and self.a.shape else 0

    @property
    def update(self) -> tuple[int, ...] | None:
        """The shape of B @ A, as the weight of a linear layer or an embedding has it; None for anything else."""
        if not self.whole or len(self.whole[0].shape) > 2:
            return None
        a, b = self.whole[0].shape, self.whole[1].shape
        return (a[1], b[0]) if self.kind == "embedding" else (b[0], a[1])


@dataclass(frozen=True, kw_only=True)
class AdapterKeys:
    """Every tensor of an adapter, each in one group. Module names are those of the base."""

    pairs: tuple[KeyPair, ...]
    saved: tuple[tuple[str, TensorSpec], ...]
    """Tensors of modules trained as a whole, with the name of the base tensor that each replaces."""
    biases: tuple[tuple[str, TensorSpec], ...]
    """Biases of the base, as `bias: all` or `lora_only` saves them, by the base tensor's name."""
    tokens: tuple[tuple[str, TensorSpec], ...]
    """Rows of an embedding that were trained (`trainable_token_indices`), by module."""
    copies: tuple[tuple[str, TensorSpec], ...]
    """Copies of a targeted module's own weight, by the base tensor's name."""
    others: tuple[TensorSpec, ...]
    """Tensors that the config does not account for."""
    marked: tuple[TensorSpec, ...] = ()
    """For methods other than LoRA: the tensors that carry the method's name."""


def sort_keys(weights: TensorFile, config: AdapterConfig) -> AdapterKeys:
    """Sort the tensors of `weights` by what PEFT would do with them under `config`."""
    updates = weights.once(_updates) if config.is_lora else _Updates((), frozenset(), weights.tensors)
    pairs, modules, rest = updates
    marks = config.method.marks
    marked = () if config.is_lora else tuple(spec for spec in rest if _is_marked(spec.name, marks))
    ours = frozenset(marked)
    groups: dict[str, list[tuple[str, TensorSpec]]] = {"saved": [], "biases": [], "tokens": [], "copies": []}
    targets = modules.union(_module_of(spec.name, marks) for spec in marked) if marked else modules
    others = tuple(
        spec
        for spec in rest
        if spec not in ours and not config.is_of_variant(spec.name) and not _take_other(spec, config, targets, groups)
    )
    return AdapterKeys(
        pairs=pairs,
        saved=tuple(groups["saved"]),
        biases=tuple(groups["biases"]),
        tokens=tuple(groups["tokens"]),
        copies=tuple(groups["copies"]),
        others=others,
        marked=marked,
    )


class _Updates(NamedTuple):
    """The pairs of a LoRA, the names of their modules, and all other tensors."""

    pairs: tuple[KeyPair, ...]
    modules: frozenset[str]
    rest: tuple[TensorSpec, ...]


def _updates(tensors: tuple[TensorSpec, ...]) -> _Updates:
    parts: dict[str, dict[str, TensorSpec]] = {}
    rest = tuple(spec for spec in tensors if not _take_update(spec, parts))
    return _Updates(tuple(_pair(module, found) for module, found in sorted(parts.items())), frozenset(parts), rest)


def _is_marked(name: str, marks: tuple[str, ...]) -> bool:
    return not marks or any(part.startswith(mark) or f"_{mark}" in part for part in name.split(".") for mark in marks)


def _module_of(name: str, marks: tuple[str, ...]) -> str:
    """Return the module that a method's own tensor is for: the name before the first part with a mark."""
    parts = name.removeprefix(PREFIX).split(".")
    return ".".join(itertools.takewhile(lambda part: not (marks and part.startswith(marks)), parts))


def _take_update(spec: TensorSpec, parts: dict[str, dict[str, TensorSpec]]) -> bool:
    module, _, tail = spec.name.rpartition(_UPDATE)
    slot = _SLOTS.get(tail)
    if slot is None or not module or not spec.name.startswith(PREFIX):
        return False
    module = module.removeprefix(PREFIX)
    found = parts.get(module)
    if found is None:
        found = parts[module] = {}
    if slot in found:
        return False  # `lora_magnitude_vector` and `lora_magnitude_vector.weight` for one module
    found[slot] = spec
    return True


def _pair(module: str, found: dict[str, TensorSpec]) -> KeyPair:
    kind, a, b = "linear", found.get("a"), found.get("b")
    if "ea" in found or "eb" in found:
        kind, a, b = "embedding", found.get("ea"), found.get("eb")
    whole = None if a is None or b is None or not (_is_matrix(a.shape) and _is_matrix(b.shape)) else (a, b)
    return KeyPair(module, kind, a, b, found.get("magnitude"), found.get("bias"), whole)


def _is_matrix(shape: tuple[int, ...]) -> bool:
    return len(shape) > 1 and 0 not in shape


def _take_other(
    spec: TensorSpec,
    config: AdapterConfig,
    targets: frozenset[str],
    groups: dict[str, list[tuple[str, TensorSpec]]],
) -> bool:
    if spec.name.startswith(PREFIX):
        name = spec.name.removeprefix(PREFIX)
    elif spec.name.startswith(_PROMPTS_PREFIX) and not config.method.factors:
        name = spec.name.removeprefix(_PROMPTS_PREFIX)
    else:
        return False
    tokens = _TOKENS.fullmatch(name)
    if tokens and config.trainable_token_indices is not None:
        groups["tokens"].append((tokens["module"], spec))
        return True
    plain = saved_name(name)
    owner, _, tail = plain.rpartition(".")
    if plain != name or _is_saved(owner, config):
        groups["saved"].append((plain, spec))
        return True
    inner = owner.removesuffix(".base_layer").removesuffix(".token_adapter")
    if tail == "bias" and _keeps_bias(config, inner, targets):
        groups["biases"].append((f"{inner}.bias", spec))
        return True
    is_copy = owner != inner and inner in targets
    if is_copy or (tail in ("weight", "bias") and is_embedding(inner)):
        groups["copies"].append((f"{inner}.{tail}", spec))
        return True
    return False


def _keeps_bias(config: AdapterConfig, module: str, targets: frozenset[str]) -> bool:
    return config.bias == "all" or (config.bias.endswith("_only") and module in targets)


def _is_saved(module: str, config: AdapterConfig) -> bool:
    """Whether a module lies in one that is trained as a whole. PEFT compares the ends of names, even without a dot."""
    names = config.saved_modules
    return any(path.endswith(names) for path in _paths(module)) if names else False


def _paths(module: str) -> Iterator[str]:
    """Yield the module and all modules that contain it."""
    while module:
        yield module
        module = module.rpartition(".")[0]
