"""`gguf`: one file for llama.cpp, `--lora FILE`, exact for rsLoRA, patterns and every rank.

PEFT's scale of each module is folded into B. `adapter.lora.alpha` is 0, with which llama.cpp uses B·A unscaled; it
would divide any other alpha by each module's rank, which is wrong for rsLoRA and `alpha_pattern`. The tokens of an
aLoRA stand in `adapter.alora.invocation_tokens`, and llama-server looks for them. Tensors have the names of the base's
own GGUF. For architectures such as Llama, llama.cpp stores the two parts of a rotary pair in adjacent rows; there the
rows of B for q and k are reordered like those of the base.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import torch
from torch import Tensor

from adapterhub.core.disk.files import new_file
from adapterhub.core.errors import Conflict, Incompatible, Malformed, UnsupportedAdapter, shown
from adapterhub.core.extras import extra_named
from adapterhub.formats.base.stacking import LEAVES
from adapterhub.formats.dialects.gguf import WEIGHTS_KEY
from adapterhub.formats.engines.llama_cpp import BASES, GgufBase
from adapterhub.formats.gguf.names import gguf_name
from adapterhub.formats.peft.config import owner
from adapterhub.formats.prompts.modelfile import PROMPT_PREFIX
from adapterhub.inference.export._job import Adapter, Exported, Job
from adapterhub.inference.export._prompts import prompt_notes, prompt_prefix
from adapterhub.weights.dtypes import CHOSEN_DTYPES
from adapterhub.weights.lowrank.algebra import LowRank
from adapterhub.weights.lowrank.factors import AdapterFactors, is_finite

_QUERIES: Final = ".q_proj"
_KEYS: Final = ".k_proj"
_EMBEDDING: Final = "token_embd.weight"

_EXPERTS: Final = re.compile(
    r"\blayers\.(?P<layer>\d+)\.(?:mlp|block_sparse_moe)\.experts(?:\.(?P<expert>\d+)\.(?P<leaf>\w+))?$"
)


def export(job: Job, out: Path) -> Exported:
    """Write the GGUF file `out`; the default dtype is float32.

    Raises:
        MissingExtra: the package `gguf` is not installed.
        UnsupportedAdapter: GGUF cannot express parts of the adapter; names each of them.
        Incompatible: numbers are too large for the dtype.
    """
    _package()
    if out.exists():  # an empty folder, too
        raise Conflict(f"`{shown(str(out), 200)}` exists. Nothing was written", hint="name a new file")
    with job.opened("llama.cpp", needs_base=True) as adapter:
        with new_file(out) as partial:
            write_gguf(adapter, partial, dtype=job.dtype or "float32", job=job)
            job.check(partial, adapter)
        told = adapter.verdict.notes if adapter.factors.config.alora_invocation_tokens else ()
        return adapter.exported(out, notes=[*prompt_notes(adapter.prompt), *told], flags=("--lora", str(out)))


@dataclass(frozen=True, slots=True, kw_only=True)
class _TensorPlace:
    """The place of a module's pair: the base's tensor, and the number of heads whose rows are reordered (0: none)."""

    module: str
    tensor: str
    heads: int = 0

    def read(self, factors: AdapterFactors, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return a [r, in] and B [out, r] as in the file; for the token embedding A is [entries, r]."""
        update = factors.read(self.module).folded(dtype)
        if self.tensor == _EMBEDDING:
            return update.a.T, update.b
        return update.a, turned(update.b, self.heads) if self.heads else update.b

    def shapes(self, factors: AdapterFactors) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of what `read` returns."""
        a, b = factors.modules[self.module].a.shape, factors.modules[self.module].b.shape
        return (a[::-1] if self.tensor == _EMBEDDING else a), b


@dataclass(frozen=True, slots=True, kw_only=True)
class _Experts:
    """All experts of one layer, which are one tensor in GGUF: A [experts, r, in] and B [experts, out, r].

    `pairs` has a module and one of its parts for each expert. Experts without a pair get zeros, and so do ranks above
    that of a pair. `rows` are the rows of B to use, because gate and up may share a pair.
    """

    tensor: str
    pairs: Mapping[int, tuple[str, int]]
    count: int
    rows: slice

    @property
    def module(self) -> str:
        return next(iter(self.pairs.values()))[0]

    def read(self, factors: AdapterFactors, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return a and B as in the file."""
        a, b = (torch.zeros(shape, dtype=dtype) for shape in self.shapes(factors))
        held: tuple[str, tuple[LowRank, ...]] = "", ()
        for expert, (module, part) in self.pairs.items():
            if module != held[0]:
                held = module, factors.parts(module)
            update = held[1][part].folded(dtype)
            a[expert, : update.rank] = update.a
            b[expert, :, : update.rank] = update.b[self.rows]
        return a, b

    def shapes(self, factors: AdapterFactors) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the shapes of what `read` returns."""
        rank = max(factors.modules[module].rank for module, _ in self.pairs.values())
        pair = factors.modules[self.module]
        rows = len(range(pair.layout.out)[self.rows])
        return (self.count, rank, pair.layout.width), (self.count, rows, rank)


def turned(b: Tensor, heads: int) -> Tensor:
    """Return the rows of B [out, r] with the two halves of each head interleaved.

    transformers pairs row i of a head with row i of its second half; llama.cpp pairs each even row with the next one.
    """
    out, rank = b.shape
    return b.reshape(heads, 2, out // heads // 2, rank).transpose(1, 2).reshape(out, rank)


def write_gguf(adapter: Adapter, path: Path, *, dtype: str, job: Job) -> None:
    """Write the file, module by module.

    Raises:
        UnsupportedAdapter: modules have no tensor in the base's GGUF.
        Incompatible: numbers are too large for the dtype.
        OSError: the file cannot be written.
    """
    import numpy as np

    gguf = _package()
    places = _places(adapter)
    kind = CHOSEN_DTYPES[dtype]
    raw = {"bfloat16": gguf.GGMLQuantizationType.BF16}.get(dtype)
    stored = np.dtype({"float32": "f4", "float16": "f2", "bfloat16": "u2"}[dtype])
    writer = gguf.GGUFWriter(path, _base(adapter).architecture)
    try:
        for key, value in _metadata(adapter, job).items():
            writer.add_string(key, value)
        writer.add_float32("adapter.lora.alpha", 0.0)
        if tokens := adapter.factors.config.alora_invocation_tokens:
            key, kinds = gguf.Keys.Adapter.ALORA_INVOCATION_TOKENS, gguf.GGUFValueType
            writer.add_key_value(key, list(tokens), kinds.ARRAY, sub_type=kinds.UINT32)
        for place in places:
            for name, shape in zip(_names(place), place.shapes(adapter.factors), strict=True):
                size = int(np.prod(shape)) * stored.itemsize
                writer.add_tensor_info(name, shape, stored, size, raw_dtype=raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        (stream,) = writer.fout
        for done, place in enumerate(places):
            job.step(done, len(places))
            pair = place.read(adapter.factors, kind)
            if not all(map(is_finite, pair)):
                what = f"the update of `{shown(place.module)}` is too large for {dtype}"
                raise Incompatible(f"{what}; nothing was written", hint="use `--dtype float32`")
            for tensor in pair:
                # By hand: the writer's own method hides the reason of a failure, such as a full disk.
                data = tensor.contiguous().flatten().view(torch.uint8).numpy().data
                writer.write_padding(stream, stream.tell())
                stream.write(data)
                writer.write_padding(stream, len(data))
        job.step(len(places), len(places))
    finally:
        writer.close()


def _names(place: _TensorPlace | _Experts) -> tuple[str, str]:
    return f"{place.tensor}.lora_a", f"{place.tensor}.lora_b"


def _metadata(adapter: Adapter, job: Job) -> Mapping[str, str]:
    """Return the metadata of the file. llama.cpp reads the types, llama-server task and prefix; the rest is for people.

    For a quantised copy, the base is the one that the adapter was made for: its file runs on every copy.
    """
    found = {"general.type": "adapter", "adapter.type": "lora", "general.name": adapter.factors.folder.resolve().name}
    if prefix := prompt_prefix(adapter.prompt):
        found[PROMPT_PREFIX] = prefix
    manifest = adapter.manifest
    if manifest is not None:
        found["general.name"] = f"{manifest.name} {manifest.version}"
        found["general.version"] = manifest.version
        found["adapterhub.manifest"] = manifest.digest
        if manifest.task:
            found["adapter.lora.task_name"] = manifest.task
    if adapter.record is not None:
        here, declared = adapter.record.fingerprint, adapter.found.base.fingerprint
        stands = here.copy is not None and job.library.bases.judged(declared, here).verdict.stands_for
        found[WEIGHTS_KEY] = declared.weights if declared is not None and stands else here.weights
    return found


def _base(adapter: Adapter) -> GgufBase:
    kind = adapter.facts.model_type
    if kind is None:
        raise Malformed(
            "the base's config.json has no `model_type`, which decides the names of its tensors in GGUF",
            hint="add `model_type` to it, as the base's publisher names it",
        )
    return BASES[kind]


def _text_config(adapter: Adapter) -> Mapping[str, Any]:
    inner = adapter.base_config.get("text_config")
    return inner if isinstance(inner, Mapping) else adapter.base_config


def _number(adapter: Adapter, *keys: str) -> int:
    config = _text_config(adapter)
    value = next((config[key] for key in keys if type(config.get(key)) is int), None)
    if value is None or value < 1:
        raise Malformed(f"the base's config.json has no `{keys[0]}`, expected a whole number above 0")
    return int(value)


def _places(adapter: Adapter) -> list[_TensorPlace | _Experts]:
    """Return the tensor of every module, sorted by module; those of experts at the end.

    Raises:
        UnsupportedAdapter: modules have no tensor; names each of them.
    """
    base = _base(adapter)
    places: list[_TensorPlace | _Experts] = []
    reasons: list[str] = []
    experts, rest = _experts(adapter)
    for module in rest:
        here = adapter.base_name(owner(module))
        tensor = gguf_name(base.architecture, f"{here}.weight")
        heads = _heads(adapter, here) if base.turned else 0
        if tensor is None:
            reasons.append(f"`{shown(module)}`: GGUF has no tensor for it in `{base.architecture}`")
        elif heads and adapter.factors.modules[module].b.shape[0] % (2 * heads):
            rows = adapter.factors.modules[module].b.shape[0]
            reasons.append(f"`{shown(module)}`: {rows} rows cannot be split into {heads} heads")
        else:
            places.append(_TensorPlace(module=module, tensor=tensor, heads=heads))
    places += experts
    twice = {place.tensor for place in places if sum(p.tensor == place.tensor for p in places) > 1}
    reasons += [f"`{shown(p.module)}`: another module is `{p.tensor}` too" for p in places if p.tensor in twice]
    if reasons:
        raise UnsupportedAdapter(
            f"`{shown(adapter.label, 200)}` cannot be exported as GGUF; nothing was written",
            reasons,
            hint="`adapt export … --format merged` writes base and adapter as one model",
        )
    return places


def _experts(adapter: Adapter) -> tuple[list[_Experts], list[str]]:
    """Return the tensors of the experts, and the modules that are not experts.

    A pair of `target_parameters` is for all experts of a layer, and its shape decides for which parameter. A pair in an
    older file is for one layer of one expert.
    """
    rest: list[str] = []
    found: list[_Experts] = []
    single: dict[tuple[str, str], dict[int, tuple[str, int]]] = {}
    if not _base(adapter).experts:
        return [], list(adapter.factors.modules)
    count = _number(adapter, "num_local_experts", "num_experts")
    inner, hidden = _number(adapter, "moe_intermediate_size", "intermediate_size"), _number(adapter, "hidden_size")
    halves = {"gate": slice(0, inner), "up": slice(inner, 2 * inner)}
    whole = {"down": slice(0, hidden)}
    for module, factors in adapter.factors.modules.items():
        place = _EXPERTS.search(adapter.base_name(owner(module)))
        layout = factors.layout
        by_shape = {(2 * inner, hidden): halves, (hidden, inner): whole}.get((layout.out, layout.width))
        if place is None or (place["expert"] and place["leaf"] not in LEAVES):
            rest.append(module)
        elif place["expert"] and int(place["expert"]) < count:
            single.setdefault((place["layer"], LEAVES[place["leaf"]]), {})[int(place["expert"])] = (module, 0)
        elif by_shape is not None and layout.parts == count:
            pairs = {expert: (module, expert) for expert in range(count)}
            found += [
                _Experts(tensor=_stacked(place["layer"], name), pairs=pairs, count=count, rows=rows)
                for name, rows in by_shape.items()
            ]
        else:
            rest.append(module)
    found += [
        _Experts(tensor=_stacked(layer, name), pairs=pairs, count=count, rows=slice(None))
        for (layer, name), pairs in single.items()
    ]
    return found, rest


def _stacked(layer: str, name: str) -> str:
    return f"blk.{layer}.ffn_{name}_exps.weight"


def _heads(adapter: Adapter, module: str) -> int:
    """Return the number of heads in the rows of a module that are reordered; 0 for other modules."""
    if module.endswith(_QUERIES):
        return _number(adapter, "num_attention_heads")
    if module.endswith(_KEYS):
        return _number(adapter, "num_key_value_heads", "num_attention_heads")
    return 0


def _package() -> ModuleType:
    with extra_named("writing GGUF"):
        import gguf
    package: ModuleType = gguf
    return package
