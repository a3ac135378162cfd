"""llama.cpp's adapters, GGUF files of `convert_lora_to_gguf.py` and of our own export, as PEFT's form on a base.

Names are those of the base's own GGUF, so only the base gives the modules. `adapter.lora.alpha` is divided by the rank
of each pair, and 0 means a scale of 1 (`llama_adapter_lora_weight::get_scale`). For architectures such as Llama the
rows of B of q and k are reordered like those of the base. The experts of a layer are one tensor, [experts, r, in] and
[experts, out, r].
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn

from adapterhub.core.disk.files import inside
from adapterhub.core.disk.held_file import HeldFile
from adapterhub.core.errors import MalformedTensorFile, shown
from adapterhub.core.limits import limits
from adapterhub.formats.base.fingerprint import is_embedding
from adapterhub.formats.base.stacking import LEAVES
from adapterhub.formats.dialects.form import Form, Made
from adapterhub.formats.engines.llama_cpp import BASES, GgufBase
from adapterhub.formats.gguf.file import GgufHeader, read_gguf_header
from adapterhub.formats.gguf.names import gguf_name
from adapterhub.formats.manifest import CONFIG_FILE
from adapterhub.formats.peft.config import AdapterConfig
from adapterhub.formats.peft.keys import PREFIX
from adapterhub.formats.peft.pairs import MATRIX_NDIM
from adapterhub.formats.safetensors.file import TensorFile
from adapterhub.formats.safetensors.header import TensorSpec

_SLOT: Final = re.compile(r"(?P<tensor>.+)\.lora_(?P<side>[ab])", re.ASCII)
_EXPERT: Final = re.compile(
    r"(?P<holder>(?:.+\.)?layers\.(?P<layer>\d+)\.(?:mlp|block_sparse_moe)\.experts)\.(?P<expert>\d+)\.(?P<leaf>\w+)",
    re.ASCII,
)
_TOKENS: Final = "token_embd.weight"
_HEADS: Final = {".q_proj": ("num_attention_heads",), ".k_proj": ("num_key_value_heads", "num_attention_heads")}
_ALPHA: Final = "adapter.lora.alpha"
_INVOCATION: Final = "adapter.alora.invocation_tokens"
WEIGHTS_KEY: Final = "adapterhub.base.weights"
"""The key under which our own export names its base."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """What is known of a base: its `config.json`, the shapes of its weights by module, and its digest of weights.

    `stands_for` returns True for weights whose adapters run on it, as on a quantised copy.
    """

    label: str
    config: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    weights: str = ""
    stands_for: Callable[[object], bool] = lambda _weights: False

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The part of the config that is about the language model."""
        inner = self.config.get("text_config")
        return inner if isinstance(inner, Mapping) else self.config

    def number(self, *keys: str) -> int:
        """Return the first of these settings that the config has; 0 for none."""
        found = (self.text_config.get(key) for key in keys)
        return next((value for value in found if type(value) is int and value > 0), 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pair:
    """A pair of the PEFT folder: its module, the factors in the file, and how they differ from PEFT's."""

    module: str
    a: TensorSpec
    b: TensorSpec
    heads: int = 0
    is_embedding: bool = False

    @property
    def rank(self) -> int:
        return self.b.shape[-1]

    def tensors(self) -> Iterator[Made]:
        """Yield a and B as PEFT has them."""
        name = f"{PREFIX}{self.module}"
        if self.is_embedding:
            shape = self.a.shape[::-1]
            yield Made(name=f"{name}.lora_embedding_A", shape=shape, sources=(self.a,), make=lambda s: s[0].T)
            yield Made.of(self.b, f"{name}.lora_embedding_B")
            return
        yield Made.of(self.a, f"{name}.lora_A.weight")
        if self.heads:
            yield Made(name=f"{name}.lora_B.weight", shape=self.b.shape, sources=(self.b,), make=self._turned_back)
        else:
            yield Made.of(self.b, f"{name}.lora_B.weight")

    def _turned_back(self, sources: Sequence[Any]) -> Any:
        """Return the two halves of each head one after the other, as transformers has them."""
        out, rank = self.b.shape
        return sources[0].reshape(self.heads, out // self.heads // 2, 2, rank).swapaxes(1, 2).reshape(out, rank)


@dataclass(frozen=True, kw_only=True)
class GgufAdapter:
    """An open GGUF adapter."""

    path: Path
    held: HeldFile
    header: GgufHeader
    notes: tuple[str, ...] = field(default=())

    @classmethod
    def opened(cls, path: Path) -> GgufAdapter:
        """Return the file at `path`.

        Raises:
            MalformedTensorFile: it cannot be opened, breaks its format, or is not an adapter.
        """
        try:
            held = HeldFile(inside(path.parent, path.name))
            header = read_gguf_header(held, path.name)
        except OSError as error:
            raise MalformedTensorFile(path.name, f"cannot be opened: {error.strerror}") from None
        found = cls(path=path, held=held, header=header)
        kind = header.values.get("general.type"), header.values.get("adapter.type")
        if kind != ("adapter", "lora"):
            told = " and ".join(shown(one, 40) for one in kind)
            found.refuse(f"is a GGUF file of type {told}, expected adapter and lora", "only LoRA has a form in PEFT")
        return found

    def refuse(self, reason: str, hint: str = "", code: str = "E_UNSUPPORTED") -> NoReturn:
        """Raise for the file.

        Raises:
            MalformedTensorFile: always.
        """
        raise MalformedTensorFile(self.path.name, reason, code=code, hint=hint)

    def read(self, base: Base | None) -> Form:
        """Return the adapter in PEFT's form.

        Raises:
            MalformedTensorFile: the base is unknown or another, or parts have no place in it; or factors do not fit.
        """
        if base is None:
            self.refuse(
                "is a GGUF adapter, and the names of its tensors mean something on its base only",
                "give its base: `adapt add FILE --base BASE`",
            )
        known = self._base_kind(base)
        pairs = list(self._pairs(base, known))
        settings = json.dumps(self._settings(pairs)).encode()
        weights = TensorFile(
            path=self.path,
            size_bytes=self.held.size_bytes,
            data_start=self.header.data_start,
            metadata={"format": "pt"},
            tensors=self.header.tensors,
        )
        config = AdapterConfig.parse(settings, CONFIG_FILE)
        source = Form(config=config, config_bytes=settings, weights=weights, held=self.held)
        return source.remade(tensor for pair in pairs for tensor in pair.tensors())

    def _base_kind(self, base: Base) -> GgufBase:
        """Return how llama.cpp keeps the base, which must be the one that the file is for."""
        kind = base.config.get("model_type")
        inner = base.text_config.get("model_type")
        known = BASES.get(str(kind)) or BASES.get(str(inner))
        if known is None:
            self.refuse(f"is for llama.cpp, whose names of a base of type `{shown(kind)}` are not known here")
        architecture = self.header.values.get("general.architecture")
        if architecture != known.architecture:
            other = f"`{shown(base.label)}` is `{known.architecture}`"
            self.refuse(f"is for `{shown(architecture, 40)}`, and {other}", code="E_BASE_MISMATCH")
        stated = self.header.values.get(WEIGHTS_KEY)
        if base.weights and stated is not None and stated != base.weights and not base.stands_for(stated):
            self.refuse(f"says that its base has other weights than `{shown(base.label)}`", code="E_BASE_MISMATCH")
        return known

    def _pairs(self, base: Base, known: GgufBase) -> Iterator[_Pair]:
        found: dict[str, dict[str, TensorSpec]] = {}
        for spec in self.header.tensors:
            match = _SLOT.fullmatch(spec.name)
            if match is None:
                self.refuse(
                    f"`{shown(spec.name)}` is no factor of a LoRA", "llama.cpp leaves out trained norms as well"
                )
            found.setdefault(match["tensor"], {})[match["side"]] = spec
        places = self._places(base, known)
        for tensor, sides in found.items():
            if len(sides) < len("ab"):
                self.refuse(f"`{shown(tensor)}` has one factor of two", code="E_PAIR")
            modules = places.get(tensor)
            if not modules:
                self.refuse(f"`{shown(base.label)}` has no module for `{shown(tensor)}`", code="E_BASE_MISMATCH")
            yield from self._on(tensor, sides["a"], sides["b"], modules, base, known)

    def _on(
        self, tensor: str, a: TensorSpec, b: TensorSpec, modules: Sequence[str], base: Base, known: GgufBase
    ) -> Iterator[_Pair]:
        """Yield the pairs of one tensor: one, or one for each expert."""
        label, dimensions = shown(tensor), MATRIX_NDIM + (tensor.endswith("_exps.weight"))
        is_tokens = tensor == _TOKENS and is_embedding(modules[0])
        rank = a.shape[-1 if is_tokens else -2] if len(a.shape) == dimensions else 0
        if len(a.shape) != dimensions or len(b.shape) != dimensions or rank != b.shape[-1] or rank < 1:
            shapes = f"{list(a.shape)} and {list(b.shape)}"
            self.refuse(f"`{label}` has factors of shapes {shapes}", code="E_SHAPE")
        if rank > limits().rank:
            self.refuse(f"`{label}` has rank {rank}, expected at most {limits().rank}", code="E_RANK")
        if dimensions > MATRIX_NDIM:
            if {a.shape[0], b.shape[0]} != {len(modules)}:
                counts = f"{a.shape[0]} and {b.shape[0]}"
                self.refuse(f"`{label}` is for {counts} experts, the base has {len(modules)}", code="E_BASE_MISMATCH")
            for expert, module in enumerate(modules):
                yield _Pair(module=module, a=_member(a, expert), b=_member(b, expert))
            return
        (module,) = modules
        heads = self._heads(module, base) if known.turned else 0
        if heads and b.shape[0] % (2 * heads):
            self.refuse(f"`{label}` has {b.shape[0]} rows, which are no {heads} heads", code="E_SHAPE")
        yield _Pair(module=module, a=a, b=b, heads=heads, is_embedding=is_tokens)

    def _heads(self, module: str, base: Base) -> int:
        keys = next((keys for end, keys in _HEADS.items() if module.endswith(end)), None)
        if keys is None:
            return 0
        heads = base.number(*keys)
        if not heads:
            self.refuse(f"`config.json` of `{shown(base.label)}` has no `{keys[0]}`, which orders the rows of q and k")
        return heads

    def _places(self, base: Base, known: GgufBase) -> dict[str, list[str]]:
        """Return the base's modules by the names of their tensors in GGUF; those of experts in order."""
        found: dict[str, list[str]] = {}
        experts: dict[str, dict[int, str]] = {}
        for module in base.shapes:
            match = _EXPERT.fullmatch(module) if known.experts else None
            if match is not None and match["leaf"] in LEAVES:
                tensor = f"blk.{match['layer']}.ffn_{LEAVES[match['leaf']]}_exps.weight"
                experts.setdefault(tensor, {})[int(match["expert"])] = module
            elif name := gguf_name(known.architecture, f"{module}.weight"):
                found.setdefault(name, []).append(module)
        for tensor, members in experts.items():
            if sorted(members) == list(range(len(members))):
                found[tensor] = [members[expert] for expert in range(len(members))]
        return {
            tensor: modules for tensor, modules in found.items() if len(modules) == 1 or tensor.endswith("_exps.weight")
        }

    def _settings(self, pairs: Sequence[_Pair]) -> dict[str, Any]:
        """PEFT's config: llama.cpp's scale for each pair is `alpha / rank`, or 1 where alpha is 0."""
        alpha = self.header.values.get(_ALPHA, 0.0)
        if not isinstance(alpha, float) or not 0 <= alpha <= limits().rank * 16:
            self.refuse(f"`{_ALPHA}` is {shown(alpha, 40)}, expected a number from 0", code="E_ALPHA")
        rank = Counter(pair.rank for pair in pairs).most_common(1)[0][0]
        others = {f"^{re.escape(pair.module)}$": pair.rank for pair in pairs if pair.rank != rank}
        settings: dict[str, Any] = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": None,
            "inference_mode": True,
            "r": rank,
            "lora_alpha": _whole(alpha or float(rank)),
            "target_modules": _targets(pairs),
            "rank_pattern": others,
            "alpha_pattern": {} if alpha else others,
        }
        if tokens := self.header.values.get(_INVOCATION):
            settings["alora_invocation_tokens"] = tokens
        return settings


def _targets(pairs: Iterable[_Pair]) -> list[str]:
    return sorted({pair.module.rpartition(".")[2] for pair in pairs})


def _member(spec: TensorSpec, expert: int) -> TensorSpec:
    """Return the matrix of one expert."""
    size = spec.size_bytes // spec.shape[0]
    return TensorSpec(
        spec.name, spec.dtype, spec.shape[1:], spec.start + expert * size, spec.start + (expert + 1) * size
    )


def _whole(value: float) -> int | float:
    return int(value) if value.is_integer() else value
